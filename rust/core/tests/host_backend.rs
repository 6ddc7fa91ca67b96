//! The operations over shared memory, with ranks as threads. Between processes they are tested from Python.

use std::time::Duration;

use half::{bf16, f16};
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnHost;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_protocol::algorithm::Algorithm;

/// A tensor's memory, aligned, with its elements' bits.
struct Buffer {
    words: Vec<u128>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Buffer {
    fn new(dtype: Dtype, shape: &[usize], value: impl Fn(usize) -> f32) -> Self {
        let elements: usize = shape.iter().product();
        let mut buffer =
            Self { words: vec![0; (elements * dtype.size()).div_ceil(16).max(1)], dtype, shape: shape.to_vec() };
        (0..elements).for_each(|at| buffer.set(at, value(at)));
        buffer
    }

    fn bytes(&mut self) -> &mut [u8] {
        let length = self.words.len() * 16;
        // SAFETY: plain data, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), length) }
    }

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: plain data, borrowed.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 16) }
    }

    fn set(&mut self, at: usize, value: f32) {
        let (dtype, size) = (self.dtype, self.dtype.size());
        let place = &mut self.bytes()[at * size..(at + 1) * size];
        match dtype {
            Dtype::Float32 => place.copy_from_slice(&value.to_le_bytes()),
            Dtype::Float16 => place.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Dtype::BFloat16 => place.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            _ => unreachable!("no operation computes with it"),
        }
    }

    fn get(&mut self, at: usize) -> f32 {
        let (dtype, size) = (self.dtype, self.dtype.size());
        let place = &self.bytes()[at * size..(at + 1) * size];
        match dtype {
            Dtype::Float32 => f32::from_le_bytes(place.try_into().unwrap()),
            Dtype::Float16 => f16::from_le_bytes(place.try_into().unwrap()).to_f32(),
            Dtype::BFloat16 => bf16::from_le_bytes(place.try_into().unwrap()).to_f32(),
            _ => unreachable!("no operation computes with it"),
        }
    }

    fn tensor(&mut self) -> Tensor {
        let mut strides = vec![1; self.shape.len()];
        for dimension in (1..self.shape.len()).rev() {
            strides[dimension - 1] = strides[dimension] * self.shape[dimension];
        }
        Tensor {
            pointer: self.words.as_mut_ptr().cast(),
            dtype: self.dtype,
            device: Device::Cpu,
            shape: Dimensions::new(self.shape.iter().copied()).unwrap(),
            strides: Dimensions::new(strides).unwrap(),
            is_negated: false,
        }
    }
}

/// Runs `rank` on a thread per rank and returns their results in rank order.
fn ranks<R: Send>(workspaces: &[HostWorkspace], run: impl Fn(usize, &HostWorkspace) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> =
            workspaces.iter().enumerate().map(|(rank, workspace)| scope.spawn(move || run(rank, workspace))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Small integers: their sums are exact in every dtype.
fn value(rank: usize, round: usize, at: usize) -> f32 {
    ((at * 7 + rank * 3 + round) % 11) as f32 - 5.0
}

fn never() -> bool {
    false
}

fn check_sums(world_size: usize, dtype: Dtype, sizes: &[usize]) {
    let workspaces = HostWorkspace::in_process(world_size as i64, 4 << 20, Some(Duration::from_secs(60))).unwrap();
    ranks(&workspaces, |rank, workspace| {
        for (round, &elements) in sizes.iter().enumerate() {
            let mut input = Buffer::new(dtype, &[elements], |at| value(rank, round, at));
            let mut output = Buffer::new(dtype, &[elements], |_| f32::NAN);
            let operands = AllReduce { input: input.tensor(), output: output.tensor(), algorithm: None };
            // SAFETY: the buffers outlive the call and are this thread's own.
            unsafe { operands.run_on_host(workspace, &mut never) }.unwrap();
            for at in 0..elements {
                let expected: f32 = (0..world_size).map(|rank| value(rank, round, at)).sum();
                assert_eq!(output.get(at), expected, "rank {rank}, round {round}, element {at} of {elements}");
            }
        }
    });
}

/// Both algorithms by turns, in place and not.
fn check_that_two_shot_equals_one_shot(world_size: usize, dtype: Dtype, sizes: &[usize]) {
    let workspaces = HostWorkspace::in_process(world_size as i64, 4 << 20, Some(Duration::from_secs(60))).unwrap();
    ranks(&workspaces, |rank, workspace| {
        for &elements in sizes {
            // Inexact sums, whose bits depend on the order; and some that are -0.0.
            let value = |at| if at % 7 == 0 { -0.0 } else { 1.0 / (1 + at * 5 + rank * 3) as f32 };
            let mut input = Buffer::new(dtype, &[elements], value);
            let mut outputs = [(); 2].map(|()| Buffer::new(dtype, &[elements], |_| f32::NAN));
            for (output, algorithm) in outputs.iter_mut().zip(Algorithm::ALL) {
                let algorithm = Some(algorithm);
                let operands = AllReduce { input: input.tensor(), output: output.tensor(), algorithm };
                // SAFETY: the buffers outlive the call and are this thread's own.
                unsafe { operands.run_on_host(workspace, &mut never) }.unwrap();
            }
            let in_place = input.tensor();
            let operands = AllReduce { input: in_place, output: in_place, algorithm: Some(Algorithm::TwoShot) };
            // SAFETY: as above.
            unsafe { operands.run_on_host(workspace, &mut never) }.unwrap();
            let [one_shot, two_shot] = &outputs;
            let bytes = elements * dtype.size();
            let [expected, found, in_place] = [one_shot, two_shot, &input].map(|buffer| &buffer.as_bytes()[..bytes]);
            assert_eq!(found, expected, "rank {rank} of {world_size}, {elements} elements");
            assert_eq!(in_place, expected, "rank {rank} of {world_size}, {elements} elements in place");
        }
    });
}

const SIZES: [usize; 12] = [1, 3, 4, 4096, 1, 8, 70_001, 5, 0, 4095, 16, 9000];

#[test]
fn all_reduce_sums_every_dtype_at_every_size() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::BFloat16] {
        check_sums(2, dtype, &SIZES);
        check_sums(3, dtype, &SIZES);
    }
}

#[test]
fn two_shot_gives_the_bits_of_one_shot() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::BFloat16] {
        for world_size in [2, 3, 8] {
            // Fewer vectors than ranks, shards that end amid a vector or a line, and several segments.
            check_that_two_shot_equals_one_shot(world_size, dtype, &SIZES);
        }
    }
    check_that_two_shot_equals_one_shot(3, Dtype::Float32, &[250_001, 4, 300_000]);
}

#[test]
fn a_slot_without_room_for_whole_lines_serves_two_shot_too() {
    let workspaces = HostWorkspace::in_process(2, 64, Some(Duration::from_secs(60))).unwrap();
    ranks(&workspaces, |rank, workspace| {
        for _ in 0..5 {
            let mut tensor = Buffer::new(Dtype::Float32, &[8], |at| (at + rank) as f32);
            let (input, algorithm) = (tensor.tensor(), Some(Algorithm::TwoShot));
            // SAFETY: the buffer outlives the call and is this thread's own.
            unsafe { AllReduce { input, output: input, algorithm }.run_on_host(workspace, &mut never) }.unwrap();
            (0..8).for_each(|at| assert_eq!(tensor.get(at), (2 * at + 1) as f32));
        }
    });
}

#[test]
fn more_ranks_than_cores_progress() {
    check_sums(16, Dtype::Float32, &[1000; 20]);
}

#[test]
fn a_tensor_longer_than_the_slots_has_the_same_bits() {
    for (world_size, comm_size) in [(2, 64), (2, 4096), (3, 4096), (8, 1024), (3, 3 * 40_000)] {
        let workspaces = HostWorkspace::in_process(world_size, comm_size, Some(Duration::from_secs(60))).unwrap();
        ranks(&workspaces, |rank, workspace| {
            for elements in [7, 1000, 70_001] {
                for algorithm in Algorithm::ALL {
                    let mut tensor = Buffer::new(Dtype::Float32, &[elements], |at| value(rank, 0, at));
                    let (input, algorithm) = (tensor.tensor(), Some(algorithm));
                    // SAFETY: the buffer outlives the call and is this thread's own.
                    unsafe { AllReduce { input, output: input, algorithm }.run_on_host(workspace, &mut never) }
                        .unwrap();
                    for at in 0..elements {
                        let expected: f32 = (0..world_size as usize).map(|rank| value(rank, 0, at)).sum();
                        assert_eq!(tensor.get(at), expected, "element {at} of {elements}, slots of {comm_size}");
                    }
                }
            }
        });
    }
}

#[test]
fn a_slot_without_room_for_a_vector_is_refused_and_changes_nothing() {
    let workspaces = HostWorkspace::in_process(2, 32, Some(Duration::from_secs(60))).unwrap();
    ranks(&workspaces, |_, workspace| {
        let mut tensor = Buffer::new(Dtype::Float32, &[513], |_| 1.0);
        let mut operands = |algorithm| AllReduce { input: tensor.tensor(), output: tensor.tensor(), algorithm };
        let [one_shot, two_shot] = [Algorithm::OneShot, Algorithm::TwoShot].map(|algorithm| operands(Some(algorithm)));
        // SAFETY: the buffer outlives the call and is this thread's own.
        let error = unsafe { two_shot.run_on_host(workspace, &mut never) }.unwrap_err();
        assert!(error.to_string().contains("needs 64 bytes per slot, but comm_size is 32"), "{error}");
        // SAFETY: as above.
        unsafe { one_shot.run_on_host(workspace, &mut never) }.unwrap();
        assert_eq!(tensor.get(511), 2.0);
    });
}

#[test]
fn a_single_rank_has_its_own_tensor_as_the_sum() {
    check_sums(1, Dtype::Float32, &SIZES);
    check_that_two_shot_equals_one_shot(1, Dtype::BFloat16, &SIZES);
}

#[test]
fn rms_norm_adds_the_residual_and_normalises_whole_rows() {
    let (world_size, rows, columns, epsilon) = (3, 37, 264, 1e-5);
    let workspaces = HostWorkspace::in_process(world_size as i64, 1 << 20, Some(Duration::from_secs(60))).unwrap();
    for (dtype, weight_dtype, tolerance) in [
        (Dtype::Float32, Dtype::Float32, 1e-6),
        (Dtype::BFloat16, Dtype::Float32, 1.0 / 256.0),
        (Dtype::BFloat16, Dtype::BFloat16, 1.0 / 256.0),
        (Dtype::Float16, Dtype::Float16, 1.0 / 2048.0),
    ] {
        ranks(&workspaces, |rank, workspace| {
            let shape = [rows, columns];
            let mut input = Buffer::new(dtype, &shape, |at| value(rank, 0, at));
            let mut residual = Buffer::new(dtype, &shape, |at| value(9, 1, at));
            let mut weight = Buffer::new(weight_dtype, &[columns], |at| (at % 5) as f32 * 0.5);
            let mut output = Buffer::new(dtype, &shape, |_| f32::NAN);
            let mut residual_output = Buffer::new(dtype, &shape, |_| f32::NAN);
            let operands = AllReduceRmsNorm {
                input: input.tensor(),
                residual: Some(residual.tensor()),
                weight: weight.tensor(),
                epsilon,
                weight_bias: 1.0,
                algorithm: None,
                output: output.tensor(),
                residual_output: residual_output.tensor(),
            };
            // SAFETY: the buffers outlive the call and are this thread's own.
            unsafe { operands.run_on_host(workspace, &mut never) }.unwrap();
            let sum = |at| (0..world_size).map(|rank| value(rank, 0, at)).sum::<f32>() + value(9, 1, at);
            for row in 0..rows {
                let columns_of_row = row * columns..(row + 1) * columns;
                let mean = columns_of_row.clone().map(|at| f64::from(sum(at)).powi(2)).sum::<f64>() / columns as f64;
                for at in columns_of_row {
                    let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
                    let expected = f64::from(sum(at)) * scale * f64::from((at % columns % 5) as f32 * 0.5 + 1.0);
                    assert_eq!(residual_output.get(at), sum(at));
                    let error = (f64::from(output.get(at)) - expected).abs();
                    assert!(error <= tolerance * expected.abs(), "{} instead of {expected}", output.get(at));
                }
            }
        });
    }
}

#[test]
fn minimax_normalises_rows_that_are_spread_over_the_ranks() {
    let (world_size, epsilon) = (2, 1e-6);
    let (q_size, kv_size) = (48, 16);
    let packed_size = q_size + 2 * kv_size;
    let workspaces = HostWorkspace::in_process(world_size as i64, 1 << 20, Some(Duration::from_secs(60))).unwrap();
    for tokens in [1, 2, 3, 5, 1030, 4] {
        ranks(&workspaces, |rank, workspace| {
            let dtype = Dtype::Float32;
            let mut qkv = Buffer::new(dtype, &[tokens, packed_size], |at| value(rank, tokens, at));
            let mut weights = [q_size, kv_size].map(|size| Buffer::new(dtype, &[size], |at| at as f32 - 3.0));
            let mut outputs = [q_size, kv_size].map(|size| Buffer::new(dtype, &[tokens, size], |_| f32::NAN));
            let operands = MinimaxRms::packed(
                qkv.tensor(),
                [q_size as i64, kv_size as i64],
                [weights[0].tensor(), weights[1].tensor()],
                [outputs[0].tensor(), outputs[1].tensor()],
                epsilon,
            )
            .unwrap();
            // SAFETY: the buffers outlive the call and are this thread's own.
            unsafe { operands.run_on_host(workspace, &mut never) }.unwrap();
            for (output, (offset, size)) in outputs.iter_mut().zip([(0, q_size), (q_size, kv_size)]) {
                for token in 0..tokens {
                    let at = |column: usize| token * packed_size + offset + column;
                    let squares: f64 = (0..world_size)
                        .flat_map(|rank| (0..size).map(move |column| (rank, column)))
                        .map(|(rank, column)| f64::from(value(rank, tokens, at(column))).powi(2))
                        .sum();
                    let scale = 1.0 / (squares / (world_size * size) as f64 + f64::from(epsilon)).sqrt();
                    for column in 0..size {
                        let expected = f64::from(value(rank, tokens, at(column))) * scale * (column as f64 - 3.0);
                        let found = f64::from(output.get(token * size + column));
                        assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} instead of {expected}");
                    }
                }
            }
        });
    }
}

#[test]
fn one_matrix_with_rows_apart_is_read_where_it_lies() {
    let workspaces = HostWorkspace::in_process(2, 1 << 20, Some(Duration::from_secs(60))).unwrap();
    ranks(&workspaces, |rank, workspace| {
        let mut wide = Buffer::new(Dtype::BFloat16, &[6, 32], |at| if at % 32 < 8 { (rank + 1) as f32 } else { 1e6 });
        let mut weight = Buffer::new(Dtype::BFloat16, &[8], |_| 1.0);
        let mut output = Buffer::new(Dtype::BFloat16, &[6, 8], |_| f32::NAN);
        let whole = wide.tensor();
        let input = Tensor { shape: whole.shape.with_columns(8), ..whole };
        let norm = Norm { input, weight: weight.tensor(), output: output.tensor() };
        // SAFETY: the buffers outlive the call and are this thread's own.
        unsafe { MinimaxRms::one(norm, 0.0).run_on_host(workspace, &mut never) }.unwrap();
        let expected = bf16::from_f64((rank + 1) as f64 / 2.5_f64.sqrt()).to_f32();
        (0..48).for_each(|at| assert_eq!(output.get(at), expected));
    });
}

/// For `tests/race_detector.sh`: proof that the detector sees what it should. Never run otherwise.
#[test]
#[ignore = "contains a deliberate data race, which the race detector has to report"]
fn deliberate_race() {
    struct Shared(std::cell::UnsafeCell<u64>);
    // SAFETY: none; that is the point.
    unsafe impl Sync for Shared {}
    let shared = Shared(std::cell::UnsafeCell::new(0));
    let shared = &shared;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            // SAFETY: none; that is the point.
            scope.spawn(move || (0..1000).for_each(|_| unsafe { *shared.0.get() += 1 }));
        }
    });
}
