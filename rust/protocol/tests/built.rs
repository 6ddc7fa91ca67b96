//! What ranks tell of a construction, under C11's memory model, as loom explores it.

use lamport_rs_protocol::construction::{Built, Outcome};
use lamport_rs_protocol::notices::{PAGE_WORDS, StatusWords};
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
    /// A rank tells before it has filled its memory.
    ToldTooEarly,
    /// A rank looks whether an outcome is decided, and then decides.
    DecidesInTwoSteps,
}

const DIGEST: u64 = 0x0123_4567_89ab_cdef;
/// Of a page, the words that the protocol uses.
const USED: [usize; 4] = [17, 35, 36, 37];

struct Group {
    protocol: Protocol,
    words: Vec<[AtomicU32; USED.len()]>,
    /// A word of each rank's memory: who reads what is filled at the same time makes loom panic.
    memory: Vec<UnsafeCell<u32>>,
}

// SAFETY: loom sees every access to the cells.
unsafe impl Sync for Group {}
// SAFETY: as above.
unsafe impl Send for Group {}

impl Group {
    fn new(protocol: Protocol, ranks: usize) -> Arc<Self> {
        let words = (0..ranks).map(|_| std::array::from_fn(|_| AtomicU32::new(0))).collect();
        Arc::new(Self { protocol, words, memory: (0..ranks).map(|_| UnsafeCell::new(0)).collect() })
    }

    fn word(&self, rank: usize, word: usize) -> &AtomicU32 {
        assert!(word < PAGE_WORDS);
        &self.words[rank][USED.iter().position(|used| *used == word).expect("the protocol uses no other")]
    }

    fn fill(&self, rank: usize) {
        // SAFETY: if it may happen beside another access, loom says so.
        self.memory[rank].with_mut(|memory| unsafe { *memory = 1 });
    }

    /// Fills the memory of `rank`, and tells `own`.
    fn build(&self, rank: usize, own: Built) {
        if self.protocol == Protocol::ToldTooEarly {
            own.tell(self, rank);
            self.fill(rank);
        } else {
            self.fill(rank);
            own.tell(self, rank);
        }
    }

    /// Looks once whether all have told `own`, and uses all memory if they have.
    fn are_alike(&self, own: Built) -> Option<bool> {
        let missing = own.missing(self, self.words.len());
        if missing.is_some_and(|missing| !missing.is_empty()) {
            return None;
        }
        if missing.is_some() {
            for memory in &self.memory {
                // SAFETY: as above.
                memory.with(|memory| assert_eq!(unsafe { *memory }, 1));
            }
        }
        Some(missing.is_some())
    }
}

impl StatusWords for Group {
    fn load(&self, rank: usize, word: usize) -> u32 {
        let order = if self.protocol == Protocol::NoAcquire { Ordering::Relaxed } else { Ordering::Acquire };
        self.word(rank, word).load(order)
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        let order = if self.protocol == Protocol::NoRelease { Ordering::Relaxed } else { Ordering::Release };
        self.word(rank, word).store(value, order);
    }

    fn replace(&self, rank: usize, word: usize, current: u32, new: u32) -> bool {
        let word = self.word(rank, word);
        if self.protocol == Protocol::DecidesInTwoSteps {
            let is_current = word.load(Ordering::Acquire) == current;
            if is_current {
                word.store(new, Ordering::Release);
            }
            return is_current;
        }
        word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Every rank tells what `told` has for it; those that are whole all find the ranks alike, or none does: which it is.
fn check_verdict(protocol: Protocol, told: [Built; 3], expected: bool) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let group = Group::new(protocol, told.len());
        let others = [1, 2].map(|rank| {
            let group = group.clone();
            loom::thread::spawn(move || {
                group.build(rank, told[rank]);
                assert_ne!(group.are_alike(told[rank]), Some(!expected));
            })
        });
        group.build(0, told[0]);
        assert_ne!(group.are_alike(told[0]), Some(!expected));
        others.into_iter().for_each(|other| other.join().unwrap());
        let whole = told.into_iter().filter(|own| *own != Built::Doubtful);
        whole.for_each(|own| assert_eq!(group.are_alike(own), Some(expected)));
    });
}

#[test]
fn ranks_that_are_whole_find_each_other_whole_and_their_memory_filled() {
    check_verdict(Protocol::AsShipped, [Built::Whole(DIGEST); 3], true);
}

#[test]
fn all_ranks_find_that_one_is_not_whole_or_was_brought_something_else() {
    for other in [Built::Doubtful, Built::Gone, Built::Whole(DIGEST + 1), Built::Whole(DIGEST ^ 1 << 63)] {
        check_verdict(Protocol::AsShipped, [Built::Whole(DIGEST), Built::Whole(DIGEST), other], false);
    }
}

/// Rank 0 gives up when it has told that it is whole. The others may find all alike before they hear of that, but then all
/// memory is filled; whoever does not find it finds that one has gone; and nobody waits for ever.
#[test]
fn a_rank_that_gives_up_after_it_was_whole_is_found_to_have_gone_or_found_alike() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let group = Group::new(Protocol::AsShipped, 3);
        let whole = Built::Whole(DIGEST);
        let others = [1, 2].map(|rank| {
            let group = group.clone();
            loom::thread::spawn(move || {
                group.build(rank, whole);
                if group.are_alike(whole) == Some(false) {
                    assert_eq!(Built::gone(&*group, 3), RankSet(0b001));
                }
            })
        });
        group.build(0, whole);
        Built::Gone.tell(&*group, 0);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(group.are_alike(whole), Some(false));
    });
}

/// Each of three ranks comes to another end.
fn decide(protocol: Protocol) {
    loom::model(move || {
        let group = Group::new(protocol, 3);
        let others = [(1, Outcome::Accepted), (2, Outcome::Abandoned(2))].map(|(rank, own)| {
            let group = group.clone();
            loom::thread::spawn(move || {
                // What it did before.
                group.fill(rank);
                own.decide(&*group)
            })
        });
        let decided = Outcome::Refused.decide(&*group);
        if let Outcome::Abandoned(rank) = decided {
            // SAFETY: if it may happen beside another access, loom says so.
            group.memory[rank].with(|memory| assert_eq!(unsafe { *memory }, 1));
        }
        for other in others {
            assert_eq!(other.join().unwrap(), decided, "the ranks end differently");
        }
        for later in [Outcome::Accepted, Outcome::Refused, Outcome::Abandoned(0)] {
            assert_eq!(later.decide(&*group), decided);
        }
    });
}

#[test]
fn all_ranks_end_a_construction_alike_whoever_is_first() {
    decide(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "the ranks end differently")]
fn ranks_that_look_before_they_decide_need_not_end_alike() {
    decide(Protocol::DecidesInTwoSteps);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_release_memory_need_not_be_filled() {
    check_verdict(Protocol::NoRelease, [Built::Whole(0); 3], true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_acquire_memory_need_not_be_filled() {
    check_verdict(Protocol::NoAcquire, [Built::Whole(0); 3], true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn told_too_early_memory_need_not_be_filled() {
    check_verdict(Protocol::ToldTooEarly, [Built::Whole(DIGEST); 3], true);
}

#[test]
fn what_was_told_is_found_with_its_digest_and_what_was_not_is_missing() {
    loom::model(|| {
        let group = Group::new(Protocol::AsShipped, 3);
        let whole = Built::Whole(DIGEST);
        assert_eq!(Built::told(&*group, 0), None);
        assert_eq!(whole.missing(&*group, 3), Some(RankSet(0b111)));
        whole.tell(&*group, 0);
        assert_eq!(Built::told(&*group, 0), Some(whole));
        assert_eq!(whole.missing(&*group, 3), Some(RankSet(0b110)));
        Built::Doubtful.tell(&*group, 2);
        assert_eq!(Built::told(&*group, 2), Some(Built::Doubtful));
        assert_eq!(whole.missing(&*group, 3), None);
        assert_eq!(Built::gone(&*group, 3), RankSet(0));
        Built::Gone.tell(&*group, 1);
        assert_eq!(Built::gone(&*group, 3), RankSet(0b010));
        // What no version tells.
        group.store(2, USED[1], 7);
        assert_eq!(Built::told(&*group, 2), Some(Built::Doubtful));
    });
}
