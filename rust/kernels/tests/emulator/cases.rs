//! What is run: one table per kind of operation, and one of mixtures. Together they have every module of the catalogue.

use lamport_rs_kernels::Dtype::{self, BFloat16, Float16, Float32};
use lamport_rs_kernels::Sink;
use lamport_rs_kernels::plan::Device;
use lamport_rs_kernels::variants::{capacity, rms_norm_bounds};
use lamport_rs_protocol::algorithm::Algorithm::{self, OneShot, TwoShot};

use crate::operations::{
    AllReduce, AllReduceLayerNorm, AllReduceQuant, AllReduceRmsNorm, AllReduceRmsNormQuant, Fill, Minimax, MoeFinalize,
    Operation, Skip, Verify,
};
use crate::run::Case;
use crate::values::Random;

const DTYPES: [Dtype; 3] = [Float32, Float16, BFloat16];
/// Rows and weights.
const DTYPES_WITH_WEIGHTS: [(Dtype, Dtype); 5] =
    [(Float32, Float32), (Float16, Float16), (Float16, Float32), (BFloat16, BFloat16), (BFloat16, Float32)];
/// The last is for the kernels of the largest groups, of up to 16 ranks.
const WORLD_SIZES: [usize; 8] = [2, 3, 4, 5, 6, 7, 8, 9];

/// Of dtypes that have quantisers: each size is there for one of the two, and each capacity for both.
const QUANTISED: [(Dtype, [usize; 5]); 2] = [(Float16, [2, 4, 5, 8, 9]), (BFloat16, [2, 3, 6, 7, 9])];

type Operations = Vec<Box<dyn Operation>>;

/// A device so small that plans for it have grids of a few blocks.
pub const fn device(multiprocessors: u32, blocks_per_multiprocessor: u32) -> Device {
    Device { compute_capability: (9, 0), multiprocessors, threads_per_multiprocessor: 2048, blocks_per_multiprocessor }
}

fn case(name: String, world_size: usize, device: Device, operations: Operations) -> Case {
    // Room for the next grid's blocks beside those of the present.
    let resident_blocks = 2 * device.multiprocessors * device.blocks_per_multiprocessor;
    Case { name, world_size, device, resident_blocks, operations, is_checked: true }
}

/// Sums: a single element, tails of every kind, several rounds of a thread, in place, and sums of sums.
pub fn all_reduce() -> Vec<Case> {
    let mut cases = Vec::new();
    for (algorithm, dtype) in Algorithm::ALL.into_iter().flat_map(|algorithm| DTYPES.map(|dtype| (algorithm, dtype))) {
        for world_size in WORLD_SIZES {
            let sum = |elements, in_place| -> Box<dyn Operation> {
                Box::new(AllReduce { algorithm, dtype, elements, in_place })
            };
            // Of 128 threads, in the last of which a block has few of its vectors.
            let rounds = vectors(algorithm, 300, world_size) * 16 / dtype.size() + 1;
            let odd = 7 * world_size + 3;
            let operations = vec![
                sum(1, false),
                sum(odd, false),
                sum(rounds, false),
                sum(odd, true),
                sum(600, false),
                sum(600, false),
            ];
            let name = format!("all_reduce, {algorithm:?}, {dtype:?}, {world_size} ranks");
            cases.push(case(name, world_size, device(1, 2), operations));
        }
    }
    cases
}

/// Vectors of a tensor of which each rank sums `share`.
fn vectors(algorithm: Algorithm, share: usize, world_size: usize) -> usize {
    if algorithm == OneShot { share } else { share * world_size }
}

/// The most vectors of a row of which each thread keeps so many.
fn most_vectors(world_size: usize, vectors: u32) -> usize {
    (vectors * rms_norm_bounds(capacity(world_size as u32), vectors).max_threads) as usize
}

/// Norms of sums: rows that are held and rows that are not, more rows than blocks and fewer, in place, and in a row.
pub fn rms_norm() -> Vec<Case> {
    let mut cases = Vec::new();
    for algorithm in Algorithm::ALL {
        for (dtype, weight) in DTYPES_WITH_WEIGHTS {
            for world_size in WORLD_SIZES {
                let per_vector = 16 / dtype.size();
                let norm = |tokens, vectors: usize, in_place| -> Box<dyn Operation> {
                    let (hidden, has_residual) = (vectors * per_vector, true);
                    Box::new(AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place })
                };
                let name = format!("all_reduce_rms_norm, {algorithm:?}, {dtype:?} and {weight:?}, {world_size} ranks");
                let few = world_size;
                let held = vec![norm(few, 1, false), norm(13, 33, false), norm(13, 33, false), norm(few + 4, 40, true)];
                cases.push(case(format!("{name}, held"), world_size, device(1, 2), held));
                let rows = if algorithm == OneShot { 2 } else { world_size };
                // One more than threads of which each keeps half as many.
                let keeps = [(BFloat16, BFloat16), (Float16, Float32)].contains(&(dtype, weight)) && world_size > 4;
                for kept in [2, 4].into_iter().filter(|_| keeps) {
                    let vectors = most_vectors(world_size, 2) / 2 * (kept as usize / 2) + 1;
                    let kept_rows = vec![norm(rows + 1, vectors, false), norm(rows, vectors + 40, true)];
                    cases.push(case(format!("{name}, {kept} vectors a thread"), world_size, device(1, 1), kept_rows));
                }
                if weight == dtype {
                    // More than threads keep.
                    let most = if dtype == Float32 || world_size <= 4 { 1 } else { 4 };
                    let wide = vec![norm(rows, most_vectors(world_size, most) + 1, false), norm(few, 1, true)];
                    cases.push(case(format!("{name}, wide"), world_size, device(1, 1), wide));
                }
            }
        }
    }
    cases
}

/// Layer norms of sums: like `rms_norm`, with biases and without.
pub fn layer_norm() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, weight) in DTYPES_WITH_WEIGHTS.into_iter().skip(1) {
        for world_size in WORLD_SIZES {
            let norm = |tokens, vectors: usize, has_bias, in_place| -> Box<dyn Operation> {
                let (algorithm, hidden, has_residual) = (OneShot, vectors * 8, has_bias || in_place);
                let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
                Box::new(AllReduceLayerNorm { norm, has_bias })
            };
            let name = format!("layer_norm, {dtype:?} and {weight:?}, {world_size} ranks");
            let held = vec![
                norm(1, 1, true, false),
                norm(13, 33, false, false),
                norm(13, 33, true, true),
                norm(world_size + 4, 40, true, false),
            ];
            cases.push(case(format!("{name}, held"), world_size, device(1, 2), held));
            if weight == dtype {
                let vectors = most_vectors(world_size, 1) + 1;
                let wide = vec![norm(2, vectors, true, false), norm(3, 1, false, true)];
                cases.push(case(format!("{name}, wide"), world_size, device(1, 1), wide));
            }
        }
    }
    cases
}

/// Whether quantised rows that are not held are run in so large a group. They take long: of 5 to 8 ranks, two
/// sizes are run in one shot, and the others in two.
fn runs_wide(algorithm: Algorithm, world_size: usize) -> bool {
    match world_size {
        5 | 6 => algorithm == OneShot,
        7 | 8 => algorithm == TwoShot,
        _ => true,
    }
}

/// Norms of sums, quantised: like `rms_norm`, with the normalised rows and without.
pub fn rms_norm_quant() -> Vec<Case> {
    let mut cases = Vec::new();
    for (sink, algorithm) in Sink::ALL.into_iter().flat_map(|sink| Algorithm::ALL.map(|algorithm| (sink, algorithm))) {
        for (dtype, world_size) in QUANTISED.into_iter().flat_map(|(dtype, sizes)| sizes.map(|size| (dtype, size))) {
            // It differs from the other one in where the scales go, and in nothing else.
            if sink.format().in_kernel != sink && (dtype, world_size) != (BFloat16, 3) {
                continue;
            }
            let quant = |tokens, vectors: usize, has_output| -> Box<dyn Operation> {
                // Whole groups of columns, where these have a scale.
                let hidden = (vectors * 8).next_multiple_of(sink.column_multiple());
                let weight = if has_output { dtype } else { Float32 };
                let (has_residual, in_place) = (has_output, false);
                let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
                Box::new(AllReduceRmsNormQuant { norm, sink, has_output })
            };
            let name = format!("{}, {algorithm:?}, {dtype:?}, {world_size} ranks", sink.name());
            // Several blocks with rows, and some that have none.
            let few = if algorithm == OneShot { 1 } else { world_size };
            let held = vec![quant(13, 33, true), quant(few, 1, false), quant(world_size + 4, 40, true)];
            cases.push(case(format!("{name}, held"), world_size, device(2, 2), held));
            if !runs_wide(algorithm, world_size) {
                continue;
            }
            let vectors = most_vectors(world_size, 1) + 1;
            let rows = if algorithm == OneShot { 2 } else { world_size };
            let wide = vec![quant(rows, vectors, true), quant(world_size, 1, false)];
            cases.push(case(format!("{name}, wide"), world_size, device(1, 1), wide));
        }
    }
    cases
}

/// Sums, quantised: likewise, with the sum and without, in place of the input and elsewhere.
pub fn quant() -> Vec<Case> {
    let mut cases = Vec::new();
    for (sink, algorithm) in Sink::ALL.into_iter().flat_map(|sink| Algorithm::ALL.map(|algorithm| (sink, algorithm))) {
        for (dtype, world_size) in QUANTISED.into_iter().flat_map(|(dtype, sizes)| sizes.map(|size| (dtype, size))) {
            // As above.
            if sink.format().in_kernel != sink && (dtype, world_size) != (BFloat16, 3) {
                continue;
            }
            let quant = |tokens, vectors: usize, has_sum, in_place| -> Box<dyn Operation> {
                let hidden = (vectors * 8).next_multiple_of(sink.column_multiple());
                Box::new(AllReduceQuant { algorithm, dtype, tokens, hidden, sink, has_sum, in_place })
            };
            let name = format!("the sum to {}, {algorithm:?}, {dtype:?}, {world_size} ranks", sink.name());
            let few = world_size;
            let held = vec![quant(13, 33, false, false), quant(few, 1, true, false), quant(few + 4, 40, true, true)];
            cases.push(case(format!("{name}, held"), world_size, device(1, 2), held));
            if !runs_wide(algorithm, world_size) {
                continue;
            }
            let vectors = most_vectors(world_size, 1) + 1;
            let rows = if algorithm == OneShot { 2 } else { world_size };
            // Rows that are not held are read back from the sum's place.
            let in_place = dtype == BFloat16;
            let wide = vec![quant(rows, vectors, in_place, in_place), quant(few, 1, true, !in_place)];
            cases.push(case(format!("{name}, wide"), world_size, device(1, 1), wide));
        }
    }
    cases
}

/// For each variant of `variants.rs`: tokens per block, and the vectors of the first matrix and of the second.
const MINIMAX_VARIANTS: [(u32, u32, u32); 7] =
    [(1, 40, 33), (2, 40, 33), (4, 3, 33), (8, 40, 1), (1, 1000, 8), (4, 490, 20), (1, 2000, 8)];

/// MiniMax norms, of one matrix and of two: blocks that are full and blocks that are not, in place.
pub fn minimax() -> Vec<Case> {
    let mut cases = Vec::new();
    for (index, (dtype, weight)) in DTYPES_WITH_WEIGHTS.into_iter().enumerate() {
        for (variant, (tokens_per_block, first, second)) in MINIMAX_VARIANTS.into_iter().enumerate() {
            let per_vector = 16 / dtype.size() as u32;
            let tokens_per_block = Some(tokens_per_block);
            let one = |tokens, in_place| -> Box<dyn Operation> {
                Box::new(Minimax { dtype, weight, tokens, widths: [first * per_vector], tokens_per_block, in_place })
            };
            let two = |tokens, in_place| -> Box<dyn Operation> {
                let widths = [first * per_vector, second * per_vector];
                Box::new(Minimax { dtype, weight, tokens, widths, tokens_per_block, in_place })
            };
            // Where a block has hundreds of threads, fewer blocks.
            let is_large = first >= 490;
            let world_size = 2 + (index + variant) % if is_large { 3 } else { 7 };
            let most = if is_large { 3 } else { 9 };
            let name = format!("minimax, {dtype:?} and {weight:?}, {tokens_per_block:?} per block, {world_size} ranks");
            let operations = vec![one(1, false), two(most - 1, true), one(most, true), two(2, false)];
            cases.push(case(name, world_size, device(2, 4), operations));
        }
    }
    cases
}

/// Rows that experts made: for each token one, as many as are loaded at once, and more.
pub fn moe_finalize() -> Vec<Case> {
    let mut cases = Vec::new();
    for (is_normalised, (dtype, expert_weight)) in
        [true, false].into_iter().flat_map(|each| DTYPES_WITH_WEIGHTS[1..].iter().map(move |&dtypes| (each, dtypes)))
    {
        for world_size in WORLD_SIZES {
            let finalize = |tokens, vectors: usize, per_token, has_shared| -> Box<dyn Operation> {
                let (algorithm, hidden, has_residual) = (OneShot, vectors * 8, is_normalised);
                let (weight, in_place) = (dtype, false);
                let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
                Box::new(MoeFinalize { norm, is_normalised, per_token, expert_weight, has_shared })
            };
            let what = if is_normalised { "norm" } else { "sum" };
            let name = format!("experts, {what}, {dtype:?} and {expert_weight:?}, {world_size} ranks");
            let held = vec![
                finalize(1, 1, 1, true),
                finalize(13, 33, 8, false),
                finalize(13, 33, 11, true),
                finalize(world_size + 4, 40, 2, true),
            ];
            cases.push(case(format!("{name}, held"), world_size, device(1, 2), held));
            if expert_weight == dtype {
                let vectors = most_vectors(world_size, 2);
                let two = vec![finalize(2, vectors / 2 + 1, 6, true), finalize(3, vectors / 2 + 40, 4, false)];
                cases.push(case(format!("{name}, two vectors a thread"), world_size, device(1, 1), two));
                let wide = vec![finalize(2, vectors + 1, 3, true), finalize(world_size, 1, 8, false)];
                cases.push(case(format!("{name}, wide"), world_size, device(1, 1), wide));
            }
        }
    }
    cases
}

/// What comes before all operations.
pub fn setup() -> Vec<Case> {
    let mut cases = Vec::new();
    for world_size in (2..=8).chain([16]) {
        let fill = |first, words| -> Box<dyn Operation> { Box::new(Fill { first, words }) };
        let verify = |liar| -> Box<dyn Operation> { Box::new(Verify { liar }) };
        let sum = |elements| -> Box<dyn Operation> {
            Box::new(AllReduce { algorithm: Algorithm::OneShot, dtype: BFloat16, elements, in_place: false })
        };
        for liar in [None, Some(1)] {
            // One verification: a second would need a barrier between the two. Operations need none.
            let mut operations = vec![fill(0, 5000), fill(3, 1), fill(1, 2), fill(2, 3001), verify(liar)];
            if liar.is_none() {
                operations.extend((0..4).map(|index| sum(7 + 300 * index)));
                operations.extend(
                    [Skip { calls: 1 }, Skip { calls: 2 }].map(|skip| -> Box<dyn Operation> { Box::new(skip) }),
                );
                operations.extend((1..3).map(sum));
            }
            cases.push(case(format!("setup, {world_size} ranks"), world_size, device(1, 1), operations));
        }
    }
    cases
}

/// All kinds after each other on one workspace, quantisers among them, in random order and of random sizes. Half of
/// them on devices without programmatic dependent launch.
pub fn mixtures() -> Vec<Case> {
    let mut cases = Vec::new();
    for world_size in 2..=8 {
        for part in 0..4 {
            let mut random = Random(100 * world_size as u64 + part);
            let operations = (0..12).map(|_| any_operation(&mut random, world_size)).collect();
            let capability = if part % 2 == 0 { (9, 0) } else { (8, 0) };
            let small = device(1 + part as u32 % 3, 2);
            let device = Device { compute_capability: capability, ..small };
            let mixture = case(format!("mixture {part}, {world_size} ranks"), world_size, device, operations);
            cases.push(Case { is_checked: part / 2 == 0, ..mixture });
        }
    }
    cases
}

fn any_operation(random: &mut Random, world_size: usize) -> Box<dyn Operation> {
    let (dtype, weight) = DTYPES_WITH_WEIGHTS[random.below(DTYPES_WITH_WEIGHTS.len())];
    let per_vector = 16 / dtype.size();
    let in_place = random.below(2) == 0;
    let algorithm = if random.below(2) == 0 { OneShot } else { TwoShot };
    let tokens = 1 + random.below(12);
    let vectors = [1, 5, 32, 70][random.below(4)];
    let of_rows = if tokens < world_size { OneShot } else { algorithm };
    let has_residual = random.below(2) == 0;
    match random.below(8) {
        0 => {
            let elements = [1, 9, 64, 700, 5000][random.below(5)] + random.below(8);
            Box::new(AllReduce { algorithm, dtype, elements, in_place })
        }
        1 => {
            let (algorithm, hidden) = (of_rows, vectors * per_vector);
            Box::new(AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place })
        }
        2 => {
            let widths = [(vectors * per_vector) as u32];
            Box::new(Minimax { dtype, weight, tokens: tokens as u32, widths, tokens_per_block: None, in_place })
        }
        3 => {
            let widths = [(vectors * per_vector) as u32, 3 * per_vector as u32];
            Box::new(Minimax { dtype, weight, tokens: tokens as u32, widths, tokens_per_block: None, in_place })
        }
        4 => {
            let sink = Sink::ALL[random.below(Sink::ALL.len())];
            let (dtype, weight) = DTYPES_WITH_WEIGHTS[1 + random.below(4)];
            let (algorithm, hidden) = (of_rows, (vectors * 8).next_multiple_of(sink.column_multiple()));
            let has_output = random.below(2) == 0;
            let in_place = in_place && has_output;
            let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
            Box::new(AllReduceRmsNormQuant { norm, sink, has_output })
        }
        5 => {
            let (dtype, weight) = DTYPES_WITH_WEIGHTS[1 + random.below(4)];
            let (algorithm, hidden, has_bias) = (OneShot, vectors * 8, random.below(2) == 0);
            let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
            Box::new(AllReduceLayerNorm { norm, has_bias })
        }
        6 => {
            let is_normalised = random.below(2) == 0;
            let (dtype, weight) = DTYPES_WITH_WEIGHTS[1 + random.below(4)];
            let (algorithm, hidden) = (OneShot, vectors * 8);
            let (expert_weight, has_residual) = (weight, has_residual && is_normalised);
            let (per_token, has_shared, in_place) = (1 + random.below(10), in_place, false);
            let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
            Box::new(MoeFinalize { norm, is_normalised, per_token, expert_weight, has_shared })
        }
        _ => {
            let sink = Sink::ALL[random.below(Sink::ALL.len())];
            let (dtype, has_sum) = ([Float16, BFloat16][random.below(2)], random.below(2) == 0);
            let (algorithm, hidden) = (of_rows, (vectors * 8).next_multiple_of(sink.column_multiple()));
            Box::new(AllReduceQuant { algorithm, dtype, tokens, hidden, sink, has_sum, in_place })
        }
    }
}

/// Grids of more blocks than run at once: they start in ascending order, and no block waits for one that cannot start.
pub fn limited_residency() -> Vec<Case> {
    let mut cases = Vec::new();
    for world_size in [2, 3, 7] {
        for resident_blocks in [1, 3] {
            let dtype = BFloat16;
            let all_reduce = |algorithm, elements| -> Box<dyn Operation> {
                Box::new(AllReduce { algorithm, dtype, elements, in_place: false })
            };
            let norm = |algorithm, tokens| -> Box<dyn Operation> {
                let (weight, hidden, has_residual, in_place) = (dtype, 40, true, false);
                Box::new(AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place })
            };
            let minimax = |tokens| -> Box<dyn Operation> {
                let (weight, widths) = (dtype, [64, 8]);
                Box::new(Minimax { dtype, weight, tokens, widths, tokens_per_block: Some(1), in_place: false })
            };
            let operations = vec![
                all_reduce(OneShot, 3000),
                all_reduce(TwoShot, 3000 * world_size),
                norm(OneShot, 20),
                norm(TwoShot, 20),
                minimax(17),
                all_reduce(OneShot, 10),
            ];
            let name = format!("{resident_blocks} blocks at once, {world_size} ranks");
            cases.push(Case { name, world_size, device: device(3, 4), resident_blocks, operations, is_checked: true });
        }
    }
    cases
}
