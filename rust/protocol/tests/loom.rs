//! The protocol under C11's memory model, as loom explores it: loads may return old values, stores are ordered by fences
//! only, and both fences are put to the test. (The `model` test has no stale loads, and so no use for the acquire fence.)
//!
//! Two ranks and four one-shot operations are what can be explored completely in half a minute, and are as many as it
//! takes for an operation to push into a slot that has been used and cleared before. To get that far a vector is one
//! atomic word here, and a region one vector, or two in two-shot; that words arrive apart is the other test's part. Longer
//! runs, and those of three ranks, are explored as far as a few preemptions lead.
//!
//! Loom decides the order of the stores to a word as late as their loads force it to. A push that may be ordered before
//! a clear shows as a rank that waits although its peers have done all they can.

use lamport_rs_protocol::algorithm::Algorithm::{self, OneShot, TwoShot};
use lamport_rs_protocol::exchange::{Awaited, Collective, Extent, Member, Wait, exchange};
use lamport_rs_protocol::geometry::{Geometry, HEADER_BYTES, SLOTS};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, VECTOR_WORDS, Vector, scrub};
use lamport_rs_protocol::table::Control;
use lamport_rs_protocol::two_shot::{ShardedCollective, exchange_two_shot};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};

/// One-shot operations. With four in all, the last pushes into the slot that the second one cleared.
const ONE_SHOTS: &[Algorithm] = &[OneShot; 4];

const TWO_SHOTS: &[Algorithm] = &[TwoShot; 4];

/// The two-shot operation is the one that must order the clears of the second ahead of the pushes of the fourth.
const CARRIED_BY_TWO_SHOT: &[Algorithm] = &[OneShot, OneShot, TwoShot, OneShot];

/// What headers have in their words, above the operation's number.
const HEADER: u32 = 0x4200_0000;

/// Looks in vain after which data counts as lost. Loom runs a thread that yields only when no other can run, so that
/// every pause gives the peers all the time they need, and a handful of them is for ever.
const MAX_PAUSES: usize = 10;

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    TwoSlots,
    NoRelease,
    NoAcquire,
    /// In two-shot only rank 0 has a shard: padding does not travel.
    Unpadded,
    /// Likewise, with fences between an owner's polls and its pushes of sums.
    UnpaddedWithFences,
}

/// What the ranks do.
#[derive(Clone, Copy)]
struct Run {
    protocol: Protocol,
    world_size: usize,
    operations: &'static [Algorithm],
    has_headers: bool,
}

impl Run {
    fn geometry(&self) -> Geometry {
        let largest = (0..self.operations.len()).map(|operation| self.region_bytes(operation)).max();
        let comm_size = self.world_size * largest.expect("there are operations");
        Geometry::new(self.world_size as i64, comm_size as i64).expect("a shape within the limits")
    }

    /// One vector; in two-shot, one in each half.
    fn region_bytes(&self, operation: usize) -> usize {
        match self.operations[operation] {
            OneShot => VECTOR_BYTES,
            TwoShot => 2 * VECTOR_BYTES,
        }
    }

    /// Whether anything of `shard` travels.
    fn has_shard(&self, shard: usize) -> bool {
        shard == 0 || !matches!(self.protocol, Protocol::Unpadded | Protocol::UnpaddedWithFences)
    }
}

/// One word per vector, by rank and place in its block.
type Blocks = Arc<Vec<Vec<AtomicU32>>>;

/// The blocks as a rank uses them in one operation.
struct Memory<'a> {
    blocks: &'a Blocks,
    run: Run,
    rank: usize,
    operation: usize,
}

impl Memory<'_> {
    /// Two slots are made of three by operation number: the current one's, or the previous one's if `cleared`.
    fn word(&self, rank: usize, offset: usize, cleared: bool) -> &AtomicU32 {
        let geometry = self.run.geometry();
        if let Some(header) = offset.checked_sub(geometry.header_offset(0, 0)) {
            return &self.blocks[rank][geometry.header_offset(0, 0) / VECTOR_BYTES + header / HEADER_BYTES];
        }
        let comm_size = geometry.comm_size();
        let slot = if self.run.protocol == Protocol::TwoSlots {
            (self.operation + usize::from(cleared)) % 2
        } else {
            offset / comm_size
        };
        &self.blocks[rank][(slot * comm_size + offset % comm_size) / VECTOR_BYTES]
    }

    /// Whether the vector at `offset` of `rank`'s block is a sum, and whether it travels.
    fn route(&self, rank: usize, offset: usize) -> (bool, bool) {
        if offset >= self.run.geometry().header_offset(0, 0) {
            return (false, true);
        }
        let (within, region_bytes) = (offset % self.run.geometry().comm_size(), self.run.region_bytes(self.operation));
        let source = within / region_bytes;
        assert_ne!(source, rank, "a rank's own region is never used");
        let is_sum = within % region_bytes != 0;
        let is_two_shot = self.run.operations[self.operation] == TwoShot;
        (is_sum, !is_two_shot || self.run.has_shard(if is_sum { source } else { rank }))
    }

    fn push(&self, rank: usize, offset: usize, word: u32) {
        let (is_sum, travels) = self.route(rank, offset);
        if is_sum && self.run.protocol == Protocol::UnpaddedWithFences {
            fence(Ordering::Acquire);
            fence(Ordering::Release);
        }
        if travels {
            self.word(rank, offset, false).store(word, Ordering::Relaxed);
        }
    }
}

impl SlotMemory for Memory<'_> {
    fn load(&self, rank: usize, offset: usize) -> Vector {
        let (_, travels) = self.route(rank, offset);
        let word = if travels { self.word(rank, offset, false).load(Ordering::Relaxed) } else { 0 };
        [word; VECTOR_WORDS]
    }

    fn store(&self, rank: usize, offset: usize, vector: Vector) {
        assert_eq!(vector, [vector[0]; VECTOR_WORDS], "one word stands for four");
        if rank == self.rank {
            self.word(rank, offset, true).store(vector[0], Ordering::Relaxed);
        } else {
            self.push(rank, offset, vector[0]);
        }
    }

    fn release(&self) {
        if self.run.protocol != Protocol::NoRelease {
            fence(Ordering::Release);
        }
    }

    fn acquire(&self) {
        if self.run.protocol != Protocol::NoAcquire {
            fence(Ordering::Acquire);
        }
    }
}

/// A word that says whose it is; the sentinel in the second operation.
fn payload(kind: usize, rank: usize, operation: usize) -> Vector {
    let word = if operation == 1 { SENTINEL } else { (0x1000 * (kind + 1) + 0x100 * rank + operation) as u32 };
    [word; VECTOR_WORDS]
}

struct Checker {
    run: Run,
    rank: usize,
    operation: usize,
}

impl Checker {
    fn contribution_to(&self, shard: usize, rank: usize) -> Vector {
        if self.run.has_shard(shard) { payload(1 + shard, rank, self.operation) } else { [0; VECTOR_WORDS] }
    }

    fn sum(&self, shard: usize) -> Vector {
        if self.run.has_shard(shard) { payload(0, shard, self.operation) } else { [0; VECTOR_WORDS] }
    }

    fn check(&self, found: Vector, sent: Vector) {
        assert_eq!(found, scrub(sent), "rank {} received data of another operation", self.rank);
    }
}

impl Collective for Checker {
    fn contribution(&mut self, _at: usize) -> Vector {
        payload(0, self.rank, self.operation)
    }

    fn receive(&mut self, source: usize, _at: usize, vector: Vector) {
        self.check(vector, payload(0, source, self.operation));
    }

    fn complete(&mut self, _at: usize) {}
}

impl ShardedCollective for Checker {
    fn contribution(&mut self, shard: usize, _at: usize) -> Vector {
        self.contribution_to(shard, self.rank)
    }

    fn receive(&mut self, source: usize, _at: usize, vector: Vector) {
        self.check(vector, self.contribution_to(self.rank, source));
    }

    fn complete(&mut self, _at: usize) -> Vector {
        self.sum(self.rank)
    }

    fn receive_sum(&mut self, shard: usize, _at: usize, vector: Vector) {
        self.check(vector, self.sum(shard));
    }
}

#[derive(Default)]
struct Yield {
    pauses: usize,
}

impl Wait for Yield {
    type Error = std::convert::Infallible;

    fn pause(&mut self, _awaited: Awaited, _missing: impl FnOnce() -> RankSet) -> Result<(), Self::Error> {
        self.pauses += 1;
        assert!(self.pauses < MAX_PAUSES, "data was lost");
        loom::thread::yield_now();
        Ok(())
    }

    fn resume(&mut self) {
        self.pauses = 0;
    }

    fn mismatch(&mut self, peer: usize, found: Header) -> Self::Error {
        panic!("the header of rank {peer} is of another operation: {found:x?}")
    }
}

impl Run {
    fn run(self, rank: usize, blocks: &Blocks) {
        let member = Member { rank, geometry: self.geometry() };
        let mut control = Control::default();
        for (operation, algorithm) in self.operations.iter().enumerate() {
            let memory = Memory { blocks, run: self, rank, operation };
            let header = self.has_headers.then(|| [HEADER + operation as u32; VECTOR_WORDS]);
            let region_bytes = self.region_bytes(operation);
            let extent = Extent { region_bytes, chunk_vectors: 1, lead_chunks: 1, header };
            let (mut checker, mut wait) = (Checker { run: self, rank, operation }, Yield::default());
            let Ok(()) = match algorithm {
                OneShot => exchange(member, &memory, &mut control, extent, &mut checker, &mut wait),
                TwoShot => exchange_two_shot(member, &memory, &mut control, extent, &mut checker, &mut wait),
            };
        }
    }

    fn explore(self, preemptions: Option<usize>) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        let headers = if self.has_headers { SLOTS * self.world_size } else { 0 };
        let words = self.geometry().header_offset(0, 0) / VECTOR_BYTES + headers;
        builder.check(move || {
            let filled = |_| (0..words).map(|_| AtomicU32::new(SENTINEL)).collect();
            let blocks: Blocks = Arc::new((0..self.world_size).map(filled).collect());
            let start = |rank| {
                let blocks = blocks.clone();
                loom::thread::spawn(move || self.run(rank, &blocks))
            };
            let peers: Vec<_> = (1..self.world_size).map(start).collect();
            self.run(0, &blocks);
            peers.into_iter().for_each(|peer| peer.join().expect("the peer's assertions hold"));
        });
    }
}

fn explore(protocol: Protocol, operations: &'static [Algorithm], preemptions: Option<usize>) {
    Run { protocol, world_size: 2, operations, has_headers: false }.explore(preemptions);
}

/// Three ranks that are switched between where they wait, and nowhere else: where one is preempted too, two that wait can
/// take turns for ever while the third never runs, which looks like a loss.
fn explore_three(protocol: Protocol, operations: &'static [Algorithm]) {
    Run { protocol, world_size: 3, operations, has_headers: false }.explore(Some(0));
}

#[test]
fn four_operations_are_correct_in_every_execution() {
    explore(Protocol::AsShipped, ONE_SHOTS, None);
}

/// Seven operations use every slot twice over; three preemptions are a limit, so this is a test and no proof.
#[test]
fn seven_operations_are_correct_with_up_to_three_preemptions() {
    explore(Protocol::AsShipped, &[OneShot; 7], Some(3));
}

#[test]
fn operations_with_headers_are_correct_with_up_to_two_preemptions() {
    for operations in [&[OneShot; 5], &[OneShot, TwoShot, TwoShot, OneShot, OneShot]] {
        Run { protocol: Protocol::AsShipped, world_size: 2, operations, has_headers: true }.explore(Some(2));
    }
}

#[test]
fn two_shot_operations_are_correct_with_up_to_three_preemptions() {
    explore(Protocol::AsShipped, TWO_SHOTS, Some(3));
}

#[test]
fn a_mix_of_one_shot_and_two_shot_is_correct_with_up_to_two_preemptions() {
    explore(Protocol::AsShipped, &[OneShot, TwoShot, TwoShot, OneShot, OneShot, TwoShot], Some(2));
}

#[test]
fn three_ranks_are_correct_in_two_shots_when_they_switch_where_they_wait() {
    explore_three(Protocol::AsShipped, CARRIED_BY_TWO_SHOT);
}

#[test]
#[should_panic(expected = "data was lost")]
fn two_shot_without_padding_loses_data() {
    explore_three(Protocol::Unpadded, CARRIED_BY_TWO_SHOT);
}

#[test]
fn two_shot_without_padding_loses_none_with_fences_before_each_sum() {
    explore_three(Protocol::UnpaddedWithFences, CARRIED_BY_TWO_SHOT);
}

#[test]
#[should_panic(expected = "data was lost")]
fn two_slots_lose_data() {
    explore(Protocol::TwoSlots, ONE_SHOTS, None);
}

#[test]
#[should_panic(expected = "data was lost")]
fn leaving_out_the_release_fence_loses_data() {
    explore(Protocol::NoRelease, ONE_SHOTS, None);
}

#[test]
#[should_panic(expected = "data was lost")]
fn leaving_out_the_acquire_fence_loses_data() {
    explore(Protocol::NoAcquire, ONE_SHOTS, None);
}

#[test]
#[should_panic(expected = "data was lost")]
fn two_slots_lose_data_in_two_shots() {
    explore(Protocol::TwoSlots, TWO_SHOTS, Some(3));
}

#[test]
#[should_panic(expected = "data was lost")]
fn leaving_out_the_release_fence_loses_data_in_two_shots() {
    explore(Protocol::NoRelease, TWO_SHOTS, Some(3));
}

#[test]
#[should_panic(expected = "data was lost")]
fn leaving_out_the_acquire_fence_loses_data_in_two_shots() {
    explore(Protocol::NoAcquire, TWO_SHOTS, Some(3));
}
