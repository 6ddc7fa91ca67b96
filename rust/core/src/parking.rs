//! Parking: a rank that has spun in vain sleeps in the kernel, until a peer that pushes something wakes it.
//!
//! Each rank has a word in its own block, where its peers see it: the set of the ranks that it awaits in its sleep, or
//! [`AWAKE`] and on which core the peer ran that woke it last. Whoever has pushed looks at its peers' words, and asks
//! the kernel to wake those that await it. While nobody sleeps that is a load of a line that nobody writes.
//!
//! A wake-up is a hint. Data is its own flag whether the reader slept or not, and a rank that sleeps looks again after
//! `LONGEST_SLEEP` (in `wait.rs`) anyway. So the words need no order with the slots, and a word that a peer spoils
//! delays, and no more.
//!
//! A wake-up is lost if the peer looks at the word before it sees the announcement, and the sleeper at the data before
//! it sees the push. A fence between push and look on the peer's side would exclude that, and would cost every
//! operation the time in which a processor's stores reach its neighbours. Instead the sleeper announces its sleep, and
//! then looks for longer than stores take (`MAX_PAUSES`, there).

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use lamport_rs_protocol::exchange::Member;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::SENTINEL;
use rustix::thread::futex;

use crate::memory::host_slots::Blocks;

/// In the word of a rank that does not sleep: what blocks are filled with.
const AWAKE: u32 = SENTINEL;

/// [`AWAKE`], and that the calling thread's core says so.
fn awake_from_here() -> u32 {
    AWAKE | (rustix::thread::sched_getcpu() as u32 + 1)
}

/// One rank's view of the group's words.
#[derive(Clone, Copy)]
pub struct Parking<'a> {
    member: Member,
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

    /// Tells the peers that this rank is going to sleep until one of `awaited` has pushed.
    pub fn announce(&self, awaited: RankSet) {
        self.word(self.member.rank).store(u32::from(awaited.0), Ordering::Relaxed);
        // Ahead of the looks that follow.
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub fn withdraw(&self) {
        self.word(self.member.rank).store(AWAKE, Ordering::Relaxed);
    }

    /// Sleeps until a peer takes the announcement back, a signal comes, or `longest` has passed. Whether a peer did, on
    /// the core that this rank had left to it.
    pub fn sleep(&self, longest: Duration) -> bool {
        let word = self.word(self.member.rank);
        let (announced, woken_from_here) = (word.load(Ordering::Relaxed), awake_from_here());
        if announced & AWAKE != 0 {
            return announced == woken_from_here;
        }
        let longest = futex::Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
        // Whatever ends it, the caller looks for itself.
        let _ = futex::wait(word, futex::Flags::empty(), announced, Some(&longest));
        word.load(Ordering::Relaxed) == woken_from_here
    }

    /// Wakes the peers that await this rank.
    #[inline(always)]
    pub fn wake_peers(&self) {
        for peer in (0..self.member.geometry.world_size()).filter(|&peer| peer != self.member.rank) {
            let announced = self.word(peer).load(Ordering::Relaxed);
            if announced & AWAKE == 0 {
                self.wake(peer, announced);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(&self, peer: usize, announced: u32) {
        let word = self.word(peer);
        let awaits_this_rank = announced >> self.member.rank & 1 != 0;
        let awake = awake_from_here();
        if awaits_this_rank && word.compare_exchange(announced, awake, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let _ = futex::wake(word, futex::Flags::empty(), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use lamport_rs_protocol::geometry::Geometry;

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
    fn who_sleeps_is_woken_by_whom_it_awaits_and_by_no_other() {
        let geometry = Geometry::new(3, 4096).unwrap();
        let memory = [(); 3].map(|()| Block::allocate(geometry.used_bytes(), SENTINEL).unwrap());
        // SAFETY: the blocks are kept, and accessed as words only.
        let blocks = unsafe { Blocks::new(&memory.each_ref().map(Block::pointer), geometry.used_bytes()) };
        let group = Group(blocks, geometry);
        let (announced, announcements) = mpsc::channel();
        std::thread::scope(|scope| {
            let group = &group;
            let sleeper = scope.spawn(move || {
                let sleep = |awaited: u16, longest| {
                    group.parking(0).announce(RankSet(awaited));
                    announced.send(()).unwrap();
                    let started = Instant::now();
                    group.parking(0).sleep(longest);
                    started.elapsed()
                };
                let (short, long) = (Duration::from_millis(100), Duration::from_secs(30));
                assert!(sleep(1 << 2, short) >= short);
                assert!(sleep(1 << 1, long) < long);
            });
            for () in announcements {
                std::thread::sleep(Duration::from_millis(20));
                group.parking(1).wake_peers();
            }
            sleeper.join().unwrap();
        });
    }
}
