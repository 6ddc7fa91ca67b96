//! Notices under C11's memory model, as loom explores it.

use lamport_rs_protocol::notices::{NOTICE_WORDS, Notices, PAGE_WORDS, Stage, Stages, StatusWords};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    NoRelease,
    NoAcquire,
}

/// Words of a notice that are looked at: loom knows few atomics, so the others are none.
const SHOWN: usize = 2;
/// Of a page, the words that the protocol uses in these tests.
const USED: [usize; 7] = [0, 1, 16, 32, 33, 48, 49];

struct Pages {
    protocol: Protocol,
    words: Vec<Vec<AtomicU32>>,
    /// A word of each rank's slot.
    slots: Vec<AtomicU32>,
}

impl Pages {
    fn new(protocol: Protocol) -> Arc<Self> {
        let words = (0..2).map(|_| USED.iter().map(|_| AtomicU32::new(0)).collect()).collect();
        Arc::new(Self { protocol, words, slots: (0..2).map(|_| AtomicU32::new(0)).collect() })
    }

    fn word(&self, rank: usize, word: usize) -> Option<&AtomicU32> {
        assert!(word < PAGE_WORDS);
        USED.iter().position(|used| *used == word).map(|at| &self.words[rank][at])
    }

    fn of(&self, rank: usize, epoch: u32) -> Notices<'_, Self> {
        Notices { words: self, rank, world_size: 2, epoch }
    }
}

impl StatusWords for Pages {
    fn load(&self, rank: usize, word: usize) -> u32 {
        let order = if self.protocol == Protocol::NoAcquire { Ordering::Relaxed } else { Ordering::Acquire };
        self.word(rank, word).map_or(0, |word| word.load(order))
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        let order = if self.protocol == Protocol::NoRelease { Ordering::Relaxed } else { Ordering::Release };
        if let Some(word) = self.word(rank, word) {
            word.store(value, order);
        }
    }

    fn replace(&self, rank: usize, word: usize, current: u32, new: u32) -> bool {
        let order = if self.protocol == Protocol::NoRelease { Ordering::Relaxed } else { Ordering::Release };
        let word = self.word(rank, word).expect("the words that are replaced are used");
        word.compare_exchange(current, new, order, Ordering::Relaxed).is_ok()
    }
}

fn who_is_told_reads_the_whole_notice(protocol: Protocol) {
    loom::model(move || {
        let pages = Pages::new(protocol);
        let sender = {
            let pages = pages.clone();
            loom::thread::spawn(move || assert!(pages.of(0, 0).tell(&[5, 6])))
        };
        let reader = pages.of(1, 0);
        if reader.told().contains(0) {
            assert_eq!(reader.read(0)[..SHOWN], [5, 6]);
        }
        sender.join().unwrap();
        assert!(reader.told().contains(0));
    });
}

#[test]
fn a_notice_is_whole_for_whoever_is_told() {
    who_is_told_reads_the_whole_notice(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "left == right")]
fn without_release_it_need_not_be() {
    who_is_told_reads_the_whole_notice(Protocol::NoRelease);
}

#[test]
#[should_panic(expected = "left == right")]
fn without_acquire_it_need_not_be() {
    who_is_told_reads_the_whole_notice(Protocol::NoAcquire);
}

#[test]
fn of_two_threads_of_a_rank_one_tells() {
    loom::model(|| {
        let pages = Pages::new(Protocol::AsShipped);
        let other = {
            let pages = pages.clone();
            loom::thread::spawn(move || pages.of(0, 0).tell(&[7, 7]))
        };
        let first = pages.of(0, 0).tell(&[5, 5]);
        let second = other.join().unwrap();
        assert!(first != second);
        assert_eq!(pages.of(1, 0).read(0)[..SHOWN], if first { [5, 5] } else { [7, 7] });
    });
}

/// A rank that begins anew: the other's stores into its slot come before its fill, or after the second stage.
fn begin_anew(pages: &Pages, rank: usize) {
    const FILL: u32 = 100;
    let stages = Stages(pages.of(rank, 0));
    let wait = |stage| {
        while !stages.missing(stage).is_empty() {
            loom::thread::yield_now();
        }
    };
    pages.slots[1 - rank].store(1, Ordering::Relaxed);
    stages.arrive(Stage::Stopped);
    wait(Stage::Stopped);
    pages.slots[rank].store(FILL, Ordering::Relaxed);
    stages.arrive(Stage::Filled);
    wait(Stage::Filled);
    assert_eq!(pages.slots[1 - rank].load(Ordering::Relaxed), FILL, "its fill comes before what this rank sends next");
    assert!(pages.of(rank, 1).told().is_empty());
}

fn slots_are_filled_between(protocol: Protocol) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let pages = Pages::new(protocol);
        let other = {
            let pages = pages.clone();
            loom::thread::spawn(move || begin_anew(&pages, 1))
        };
        begin_anew(&pages, 0);
        other.join().unwrap();
    });
}

#[test]
fn slots_are_filled_when_all_have_stopped_and_before_any_goes_on() {
    slots_are_filled_between(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "its fill comes before")]
fn without_release_they_need_not_be() {
    slots_are_filled_between(Protocol::NoRelease);
}

#[test]
fn what_an_earlier_epoch_told_is_over_and_what_was_refused_before_an_operation_too() {
    loom::model(|| {
        let pages = Pages::new(Protocol::AsShipped);
        assert!(pages.of(0, 4).tell(&[1; NOTICE_WORDS]));
        assert!(pages.of(1, 4).told().contains(0));
        assert!(!pages.of(0, 4).tell(&[2]));
        assert!(pages.of(1, 5).told().is_empty());
        assert!(pages.of(0, 5).tell(&[3]));
        let notices = pages.of(0, 5);
        lamport_rs_protocol::notices::initialise(&*pages, 0);
        assert!(!notices.has_refused(0, 5));
        notices.refuse(5);
        notices.refuse(6);
        assert!(notices.has_refused(0, 5) && !notices.has_refused(0, 6) && !notices.has_refused(0, 4));
        notices.serve();
        assert!(!notices.has_refused(0, 5));
    });
}
