//! What ranks tell of a construction, under C11's memory model, as loom explores it.

use lamport_rs_protocol::notices::{Built, PAGE_WORDS, StatusWords};
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
}

const DIGEST: u64 = 0x0123_4567_89ab_cdef;
/// Of a page, the words that the protocol uses.
const USED: [usize; 3] = [35, 36, 37];

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

    fn replace(&self, _rank: usize, _word: usize, _current: u32, _new: u32) -> bool {
        unreachable!("nobody takes back what it has told")
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
        group.store(2, USED[0], 7);
        assert_eq!(Built::told(&*group, 2), Some(Built::Doubtful));
    });
}
