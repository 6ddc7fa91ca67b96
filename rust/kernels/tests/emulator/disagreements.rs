//! Ranks that do different things, and tables that a foreign kernel has used: every rank says so, and its results are
//! NaN from then on, never numbers.

use lamport_rs_kernels::Dtype::{BFloat16, Float16};
use lamport_rs_kernels::Sink;
use lamport_rs_kernels::variants::WARP_THREADS;
use lamport_rs_protocol::algorithm::Algorithm::{OneShot, TwoShot};
use lamport_rs_protocol::geometry::SLOTS;
use lamport_rs_protocol::table::{CLEAR_EXTENT, SLOT_INDEX};

use crate::cases::device;
use crate::faults::Group;
use crate::machine::Kernels;
use crate::operations::{
    AllReduce, AllReduceLayerNorm, AllReduceQuant, AllReduceRmsNorm, AllReduceRmsNormQuant, Minimax, MoeFinalize,
    Operation,
};
use crate::run::Case;
use crate::workspace::HEADER;

/// The operations of a case: two that all ranks run, the one that the last rank runs instead of the second, and one
/// more that all run.
const FIRST: usize = 0;
const SECOND: usize = 1;
const OTHER: usize = 2;
const LAST: usize = 3;

/// A group of whose second operation the last rank makes another one.
#[derive(Debug)]
pub struct Disagreement {
    pub case: Case,
    /// The word of the header that differs.
    word: usize,
}

impl Disagreement {
    pub fn new<A, B>(world_size: usize, operation: A, other: B, word: usize) -> Self
    where
        A: Operation + Clone + 'static,
        B: Operation + 'static,
    {
        let name = format!("{operation:?}, or {other:?}, word {word}, {world_size} ranks");
        let all = || Box::new(operation.clone()) as Box<dyn Operation>;
        let operations = vec![all(), all(), Box::new(other), all()];
        let case = Case { name, world_size, device: device(3, 2), resident_blocks: 12, operations, is_checked: true };
        Self { case, word }
    }
}

/// Every kind of operation: on the last rank another number, another size, and another operation.
pub fn disagreements() -> Vec<Disagreement> {
    let mut cases = Vec::new();
    let mut sizes = (2..=8).cycle();
    let (in_place, has_residual) = (false, true);
    let sum = |algorithm, elements| AllReduce { algorithm, dtype: BFloat16, elements, in_place };
    for algorithm in [OneShot, TwoShot] {
        let norm = |sink: Option<Sink>, tokens| {
            let (dtype, weight, hidden) = (BFloat16, BFloat16, sink.map_or(64, |_| 128));
            AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place }
        };
        differ(&mut cases, &mut sizes, |tokens| sum(algorithm, 70 * tokens), norm(None, 9));
        differ(&mut cases, &mut sizes, |tokens| norm(None, tokens), sum(algorithm, 300));
        for sink in Sink::ALL {
            let quant = |tokens| AllReduceRmsNormQuant { norm: norm(Some(sink), tokens), sink, has_output: true };
            differ(&mut cases, &mut sizes, quant, norm(None, 9));
            let (dtype, hidden, has_sum) = (Float16, 128, true);
            let quant = |tokens| AllReduceQuant { algorithm, dtype, tokens, hidden, sink, has_sum, in_place };
            differ(&mut cases, &mut sizes, quant, sum(OneShot, 300));
        }
    }
    let layer_norm = |tokens| {
        let (algorithm, dtype, weight, hidden) = (OneShot, BFloat16, BFloat16, 64);
        let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
        AllReduceLayerNorm { norm, has_bias: true }
    };
    differ(&mut cases, &mut sizes, layer_norm, layer_norm(9).norm);
    let finalize = |is_normalised| move |tokens| MoeFinalize::of(is_normalised, tokens, 64);
    differ(&mut cases, &mut sizes, finalize(true), finalize(false)(9));
    differ(&mut cases, &mut sizes, finalize(false), sum(OneShot, 300));
    let (dtype, weight, tokens_per_block) = (BFloat16, BFloat16, Some(1));
    let one = |tokens| Minimax { dtype, weight, tokens: tokens as u32, widths: [64], tokens_per_block, in_place };
    let two = |tokens| Minimax { dtype, weight, tokens: tokens as u32, widths: [64, 8], tokens_per_block, in_place };
    differ(&mut cases, &mut sizes, one, two(5));
    differ(&mut cases, &mut sizes, two, one(5));
    cases
}

/// An operation on so many rows, and what may differ. The header's first word is the number, and the others say what it
/// is.
fn differ<A: Operation + Clone + 'static>(
    cases: &mut Vec<Disagreement>,
    sizes: &mut impl Iterator<Item = usize>,
    operation: impl Fn(usize) -> A,
    other: impl Operation + 'static,
) {
    let mut size = || sizes.next().expect("they begin anew");
    let rows = 9;
    cases.push(Disagreement::new(size(), operation(rows), operation(rows), 0));
    cases.push(Disagreement::new(size(), operation(rows), operation(rows + 3), 2));
    cases.push(Disagreement::new(size(), operation(rows), other, if cases.len().is_multiple_of(2) { 1 } else { 3 }));
}

/// All ranks' first operation is right. Of the second all say which ranks do something else, and what, and what they
/// were doing themselves. Results of that and of later operations are NaN.
pub fn check_disagreement(disagreement: &Disagreement, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let Disagreement { case, word } = disagreement;
    let mut group = Group::new(case, kernels, seed);
    let odd = group.late();
    for rank in 0..=odd {
        group.launch(rank, FIRST);
        if rank == odd {
            group.workspace.members[rank].group.header[*word] += 1;
        }
        group.launch(rank, if rank == odd { OTHER } else { SECOND });
        group.workspace.members[rank].group.header = HEADER;
        group.launch(rank, LAST);
    }
    group.run()?;

    let mut header = HEADER;
    // The second operation.
    header[0] = 2;
    let mut odd_header = header;
    odd_header[*word] += 1;
    let of = |rank| if rank == odd { odd_header } else { header };
    for rank in 0..=odd {
        let say = |text| format!("rank {rank}: {text}");
        group.prepared[FIRST].check(rank).map_err(say)?;
        let different: Vec<_> = (0..=odd).filter(|&peer| of(peer) != of(rank)).collect();
        let expected = different.iter().fold(0, |bits, peer| bits | 1 << (16 + peer));
        let found = group.workspace.report(rank);
        if found != expected {
            return Err(say(format!("reports {found:#x}, but should report {expected:#x}")));
        }
        if group.workspace.failed_operation(rank) != of(rank) {
            return Err(say(format!("says that it was doing {:?}", group.workspace.failed_operation(rank))));
        }
        for peer in different {
            let told = group.workspace.told(rank, peer);
            if told != of(peer) {
                return Err(say(format!("says that rank {peer} was doing {told:?}")));
            }
        }
        group.prepared[if rank == odd { OTHER } else { SECOND }].check_spoilt(rank).map_err(say)?;
        group.prepared[LAST].check_spoilt(rank).map_err(say)?;
    }
    Ok(())
}

/// As in `foreign.cu`.
#[repr(C)]
struct ForeignParameters {
    slot_index: u64,
    clear_extent: u64,
    extent: u64,
    slot: u32,
    reserved: u32,
}

/// What a foreign kernel leaves in the table.
#[derive(Clone, Copy, Debug)]
pub enum Foreign {
    /// The next slot, and an extent of its own.
    Once,
    /// As many as there are slots, with regions of our size: only that it is not our slot index tells.
    InEverySlot,
    /// Our slot index, but another extent.
    Extent,
}

impl Foreign {
    pub const ALL: [Self; 3] = [Self::Once, Self::InEverySlot, Self::Extent];

    /// The slot index and the extent to clear, behind `operations` operations of regions of so many bytes.
    fn words(self, operations: usize, all_regions: usize) -> (u32, u64) {
        let slot = (operations % SLOTS) as u32;
        let left = if operations == 0 { (slot, 0) } else { (slot + SLOTS as u32, all_regions as u64) };
        match self {
            Self::Once => ((slot + 1) % SLOTS as u32, 64),
            Self::InEverySlot if operations == 0 => (slot, 64),
            Self::InEverySlot => (slot, left.1),
            Self::Extent => (left.0, left.1 + 64),
        }
    }
}

/// A foreign kernel runs on every rank, behind so many of the package's operations. All ranks say of the next that
/// their own tables were used, and its results, and those of later ones, are NaN.
pub fn check_foreign(
    case: &Case,
    (foreign, operations): (Foreign, usize),
    kernels: &Kernels,
    seed: u64,
) -> Result<(), String> {
    let mut group = Group::new(case, kernels, seed);
    let setting = case.setting();
    let region = case.operations[FIRST].region_bytes(&setting).expect("it uses a slot");
    let (slot, extent) = foreign.words(operations, region * case.world_size);
    for rank in setting.ranks() {
        for operation in 0..group.prepared.len() {
            if operation == operations {
                let member = &group.workspace.members[rank];
                let slot_index = member.group.counters + (SLOT_INDEX * size_of::<u32>()) as u64;
                let clear_extent = member.group.extents + (CLEAR_EXTENT * size_of::<u64>()) as u64;
                let parameters = ForeignParameters { slot_index, clear_extent, extent, slot, reserved: 0 };
                group.machine.launch_function(kernels, rank, "foreign", WARP_THREADS, &parameters);
            }
            group.launch(rank, operation);
        }
    }
    group.run()?;
    for rank in setting.ranks() {
        let say = |text| format!("rank {rank}: {text}");
        let (found, expected) = (group.workspace.report(rank), 1 << (16 + rank));
        if found != expected {
            return Err(say(format!("reports {found:#x}, but should report {expected:#x}")));
        }
        for (operation, prepared) in group.prepared.iter().enumerate() {
            let checked = if operation < operations { prepared.check(rank) } else { prepared.check_spoilt(rank) };
            checked.map_err(|text| say(format!("operation {operation}: {text}")))?;
        }
    }
    Ok(())
}
