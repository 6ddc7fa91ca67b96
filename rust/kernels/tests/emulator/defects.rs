//! Defects that must be caught, each for its reason: a replacement in the sources, and what it must lead to.

use lamport_rs_kernels::Dtype::{BFloat16, Float16};
use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm::{self, OneShot, TwoShot};

use crate::cases::device;
use crate::compile::Sources;
use crate::disagreements::{Disagreement, Foreign, check_disagreement, check_foreign};
use crate::faults::{
    FaultCase, check_absent_rank, check_absent_rank_block_by_block, check_late_rank, check_skipping_rank,
};
use crate::machine::Kernels;
use crate::operations::{
    AllReduce, AllReduceLayerNorm, AllReduceQuant, AllReduceRmsNorm, AllReduceRmsNormQuant, Minimax, MoeFinalize,
    Operation, Skip, Verify,
};
use crate::run::{Case, Failure};

/// A defect that no seed below this shows is one that is not caught. The one that shows least does so in one run of a
/// hundred.
const SEEDS: u64 = 1000;

/// What a defect leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Hang,
    Misuse,
    WrongResult,
    WrongControl,
    NotCleared,
    WrongFault,
}
use Expected::{Hang, Misuse, NotCleared, WrongControl, WrongFault, WrongResult};

/// What is run to find it.
enum Run {
    Chain(Case),
    Absent(FaultCase),
    /// Block by block.
    AbsentInTurns(FaultCase),
    Late(FaultCase),
    Skipping(FaultCase),
    Disagreeing(Disagreement),
    /// Behind one operation.
    Foreign(FaultCase, Foreign),
}

/// A defect.
pub struct Defect {
    pub name: &'static str,
    file: &'static str,
    old: &'static str,
    new: &'static str,
    run: Run,
    expected: Expected,
}

impl Defect {
    /// The first seed with which the defect leads to what it should. Panics if there is none.
    pub fn find(&self) -> u64 {
        let mut sources = Sources::of_kernels();
        sources.replace(self.file, self.old, self.new);
        let kernels = Kernels::new(sources);
        let mut failures = Vec::new();
        for seed in 0..SEEDS {
            match self.run(&kernels, seed) {
                Err(failure) if Expected::of(&failure) == self.expected => return seed,
                Err(failure) => failures.push(failure),
                Ok(()) => {}
            }
        }
        panic!(
            "{}: no seed of {SEEDS} leads to {:?}; {} lead to something else: {:#?}",
            self.name,
            self.expected,
            failures.len(),
            failures.first()
        );
    }

    pub fn run(&self, kernels: &Kernels, seed: u64) -> Result<(), Failure> {
        match &self.run {
            Run::Chain(case) => case.run(kernels, seed).map(drop),
            Run::Absent(case) => check_absent_rank(case, kernels, seed).map_err(Failure::WrongFault),
            Run::AbsentInTurns(case) => {
                check_absent_rank_block_by_block(case, kernels, seed).map_err(Failure::WrongFault)
            }
            Run::Late(case) => check_late_rank(case, kernels, seed).map_err(Failure::WrongFault),
            Run::Skipping(case) => check_skipping_rank(case, kernels, seed).map_err(Failure::WrongFault),
            Run::Disagreeing(case) => check_disagreement(case, kernels, seed).map_err(Failure::WrongFault),
            Run::Foreign(case, foreign) => {
                check_foreign(&case.case, (*foreign, 1), kernels, seed).map_err(Failure::WrongFault)
            }
        }
    }
}

impl Expected {
    fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Hang(_) => Hang,
            Failure::Misuse(_) => Misuse,
            Failure::WrongResult(_) => WrongResult,
            Failure::WrongControl(_) => WrongControl,
            Failure::NotCleared(_) => NotCleared,
            Failure::WrongFault(_) => WrongFault,
        }
    }
}

fn all_reduce(algorithm: Algorithm, elements: usize) -> AllReduce {
    AllReduce { algorithm, dtype: BFloat16, elements, in_place: false }
}

fn norm(algorithm: Algorithm) -> AllReduceRmsNorm {
    let (dtype, weight) = (BFloat16, BFloat16);
    AllReduceRmsNorm { algorithm, dtype, weight, tokens: 9, hidden: 72 * 8, has_residual: true, in_place: false }
}

fn quantised(sink: Sink, tokens: usize, hidden: usize) -> AllReduceRmsNormQuant {
    let norm = AllReduceRmsNorm { tokens, hidden, dtype: Float16, weight: Float16, ..norm(OneShot) };
    AllReduceRmsNormQuant { norm, sink, has_output: true }
}

fn quantised_sum() -> AllReduceQuant {
    let (sink, has_sum, in_place) = (Sink::Fp8Token, false, false);
    AllReduceQuant { algorithm: OneShot, dtype: BFloat16, tokens: 9, hidden: 72 * 8, sink, has_sum, in_place }
}

fn layer_norm(hidden: usize) -> AllReduceLayerNorm {
    AllReduceLayerNorm { norm: AllReduceRmsNorm { hidden, ..norm(OneShot) }, has_bias: true }
}

fn minimax() -> Minimax<1> {
    let (dtype, weight, widths) = (BFloat16, BFloat16, [72 * 8]);
    Minimax { dtype, weight, tokens: 3, widths, tokens_per_block: Some(1), in_place: false }
}

/// As many of one operation, in a group of three.
fn chain(operation: impl Operation + Clone + 'static, count: usize) -> Run {
    let operations = (0..count).map(|_| Box::new(operation.clone()) as _).collect();
    Run::Chain(Case {
        name: String::new(),
        world_size: 3,
        device: device(1, 2),
        resident_blocks: 4,
        operations,
        is_checked: true,
    })
}

/// Sums that follow a verification, with nothing between that would order them. Of many ranks some are far ahead.
fn after_verification() -> Run {
    let Run::Chain(case) = chain(all_reduce(OneShot, 8), 3) else { unreachable!("a chain is one") };
    let mut operations = case.operations;
    operations.insert(0, Box::new(Verify { liar: None }));
    Run::Chain(Case { world_size: 9, operations, ..case })
}

/// One operation in a group of three, of whose grids one block runs at a time.
fn few_at_once(operation: impl Operation + 'static) -> Run {
    let operations = vec![Box::new(operation) as _];
    let (name, device) = (String::new(), device(3, 4));
    Run::Chain(Case { name, world_size: 3, device, resident_blocks: 1, operations, is_checked: true })
}

/// The table.
pub fn all() -> Vec<Defect> {
    vec![
        Defect {
            name: "contributions are not scrubbed",
            file: "protocol/sentinel.cuh",
            old: "return word == SENTINEL ? 0u : word;",
            new: "return word;",
            run: chain(all_reduce(OneShot, 700), 1),
            expected: Hang,
        },
        Defect {
            name: "half of the regions are cleared",
            file: "protocol/control.cuh",
            old: "const uint32 to_clear = (group.world_size - 1) * region;",
            new: "const uint32 to_clear = (group.world_size - 1) * region / 2;",
            run: chain(all_reduce(OneShot, 700), 2),
            expected: NotCleared,
        },
        Defect {
            name: "half of the regions are cleared, and used again",
            file: "protocol/control.cuh",
            old: "const uint32 to_clear = (group.world_size - 1) * region;",
            new: "const uint32 to_clear = (group.world_size - 1) * region / 2;",
            run: chain(all_reduce(TwoShot, 700), 6),
            expected: WrongResult,
        },
        Defect {
            name: "the slot in use is cleared",
            file: "protocol/control.cuh",
            old: "const uint32 previous = slot == 0 ? SLOTS - 1 : slot - 1;",
            new: "const uint32 previous = slot;",
            run: chain(all_reduce(OneShot, 700), 6),
            expected: Hang,
        },
        Defect {
            name: "a slot index that a foreign kernel could have left",
            file: "protocol/control.cuh",
            old: "SLOT_INDEX * sizeof(uint32), next + SLOTS);",
            new: "SLOT_INDEX * sizeof(uint32), next);",
            run: chain(all_reduce(OneShot, 700), 1),
            expected: WrongControl,
        },
        Defect {
            name: "headers are not cleared",
            file: "protocol/header.cuh",
            old: "ptx::store_system(poll_ + previous * stride_, empty_vector());",
            new: "",
            run: chain(all_reduce(OneShot, 700), 6),
            expected: Hang,
        },
        Defect {
            name: "headers go to the slot before",
            file: "protocol/header.cuh",
            old: "ptx::store_system(push_ + offset_, own_);",
            new: "ptx::store_system(push_ + (slot == 0 ? SLOTS - 1 : slot - 1) * stride_, own_);",
            run: chain(all_reduce(OneShot, 700), 6),
            expected: Hang,
        },
        Defect {
            name: "two slots",
            file: "constants.cuh",
            old: "SLOTS = 3u",
            new: "SLOTS = 2u",
            run: chain(all_reduce(OneShot, 700), 6),
            expected: Hang,
        },
        Defect {
            name: "the control words move on before all warps of a block have read them",
            file: "protocol/control.cuh",
            old: "    ptx::wait_at_barrier(BLOCK_BARRIER, threads_that_have_read(control));",
            new: "",
            run: chain(all_reduce(TwoShot, 3000), 6),
            expected: Hang,
        },
        Defect {
            name: "no wait for the grids before",
            file: "exchange/one_shot.cuh",
            old: "    ptx::wait_for_prior_grids();\n\n",
            new: "",
            run: chain(all_reduce(OneShot, 700), 2),
            expected: Misuse,
        },
        Defect {
            name: "the residual is read before the wait",
            file: "exchange/rows_one_shot.cuh",
            old: "    const ControlReader control_reader(group);\n",
            new: "    const ControlReader control_reader(group);\n    rows.load_residual(Column{threadIdx.x, 0});\n",
            run: chain(norm(OneShot), 2),
            expected: Misuse,
        },
        Defect {
            name: "only the first word of a vector is looked at",
            file: "protocol/sentinel.cuh",
            old: "return min(min(word(0), word(1)), min(word(2), word(3)));",
            new: "return word(0);",
            run: chain(all_reduce(OneShot, 700), 1),
            expected: WrongResult,
        },
        Defect {
            name: "a region's stride is too large",
            file: "exchange/one_shot.cuh",
            old: "uint64{group.rank} * parameters.region_bytes + place",
            new: "uint64{group.rank} * (parameters.region_bytes + VECTOR_BYTES) + place",
            run: chain(all_reduce(OneShot, 700), 1),
            expected: Hang,
        },
        Defect {
            name: "the arrival counter is not reset",
            file: "protocol/control.cuh",
            old: "return ptx::count_device(group.counters + ARRIVAL_COUNTER * sizeof(uint32), gridDim.x - 1);",
            new: "return ptx::count_device(group.counters + ARRIVAL_COUNTER * sizeof(uint32), ~0u);",
            run: chain(all_reduce(OneShot, 700), 1),
            expected: WrongControl,
        },
        Defect {
            name: "no barrier between the partial sums of two rows",
            file: "exchange/rows_one_shot.cuh",
            old: "        // The partials of the row before have been read.\n        __syncthreads();\n",
            new: "",
            run: chain(norm(OneShot), 2),
            expected: WrongResult,
        },
        Defect {
            name: "partial sums of warps that do not exist are not made 0",
            file: "sink/rms_norm.cuh",
            old: "        partials.values[threadIdx.x] = 0.0f;\n",
            new: "",
            run: chain(norm(OneShot), 1),
            expected: WrongResult,
        },
        Defect {
            name: "a thread's second vector of a row lies where its first does",
            file: "sink/block_rows.cuh",
            old: "tensor + offset_ + uint64{column - threadIdx.x} * VECTOR_BYTES",
            new: "tensor + offset_",
            run: chain(MoeFinalize::of(true, 9, 600 * 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "a thread's second vector has the weights of its first",
            file: "sink/residual_rms_norm.cuh",
            old: "parameters_.norm, Rows::within(column)",
            new: "parameters_.norm, Rows::within(Column{threadIdx.x, 0})",
            run: chain(MoeFinalize::of(true, 9, 600 * 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "no barrier before the largest value of a row that is not kept",
            file: "sink/fp8_token.cuh",
            old: "            __syncthreads();\n            largest = of_block(shared.largest);\n",
            new: "            largest = of_block(shared.largest);\n",
            run: chain(quantised(Sink::Fp8Token, 3, 8200), 1),
            expected: WrongResult,
        },
        Defect {
            name: "no barrier before the largest value of a sum's row",
            file: "sink/sum_rows.cuh",
            old: "        __syncthreads();\n        Output<Value, vectors>::put",
            new: "        Output<Value, vectors>::put",
            run: chain(quantised_sum(), 1),
            expected: WrongResult,
        },
        Defect {
            name: "sums and squares of a layer norm share their partials",
            file: "sink/residual_layer_norm.cuh",
            old: "row_scale(squares, shared_.squares)",
            new: "row_scale(squares, shared_.partials)",
            run: chain(layer_norm(72 * 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "a layer norm squares the row and not its deviations",
            file: "sink/residual_layer_norm.cuh",
            old: "vector_.squares_around(mean) : 0.0f",
            new: "vector_.squares_around(0.0f) : 0.0f",
            run: chain(layer_norm(72 * 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "columns beyond the row's end deviate too",
            file: "sink/residual_layer_norm.cuh",
            old: "squares += has(column) ? vector_.squares_around(mean) : 0.0f",
            new: "squares += vector_.squares_around(mean)",
            run: chain(layer_norm(33 * 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "indices of experts' rows are read before the wait",
            file: "source/experts.cuh",
            old: "        return keep(first_entry(rows));\n",
            new: "        return keep(first_entry(rows)) + 0 * ptx::load_weight_word(experts_.index);\n",
            run: chain(MoeFinalize::of(true, 9, 72 * 8), 2),
            expected: Misuse,
        },
        Defect {
            name: "a negative number of an expert's row is taken for one",
            file: "source/experts.cuh",
            old: "ptx::load_input_if(index[i] < experts_.row_count &&",
            new: "ptx::load_input_if(static_cast<int32>(index[i]) < static_cast<int32>(experts_.row_count) &&",
            run: chain(MoeFinalize::of(false, 9, 72 * 8), 8),
            expected: Misuse,
        },
        Defect {
            name: "the weight of nothing counts",
            file: "source/experts.cuh",
            old: "index[i] == NONE ? 0.0f : __uint_as_float(NAN_WORD)",
            new: "index[i] == NONE ? weights[i] : __uint_as_float(NAN_WORD)",
            run: chain(MoeFinalize::of(false, 9, 72 * 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "the largest product of a row decides though its bounds round to two values",
            file: "sink/fp8_token.cuh",
            old: "            result >= LEAST_RESULT && bounds[1] <= LARGEST_FLOAT && rounded >> 16 == (rounded & 0xffffu);\n",
            new: "            true;\n",
            run: chain(quantised(Sink::Fp8Token, 6000, 8), 1),
            expected: WrongResult,
        },
        Defect {
            name: "what did not come is taken for a number",
            file: "protocol/vector_routes.cuh",
            old: "                of[rank] = nan_vector();\n",
            new: "",
            run: Run::Late(FaultCase::new(2, false, all_reduce(TwoShot, 700))),
            expected: WrongFault,
        },
        Defect {
            name: "no barrier between the partial sums of two rows in two shots",
            file: "exchange/rows_two_shot.cuh",
            old: "        // The partials of the row before have been read.\n        __syncthreads();\n",
            new: "",
            run: chain(norm(TwoShot), 2),
            expected: WrongResult,
        },
        Defect {
            name: "a row's sum is pushed although a contribution did not come",
            file: "exchange/rows_two_shot.cuh",
            old: "if (complete && is_active(column)) {",
            new: "if (is_active(column)) {",
            run: Run::Late(FaultCase::new(3, false, norm(TwoShot))),
            expected: WrongFault,
        },
        Defect {
            name: "the largest magnitude of a group is that of two",
            file: "sink/fp8_group.cuh",
            old: "half_warp_maximum(",
            new: "warp_maximum(",
            run: chain(quantised(Sink::Fp8Group, 4, 256), 1),
            expected: WrongResult,
        },
        Defect {
            name: "a group of zeros has a scale of 0",
            file: "sink/fp8_group.cuh",
            old: "ptx::larger_or_nan(LEAST, lamport::magnitude<typename Rows::Element>(largest))",
            new: "lamport::magnitude<typename Rows::Element>(largest)",
            run: chain(AllReduceQuant { sink: Sink::Fp8Group, hidden: 256, ..quantised_sum() }, 1),
            expected: WrongResult,
        },
        Defect {
            name: "the scales of rows that do not exist are not cleared",
            file: "sink/quantise_blocks.cuh",
            old: "        clear_padding(rows, parameters);\n",
            new: "",
            run: chain(quantised(Sink::Mxfp8Swizzled, 4, 256), 1),
            expected: WrongResult,
        },
        Defect {
            name: "blocks without rows leave their share of the scales to clear",
            file: "sink/block_quantiser.cuh",
            old: "word += parameters.tokens * blockDim.x",
            new: "word += data_blocks() * blockDim.x",
            run: few_at_once(quantised(Sink::Mxfp8Swizzled, 1, 256)),
            expected: WrongResult,
        },
        Defect {
            name: "scales of bytes are 1 after a fault",
            file: "sink/quantise_blocks.cuh",
            old: "NAN_BYTE = 0xff;",
            new: "NAN_BYTE = 0x7f;",
            run: Run::Foreign(FaultCase::new(3, true, quantised(Sink::Mxfp8, 5, 128)), Foreign::InEverySlot),
            expected: WrongFault,
        },
        Defect {
            name: "after a fault the scales of the first row alone are NaN",
            file: "sink/quantise_blocks.cuh",
            old: "for (uint32 token = 0; token < parameters.tokens; ++token)",
            new: "for (uint32 token = 0; token < 1; ++token)",
            run: Run::Foreign(FaultCase::new(3, true, quantised(Sink::Nvfp4, 5, 128)), Foreign::InEverySlot),
            expected: WrongFault,
        },
        Defect {
            name: "after a fault a sum's rows of four bits are taken for as many bytes as those of eight",
            file: "sink/quantise_blocks.cuh",
            old: "parameters.format == NVFP4 ? bytes / 4 : bytes / 2",
            new: "bytes / 2",
            run: Run::Foreign(
                FaultCase::new(3, true, AllReduceQuant { sink: Sink::Nvfp4, hidden: 128, ..quantised_sum() }),
                Foreign::InEverySlot,
            ),
            expected: WrongFault,
        },
        Defect {
            name: "calls that send nothing are not counted",
            file: "skip.cu",
            old: "(previous + group.header[0])",
            new: "previous",
            run: chain(Skip { calls: 2 }, 1),
            expected: WrongControl,
        },
        Defect {
            name: "the last call in a row that sends nothing is told, and not the first",
            file: "skip.cu",
            old: "if (threadIdx.x == 0 && previous == last_operation) {",
            new: "if (threadIdx.x == 0) {",
            run: Run::Skipping(FaultCase::new(3, true, all_reduce(OneShot, 700))),
            expected: WrongFault,
        },
        Defect {
            name: "the table's slot index is not looked at",
            file: "protocol/control.cuh",
            old: "return slot == left && extent ==",
            new: "return extent ==",
            run: Run::Foreign(FaultCase::new(3, true, all_reduce(OneShot, 700)), Foreign::InEverySlot),
            expected: WrongFault,
        },
        Defect {
            name: "the table's extent to clear is not looked at",
            file: "protocol/control.cuh",
            old: "return slot == left && extent == uint64{group.world_size} * control.previous_region * VECTOR_BYTES;",
            new: "return slot == left;",
            run: Run::Foreign(FaultCase::new(3, true, all_reduce(OneShot, 700)), Foreign::Extent),
            expected: WrongFault,
        },
        Defect {
            name: "a word of headers is not compared",
            file: "protocol/header.cuh",
            old: "(a.words[2] ^ b.words[2]) |",
            new: "0 |",
            run: Run::Disagreeing(Disagreement::new(3, all_reduce(OneShot, 700), all_reduce(OneShot, 500), 2)),
            expected: WrongFault,
        },
        Defect {
            name: "NaN is written before the other threads have ended",
            file: "protocol/header.cuh",
            old: "was_failed ? 1 : 20 + ",
            new: "was_failed ? 1 : 0 * ",
            run: Run::Disagreeing(Disagreement::new(3, all_reduce(OneShot, 700), all_reduce(OneShot, 500), 2)),
            expected: WrongFault,
        },
        Defect {
            name: "no barrier after the exchange of a row's sums",
            file: "exchange/minimax_words.cuh",
            old: "        __syncwarp();\n        __syncthreads();\n",
            new: "",
            run: chain(minimax(), 2),
            expected: WrongResult,
        },
        Defect {
            name: "the warps that push count without the service warp",
            file: "protocol/control.cuh",
            old: "ptx::arrive_at_barrier(SERVICE_BARRIER, threads_that_have_read(control));",
            new: "ptx::arrive_at_barrier(SERVICE_BARRIER, threads_that_have_read(control) - WARP_THREADS);",
            run: chain(all_reduce(OneShot, 700), 1),
            expected: Misuse,
        },
        Defect {
            name: "a rank that has failed pushes on",
            file: "exchange/one_shot.cuh",
            old: "if (awaited != 0 && control.failed == 0) {",
            new: "if (awaited != 0) {",
            run: Run::Absent(FaultCase::new(3, true, all_reduce(OneShot, 700))),
            expected: WrongFault,
        },
        Defect {
            name: "a late block of a grid that has given up stores its own operand as the sum",
            file: "exchange/one_shot.cuh",
            old: "output.address(at), nan_vector());",
            new: "output.address(at), own);",
            run: Run::AbsentInTurns(FaultCase::new(3, true, all_reduce(OneShot, 700)).block_by_block()),
            expected: WrongFault,
        },
        Defect {
            name: "a late block of a grid that has given up stores its own rows",
            file: "protocol/sentinel.cuh",
            old: "        vector = nan_vector();\n",
            new: "",
            run: Run::AbsentInTurns(FaultCase::new(3, true, norm(OneShot)).block_by_block()),
            expected: WrongFault,
        },
        Defect {
            name: "in two shots, a late block of a grid that has given up stores no sums as others' rows",
            file: "exchange/rows_two_shot.cuh",
            old: "            spoil_if(control.failed != 0, sum);\n",
            new: "",
            run: Run::AbsentInTurns(FaultCase::new(3, false, norm(TwoShot)).block_by_block()),
            expected: WrongFault,
        },
        Defect {
            name: "in phases, a late block of a grid that has given up stores no sums as those of others",
            file: "exchange/two_shot_phased.cuh",
            old: "    spoil_if(control.failed != 0, sum);\n",
            new: "",
            run: Run::AbsentInTurns(FaultCase::new(3, false, all_reduce(TwoShot, 700)).block_by_block()),
            expected: WrongFault,
        },
        Defect {
            name: "a late block of a grid that has given up stores no sums as those of others",
            file: "exchange/two_shot.cuh",
            old: "control.failed != 0 ? NAN_WORD : 0",
            new: "0",
            run: Run::AbsentInTurns(FaultCase::new(2, true, all_reduce(TwoShot, 700)).block_by_block()),
            expected: WrongFault,
        },
        Defect {
            name: "a late block of a grid that has given up scales by its own squares",
            file: "exchange/minimax_words.cuh",
            old: "            shared_.sums[row_].values[peer_] = __uint_as_float(NAN_WORD);\n",
            new: "",
            run: Run::AbsentInTurns(FaultCase::new(2, true, minimax()).block_by_block()),
            expected: WrongFault,
        },
        Defect {
            name: "a sum is pushed although a contribution did not come",
            file: "exchange/two_shot.cuh",
            old: "if (active && complete) {",
            new: "if (active) {",
            run: Run::Late(FaultCase::new(2, false, all_reduce(TwoShot, 700))),
            expected: WrongFault,
        },
        Defect {
            name: "in phases, a sum is pushed although a contribution did not come",
            file: "exchange/two_shot_phased.cuh",
            old: "if (awaits && complete) {",
            new: "if (awaits) {",
            run: Run::Late(FaultCase::new(3, false, all_reduce(TwoShot, 700))),
            expected: WrongFault,
        },
        Defect {
            name: "in phases, a rank that has failed pushes on",
            file: "exchange/two_shot_phased.cuh",
            old: "const bool active = theirs.is_there && control.failed == 0;",
            new: "const bool active = theirs.is_there;",
            run: Run::Absent(FaultCase::new(3, true, all_reduce(TwoShot, 700))),
            expected: WrongFault,
        },
        Defect {
            name: "in phases, a block sums what later blocks push",
            file: "exchange/two_shot_phased.cuh",
            old: "keep(first + threadIdx.x)",
            new: "keep((data_blocks() - 1 - data_block()) * chunk + threadIdx.x)",
            run: few_at_once(all_reduce(TwoShot, 3000)),
            expected: Hang,
        },
        Defect {
            name: "nothing orders the verification's clear ahead of its verdict",
            file: "verify.cu",
            old: "        ptx::fence_system();\n        ptx::store_system(theirs",
            new: "        ptx::store_system(theirs",
            run: after_verification(),
            expected: Hang,
        },
        Defect {
            name: "a rank that was pushed a wrong vector accepts it",
            file: "verify.cu",
            old: "verdict(result == 0 ? ACCEPTED : REFUSED)",
            new: "verdict(ACCEPTED)",
            run: chain(Verify { liar: Some(1) }, 1),
            expected: WrongResult,
        },
    ]
}
