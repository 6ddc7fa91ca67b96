//! The protocol under C11's memory model, as loom explores it: loads may return old values, stores are ordered by fences
//! only, and both fences are put to the test. (The `model` test has no stale loads, and so no use for the acquire fence.)
//!
//! Two ranks and four operations are what can be explored completely in half a minute, and are as many as it takes for
//! an operation to push into a slot that has been used and cleared before. To get that far a vector is one atomic word
//! here, and a region one vector; that words arrive apart is the other test's part. Longer runs are explored as far as
//! three preemptions lead.
//!
//! Loom decides the order of the stores to a word as late as their loads force it to. A push that may be ordered before
//! a clear shows as a rank that waits although its peers have done all they can.

use lamport_rs_protocol::exchange::{Collective, Extent, Member, Wait, exchange};
use lamport_rs_protocol::geometry::{Geometry, SLOTS};
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, VECTOR_WORDS, Vector, scrub};
use lamport_rs_protocol::table::Control;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};

const WORLD_SIZE: usize = 2;
const COMM_SIZE: usize = WORLD_SIZE * VECTOR_BYTES;

/// With four operations in all, the last pushes into the slot that the second one cleared.
const OPERATIONS: usize = 4;

/// Looks in vain after which data counts as lost. Loom runs a thread that yields only when no other can run, so that
/// every pause gives the peer all the time it needs, and a handful of them is for ever.
const MAX_PAUSES: usize = 10;

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    TwoSlots,
    NoRelease,
    NoAcquire,
}

/// One word per slot and rank, for the peer's vector.
type Blocks = Arc<[[AtomicU32; SLOTS]; WORLD_SIZE]>;

/// The blocks as a rank uses them in one operation.
struct Memory<'a> {
    blocks: &'a Blocks,
    protocol: Protocol,
    rank: usize,
    operation: usize,
}

impl Memory<'_> {
    /// Two slots are made of three by operation number: the current one's, or the previous one's if `cleared`.
    fn word(&self, rank: usize, offset: usize, cleared: bool) -> &AtomicU32 {
        assert_ne!(offset % COMM_SIZE / VECTOR_BYTES, rank, "a rank's own region is never used");
        let slot = if self.protocol == Protocol::TwoSlots {
            (self.operation + usize::from(cleared)) % 2
        } else {
            offset / COMM_SIZE
        };
        &self.blocks[rank][slot]
    }
}

impl SlotMemory for Memory<'_> {
    fn load(&self, rank: usize, offset: usize) -> Vector {
        [self.word(rank, offset, false).load(Ordering::Relaxed); VECTOR_WORDS]
    }

    fn store(&self, rank: usize, offset: usize, vector: Vector) {
        assert_eq!(vector, [vector[0]; VECTOR_WORDS], "one word stands for four");
        self.word(rank, offset, rank == self.rank).store(vector[0], Ordering::Relaxed);
    }

    fn release(&self) {
        if self.protocol != Protocol::NoRelease {
            fence(Ordering::Release);
        }
    }

    fn acquire(&self) {
        if self.protocol != Protocol::NoAcquire {
            fence(Ordering::Acquire);
        }
    }
}

/// The sentinel in the second operation, and otherwise a word that says whose it is.
fn contribution(rank: usize, operation: usize) -> Vector {
    let word = if operation == 1 { SENTINEL } else { (0x100 * (rank + 1) + operation) as u32 };
    [word; VECTOR_WORDS]
}

struct Checker {
    rank: usize,
    operation: usize,
}

impl Collective for Checker {
    fn contribution(&mut self, _at: usize) -> Vector {
        contribution(self.rank, self.operation)
    }

    fn receive(&mut self, source: usize, _at: usize, vector: Vector) {
        let expected = scrub(contribution(source, self.operation));
        assert_eq!(vector, expected, "rank {} received data of another operation", self.rank);
    }

    fn complete(&mut self, _at: usize) {}
}

#[derive(Default)]
struct Yield {
    pauses: usize,
}

impl Wait for Yield {
    type Error = std::convert::Infallible;

    fn pause(&mut self, _missing: impl FnOnce() -> RankSet) -> Result<(), Self::Error> {
        self.pauses += 1;
        assert!(self.pauses < MAX_PAUSES, "data was lost");
        loom::thread::yield_now();
        Ok(())
    }

    fn resume(&mut self) {
        self.pauses = 0;
    }
}

fn run(protocol: Protocol, rank: usize, operations: usize, blocks: &Blocks) {
    let geometry = Geometry::new(WORLD_SIZE as i64, COMM_SIZE as i64).expect("a shape within the limits");
    let extent = Extent { region_bytes: VECTOR_BYTES, chunk_vectors: 1, lead_chunks: 1 };
    let mut control = Control::default();
    for operation in 0..operations {
        let memory = Memory { blocks, protocol, rank, operation };
        let member = Member { rank, geometry };
        let (mut checker, mut wait) = (Checker { rank, operation }, Yield::default());
        let Ok(()) = exchange(member, &memory, &mut control, extent, &mut checker, &mut wait);
    }
}

fn explore(protocol: Protocol, operations: usize, preemptions: Option<usize>) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        let filled = |_| std::array::from_fn(|_| AtomicU32::new(SENTINEL));
        let blocks: Blocks = Arc::new(std::array::from_fn(filled));
        let peers = blocks.clone();
        let peer = loom::thread::spawn(move || run(protocol, 1, operations, &peers));
        run(protocol, 0, operations, &blocks);
        peer.join().expect("the peer's assertions hold");
    });
}

#[test]
fn four_operations_are_correct_in_every_execution() {
    explore(Protocol::AsShipped, OPERATIONS, None);
}

/// Seven operations use every slot twice over; three preemptions are a limit, so this is a test and no proof.
#[test]
fn seven_operations_are_correct_with_up_to_three_preemptions() {
    explore(Protocol::AsShipped, 7, Some(3));
}

#[test]
#[should_panic(expected = "data was lost")]
fn two_slots_lose_data() {
    explore(Protocol::TwoSlots, OPERATIONS, None);
}

#[test]
#[should_panic(expected = "data was lost")]
fn leaving_out_the_release_fence_loses_data() {
    explore(Protocol::NoRelease, OPERATIONS, None);
}

#[test]
#[should_panic(expected = "data was lost")]
fn leaving_out_the_acquire_fence_loses_data() {
    explore(Protocol::NoAcquire, OPERATIONS, None);
}
