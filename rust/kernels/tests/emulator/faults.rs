//! A rank that does not take part, or is late: the others end, name it, and push nothing more.

use std::time::Duration;

use lamport_rs_kernels::Dtype::BFloat16;
use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm::{OneShot, TwoShot};
use lamport_rs_protocol::geometry::SLOTS;

use crate::cases::device;
use crate::compile::FEWER_POLLS_BITS;
use crate::machine::{Kernels, Machine};
use crate::operations::{
    AllReduce, AllReduceLayerNorm, AllReduceQuant, AllReduceRmsNorm, AllReduceRmsNormQuant, Minimax, MoeFinalize,
    Operation, Prepared, Skip, Verify,
};
use crate::run::Case;
use crate::values::{Random, with_some_missing};
use crate::workspace::{HEADER, Workspace};

const TIMEOUT: Duration = Duration::from_secs(5);
/// A millisecond for each poll of a device's. Waiting threads look at the clock after many polls. The timeout must be
/// longer, or all give up at once.
const TICK: Duration = Duration::from_millis(1 << FEWER_POLLS_BITS);

/// As many operations of one kind as there are slots.
#[derive(Debug)]
pub struct FaultCase {
    pub case: Case,
    /// Whether a late rank gets all that it needs for its first operation: what ranks send before they wait.
    completes_first: bool,
}

impl FaultCase {
    pub fn new(world_size: usize, completes_first: bool, operation: impl Operation + Clone + 'static) -> Self {
        let operations = (0..SLOTS).map(|_| Box::new(operation.clone()) as _).collect();
        let name = format!("{operation:?}, {world_size} ranks");
        // A block for every rank at least, as on any real device: with fewer, a rank of a two-shot norm comes to its
        // own rows, and so to the absent rank, only after another rank's, and names that one.
        let case = Case { name, world_size, device: device(3, 2), resident_blocks: 12, operations, is_checked: true };
        Self { case, completes_first }
    }

    /// Of whose grids one block runs at a time.
    pub fn block_by_block(self) -> Self {
        Self { case: Case { resident_blocks: 1, ..self.case }, ..self }
    }
}

/// One of each kind.
pub fn cases() -> Vec<FaultCase> {
    let (dtype, weight, in_place) = (BFloat16, BFloat16, false);
    let mut cases = Vec::new();
    for world_size in [2, 4] {
        for algorithm in [OneShot, TwoShot] {
            let one_shot = algorithm == OneShot;
            cases.push(FaultCase::new(world_size, one_shot, AllReduce { algorithm, dtype, elements: 700, in_place }));
            let (tokens, hidden) = (world_size + 2, 64);
            let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual: true, in_place };
            cases.push(FaultCase::new(world_size, one_shot, norm));
        }
        for sink in Sink::ALL {
            let (algorithm, tokens, hidden) = (OneShot, world_size + 2, 128);
            let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual: true, in_place };
            let quant = AllReduceRmsNormQuant { norm, sink, has_output: true };
            cases.push(FaultCase::new(world_size, true, quant));
            let sum = AllReduceQuant { algorithm, dtype, tokens, hidden, sink, has_sum: true, in_place };
            cases.push(FaultCase::new(world_size, true, sum));
        }
        let (algorithm, tokens, hidden) = (OneShot, world_size + 2, 64);
        let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual: true, in_place };
        cases.push(FaultCase::new(world_size, true, AllReduceLayerNorm { norm, has_bias: true }));
        for is_normalised in [true, false] {
            cases.push(FaultCase::new(world_size, true, MoeFinalize::of(is_normalised, world_size + 2, 64)));
        }
        let (tokens, tokens_per_block) = (4, Some(1));
        let one = Minimax { dtype, weight, tokens, widths: [64], tokens_per_block, in_place };
        let two = Minimax { dtype, weight, tokens, widths: [64, 8], tokens_per_block, in_place };
        cases.extend([FaultCase::new(world_size, true, one), FaultCase::new(world_size, true, two)]);
    }
    // Rows that no block holds.
    for (algorithm, completes_first) in [(OneShot, true), (TwoShot, false)] {
        let (tokens, hidden, has_residual) = (4, 8 * 1025, true);
        let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
        cases.push(FaultCase::new(2, completes_first, norm));
    }
    // Without headers too.
    for algorithm in [OneShot, TwoShot] {
        let sum = AllReduce { algorithm, dtype, elements: 700, in_place };
        let FaultCase { case, completes_first } = FaultCase::new(3, algorithm == OneShot, sum);
        let name = format!("{}, not checked", case.name);
        cases.push(FaultCase { case: Case { name, is_checked: false, ..case }, completes_first });
    }
    cases
}

/// A group whose last rank is late.
pub struct Group<'a> {
    case: &'a Case,
    kernels: &'a Kernels,
    pub workspace: Workspace,
    pub prepared: Vec<Box<dyn Prepared>>,
    pub machine: Machine,
}

impl<'a> Group<'a> {
    pub fn new(case: &'a Case, kernels: &'a Kernels, seed: u64) -> Self {
        Self::with_timeout(case, kernels, seed, Some(TIMEOUT))
    }

    fn with_timeout(case: &'a Case, kernels: &'a Kernels, seed: u64, timeout: Option<Duration>) -> Self {
        let workspace = Workspace::new(case.setting().geometry, case.is_checked, timeout);
        let mut machine = Machine::new(case.world_size, seed, case.limits(TICK));
        workspace.declare(&mut machine);
        Self { case, kernels, workspace, prepared: case.prepare(), machine }
    }

    /// The last rank.
    pub fn late(&self) -> usize {
        self.case.world_size - 1
    }

    pub fn launch(&mut self, rank: usize, operation: usize) {
        let member = &self.workspace.members[rank];
        self.prepared[operation].launch(&mut self.machine, self.kernels, rank, member);
    }

    pub fn run(&mut self) -> Result<(), String> {
        self.machine.run().map_err(|fault| format!("{fault:?}"))
    }

    fn launch_without_late_rank(&mut self) {
        for rank in 0..self.late() {
            (0..self.prepared.len()).for_each(|operation| self.launch(rank, operation));
        }
    }

    /// Runs all but the late rank, which they must name.
    fn run_without_late_rank(&mut self) -> Result<(), String> {
        let late = self.late();
        self.launch_without_late_rank();
        self.run()?;
        for rank in 0..late {
            let found = self.workspace.report(rank);
            if found != 1 << late {
                return Err(format!("rank {rank} reports the ranks {found:#b}, but only {late} was late"));
            }
        }
        Ok(())
    }

    /// Checks that no rank but the late one has a number for a result.
    fn check_spoilt(&self) -> Result<(), String> {
        for rank in 0..self.late() {
            for (index, prepared) in self.prepared.iter().enumerate() {
                prepared.check_spoilt(rank).map_err(|text| format!("rank {rank}, operation {index}: {text}"))?;
            }
        }
        Ok(())
    }

    /// Checks that nobody's slots have anything of the operations after the first.
    fn check_silence(&self) -> Result<(), String> {
        for rank in 0..self.case.world_size {
            if let Some(slot) = (1..SLOTS).find(|&slot| !self.workspace.is_empty(rank, slot)) {
                return Err(format!("a rank that had failed pushed into rank {rank}'s slot {slot}"));
            }
        }
        Ok(())
    }
}

/// The others end, name the rank that never came, push nothing after that, and leave NaN where it tells of the fault.
pub fn check_absent_rank(case: &FaultCase, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let mut group = Group::new(&case.case, kernels, seed);
    group.run_without_late_rank()?;
    group.check_spoilt()?;
    group.check_silence()
}

/// Likewise, of a case that runs block by block: the first to give up ends before the others begin, and the block that
/// speaks has written its NaN by then.
pub fn check_absent_rank_block_by_block(case: &FaultCase, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let mut group = Group::new(&case.case, kernels, seed);
    group.launch_without_late_rank();
    group.run()?;
    group.check_spoilt()?;
    group.check_silence()
}

/// A rank that was only late ends too. It misses others in the end, and until then its results are right: what it gets
/// is what they pushed before they gave up, and neither sums that lack a contribution nor another operation's data.
pub fn check_late_rank(case: &FaultCase, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let mut group = Group::new(&case.case, kernels, seed);
    group.run_without_late_rank()?;
    let late = group.late();
    for operation in 0..group.prepared.len() {
        group.launch(late, operation);
        group.run()?;
        let missed = group.workspace.report(late);
        if operation == 0 && case.completes_first && missed != 0 {
            return Err(format!("the late rank misses {missed:#b} in its first operation"));
        }
        let operands = &group.prepared[operation];
        let check = || operands.check(late);
        // If headers did not come, all is NaN; else what is missing.
        let checked = match missed {
            0 => check(),
            _ => operands.check_spoilt(late).or_else(|_| with_some_missing(check)),
        };
        checked.map_err(|text| format!("late, operation {operation}: {text}"))?;
    }
    if group.workspace.report(late) == 0 {
        return Err("the late rank misses nobody".to_owned());
    }
    Ok(())
}

/// The others' hosts know that a rank has ended: their kernels give up without a timeout, and name it.
pub fn check_ended_rank(case: &FaultCase, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let mut group = Group::with_timeout(&case.case, kernels, seed, None);
    let late = group.late();
    (0..late).for_each(|rank| group.workspace.tell_ended(rank, 1 << late));
    group.run_without_late_rank()?;
    group.check_silence()
}

/// What a rank has sent before it ended is used.
pub fn check_rank_that_ended_later(case: &FaultCase, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let mut group = Group::new(&case.case, kernels, seed);
    let late = group.late();
    group.launch(late, 0);
    group.run()?;
    for rank in 0..late {
        group.workspace.tell_ended(rank, 1 << late);
        group.launch(rank, 0);
    }
    group.run()?;
    for rank in 0..late {
        let missed = group.workspace.report(rank);
        if case.completes_first && missed != 0 {
            return Err(format!("rank {rank} misses {missed:#b}, which had sent all that it needs"));
        }
        if missed == 0 {
            group.prepared[0].check(rank).map_err(|text| format!("rank {rank}: {text}"))?;
        }
    }
    Ok(())
}

/// A rank sends nothing of some calls that are operations on the others. Its kernels say of which, and the others' in
/// which they wait.
pub fn check_skipping_rank(case: &FaultCase, kernels: &Kernels, seed: u64) -> Result<(), String> {
    let mut group = Group::new(&case.case, kernels, seed);
    let late = group.late();
    (0..=late).for_each(|rank| group.launch(rank, 0));
    for calls in [1, 2] {
        let skip = Skip { calls }.prepare(&case.case.setting(), &mut Random(seed), None);
        skip.launch(&mut group.machine, kernels, late, &group.workspace.members[late]);
    }
    (0..late).for_each(|rank| group.launch(rank, 1));
    group.run()?;
    // The second operation, which is also the first call that was skipped.
    if group.workspace.skipped(late) != Some(2) {
        return Err(format!("rank {late} says that it skipped {:?}", group.workspace.skipped(late)));
    }
    for rank in 0..late {
        let (waiting, skipped) = (group.workspace.waiting(rank), group.workspace.skipped(rank));
        if waiting != Some([2, HEADER[1], HEADER[2], HEADER[3]]) || skipped.is_some() {
            return Err(format!("rank {rank} says that it waits in {waiting:?}, and skipped {skipped:?}"));
        }
    }
    Ok(())
}

/// The verification says which rank never came.
pub fn check_absent_in_verification(kernels: &Kernels, seed: u64) -> Result<(), String> {
    let world_size = 3;
    let case = FaultCase::new(world_size, false, Verify { liar: Some(world_size - 1) });
    let mut group = Group::new(&case.case, kernels, seed);
    for rank in 0..group.late() {
        group.launch(rank, 0);
    }
    group.run()?;
    (0..group.late()).try_for_each(|rank| group.prepared[0].check(rank))
}
