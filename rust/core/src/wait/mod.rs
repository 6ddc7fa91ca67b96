//! Waiting without a barrier: spin briefly, yield where ranks share cores, then park until a peer wakes this rank.
//!
//! A rank that yields beside a process that computes gives it the core for milliseconds; one that sleeps leaves the
//! core to its peers at once, and gets it back when it is woken. So ranks yield only where they share cores, and as
//! long as nobody else is there to take them ([`WaitPolicy`]).

mod backoff;
mod policy;

use std::time::{Duration, Instant};

pub use policy::WaitPolicy;

use lamport_rs_protocol::exchange::{Awaited, Wait};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::rank_set::RankSet;

use backoff::Backoff;
use policy::LONGEST_SPIN;

use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::lifecycle::End;
use crate::operations::description::Operation;
use crate::parking::Parking;

/// Most pauses between two looks. A look takes the line away from the peer that is writing it: a rank that looks all
/// the time slows down the very peer it waits for, and stays on its heels. Looks therefore become rarer, up to the time
/// that a chunk takes.
const MAX_PAUSES: u32 = 64;
/// What another thread or a peer says is noticed after this time at the latest.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);
/// How often a rank that waits asks whether its peers' processes live.
const PROCESSES_INTERVAL: Duration = Duration::from_millis(10);
/// A rank that was let go may have a process that ends. That is heard within this time, and tells more.
const PROCESS_FOLLOWS: Duration = Duration::from_millis(50);

/// The bounded wait of one operation for its peers.
pub struct BoundedWait<'a, 'o> {
    timeout: Option<Duration>,
    interrupts: &'a mut Interrupts<'o>,
    parking: Parking<'a>,
    policy: &'a mut WaitPolicy,
    backoff: Backoff,
}

impl<'a, 'o> BoundedWait<'a, 'o> {
    /// Waits up to `timeout` (`None`: for ever) for each word of an operation of `parking`'s member, unless
    /// `interrupts` end it.
    pub fn new(
        timeout: Option<Duration>,
        interrupts: &'a mut Interrupts<'o>,
        parking: Parking<'a>,
        policy: &'a mut WaitPolicy,
    ) -> Self {
        Self { timeout, interrupts, parking, policy, backoff: Backoff::new() }
    }

    fn park(&mut self, awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Error> {
        // As in `kernels/protocol/wait.cuh`.
        let timeout = self.timeout.map(|timeout| awaited.limit(timeout));
        let operation = self.interrupts.operation;
        let now = Instant::now();
        let missing = missing();
        let Self { interrupts, parking, backoff, .. } = self;
        let waited = now - *backoff.parked.get_or_insert(now);
        backoff.missing = missing;
        let asks_for_processes = waited >= backoff.asked_for_processes + PROCESSES_INTERVAL;
        if asks_for_processes {
            backoff.asked_for_processes = waited;
        }
        let asks = asks_for_processes || backoff.gone.is_some();
        if let Some(End { error, unless, may_change }) = interrupts.lifecycle.end_of(operation, missing, asks) {
            if unless != backoff.gone {
                (backoff.gone, backoff.gone_since) = (unless, waited);
            } else if may_change && waited < backoff.gone_since + PROCESS_FOLLOWS {
                std::thread::sleep(LONGEST_SLEEP);
            } else {
                return Err(error);
            }
            return Ok(());
        }
        backoff.gone = None;
        if timeout.is_some_and(|timeout| waited >= timeout) {
            return Err(Error::Timeout { rank: parking.member.rank, operation, waited, missing });
        }
        interrupts.check_caller(now, missing)?;
        if let Some(word) = backoff.sleeper.prepare(parking, parking.member.rank, missing) {
            let longest = timeout.map_or(LONGEST_SLEEP, |timeout| LONGEST_SLEEP.min(timeout - waited));
            backoff.gave_way |= parking.sleep(word, longest);
        }
        Ok(())
    }
}

impl Wait for BoundedWait<'_, '_> {
    type Error = Error;

    fn pause(&mut self, awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Error> {
        let Self { parking, policy, backoff, .. } = self;
        if backoff.spun == 0 {
            // They may await what was pushed before this wait.
            parking.wake_peers();
        }
        if backoff.spun < policy.spins() {
            spin(backoff.pauses);
            backoff.spun += backoff.pauses;
            backoff.pauses = (2 * backoff.pauses).min(MAX_PAUSES);
            return Ok(());
        }
        if backoff.yielded < policy.yields() {
            backoff.yielded += 1;
            let started = Instant::now();
            std::thread::yield_now();
            policy.learn_yield(started.elapsed());
            return Ok(());
        }
        self.park(awaited, missing)
    }

    fn resume(&mut self) {
        let Self { interrupts, parking, policy, backoff, .. } = self;
        let in_vain = backoff.parked.is_some_and(|parked| {
            backoff.sleeper.withdraw(parking, parking.member.rank);
            let waited = parked.elapsed();
            interrupts.lifecycle.tally.note_wait(waited, backoff.missing);
            backoff.gave_way || waited >= LONGEST_SPIN
        });
        policy.learn_wait(in_vain);
        *backoff = Backoff::new();
    }

    #[inline(always)]
    fn pushed(&mut self) {
        self.parking.wake_peers();
    }

    fn mismatch(&mut self, peer: usize, found: Header) -> Error {
        Error::Mismatch {
            rank: self.parking.member.rank,
            own: self.interrupts.operation,
            peer,
            theirs: Operation(found),
        }
    }
}

fn spin(pauses: u32) {
    (0..pauses).for_each(|_| std::hint::spin_loop());
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::exchange::Member;
    use lamport_rs_protocol::geometry::Geometry;
    use lamport_rs_protocol::parking::Sleeper;
    use lamport_rs_protocol::sentinel::SENTINEL;

    use super::*;
    use crate::interrupts::Interrupted;
    use crate::lifecycle::Lifecycle;
    use crate::lifecycle::pages::Pages;
    use crate::memory::host::Block;
    use crate::memory::host_slots::Blocks;

    const OPERATION: Operation = Operation([1; 4]);

    /// The waits of rank 0 of two, and what they share.
    struct Waits {
        lifecycle: Lifecycle,
        geometry: Geometry,
        blocks: Blocks,
        _memory: [Block; 2],
    }

    impl Waits {
        fn new() -> Self {
            let geometry = Geometry::new(2, 4096).unwrap();
            let memory = [(); 2].map(|()| Block::allocate(geometry.used_bytes(), SENTINEL).unwrap());
            // SAFETY: the blocks are kept, and accessed as words only.
            let blocks = unsafe { Blocks::new(&[memory[0].pointer(), memory[1].pointer()], geometry.used_bytes()) };
            let pages = Pages::in_process(2).unwrap().swap_remove(0);
            Self { lifecycle: Lifecycle::new(0, pages), geometry, blocks, _memory: memory }
        }

        fn parking(&self, rank: usize) -> Parking<'_> {
            Parking::new(Member { rank, geometry: self.geometry }, &self.blocks)
        }

        /// What `of` makes of a wait of rank 0.
        fn wait<R>(
            &self,
            timeout: Duration,
            interrupted: Interrupted<'_>,
            of: impl FnOnce(&mut BoundedWait<'_, '_>) -> R,
        ) -> R {
            let mut policy = WaitPolicy::new(2);
            let mut interrupts = Interrupts::new(OPERATION, &self.lifecycle, interrupted);
            of(&mut BoundedWait::new(Some(timeout), &mut interrupts, self.parking(0), &mut policy))
        }

        /// What ends a wait in which nothing comes.
        fn end(&self, timeout: Duration, awaited: Awaited, interrupted: Interrupted<'_>) -> Error {
            self.wait(timeout, interrupted, |wait| {
                loop {
                    if let Err(error) = wait.pause(awaited, RankSet::default) {
                        return error;
                    }
                }
            })
        }
    }

    #[test]
    fn second_hand_data_is_awaited_half_as_long_again() {
        let timeout = Duration::from_millis(20);
        for (awaited, least) in [(Awaited::FirstHand, timeout), (Awaited::SecondHand, timeout * 3 / 2)] {
            let error = Waits::new().end(timeout, awaited, &mut || false);
            assert!(matches!(error, Error::Timeout { waited, .. } if waited >= least), "{awaited:?}: {error}");
        }
    }

    #[test]
    fn a_limit_that_no_clock_reaches_is_none() {
        let error = Waits::new().end(Duration::MAX, Awaited::SecondHand, &mut || true);
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    }

    #[test]
    fn waits_that_are_short_each_are_interrupted_too() {
        let waits = Waits::new();
        waits.wait(Duration::MAX, &mut || true, |wait| {
            let started = Instant::now();
            let error = loop {
                // Until it has slept some times.
                let slept = Instant::now();
                while slept.elapsed() < Duration::from_millis(5) {
                    if let Err(error) = wait.pause(Awaited::FirstHand, RankSet::default) {
                        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
                        return;
                    }
                }
                wait.resume();
                if started.elapsed() > Duration::from_secs(20) {
                    break "it was never interrupted";
                }
            };
            panic!("{error}");
        });
    }

    #[test]
    fn a_mismatch_names_both_ranks_and_both_operations() {
        let error = Waits::new().wait(Duration::MAX, &mut || false, |wait| wait.mismatch(1, [2; 4]));
        let expected =
            matches!(error, Error::Mismatch { rank: 0, own: OPERATION, peer: 1, theirs: Operation([2, 2, 2, 2]) });
        assert!(expected, "{error:?}");
    }

    #[test]
    fn who_has_pushed_or_begins_to_wait_wakes_the_peer_that_sleeps() {
        let wakes: [fn(&mut BoundedWait<'_, '_>); 2] =
            [|wait| wait.pushed(), |wait| wait.pause(Awaited::FirstHand, RankSet::default).unwrap()];
        for wake in wakes {
            let waits = Waits::new();
            let (parking, mut sleeper) = (waits.parking(1), Sleeper::default());
            let prepared = [(); 2].map(|()| sleeper.prepare(&parking, 1, RankSet(1 << 0)));
            waits.wait(Duration::MAX, &mut || false, wake);
            let started = Instant::now();
            parking.sleep(prepared[1].expect("nobody has come"), Duration::from_secs(30));
            assert!(started.elapsed() < Duration::from_secs(30));
        }
    }
}
