//! Launch plans.

use std::time::Duration;

use lamport_rs_kernels::group::ControlAddresses;
use lamport_rs_kernels::parameters::Group;
use lamport_rs_kernels::plan::minimax::{MinimaxShape, MinimaxTensors};
use lamport_rs_kernels::plan::{self, Device, PlanError};
use lamport_rs_kernels::variants::{FILL_THREADS, MinimaxVariant, WARP_THREADS};
use lamport_rs_kernels::{Dtype, ModuleKey, module};
use lamport_rs_protocol::geometry::{Geometry, minimax_comm_size};

const H200: Device = Device { compute_capability: (9, 0), multiprocessors: 132 };
const A100: Device = Device { compute_capability: (8, 0), multiprocessors: 108 };

fn minimax_qk(tokens: u32, world_size: u32) -> MinimaxShape<2> {
    let widths = [6144 / world_size, 1024 / world_size];
    MinimaxShape { tokens, widths, dtype: Dtype::BFloat16, weight: Dtype::BFloat16, world_size }
}

fn variant_of(key: ModuleKey) -> MinimaxVariant {
    match key {
        ModuleKey::MinimaxRms(kernel) | ModuleKey::MinimaxRmsQk(kernel) => kernel.variant,
        other => panic!("{other:?} is no MiniMax kernel"),
    }
}

#[test]
fn few_tokens_get_a_block_each_and_a_thread_per_vector() {
    for tokens in [1, 8, 32, 128] {
        let plan = minimax_qk(tokens, 2).plan(H200, None).unwrap();
        assert_eq!((plan.launch.grid, plan.tokens_per_block), (tokens, 1));
        // 384 + 64 vectors and the service warp.
        assert_eq!(plan.launch.block, 384 + 64 + 32);
        assert!(plan.launch.dependent_launch);
    }
}

#[test]
fn many_tokens_share_blocks_so_that_the_grid_is_one_wave() {
    // Two blocks of this width run on a multiprocessor at once.
    for (tokens, per_block) in [(264, 1), (265, 2), (528, 2), (529, 4), (1056, 4), (1057, 8), (16384, 8)] {
        let plan = minimax_qk(tokens, 2).plan(H200, None).unwrap();
        assert_eq!((tokens, plan.tokens_per_block), (tokens, per_block));
        assert_eq!(plan.launch.grid, tokens.div_ceil(per_block));
    }
}

#[test]
fn the_caller_can_choose_the_tokens_of_a_block() {
    for tokens_per_block in [1, 2, 4, 8] {
        let plan = minimax_qk(100, 4).plan(H200, Some(tokens_per_block)).unwrap();
        assert_eq!((plan.tokens_per_block, plan.launch.grid), (tokens_per_block, 100_u32.div_ceil(tokens_per_block)));
    }
    let error = minimax_qk(100, 4).plan(H200, Some(3)).unwrap_err();
    assert_eq!(error, PlanError::TokensPerBlock { tokens: 3, possible: vec![1, 2, 4, 8] });
}

#[test]
fn only_hopper_and_later_launch_dependents() {
    assert!(!minimax_qk(1, 2).plan(A100, None).unwrap().launch.dependent_launch);
    assert!(!plan::fill(1, A100).dependent_launch && plan::fill(1, H200).dependent_launch);
    assert!(!plan::verify(A100).dependent_launch && plan::verify(H200).dependent_launch);
}

#[test]
fn every_shape_has_a_launch_that_its_kernel_can_take() {
    let widths = [8, 16, 64, 128, 200, 256, 512, 1536, 3072, 6144, 8192, 10240, 16384, 40960, 131072];
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::BFloat16] {
        for world_size in 2..=16 {
            for tokens in [1, 2, 3, 131, 132, 133, 500, 1057, 2048, 4099, 16384] {
                for first in widths {
                    let (weight, widths) = (Dtype::Float32, [first]);
                    check(MinimaxShape { tokens, widths, dtype, weight, world_size });
                    for second in [8, first / 8 * 8, 512, 16384] {
                        let widths = [first, second];
                        check(MinimaxShape { tokens, widths, dtype, weight: dtype, world_size });
                    }
                }
            }
        }
    }
}

fn check<const MATRICES: usize>(shape: MinimaxShape<MATRICES>) {
    for device in [H200, A100] {
        let plan = shape.plan(device, None).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
        let variant = variant_of(plan.launch.module);
        let what = format!("{shape:?}: {plan:?}");
        assert!(
            plan.launch.block <= variant.bounds.max_threads && plan.launch.block.is_multiple_of(WARP_THREADS),
            "{what}"
        );
        assert_eq!(plan.launch.grid, shape.tokens.div_ceil(variant.tokens), "{what}");

        let geometry =
            Geometry::new(shape.world_size.into(), comm_size(shape.tokens, shape.world_size, MATRICES == 2)).unwrap();
        let parameters = plan.parameters(&geometry, group(&geometry), [tensors(); MATRICES], 1e-6).unwrap();
        let row_warps: u32 = parameters.matrix.iter().map(|matrix| matrix.warps).sum();
        let exchanging = variant.tokens * MATRICES as u32 * (shape.world_size - 1);
        // The last warp has neither rows nor words: it clears and arrives while others poll.
        let service_warp_begins = plan.launch.block - WARP_THREADS;
        assert!(row_warps * WARP_THREADS <= service_warp_begins && exchanging <= service_warp_begins, "{what}");
        for (matrix, width) in parameters.matrix.iter().zip(shape.widths) {
            assert_eq!(matrix.vectors as usize * 16, width as usize * shape.dtype.size(), "{what}");
            assert!(matrix.warps >= 1, "{what}");
            if variant.vectors > 0 {
                assert!(matrix.vectors <= matrix.warps * WARP_THREADS * variant.vectors, "{what}");
            }
        }
    }
}

fn comm_size(tokens: u32, world_size: u32, fused_qk: bool) -> i64 {
    minimax_comm_size(tokens.into(), world_size.into(), fused_qk).unwrap() as i64
}

fn group(geometry: &Geometry) -> Group {
    let blocks: Vec<u64> = (0..geometry.world_size() as u64).map(|rank| 0x1000 * (rank + 1)).collect();
    let control = ControlAddresses { counters: 1, extents: 2, fault: 3, report: 4, copies: 5 };
    Group::new(geometry, 0, &blocks, control, None)
}

fn tensors() -> MinimaxTensors {
    MinimaxTensors { input: 16, input_row_bytes: 32, weight: 48, output: 64, output_row_bytes: 80 }
}

#[test]
fn every_planned_module_exists() {
    for tokens in [1, 200, 500, 4000] {
        for (dtype, weight) in [(Dtype::Float32, Dtype::Float32), (Dtype::Float16, Dtype::Float32)] {
            for width in [512, 12288, 100_000] {
                let shape = MinimaxShape { tokens, widths: [width], dtype, weight, world_size: 4 };
                let plan = shape.plan(H200, None).unwrap();
                assert!(module(plan.launch.module, H200.compute_capability).is_some(), "{plan:?}");
            }
        }
    }
}

#[test]
fn messages_fit_into_the_slots_that_minimax_sizes_give() {
    for tokens in 1..70 {
        for world_size in [2, 4, 8, 16] {
            let geometry = Geometry::new(world_size, comm_size(tokens, world_size as u32, true)).unwrap();
            let plan = minimax_qk(tokens, world_size as u32).plan(H200, None).unwrap();
            let parameters = plan.parameters(&geometry, group(&geometry), [tensors(); 2], 1e-6).unwrap();
            // Half of the formula's bytes, since a rank sends 8 per token.
            assert!(parameters.region_bytes <= 32 * tokens.div_ceil(4));
            assert_eq!(parameters.region_bytes % 16, 0);
            assert!(parameters.region_bytes >= 8 * tokens);
        }
    }
}

#[test]
fn shapes_without_a_launch_say_why() {
    let shape =
        MinimaxShape { tokens: 1, widths: [12], dtype: Dtype::BFloat16, weight: Dtype::BFloat16, world_size: 2 };
    assert_eq!(shape.plan(H200, None).unwrap_err(), PlanError::Width { width: 12, dtype: "bfloat16" });
    let shape = MinimaxShape { tokens: 0, widths: [16], ..shape };
    assert!(matches!(shape.plan(H200, None), Err(PlanError::Tokens { tokens: 0, .. })));
    let shape = MinimaxShape { tokens: 1, weight: Dtype::Float16, ..shape };
    assert!(matches!(shape.plan(H200, None), Err(PlanError::Weight { .. })));
}

#[test]
fn fill_covers_all_words_without_flooding_the_device() {
    assert_eq!((plan::fill(0, H200).grid, plan::fill(1, H200).grid), (1, 1));
    assert_eq!(plan::fill(1 << 40, H200).grid, 4 * 132);
    assert_eq!(plan::fill(1 << 40, H200).block, FILL_THREADS);
}

#[test]
fn peers_are_rotated_so_that_each_rank_starts_with_its_successor() {
    let geometry = Geometry::new(4, 1 << 21).unwrap();
    let control = ControlAddresses { counters: 1, extents: 2, fault: 3, report: 4, copies: 5 };
    let group = Group::new(&geometry, 2, &[10, 20, 30, 40], control, Some(Duration::from_millis(5)));
    assert_eq!((group.own, &group.peers[..4]), (30, [40, 10, 20, 0].as_slice()));
    assert_eq!((group.rank, group.world_size, group.comm_size), (2, 4, 1 << 21));
    assert_eq!(group.timeout_nanoseconds, 5_000_000);
    let forever = Group::new(&geometry, 0, &[10, 20, 30, 40], control, None);
    assert_eq!(forever.timeout_nanoseconds, 0);
    let at_once = Group::new(&geometry, 0, &[10, 20, 30, 40], control, Some(Duration::ZERO));
    assert_eq!(at_once.timeout_nanoseconds, 1);
}
