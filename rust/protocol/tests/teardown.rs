//! Teardown under C11's memory model, as loom explores it: an owner frees its memory when all that its peers have done with
//! it is done.

use lamport_rs_protocol::notices::{Notices, PAGE_WORDS, StatusWords};
use lamport_rs_protocol::rank_set::RankSet;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    NoRelease,
    NoAcquire,
    /// A peer tells that it has unmapped the memory before it has.
    ToldTooEarly,
    /// The owner frees when its peers have gone, whatever they have mapped.
    FreedWhenLeft,
    /// The owner waits for one peer only.
    FreedAfterTheFirst,
}

const RANKS: usize = 3;
/// The word of a page that says whether its rank has gone, and what it has mapped.
const LEFT: usize = 34;

struct Group {
    protocol: Protocol,
    left: [AtomicU32; RANKS],
    /// The owner's memory, a part for each peer's stores: who stores into what is freed at the same time makes loom panic.
    memory: [UnsafeCell<u32>; RANKS],
}

// SAFETY: loom sees every access to the cells.
unsafe impl Sync for Group {}
// SAFETY: as above.
unsafe impl Send for Group {}

impl StatusWords for Group {
    fn load(&self, rank: usize, word: usize) -> u32 {
        assert!(word < PAGE_WORDS);
        let order = if self.protocol == Protocol::NoAcquire { Ordering::Relaxed } else { Ordering::Acquire };
        if word == LEFT { self.left[rank].load(order) } else { 0 }
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        let order = if self.protocol == Protocol::NoRelease { Ordering::Relaxed } else { Ordering::Release };
        if word == LEFT {
            self.left[rank].store(value, order);
        }
    }

    fn replace(&self, _rank: usize, _word: usize, _current: u32, _new: u32) -> bool {
        unreachable!("a teardown replaces nothing")
    }
}

impl Group {
    fn of(&self, rank: usize) -> Notices<'_, Self> {
        Notices { words: self, rank, world_size: RANKS, epoch: 0 }
    }

    /// The last that a peer does with the owner's memory.
    fn use_for_the_last_time(&self, rank: usize) {
        // SAFETY: if it may happen beside another access, loom says so.
        self.memory[rank].with_mut(|part| unsafe { *part = 1 });
    }

    fn leave_as_a_peer(&self, rank: usize) {
        let notices = self.of(rank);
        notices.leave();
        if self.protocol == Protocol::ToldTooEarly {
            notices.unmap();
        }
        self.use_for_the_last_time(rank);
        notices.unmap();
    }

    fn may_free(&self) -> bool {
        let (notices, peers) = (self.of(0), RankSet(0b110));
        match self.protocol {
            Protocol::FreedWhenLeft => notices.left(peers) == peers,
            Protocol::FreedAfterTheFirst => notices.mapping(peers) != peers,
            _ => notices.mapping(peers).is_empty(),
        }
    }

    fn free_as_the_owner(&self) {
        self.of(0).leave();
        while !self.may_free() {
            loom::thread::yield_now();
        }
        for part in &self.memory {
            // SAFETY: as above.
            part.with_mut(|part| unsafe { *part = 0 });
        }
    }
}

fn memory_is_freed_after_its_last_use(protocol: Protocol) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let group = Arc::new(Group {
            protocol,
            left: std::array::from_fn(|_| AtomicU32::new(0)),
            memory: std::array::from_fn(|_| UnsafeCell::new(0)),
        });
        let peers = [1, 2].map(|rank| {
            let group = group.clone();
            loom::thread::spawn(move || group.leave_as_a_peer(rank))
        });
        group.free_as_the_owner();
        peers.into_iter().for_each(|peer| peer.join().unwrap());
    });
}

#[test]
fn memory_is_freed_when_no_peer_uses_it_any_more() {
    memory_is_freed_after_its_last_use(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_release_it_may_be_in_use() {
    memory_is_freed_after_its_last_use(Protocol::NoRelease);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_acquire_it_may_be_in_use() {
    memory_is_freed_after_its_last_use(Protocol::NoAcquire);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn told_too_early_it_may_be_in_use() {
    memory_is_freed_after_its_last_use(Protocol::ToldTooEarly);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn freed_when_peers_have_left_it_may_be_in_use() {
    memory_is_freed_after_its_last_use(Protocol::FreedWhenLeft);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn freed_after_the_first_peer_it_may_be_in_use() {
    memory_is_freed_after_its_last_use(Protocol::FreedAfterTheFirst);
}
