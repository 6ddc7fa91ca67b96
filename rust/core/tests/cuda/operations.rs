//! The operations' results, in several launches each: the bits of the host backend.

use lamport_rs_core::error::Error;
use lamport_rs_core::operations::Kind;
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::all_reduce_quant::AllReduceQuant;
use lamport_rs_core::operations::layer_norm::AllReduceLayerNorm;
use lamport_rs_core::operations::minimax::MinimaxRms;
use lamport_rs_core::operations::moe_finalize::{Experts, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use lamport_rs_core::operations::quantised::Quantised;
use lamport_rs_core::operations::question::Question;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::operations::rms_norm_quant::Sink;
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use lamport_rs_protocol::algorithm::Algorithm;

use crate::standin::Standin;
use crate::standin::either::{Either, on_cuda, on_host};
use crate::standin::group::on_ranks;

/// The bytes of all results of a rank.
pub type Results = Vec<Vec<u8>>;

const DTYPES: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::BFloat16];
/// Of a slot.
const COMM_SIZE: usize = 4096;

/// Small integers: their squares, and sums of these, are exact in float32, whatever the order.
fn integer(rank: usize, at: usize) -> f32 {
    ((at * 7 + rank * 3) % 11) as f32 - 5.0
}

/// Sums of these depend on the order; some are -0.0.
fn fraction(rank: usize, at: usize) -> f32 {
    if at.is_multiple_of(7) { -0.0 } else { 1.0 / (1 + at * 5 + rank * 3) as f32 }
}

/// From one element to several times the slot.
pub fn sums(dtype: Dtype) -> impl Fn(usize, Either<'_>) -> Results + Sync {
    move |rank, either| {
        let mut results = vec![];
        for elements in [1, 8, 1000, 4, 5003] {
            for algorithm in Algorithm::ALL {
                let mut input = either.tensor(dtype, &[elements], |at| fraction(rank, at));
                let mut output = either.tensor(dtype, &[elements], |_| f32::NAN);
                let operands = AllReduce { input: input.tensor(), output: output.tensor(), algorithm: Some(algorithm) };
                either.run(&operands).unwrap();
                either.finish().unwrap();
                results.push(output.bytes());
            }
        }
        results
    }
}

/// Rows of a power of two, so that the backends' means are the same.
fn norms(dtype: Dtype, weight_dtype: Dtype) -> impl Fn(usize, Either<'_>) -> Results + Sync {
    move |rank, either| {
        let mut results = vec![];
        let columns = 128;
        for rows in [1, 2, 29] {
            for algorithm in Algorithm::ALL {
                let shape = [rows, columns];
                let mut input = either.tensor(dtype, &shape, |at| integer(rank, at));
                let mut residual = either.tensor(dtype, &shape, |at| integer(9, at));
                let mut weight = either.tensor(weight_dtype, &[columns], |at| (at % 5) as f32 * 0.3);
                let mut output = either.tensor(dtype, &shape, |_| f32::NAN);
                let mut residual_output = either.tensor(dtype, &shape, |_| f32::NAN);
                let operands = AllReduceRmsNorm {
                    input: input.tensor(),
                    residual: Some(residual.tensor()),
                    weight: weight.tensor(),
                    epsilon: 1e-5,
                    weight_bias: 1.0,
                    algorithm: Some(algorithm),
                    output: output.tensor(),
                    residual_output: residual_output.tensor(),
                };
                either.run_norm(&operands).unwrap();
                either.finish().unwrap();
                results.extend([output.bytes(), residual_output.bytes()]);
            }
        }
        results
    }
}

/// Rows whose means are integers. Products with the weights are exact: the device adds the biases to these unrounded.
fn layer_norms(dtype: Dtype, weight_dtype: Dtype, columns: usize) -> impl Fn(usize, Either<'_>) -> Results + Sync {
    let value = |rank, at: usize| 3.0 + integer(rank, at / 2) * if at.is_multiple_of(2) { 1.0 } else { -1.0 };
    move |rank, either| {
        let mut results = vec![];
        for (rows, has_bias) in [(1, true), (3, false), (29, true)] {
            let shape = [rows, columns];
            let mut input = either.tensor(dtype, &shape, |at| value(rank, at));
            let mut residual = either.tensor(dtype, &shape, |at| value(9, at));
            let mut weight = either.tensor(weight_dtype, &[columns], |at| [0.5, 1.0, 2.0][at % 3]);
            let mut bias = either.tensor(weight_dtype, &[columns], |at| (at % 5) as f32 * 0.3);
            let [mut output, mut residual_output] = [(); 2].map(|()| either.tensor(dtype, &shape, |_| f32::NAN));
            let norm = AllReduceRmsNorm {
                input: input.tensor(),
                residual: has_bias.then(|| residual.tensor()),
                weight: weight.tensor(),
                epsilon: 1e-5,
                weight_bias: 0.0,
                algorithm: None,
                output: output.tensor(),
                residual_output: residual_output.tensor(),
            };
            either.run(&AllReduceLayerNorm { norm, bias: has_bias.then(|| bias.tensor()) }).unwrap();
            either.finish().unwrap();
            results.extend([output.bytes(), residual_output.bytes()]);
        }
        results
    }
}

/// Rows of experts: some of no number, none at all on one rank. Sums of squares are exact here, too.
fn finalised(dtype: Dtype, expert_weight: Dtype, columns: usize) -> impl Fn(usize, Either<'_>) -> Results + Sync {
    move |rank, either| {
        let mut results = vec![];
        for (tokens, per_token) in [(1, 1), (2, 8), (29, 11)] {
            let count = if rank == 1 { 0 } else { 5 + rank };
            let shape = [tokens, columns];
            let number = |at: usize| if count == 0 { -1.0 } else { (at * 5 % (count + 1)) as f32 - 1.0 };
            let mut rows = either.tensor(dtype, &[count, columns], |at| integer(rank, at));
            let mut index = either.tensor(Dtype::Int32, &[tokens, per_token], |at| match at {
                13 => count as f32,
                _ => number(at),
            });
            let mut weights = either.tensor(expert_weight, &[tokens, per_token], |at| (at % 3) as f32 - 1.0);
            let mut shared = either.tensor(dtype, &shape, |at| integer(rank + 5, at));
            let mut residual = either.tensor(dtype, &shape, |at| integer(9, at));
            let mut weight = either.tensor(dtype, &[columns], |at| (at % 5) as f32 * 0.3);
            let [mut total, mut output, mut residual_output] = [(); 3].map(|()| either.tensor(dtype, &shape, |_| 7.0));
            let experts = Experts {
                rows: rows.tensor(),
                index: index.tensor(),
                weights: weights.tensor(),
                shared: (rank != 2).then(|| shared.tensor()),
            };
            either.run(&MoeFinalizeAllReduce::new(experts, total.tensor())).unwrap();
            let norm = AllReduceRmsNorm {
                input: output.tensor(),
                residual: Some(residual.tensor()),
                weight: weight.tensor(),
                epsilon: 1e-5,
                weight_bias: 1.0,
                algorithm: None,
                output: output.tensor(),
                residual_output: residual_output.tensor(),
            };
            either.run(&MoeFinalizeAllReduceRmsNorm::new(experts, norm)).unwrap();
            either.finish().unwrap();
            let of_one_nan = |bytes: Vec<u8>| with_one_nan(dtype, bytes);
            results.extend([total, output, residual_output].map(|tensor| of_one_nan(tensor.bytes())));
        }
        results
    }
}

/// Elements whose NaNs, of which any is as good as another, are all of the same bits.
fn with_one_nan(dtype: Dtype, mut bytes: Vec<u8>) -> Vec<u8> {
    for element in bytes.chunks_exact_mut(dtype.size()) {
        let is_nan = match dtype {
            Dtype::Float16 => half::f16::from_le_bytes([element[0], element[1]]).is_nan(),
            Dtype::BFloat16 => half::bf16::from_le_bytes([element[0], element[1]]).is_nan(),
            _ => f32::from_le_bytes([element[0], element[1], element[2], element[3]]).is_nan(),
        };
        if is_nan {
            element.fill(0xff);
        }
    }
    bytes
}

/// Rows of `columns`, some of them several times the slot, with the sum and without.
fn quantised_sums(sink: Sink, columns: usize, most_rows: usize) -> impl Fn(usize, Either<'_>) -> Results + Sync {
    move |rank, either| {
        let mut results = vec![];
        for (rows, has_sum) in [(1, false), (3, true), (most_rows, false), (most_rows, true)] {
            for algorithm in Algorithm::ALL {
                let shape = [rows, columns];
                let mut input = either.tensor(Dtype::BFloat16, &shape, |at| fraction(rank, at));
                let mut sum = either.tensor(Dtype::BFloat16, &shape, |_| f32::NAN);
                let format = sink.format();
                let mut codes = either.tensor(format.code, &[rows, columns / format.columns_per_code], |_| 0.0);
                let (scale_rows, elements) = (sink.scale_rows(rows), sink.scale_elements(columns));
                let mut scales = either.tensor(format.scale, &[scale_rows.next_multiple_of(4), elements], |_| 7.0);
                let of = |numbers| Dimensions::new(numbers).unwrap();
                let scales_tensor = Tensor {
                    shape: of([scale_rows, elements]),
                    strides: of(sink.element_strides(rows, elements)),
                    ..scales.tensor()
                };
                let mut given = either.tensor(Dtype::Float32, &[1], |_| 0.01);
                let scale = format.is_given.then(|| given.tensor());
                let operands = AllReduceQuant {
                    input: input.tensor(),
                    quantised: Quantised { sink, rows: codes.tensor(), scale, scales: scales_tensor },
                    sum: sum.tensor(),
                    has_sum,
                    // The host's has one.
                    algorithm: matches!(either, Either::Cuda(_)).then_some(algorithm),
                };
                either.run(&operands).unwrap();
                either.finish().unwrap();
                results.extend([codes.bytes(), scales.bytes()]);
                results.extend(has_sum.then(|| sum.bytes()));
            }
        }
        results
    }
}

/// Queries and keys, of rows whose lengths over all ranks are powers of two if the world's size is one.
fn minimax(dtype: Dtype) -> impl Fn(usize, Either<'_>) -> Results + Sync {
    move |rank, either| {
        let mut results = vec![];
        let (q_size, kv_size) = (64, 16);
        let packed = q_size + 2 * kv_size;
        for tokens in [1, 3, 700] {
            let mut qkv = either.tensor(dtype, &[tokens, packed], |at| integer(rank, at));
            let mut weights = [q_size, kv_size].map(|size| either.tensor(dtype, &[size], |at| at as f32 * 0.3 - 3.0));
            let mut outputs = [q_size, kv_size].map(|size| either.tensor(dtype, &[tokens, size], |_| f32::NAN));
            let operands = MinimaxRms::packed(
                qkv.tensor(),
                [q_size as i64, kv_size as i64],
                weights.each_mut().map(|weight| weight.tensor()),
                outputs.each_mut().map(|output| output.tensor()),
                1e-6,
            );
            either.run(&operands.unwrap()).unwrap();
            either.finish().unwrap();
            results.extend(outputs.map(|output| output.bytes()));
        }
        results
    }
}

/// Compares, and returns how many kernels were launched.
fn compare(world_size: usize, what: &str, program: impl Fn(usize, Either<'_>) -> Results + Sync) -> u64 {
    compare_in(COMM_SIZE, world_size, what, program)
}

/// Likewise, with slots of `comm_size` bytes.
fn compare_in(
    comm_size: usize,
    world_size: usize,
    what: &str,
    program: impl Fn(usize, Either<'_>) -> Results + Sync,
) -> u64 {
    let standin = Standin::take();
    let before = standin.calls("cuLaunchKernelEx");
    let found = on_cuda(world_size, comm_size, &program);
    let launches = standin.calls("cuLaunchKernelEx") - before;
    let expected = on_host(world_size, comm_size, &program);
    for (rank, (found, expected)) in found.iter().zip(&expected).enumerate() {
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let differing = found.iter().zip(expected).filter(|(a, b)| a != b).count();
            let bytes = expected.len();
            assert_eq!(found.len(), bytes);
            assert_eq!(
                differing, 0,
                "{what}, rank {rank} of {world_size}, result {index}: {differing} of {bytes} bytes differ"
            );
        }
    }
    launches
}

/// Kernels that each rank launches for its construction.
const OF_CONSTRUCTION: u64 = 2;

#[test]
fn sums_have_the_bits_of_the_host_backend() {
    for world_size in [2, 3, 4] {
        for dtype in DTYPES {
            let launches = compare(world_size, &format!("sums of {dtype:?}"), sums(dtype));
            // 10 operations, of which the largest take several launches.
            assert!(launches > world_size as u64 * (OF_CONSTRUCTION + 10), "{launches}");
        }
    }
}

#[test]
fn norms_of_sums_have_the_bits_of_the_host_backend() {
    for world_size in [2, 3, 4] {
        for (dtype, weight) in [(Dtype::Float32, Dtype::Float32), (Dtype::BFloat16, Dtype::Float32)] {
            let launches = compare(world_size, &format!("norms of {dtype:?}"), norms(dtype, weight));
            assert!(launches > world_size as u64 * (OF_CONSTRUCTION + 6), "{launches}");
        }
    }
    compare(2, "norms of float16", norms(Dtype::Float16, Dtype::Float16));
}

#[test]
fn layer_norms_of_sums_have_the_bits_of_the_host_backend() {
    for (world_size, dtype, weight) in [
        (2, Dtype::BFloat16, Dtype::Float32),
        (3, Dtype::BFloat16, Dtype::BFloat16),
        (4, Dtype::Float16, Dtype::Float16),
    ] {
        let launches = compare(world_size, &format!("layer norms of {dtype:?}"), layer_norms(dtype, weight, 128));
        // 3 operations, of which the largest takes several launches.
        assert!(launches > world_size as u64 * (OF_CONSTRUCTION + 3), "{launches}");
    }
    // Rows that a block does not hold.
    compare_in(1 << 18, 2, "layer norms of wide rows", layer_norms(Dtype::BFloat16, Dtype::Float32, 16384));
}

#[test]
fn quantised_sums_have_the_bits_of_the_host_backend() {
    for (world_size, sink) in [2, 3].into_iter().flat_map(|size| Sink::ALL.map(|sink| (size, sink))) {
        let launches = compare(world_size, &format!("sums to {}", sink.name()), quantised_sums(sink, 128, 29));
        assert!(launches > world_size as u64 * (OF_CONSTRUCTION + 8), "{launches}");
    }
}

/// One of each kernel.
const SINKS_OF_WIDE_ROWS: [Sink; 2] = [Sink::Fp8Token, Sink::Nvfp4Swizzled];

/// Of two ranks: rows that a block does not hold, for which the sum needs a place, and rows for which only other groups
/// need it.
#[test]
fn quantised_sums_of_wide_rows_have_the_bits_of_the_host_backend() {
    for (columns, sink) in [4096, 8320].into_iter().flat_map(|columns| SINKS_OF_WIDE_ROWS.map(|sink| (columns, sink))) {
        let program = quantised_sums(sink, columns, 5);
        let launches = compare_in(1 << 17, 2, &format!("rows of {columns}"), program);
        assert!(launches >= 2 * (OF_CONSTRUCTION + 8), "{launches}");
    }
}

#[test]
fn rows_of_experts_have_the_bits_of_the_host_backend() {
    for (world_size, dtype, weight) in [
        (2, Dtype::BFloat16, Dtype::Float32),
        (3, Dtype::BFloat16, Dtype::BFloat16),
        (4, Dtype::Float16, Dtype::Float16),
    ] {
        let launches = compare(world_size, &format!("experts' rows of {dtype:?}"), finalised(dtype, weight, 128));
        // Twice 3 operations, of which the largest take several launches.
        assert!(launches > world_size as u64 * (OF_CONSTRUCTION + 6), "{launches}");
    }
    // Rows of which a thread keeps two vectors, and rows that are read back.
    for hidden in [8192, 8320] {
        compare_in(1 << 18, 2, "wide rows of experts", finalised(Dtype::BFloat16, Dtype::Float32, hidden));
    }
}

#[test]
fn minimax_norms_have_the_bits_of_the_host_backend() {
    for (world_size, dtype) in [(2, Dtype::Float32), (3, Dtype::BFloat16), (4, Dtype::Float16)] {
        let launches = compare(world_size, &format!("minimax of {dtype:?}"), minimax(dtype));
        assert!(launches > world_size as u64 * (OF_CONSTRUCTION + 3), "{launches}");
    }
}

#[test]
fn the_sum_of_a_single_rank_is_a_copy() {
    let standin = Standin::take();
    let before = standin.calls("cuLaunchKernelEx");
    on_cuda(1, COMM_SIZE, |rank, either| {
        let mut input = either.tensor(Dtype::BFloat16, &[5003], |at| fraction(rank, at));
        let mut output = either.tensor(Dtype::BFloat16, &[5003], |_| f32::NAN);
        let operands = AllReduce { input: input.tensor(), output: output.tensor(), algorithm: None };
        either.run(&operands).unwrap();
        either.finish().unwrap();
        assert_eq!(output.bytes(), input.bytes());
    });
    assert_eq!(standin.calls("cuLaunchKernelEx") - before, OF_CONSTRUCTION);
}

/// Loading a kernel waits for those that run: not if that was done before.
#[test]
fn prepared_operations_load_nothing() {
    let standin = Standin::take();
    let question = |kind, shape: &[usize], algorithm| Question {
        kind,
        shape: shape.to_vec(),
        dtype: Dtype::Float16,
        weight: Dtype::Float16,
        device: Device::Cuda(0),
        algorithm,
        format: None,
        sizes: [64, 16],
    };
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let device = Device::Cuda(rank.rank);
        let on_device = |question: Question| Question { device, ..question };
        let mut questions = vec![
            question(Kind::AllReduce, &[300], Some(Algorithm::OneShot)),
            // Longer than the slots.
            question(Kind::AllReduce, &[100_000], Some(Algorithm::TwoShot)),
        ];
        for rows in [1, 2, 29] {
            let of = |algorithm| question(Kind::AllReduceRmsNorm, &[rows, 128], Some(algorithm));
            questions.extend(Algorithm::ALL.map(of));
        }
        questions.extend([1, 3, 700].map(|tokens| question(Kind::MinimaxRmsQk, &[tokens, 96], None)));
        let launches = standin.calls("cuLaunchKernelEx");
        rank.meet();
        let load = |question| on_device(question).operands().and_then(|operands| operands.load(&workspace));
        for question in questions {
            load(question).unwrap();
        }
        let odd = question(Kind::AllReduceRmsNorm, &[3, 60], None);
        assert!(matches!(load(odd), Err(Error::Argument(_))));
        rank.meet();
        assert_eq!(standin.calls("cuLaunchKernelEx"), launches);
        let loads = standin.calls("cuModuleLoadData");
        rank.meet();
        let either = Either::Cuda(&workspace);
        for (elements, algorithm) in [(300, Algorithm::OneShot), (100_000, Algorithm::TwoShot)] {
            let [mut input, mut output] = [1.0, 2.0].map(|value| either.tensor(Dtype::Float16, &[elements], |_| value));
            let operands = AllReduce { input: input.tensor(), output: output.tensor(), algorithm: Some(algorithm) };
            either.run(&operands).unwrap();
            either.finish().unwrap();
        }
        norms(Dtype::Float16, Dtype::Float16)(rank.rank, Either::Cuda(&workspace));
        minimax(Dtype::Float16)(rank.rank, Either::Cuda(&workspace));
        rank.meet();
        assert_eq!(standin.calls("cuModuleLoadData"), loads);
        rank.meet();
    });
}
