//! Sleeping and waking under C11's memory model, as loom explores it. A rank that sleeps here looks at nothing until it
//! is woken, however long that takes, so that a wake-up that is lost shows.

use lamport_rs_protocol::exchange::Member;
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::parking::{AWAKE, ParkingWords, Sleeper, wake_peers};
use lamport_rs_protocol::rank_set::RankSet;
use loom::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst, fence};
use loom::sync::{Arc, Mutex, MutexGuard};

/// Turns of a rank that sleeps after which a wake-up counts as lost. Loom runs a thread that yields only when no other
/// can run.
const MAX_TURNS: usize = 10;

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    NoFenceOfThePusher,
    NoFenceOfTheSleeper,
    /// A rank that has announced its sleep sleeps, whatever has come meanwhile.
    NoLookBeforeSleep,
    /// A rank that has announced its sleep looks at the peer that it awaits first, and at no other.
    OneLookBeforeSleep,
}

struct Group {
    protocol: Protocol,
    world_size: usize,
    /// By reader and source: how often the source has pushed.
    data: Vec<Vec<AtomicU32>>,
    words: Vec<AtomicU32>,
    /// How often each rank has been woken. The lock is the kernel's, of those that sleep on a word.
    wakes: Vec<Mutex<u32>>,
}

/// The words as the pusher or the sleeper uses them.
struct Words<'a> {
    group: &'a Group,
    lacks_fence: bool,
}

impl ParkingWords for Words<'_> {
    fn load(&self, rank: usize) -> u32 {
        self.group.words[rank].load(Relaxed)
    }

    fn swap(&self, rank: usize, word: u32) -> u32 {
        self.group.words[rank].swap(word, Relaxed)
    }

    fn compare_exchange(&self, rank: usize, current: u32, new: u32) -> Result<(), u32> {
        self.group.words[rank].compare_exchange(current, new, Relaxed, Relaxed).map(drop)
    }

    fn fence(&self) {
        if !self.lacks_fence {
            fence(SeqCst);
        }
    }
}

impl Group {
    fn new(protocol: Protocol, world_size: usize) -> Self {
        let zeros = |_| (0..world_size).map(|_| AtomicU32::new(0)).collect();
        Self {
            protocol,
            world_size,
            data: (0..world_size).map(zeros).collect(),
            words: (0..world_size).map(|_| AtomicU32::new(AWAKE)).collect(),
            wakes: (0..world_size).map(|_| Mutex::new(0)).collect(),
        }
    }

    fn words(&self, without_fence: Protocol) -> Words<'_> {
        Words { group: self, lacks_fence: self.protocol == without_fence }
    }

    fn wakes(&self, rank: usize) -> MutexGuard<'_, u32> {
        self.wakes[rank].lock().unwrap()
    }

    /// As `FUTEX_WAIT`: the word is compared and the rank put to sleep in one.
    fn sleep(&self, rank: usize, word: u32) {
        let before = {
            let wakes = self.wakes(rank);
            if self.words[rank].load(Relaxed) != word {
                return;
            }
            *wakes
        };
        for _ in 0..MAX_TURNS {
            if *self.wakes(rank) != before {
                return;
            }
            loom::thread::yield_now();
        }
        panic!("a wake-up was lost");
    }

    fn push(&self, rank: usize, round: u32) {
        for peer in (0..self.world_size).filter(|&peer| peer != rank) {
            self.data[peer][rank].store(round, Relaxed);
        }
        let member = Member { rank, geometry: Geometry::new(self.world_size as i64, 4096).unwrap() };
        wake_peers(member, &self.words(Protocol::NoFenceOfThePusher), || AWAKE, |peer| *self.wakes(peer) += 1);
    }

    fn missing(&self, rank: usize, round: u32) -> RankSet {
        let mut missing = RankSet::default();
        for peer in (0..self.world_size).filter(|&peer| peer != rank) {
            if self.data[rank][peer].load(Relaxed) < round {
                missing.insert(peer);
            }
        }
        missing
    }

    /// Until all have pushed `round` times. As an operation does, looks at one peer after the other.
    fn await_all(&self, rank: usize, round: u32) {
        let words = self.words(Protocol::NoFenceOfTheSleeper);
        for peer in (0..self.world_size).filter(|&peer| peer != rank) {
            let mut sleeper = Sleeper::default();
            let mut waited = false;
            while self.data[rank][peer].load(Relaxed) < round {
                waited = true;
                let missing = self.missing(rank, round);
                let mut prepared = sleeper.prepare(&words, rank, missing);
                let looks_in_vain = match self.protocol {
                    Protocol::NoLookBeforeSleep => true,
                    Protocol::OneLookBeforeSleep => self.data[rank][peer].load(Relaxed) < round,
                    _ => false,
                };
                if looks_in_vain {
                    prepared = prepared.or_else(|| sleeper.prepare(&words, rank, missing));
                }
                if let Some(word) = prepared {
                    self.sleep(rank, word);
                }
            }
            if waited {
                sleeper.withdraw(&words, rank);
            }
        }
    }

    /// Each rank pushes and awaits `rounds` times.
    fn run(&self, rank: usize, rounds: u32) {
        for round in 1..=rounds {
            self.push(rank, round);
            self.await_all(rank, round);
        }
    }
}

fn explore(world_size: usize, preemptions: Option<usize>, protocol: Protocol, run: fn(&Group, usize)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(move || {
        let group = Arc::new(Group::new(protocol, world_size));
        let start = |rank| {
            let group = group.clone();
            loom::thread::spawn(move || run(&group, rank))
        };
        let peers: Vec<_> = (1..world_size).map(start).collect();
        run(&group, 0);
        peers.into_iter().for_each(|peer| peer.join().expect("the peer ends"));
    });
}

/// Rank 0 awaits what the others push.
fn one_waits(group: &Group, rank: usize) {
    if rank == 0 { group.await_all(0, 1) } else { group.push(rank, 1) }
}

#[test]
fn a_rank_that_waits_for_a_peer_is_woken_in_every_execution() {
    explore(2, None, Protocol::AsShipped, one_waits);
}

#[test]
fn ranks_that_wait_for_each_other_are_woken_with_up_to_three_preemptions() {
    explore(2, Some(3), Protocol::AsShipped, |group, rank| group.run(rank, 2));
}

#[test]
fn a_rank_that_waits_for_two_peers_is_woken_with_up_to_three_preemptions() {
    explore(3, Some(3), Protocol::AsShipped, one_waits);
}

/// A peer takes itself out after the first push; the second is the awaited one.
#[test]
fn a_rank_that_awaits_the_second_push_is_woken_with_up_to_two_preemptions() {
    explore(3, Some(2), Protocol::AsShipped, |group, rank| match rank {
        0 => group.await_all(0, 2),
        _ => (1..=2).for_each(|round| group.push(rank, round)),
    });
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn leaving_out_the_pushers_fence_loses_a_wake_up() {
    explore(2, None, Protocol::NoFenceOfThePusher, one_waits);
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn leaving_out_the_sleepers_fence_loses_a_wake_up() {
    explore(2, None, Protocol::NoFenceOfTheSleeper, one_waits);
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn sleeping_without_another_look_loses_a_wake_up() {
    explore(2, None, Protocol::NoLookBeforeSleep, one_waits);
}

#[test]
#[should_panic(expected = "a wake-up was lost")]
fn sleeping_for_a_peer_that_came_before_the_announcement_loses_a_wake_up() {
    explore(3, Some(3), Protocol::OneLookBeforeSleep, one_waits);
}
