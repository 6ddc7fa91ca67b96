//! Launch plans.

use std::time::Duration;

use lamport_rs_kernels::catalogue::AllReduceMethod;
use lamport_rs_kernels::group::ControlAddresses;
use lamport_rs_kernels::parameters::Group;
use lamport_rs_kernels::plan::all_reduce::{self, AllReduceShape};
use lamport_rs_kernels::plan::minimax::{MinimaxShape, MinimaxTensors};
use lamport_rs_kernels::plan::rms_norm::{self, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use lamport_rs_kernels::plan::{self, Device, LaunchPlan, MIN_BLOCKS, PlanError};
use lamport_rs_kernels::variants::{FILL_THREADS, MinimaxVariant, WARP_THREADS, rms_norm_bounds};
use lamport_rs_kernels::{Dtype, ModuleKey};
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError, all_reduce_comm_size, minimax_comm_size};

/// The blocks of a grid that have no data: the one that speaks for the rank.
const SPEAKING: u32 = 1;

const H200: Device = Device {
    compute_capability: (9, 0),
    multiprocessors: 132,
    threads_per_multiprocessor: 2048,
    blocks_per_multiprocessor: 32,
};
const A100: Device = Device {
    compute_capability: (8, 0),
    multiprocessors: 108,
    threads_per_multiprocessor: 2048,
    blocks_per_multiprocessor: 32,
};

/// Of few multiprocessors, which hold fewer threads and blocks: as an L4 and smaller ones.
const SMALL: Device = Device {
    compute_capability: (8, 9),
    multiprocessors: 14,
    threads_per_multiprocessor: 1536,
    blocks_per_multiprocessor: 16,
};

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
        assert_eq!((plan.launch.grid, plan.tokens_per_block), (tokens + SPEAKING, 1));
        // 384 + 64 vectors and the service warp.
        assert_eq!(plan.launch.block, 384 + 64 + 32);
        assert!(plan.launch.dependent_launch);
    }
}

#[test]
fn many_tokens_share_blocks_so_that_the_grid_is_one_wave() {
    // Two blocks of this width run on a multiprocessor at once, and one of all speaks.
    for (tokens, per_block) in [(263, 1), (264, 2), (526, 2), (527, 4), (1052, 4), (1053, 8), (16384, 8)] {
        let plan = minimax_qk(tokens, 2).plan(H200, None).unwrap();
        assert_eq!((tokens, plan.tokens_per_block), (tokens, per_block));
        assert_eq!(plan.launch.grid, tokens.div_ceil(per_block) + SPEAKING);
    }
}

#[test]
fn the_caller_can_choose_the_tokens_of_a_block() {
    for tokens_per_block in [1, 2, 4, 8] {
        let plan = minimax_qk(100, 4).plan(H200, Some(tokens_per_block)).unwrap();
        assert_eq!(
            (plan.tokens_per_block, plan.launch.grid),
            (tokens_per_block, 100_u32.div_ceil(tokens_per_block) + SPEAKING)
        );
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
        assert_eq!(plan.launch.grid, shape.tokens.div_ceil(variant.tokens) + SPEAKING, "{what}");

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
    let control = ControlAddresses { counters: 1, extents: 2, report: 3, copies: 4 };
    Group::new(geometry, 0, &blocks, control, None)
}

fn tensors() -> MinimaxTensors {
    MinimaxTensors { input: 16, input_row_bytes: 32, weight: 48, output: 64, output_row_bytes: 80 }
}

fn exists(module: ModuleKey) -> bool {
    ModuleKey::all().any(|key| key == module)
}

#[test]
fn every_planned_module_exists() {
    for tokens in [1, 200, 500, 4000] {
        for (dtype, weight) in [(Dtype::Float32, Dtype::Float32), (Dtype::Float16, Dtype::Float32)] {
            for width in [512, 12288, 100_000] {
                let shape = MinimaxShape { tokens, widths: [width], dtype, weight, world_size: 4 };
                let plan = shape.plan(H200, None).unwrap();
                assert!(exists(plan.launch.module), "{plan:?}");
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
    let control = ControlAddresses { counters: 1, extents: 2, report: 3, copies: 4 };
    let group = Group::new(&geometry, 2, &[10, 20, 30, 40], control, Some(Duration::from_millis(5)));
    assert_eq!((group.own, &group.peers[..4]), (30, [40, 10, 20, 0].as_slice()));
    assert_eq!((group.rank, group.world_size, group.comm_size), (2, 4, 1 << 21));
}

#[test]
fn no_kernel_gives_up_too_early_and_what_is_longer_than_it_can_count_is_for_ever() {
    let geometry = Geometry::new(2, 1 << 21).unwrap();
    let control = ControlAddresses { counters: 1, extents: 2, report: 3, copies: 4 };
    let group = Group::new(&geometry, 0, &[10, 20], control, None);
    let units = |timeout| {
        let group = group.with_timeout(timeout);
        (group.first_hand_timeout, group.second_hand_timeout)
    };
    // A unit is 1.05 ms.
    assert_eq!(units(Some(Duration::from_millis(500))), (477, 716));
    assert_eq!(units(Some(Duration::from_secs(300))), (286_103, 429_154));
    assert_eq!(units(Some(Duration::ZERO)), (1, 1));
    let forever = (u32::MAX, u32::MAX);
    for long in [None, Some(Duration::MAX), Some(Duration::from_secs(60 * 24 * 3600))] {
        assert_eq!(units(long), forever);
    }
    assert_eq!(units(Some(Duration::from_secs(40 * 24 * 3600))), (3_295_898_438, u32::MAX));
}

const DTYPES: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::BFloat16];
const NORM_TENSORS: AllReduceRmsNormTensors =
    AllReduceRmsNormTensors { input: 16, residual: Some(32), weight: 48, output: 64, residual_output: 80 };

/// Around every boundary of the plans, for any group.
fn tensor_sizes(world_size: usize) -> Vec<usize> {
    let around = [16, 512, 2048, 4096, 65_536, 1 << 20, 4 << 20, all_reduce::two_shot_from(world_size)];
    let around = around.into_iter().flat_map(|bytes| [bytes, bytes * world_size]);
    around.flat_map(|bytes| [bytes - 2, bytes, bytes + 2, bytes + 16]).chain([2, 100 << 20, 1 << 30]).collect()
}

/// What holds of every launch whose blocks wait for other ranks' blocks.
fn check_exchange(launch: LaunchPlan, device: Device, what: &str) {
    let bounds = launch.module.bounds().expect("the host chooses the size of the launch");
    assert!(launch.grid >= 1 && launch.block <= bounds.max_threads, "{what}");
    assert!(launch.block.is_multiple_of(WARP_THREADS), "{what}");
    // Blocks that wait for a peer's must not wait for room, on any device.
    let threads = (bounds.max_threads * bounds.min_blocks).min(device.threads_per_multiprocessor);
    let blocks = (threads / launch.block).min(device.blocks_per_multiprocessor);
    assert!(launch.grid <= device.multiprocessors * blocks, "{what}");
    assert_eq!(launch.dependent_launch, device == H200, "{what}");
    assert!(exists(launch.module), "{what}: no such module");
}

#[test]
fn every_sum_has_a_launch_whose_blocks_run_at_once() {
    for world_size in 2..=16 {
        for bytes in tensor_sizes(world_size) {
            let comm_size = all_reduce_comm_size(bytes as i64, world_size as i64).unwrap();
            let geometry = Geometry::new(world_size as i64, comm_size as i64).unwrap();
            for (algorithm, dtype) in Algorithm::ALL.into_iter().flat_map(|each| DTYPES.map(|dtype| (each, dtype))) {
                let shape = AllReduceShape { bytes, dtype, world_size, algorithm };
                for device in [H200, A100, SMALL] {
                    let plan = shape.plan(device).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
                    let what = format!("{plan:?}");
                    check_exchange(plan.launch, device, &what);
                    let ModuleKey::AllReduce(kernel) = plan.launch.module else { panic!("{what}") };
                    let is_one_shot = kernel.method == AllReduceMethod::OneShot;
                    assert_eq!((is_one_shot, kernel.dtype), (algorithm == Algorithm::OneShot, dtype), "{what}");
                    assert!((world_size..2 * world_size).contains(&(kernel.capacity as usize)), "{what}");

                    let parameters = plan.parameters(&geometry, group(&geometry), 16, 32).unwrap();
                    assert_eq!((parameters.bytes, parameters.input, parameters.output), (bytes as u64, 16, 32));
                    let vectors = u64::from(parameters.vectors);
                    let sums = if algorithm == Algorithm::OneShot { 1 } else { world_size as u64 };
                    assert!(vectors * sums * 16 >= bytes as u64, "{what}: nobody sums the end");
                    assert!((vectors - 1) * sums * 16 < bytes as u64, "{what}: a rank sums more than its share");
                    // No more blocks have nothing to reduce than are there to clear.
                    let peers = world_size as u32 - 1;
                    let data_blocks = plan.launch.grid - SPEAKING;
                    let workers = u64::from(match kernel.method {
                        AllReduceMethod::OneShot => plan.launch.block - WARP_THREADS,
                        AllReduceMethod::TwoShot => plan.launch.block,
                        AllReduceMethod::TwoShotPhased => plan.launch.block / peers,
                    });
                    if kernel.method == AllReduceMethod::TwoShotPhased {
                        // Whole warps for each peer, and one round takes all.
                        assert!(peers >= 2 && plan.launch.block.is_multiple_of(peers * WARP_THREADS), "{what}");
                        assert!(u64::from(data_blocks) * workers >= vectors, "{what}");
                    }
                    let is_needed = u64::from(data_blocks - 1) * workers < vectors;
                    assert!(workers > 0 && (is_needed || plan.launch.grid <= MIN_BLOCKS), "{what}");
                }
            }
        }
    }
}

/// Blocks with data and threads of a block, for a sum of bfloat16.
fn launch_of(algorithm: Algorithm, world_size: usize, bytes: usize) -> (u32, u32) {
    let shape = AllReduceShape { bytes, dtype: Dtype::BFloat16, world_size, algorithm };
    let launch = shape.plan(H200).unwrap().launch;
    (launch.grid - SPEAKING, launch.block)
}

#[test]
fn small_sums_are_spread_over_blocks_with_a_service_warp_of_their_own() {
    let (block, fewest) = (128 * 16, MIN_BLOCKS - SPEAKING);
    // A vector and the service warp; all the blocks there are at least; one more.
    assert_eq!(launch_of(Algorithm::OneShot, 4, 2), (fewest, 64));
    assert_eq!(launch_of(Algorithm::OneShot, 4, fewest as usize * block), (fewest, 160));
    assert_eq!(launch_of(Algorithm::OneShot, 4, fewest as usize * block + 2), (fewest + 1, 160));
    // Two-shot has none: its threads share that work.
    assert_eq!(launch_of(Algorithm::TwoShot, 2, 2), (fewest, 32));
    assert_eq!(launch_of(Algorithm::TwoShot, 2, fewest as usize * 2 * block), (fewest, 128));
    assert_eq!(launch_of(Algorithm::TwoShot, 2, fewest as usize * 2 * block + 2), (fewest + 1, 128));
}

#[test]
fn two_ranks_sum_some_sizes_in_larger_blocks() {
    let kibibytes = |count: usize, world_size| launch_of(Algorithm::OneShot, world_size, count << 10).1;
    assert_eq!([191, 192, 448, 449].map(|count| kibibytes(count, 2)), [160, 512, 512, 160]);
    assert_eq!(kibibytes(256, 3), 160);
}

#[test]
fn wide_rows_of_16_bits_are_kept_in_registers() {
    let vectors = |world_size, hidden, algorithm| {
        let (dtype, weight) = (Dtype::BFloat16, Dtype::BFloat16);
        let plan =
            AllReduceRmsNormShape { tokens: 32, hidden, dtype, weight, world_size, algorithm }.plan(H200).unwrap();
        let ModuleKey::AllReduceRmsNorm(kernel) = plan.launch.module else { panic!("{plan:?}") };
        (kernel.vectors, plan.launch.block)
    };
    let of = |world_size, hidden| vectors(world_size, hidden, Algorithm::OneShot);
    assert_eq!([4096, 7168, 8192, 8200].map(|hidden| of(4, hidden)), [(1, 512), (1, 896), (1, 1024), (0, 1024)]);
    let found = [4096, 7168, 8192, 16_384, 16_392].map(|hidden| of(8, hidden));
    assert_eq!(found, [(1, 512), (2, 512), (2, 512), (4, 512), (0, 512)]);
    assert_eq!([2048, 4096, 8192, 8200].map(|hidden| vectors(16, hidden, Algorithm::OneShot).0), [1, 2, 4, 0]);
    assert_eq!([8192, 16_384, 16_392].map(|hidden| vectors(8, hidden, Algorithm::TwoShot).0), [2, 4, 0]);
}

#[test]
fn every_norm_has_a_launch_whose_blocks_run_at_once() {
    for world_size in 2..=16 {
        for (tokens, hidden) in [1, 2, 7, 132, 133, 1057, 5000]
            .into_iter()
            .flat_map(|tokens| [8, 16, 248, 1024, 4096, 4104, 8192, 8200, 16_384].map(|hidden| (tokens, hidden)))
        {
            let algorithms =
                Algorithm::ALL.into_iter().filter(|algorithm| *algorithm == Algorithm::OneShot || tokens >= world_size);
            for (algorithm, dtype) in algorithms.flat_map(|each| DTYPES.map(|dtype| (each, dtype))) {
                for (weight, device) in [(dtype, H200), (Dtype::Float32, A100)] {
                    check_norm(AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size, algorithm }, device);
                }
            }
        }
    }
}

fn check_norm(shape: AllReduceRmsNormShape, device: Device) {
    let AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size, algorithm } = shape;
    let plan = shape.plan(device).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
    let what = format!("{plan:?}");
    check_exchange(plan.launch, device, &what);
    let most_blocks = tokens.max(MIN_BLOCKS as usize);
    assert!(
        (plan.launch.grid - SPEAKING) as usize <= most_blocks,
        "{what}: a block without a row, and not there to clear"
    );
    let ModuleKey::AllReduceRmsNorm(kernel) = plan.launch.module else { panic!("{what}") };
    assert_eq!((kernel.algorithm, kernel.dtype), (algorithm, dtype), "{what}");
    assert!((world_size..2 * world_size).contains(&(kernel.capacity as usize)), "{what}");
    // All of a row is kept, or nothing.
    let row_bytes = hidden * dtype.size();
    let most = |vectors: u32| (vectors * rms_norm_bounds(kernel.capacity, vectors).max_threads) as usize;
    let widest = plan.launch.module.kept_vectors().iter().map(|&vectors| most(vectors)).max().unwrap();
    assert_eq!(kernel.vectors > 0, row_bytes / 16 <= widest, "{what}");
    let kept = (kernel.vectors * plan.launch.block) as usize;
    assert!(kernel.vectors == 0 || kept >= row_bytes / 16, "{what}");

    let message = algorithm.message_bytes(tokens, row_bytes, world_size);
    let slots = |comm_size: usize| Geometry::new(world_size as i64, comm_size as i64).unwrap();
    let parameters = |geometry: Geometry| plan.parameters(&geometry, group(&geometry), NORM_TENSORS, 1e-6, 1.0);
    let found = parameters(slots(world_size * message)).unwrap();
    assert_eq!((found.tokens as usize, found.row_vectors as usize * 16), (tokens, row_bytes), "{what}");
    assert_eq!(found.region_bytes as usize, message, "{what}");
    assert_eq!(found.norm.has_float32_weight, u32::from(dtype != weight), "{what}");
    assert_eq!((found.norm.weight_bias, found.norm.inverse_count), (1.0, 1.0 / hidden as f32), "{what}");
    let refused = parameters(slots(world_size * message - 16)).unwrap_err();
    assert!(matches!(refused, GeometryError::MessageTooLarge { needed, .. } if needed == world_size * message));
}

#[test]
fn sums_that_do_not_fit_into_the_slots_are_refused_with_the_size_that_does() {
    for algorithm in Algorithm::ALL {
        for (world_size, bytes) in [(2, 2), (2, 1 << 20), (3, 1000), (4, 4098), (16, 1 << 20)] {
            let needed = world_size * algorithm.tensor_message_bytes(bytes, world_size);
            let plan = AllReduceShape { bytes, dtype: Dtype::Float16, world_size, algorithm }.plan(H200).unwrap();
            let geometry = |comm_size: usize| Geometry::new(world_size as i64, comm_size as i64).unwrap();
            let exact = geometry(needed);
            assert_eq!(
                plan.parameters(&exact, group(&exact), 16, 32).unwrap().region_bytes as usize * world_size,
                needed
            );
            let small = geometry(needed - 16);
            let refused = plan.parameters(&small, group(&small), 16, 32).unwrap_err();
            assert_eq!(refused, GeometryError::MessageTooLarge { needed, comm_size: needed - 16 });
        }
    }
}

#[test]
fn sums_and_norms_without_a_launch_say_why() {
    let shape = AllReduceShape { bytes: 0, dtype: Dtype::Float16, world_size: 2, algorithm: Algorithm::OneShot };
    assert!(matches!(shape.plan(H200), Err(PlanError::Bytes { bytes: 0, .. })));
    let shape = AllReduceShape { bytes: (1 << 30) + 2, ..shape };
    assert!(matches!(shape.plan(H200), Err(PlanError::Bytes { .. })));

    let (dtype, weight) = (Dtype::BFloat16, Dtype::BFloat16);
    let shape =
        AllReduceRmsNormShape { tokens: 3, hidden: 12, dtype, weight, world_size: 3, algorithm: Algorithm::TwoShot };
    assert_eq!(shape.plan(H200).unwrap_err(), PlanError::Width { width: 12, dtype: "bfloat16" });
    let shape = AllReduceRmsNormShape { hidden: 16, tokens: 0, ..shape };
    assert!(matches!(shape.plan(H200), Err(PlanError::Bytes { bytes: 0, .. })));
    let shape = AllReduceRmsNormShape { tokens: 2, ..shape };
    assert_eq!(shape.plan(H200).unwrap_err(), PlanError::Rows { tokens: 2, world_size: 3 });
    let shape = AllReduceRmsNormShape { tokens: 3, weight: Dtype::Float16, ..shape };
    assert!(matches!(shape.plan(H200), Err(PlanError::Weight { .. })));
}

#[test]
fn the_more_ranks_the_earlier_two_shot_is_faster() {
    for world_size in 3..16 {
        assert!(
            all_reduce::two_shot_from(world_size + 1) < all_reduce::two_shot_from(world_size),
            "{world_size} ranks"
        );
        for row_bytes in [16, 4 << 10, 8 << 10, 16 << 10, 1 << 20] {
            let from = |world_size| rms_norm::two_shot_from(world_size, row_bytes);
            assert!(from(world_size + 1) < from(world_size), "{world_size} ranks, rows of {row_bytes} bytes");
            // Two ranks would wait for each other row by row, and push no less.
            assert_eq!(from(2), usize::MAX);
        }
    }
}
