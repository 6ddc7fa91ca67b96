//! Parking: a rank that has spun in vain sleeps in the kernel (a futex) until a peer that pushes wakes it.
//!
//! [`lamport_rs_protocol::parking`] says what the words mean and why no wake-up is lost. While nobody sleeps, a push
//! costs a fence and a load of a line for each peer that nobody writes.
//!
//! Data is its own flag whether the reader slept or not, and a rank that sleeps looks again after `LONGEST_SLEEP` (in
//! `wait.rs`) anyway. So a word that a peer spoils delays, and no more.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use lamport_rs_protocol::exchange::Member;
use lamport_rs_protocol::parking::{AWAKE, ParkingWords, wake_peers};
use rustix::thread::futex;

use crate::memory::host_slots::Blocks;

/// What the word of a rank says when a thread on the calling thread's core has woken it.
fn awake_from_here() -> u32 {
    AWAKE | (rustix::thread::sched_getcpu() as u32 + 1)
}

/// One rank's view of the group's words.
#[derive(Clone, Copy)]
pub struct Parking<'a> {
    /// The rank.
    pub member: Member,
    blocks: &'a Blocks,
}

impl<'a> Parking<'a> {
    /// The words in `blocks`.
    pub fn new(member: Member, blocks: &'a Blocks) -> Self {
        Self { member, blocks }
    }

    fn word(&self, rank: usize) -> &AtomicU32 {
        // The cell of the rank's own header in its own block: nobody pushes a header to itself.
        self.blocks.word(rank, self.member.geometry.header_offset(0, rank))
    }

    /// Sleeps for as long as the rank's word is `word`, until a signal comes, or `longest` has passed. Whether a peer
    /// has woken it on the core that it had left to the peer.
    pub fn sleep(&self, word: u32, longest: Duration) -> bool {
        let woken_from_here = awake_from_here();
        let own = self.word(self.member.rank);
        let longest = futex::Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
        // Whatever ends it, the caller looks for itself.
        let _ = futex::wait(own, futex::Flags::empty(), word, Some(&longest));
        own.load(Ordering::Relaxed) == woken_from_here
    }

    /// Wakes the peers that await nobody else than this rank, which has pushed.
    #[inline(always)]
    pub fn wake_peers(&self) {
        wake_peers(self.member, self, awake_from_here, |peer| {
            let _ = futex::wake(self.word(peer), futex::Flags::empty(), 1);
        });
    }
}

impl ParkingWords for Parking<'_> {
    #[inline(always)]
    fn load(&self, rank: usize) -> u32 {
        self.word(rank).load(Ordering::Relaxed)
    }

    fn swap(&self, rank: usize, word: u32) -> u32 {
        self.word(rank).swap(word, Ordering::Relaxed)
    }

    fn compare_exchange(&self, rank: usize, current: u32, new: u32) -> Result<(), u32> {
        self.word(rank).compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).map(drop)
    }

    #[inline(always)]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use lamport_rs_protocol::geometry::Geometry;
    use lamport_rs_protocol::parking::Sleeper;
    use lamport_rs_protocol::rank_set::RankSet;
    use lamport_rs_protocol::sentinel::SENTINEL;

    use super::*;
    use crate::memory::host::Block;

    /// A group's blocks, as threads share them.
    struct Group(Blocks, Geometry);

    // SAFETY: the words are atomic.
    unsafe impl Sync for Group {}

    impl Group {
        fn parking(&self, rank: usize) -> Parking<'_> {
            Parking::new(Member { rank, geometry: self.1 }, &self.0)
        }
    }

    #[test]
    fn who_sleeps_is_woken_when_all_that_it_awaits_have_pushed() {
        let geometry = Geometry::new(4, 4096).unwrap();
        let memory = [(); 4].map(|()| Block::allocate(geometry.used_bytes(), SENTINEL).unwrap());
        // SAFETY: the blocks are kept, and accessed as words only.
        let blocks = unsafe { Blocks::new(&memory.each_ref().map(Block::pointer), geometry.used_bytes()) };
        let group = Group(blocks, geometry);
        let (announced, announcement) = mpsc::channel();
        std::thread::scope(|scope| {
            let group = &group;
            let sleeper = scope.spawn(move || {
                let (parking, mut sleeper) = (group.parking(0), Sleeper::default());
                let prepared = [(); 2].map(|()| sleeper.prepare(&parking, 0, RankSet(1 << 1 | 1 << 2)));
                let [None, Some(word)] = prepared else { panic!("{prepared:?}") };
                announced.send(()).unwrap();
                let started = Instant::now();
                parking.sleep(word, Duration::from_secs(30));
                started.elapsed()
            });
            announcement.recv().unwrap();
            // It sleeps by then.
            let pause = Duration::from_millis(100);
            std::thread::sleep(pause);
            for peer in [3, 1] {
                group.parking(peer).wake_peers();
                std::thread::sleep(pause);
            }
            assert!(!sleeper.is_finished(), "woken before rank 2 has pushed");
            group.parking(2).wake_peers();
            assert!(sleeper.join().unwrap() < Duration::from_secs(30));
        });
        assert!(group.parking(0).load(0) & AWAKE != 0);
    }
}
