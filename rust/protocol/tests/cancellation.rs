//! What an abort cancels, under C11's memory model, as loom explores it.

use lamport_rs_protocol::notices::{NOTICE_WORDS, Notices, PAGE_WORDS, StatusWords};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering, fence};

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    /// A notice is told before it is counted.
    ToldFirst,
    /// Who aborts does not look for the epoch again.
    NoSecondLook,
    /// Who ends an epoch does not look for what was cancelled.
    NoLookAfterAReset,
}

/// Words of a page that the protocol uses in these tests: who has told, the claim, the count, and a word of both notices.
/// loom knows few atomics, so the others are none.
const USED: [usize; 6] = [0, 1, 16, 18, 48, 48 + NOTICE_WORDS];

struct Pages {
    words: Vec<Vec<AtomicU32>>,
    /// Epochs that have ended, as rank 0 knows it.
    epoch: AtomicU32,
}

impl Pages {
    fn new() -> Arc<Self> {
        let words = (0..2).map(|_| USED.iter().map(|_| AtomicU32::new(0)).collect()).collect();
        Arc::new(Self { words, epoch: AtomicU32::new(0) })
    }

    fn word(&self, rank: usize, word: usize) -> Option<&AtomicU32> {
        assert!(word < PAGE_WORDS);
        USED.iter().position(|used| *used == word).map(|at| &self.words[rank][at])
    }

    fn of(&self, rank: usize, epoch: u32) -> Notices<'_, Self> {
        Notices { words: self, rank, world_size: 2, epoch }
    }

    /// Rank 0 aborts, as the core does.
    fn abort(&self, protocol: Protocol, why: u32) {
        if protocol == Protocol::ToldFirst {
            self.of(0, 0).tell(&[why]);
        }
        self.of(0, 0).cancel(&[why]);
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            self.of(0, epoch).tell(&[why]);
            fence(Ordering::SeqCst);
            if protocol == Protocol::NoSecondLook || self.epoch.load(Ordering::Acquire) == epoch {
                return;
            }
        }
    }

    /// Rank 0 ends an epoch that it began to end when nothing was cancelled.
    fn begin_epoch(&self, protocol: Protocol) {
        self.epoch.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let notices = self.of(0, 1);
        if protocol != Protocol::NoLookAfterAReset && notices.cancellations(0) != 0 {
            notices.tell(&notices.cancellation(0));
        }
    }
}

impl StatusWords for Pages {
    fn load(&self, rank: usize, word: usize) -> u32 {
        self.word(rank, word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        if let Some(word) = self.word(rank, word) {
            word.store(value, Ordering::Release);
        }
    }

    fn replace(&self, rank: usize, word: usize, current: u32, new: u32) -> bool {
        let word = self.word(rank, word).expect("claim and count are used");
        word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

fn what_is_heard_is_counted(protocol: Protocol) {
    loom::model(move || {
        let pages = Pages::new();
        let sender = {
            let pages = pages.clone();
            loom::thread::spawn(move || pages.abort(protocol, 5))
        };
        let reader = pages.of(1, 0);
        let is_told = reader.told().contains(0);
        let count = reader.cancellations(0);
        assert!(!is_told || count != 0, "it would end the wait that follows");
        if count != 0 {
            assert_eq!(reader.cancellation(0)[0], 5);
        }
        sender.join().unwrap();
        assert!(reader.told().contains(0) && reader.cancellations(0) != 0);
    });
}

#[test]
fn whoever_has_heard_of_an_abort_finds_it_counted() {
    what_is_heard_is_counted(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "it would end the wait that follows")]
fn told_first_it_need_not_be() {
    what_is_heard_is_counted(Protocol::ToldFirst);
}

fn it_is_told_in_the_next_epoch(protocol: Protocol) {
    loom::model(move || {
        let pages = Pages::new();
        let sender = {
            let pages = pages.clone();
            loom::thread::spawn(move || pages.abort(protocol, 5))
        };
        pages.begin_epoch(protocol);
        sender.join().unwrap();
        assert!(pages.of(1, 1).told().contains(0), "the abort was lost");
        assert_eq!(pages.of(1, 1).read(0)[0], 5);
    });
}

#[test]
fn no_abort_is_lost_when_an_epoch_ends() {
    it_is_told_in_the_next_epoch(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "the abort was lost")]
fn without_a_second_look_for_the_epoch_one_is() {
    it_is_told_in_the_next_epoch(Protocol::NoSecondLook);
}

#[test]
#[should_panic(expected = "the abort was lost")]
fn without_a_look_after_a_reset_one_is() {
    it_is_told_in_the_next_epoch(Protocol::NoLookAfterAReset);
}

#[test]
fn of_two_threads_that_abort_at_once_one_is_counted_at_least() {
    loom::model(|| {
        let pages = Pages::new();
        let other = {
            let pages = pages.clone();
            loom::thread::spawn(move || pages.of(0, 0).cancel(&[7]))
        };
        pages.of(0, 0).cancel(&[5]);
        other.join().unwrap();
        let notices = pages.of(1, 0);
        assert!(notices.cancellations(0) != 0 && [5, 7].contains(&notices.cancellation(0)[0]));
    });
}
