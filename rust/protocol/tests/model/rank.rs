//! One rank: the real code, run from load to load.
//!
//! What a rank does between two loads depends on nothing but where it is and what the loads of its current operation
//! returned. So a rank is stopped ahead of each load, and moved on by re-execution: the operation runs again from its
//! start, its loads answered from the log, and is unwound at the first load that the log does not answer.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::{Awaited, Collective, Wait};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{EMPTY, SENTINEL, Vector, scrub};
use lamport_rs_protocol::table::Control;
use lamport_rs_protocol::two_shot::ShardedCollective;

use crate::job::{Job, PERIOD, contribution, describe_vector};
use crate::protocol::{Held, Operation, Protocol, received};
use crate::report::Wrong;

/// A rank, stopped ahead of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Point {
    /// The current operation, modulo [`PERIOD`].
    pub operation: usize,
    control: Control,
    held: Held,
    /// What the loads of this operation returned so far. Failed looks are not among them.
    log: Vec<Vector>,
}

/// A store or fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Store { rank: usize, offset: usize, vector: Vector },
    Release,
}

/// What a rank does with the vector it loaded, up to its next load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something has not arrived: it looks at the same vector again, and nothing else has changed.
    Again,
    /// It goes on.
    Moved {
        /// Stores and fences, in program order.
        actions: Vec<Action>,
        /// Whether an operation ended and the next began.
        completed: bool,
        /// Where it stops.
        point: Point,
        /// The offset, in its own block, of the vector that it loads next.
        awaits: usize,
    },
    /// It noticed that its peers do something else, and does no more.
    Stopped {
        /// Stores and fences, in program order.
        actions: Vec<Action>,
    },
    /// It received what it must not.
    Wrong(Wrong),
}

/// The code of one rank.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub job: Job,
    pub protocol: Protocol,
    pub rank: usize,
}

impl Program {
    /// From before the first operation to the first load.
    pub fn start(&self) -> Step {
        self.run(Point::default(), &[]).0
    }

    /// From the load at `point`, which returns `vector`, to the next.
    ///
    /// The first look at a vector and the looks after a pause are different lines of the real code. They must amount to
    /// the same, which is checked here: states need not tell them apart, and the state graph is half as large.
    pub fn step(&self, point: &Point, vector: Vector) -> Step {
        let at_first_look = self.run(point.clone(), &[vector]);
        let after_a_pause = self.run(point.clone(), &[EMPTY, vector]);
        assert_eq!(at_first_look, after_a_pause, "a pause changed what the rank does with {}", describe_vector(vector));
        at_first_look.0
    }

    /// What the rank does after `looks` at the vector it loads at `point`, and the offset of the last of them.
    fn run(&self, mut point: Point, looks: &[Vector]) -> (Step, Option<usize>) {
        let log = point.log.iter().chain(looks).copied().collect::<Vec<_>>();
        let memory = ReplayedMemory::new(self.rank, &log);
        let step = match self.until_load(&mut point, &memory) {
            Some(step) => step,
            None => self.go_on(point, looks, &memory),
        };
        (step, memory.looked_at.get())
    }

    fn go_on(&self, mut point: Point, looks: &[Vector], memory: &ReplayedMemory) -> Step {
        if let Some(awaits) = memory.awaits.get() {
            point.log.extend(looks.last());
            return Step::Moved { actions: memory.actions.take(), completed: false, point, awaits };
        }
        // The operation is over: on into the next.
        point.operation = (point.operation + 1) % PERIOD;
        point.log.clear();
        let next = ReplayedMemory::new(self.rank, &[]);
        assert_eq!(self.until_load(&mut point, &next), None, "an operation ended without a load");
        let awaits = next.awaits.get().expect("an operation has a load");
        let actions = [memory.actions.take(), next.actions.take()].concat();
        Step::Moved { actions, completed: true, point, awaits }
    }

    /// Runs the operation at `point` until its end, which updates `point`, or until a load that is not in the log, which
    /// `memory` then names. A step if it ends otherwise.
    fn until_load(&self, point: &mut Point, memory: &ReplayedMemory) -> Option<Step> {
        let Self { job, protocol, rank } = *self;
        let number = point.operation;
        let (algorithm, extent) = (job.algorithm(number), job.extent(rank, number));
        let operation = Operation { number, member: job.member(rank), algorithm, extent };
        let (mut control, mut held) = (point.control, point.held.clone());
        let mut checker =
            Checker { job, rank, operation: number, received: vec![], sums: vec![], completed: 0, wrong: None };
        let run = AssertUnwindSafe(|| {
            let wait = &mut Replay { memory };
            protocol.run(&operation, memory, &mut control, &mut held, &mut checker, wait)
        });
        match catch_unwind(run) {
            _ if checker.wrong.is_some() => checker.wrong.map(Step::Wrong),
            Ok(Err(Ended::NothingLogged)) => Some(Step::Again),
            Ok(Err(Ended::Mismatch { .. })) if job.must_fail(number) => {
                Some(Step::Stopped { actions: memory.actions.take() })
            }
            Ok(Err(Ended::Mismatch { peer, found })) => {
                let expected = job.header(rank, number).expect("a mismatch is one of headers");
                Some(Step::Wrong(Wrong::header(peer, expected, received(found))))
            }
            Ok(Ok(())) => {
                assert!(!job.must_fail(number), "an operation in which the ranks differ ended well");
                checker.check_complete();
                (point.control, point.held) = (control, held);
                None
            }
            Err(payload) if payload.is::<BeyondTheLog>() => None,
            Err(payload) => resume_unwind(payload),
        }
    }
}

/// Unwinds the real code where it must stop, without the noise of a panic.
struct BeyondTheLog;

/// Answers loads from the log and notes the actions that follow its last entry.
struct ReplayedMemory<'a> {
    rank: usize,
    log: &'a [Vector],
    loads: Cell<usize>,
    /// The offset of the latest load that was answered.
    looked_at: Cell<Option<usize>>,
    actions: RefCell<Vec<Action>>,
    awaits: Cell<Option<usize>>,
    /// Whether the rank has paused and there is no further look. It then looks whether another peer's header differs, as
    /// if its wait had an end: it does not, and there is nothing to see.
    paused: Cell<bool>,
}

impl<'a> ReplayedMemory<'a> {
    fn new(rank: usize, log: &'a [Vector]) -> Self {
        Self {
            rank,
            log,
            loads: Cell::new(0),
            looked_at: Cell::new(None),
            actions: RefCell::default(),
            awaits: Cell::new(None),
            paused: Cell::new(false),
        }
    }

    fn act(&self, action: Action) {
        // What precedes the last logged load was done in earlier steps.
        if self.loads.get() == self.log.len() {
            self.actions.borrow_mut().push(action);
        }
    }
}

impl SlotMemory for ReplayedMemory<'_> {
    fn load(&self, rank: usize, offset: usize) -> Vector {
        assert_eq!(rank, self.rank, "a rank polls its own slots only");
        if self.paused.get() {
            return EMPTY;
        }
        if let Some(&vector) = self.log.get(self.loads.get()) {
            self.loads.set(self.loads.get() + 1);
            self.looked_at.set(Some(offset));
            return vector;
        }
        self.awaits.set(Some(offset));
        resume_unwind(Box::new(BeyondTheLog))
    }

    fn store(&self, rank: usize, offset: usize, vector: Vector) {
        self.act(Action::Store { rank, offset, vector });
    }

    fn release(&self) {
        self.act(Action::Release);
    }

    // Loads happen in program order in this model, and no store ahead of them: `weak_memory` says so. There is nothing
    // left for this fence to do.
    fn acquire(&self) {}
}

/// Why an operation ended.
#[derive(Debug)]
enum Ended {
    /// The rank paused, and the log has no further look.
    NothingLogged,
    /// A peer's header is another.
    Mismatch { peer: usize, found: Header },
}

struct Replay<'a> {
    memory: &'a ReplayedMemory<'a>,
}

impl Wait for Replay<'_> {
    type Error = Ended;

    fn pause(&mut self, _awaited: Awaited, _missing: impl FnOnce() -> RankSet) -> Result<(), Ended> {
        if self.memory.loads.get() < self.memory.log.len() {
            return Ok(());
        }
        self.memory.paused.set(true);
        Err(Ended::NothingLogged)
    }

    fn resume(&mut self) {}

    fn mismatch(&mut self, peer: usize, found: Header) -> Ended {
        Ended::Mismatch { peer, found }
    }
}

/// Contributes the operation's payload and compares what arrives with what was sent.
struct Checker {
    job: Job,
    rank: usize,
    operation: usize,
    received: Vec<(usize, usize)>,
    /// Those of peers' shards that were received.
    sums: Vec<(usize, usize)>,
    completed: usize,
    wrong: Option<Wrong>,
}

impl Checker {
    /// Every vector of every rank was received once and was completed; in two-shot every peer's sum was received.
    fn check_complete(&mut self) {
        let Self { job, rank, operation, .. } = *self;
        let vectors = job.vectors(operation);
        let all = (0..job.world_size).flat_map(|rank| (0..vectors).map(move |at| (rank, at)));
        let sums = all.clone().filter(|&(shard, _)| shard != rank && job.algorithm(operation) == Algorithm::TwoShot);
        self.received.sort();
        self.sums.sort();
        assert!(self.received.iter().copied().eq(all), "received {:?}", self.received);
        assert!(self.sums.iter().copied().eq(sums), "received the sums {:?}", self.sums);
        assert_eq!(self.completed, vectors, "completed vectors");
    }

    fn check(&mut self, source: usize, at: usize, expected: Vector, found: Vector) {
        if found == expected {
            return;
        }
        self.wrong = Some(Wrong { source, at: Some(at), expected, found, torn: found.contains(&SENTINEL) });
        // A rank with a wrong result has no further states worth looking at.
        resume_unwind(Box::new(BeyondTheLog))
    }

    fn note_complete(&mut self, at: usize) {
        assert_eq!(at, self.completed, "vectors complete in order");
        self.completed = at + 1;
    }
}

impl Collective for Checker {
    fn contribution(&mut self, at: usize) -> Vector {
        contribution(self.rank, self.operation, at)
    }

    fn receive(&mut self, source: usize, at: usize, found: Vector) {
        self.received.push((source, at));
        self.check(source, at, scrub(contribution(source, self.operation, at)), found);
    }

    fn complete(&mut self, at: usize) {
        self.note_complete(at);
    }
}

impl ShardedCollective for Checker {
    fn contribution(&mut self, shard: usize, at: usize) -> Vector {
        self.job.contribution_to(shard, self.rank, self.operation, at)
    }

    fn receive(&mut self, source: usize, at: usize, found: Vector) {
        self.received.push((source, at));
        self.check(source, at, scrub(self.job.contribution_to(self.rank, source, self.operation, at)), found);
    }

    fn complete(&mut self, at: usize) -> Vector {
        self.note_complete(at);
        self.job.sum(self.rank, self.operation, at)
    }

    fn receive_sum(&mut self, shard: usize, at: usize, found: Vector) {
        self.sums.push((shard, at));
        self.check(shard, at, scrub(self.job.sum(shard, self.operation, at)), found);
    }
}
