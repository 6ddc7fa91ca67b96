//! Waiting without a barrier: spin briefly, yield where ranks share cores, then park until a peer wakes this rank.
//!
//! A rank that yields beside a process that computes gives it the core for milliseconds; one that sleeps leaves the
//! core to its peers at once, and gets it back when it is woken. So ranks yield only where they share cores, and as
//! long as nobody else is there to take them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_protocol::exchange::{Awaited, Wait};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::parking::Sleeper;
use lamport_rs_protocol::rank_set::RankSet;

use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::lifecycle::End;
use crate::operations::operation::Operation;
use crate::parking::Parking;

/// Most pauses (some 40 ns each) before a rank parks, where each rank has a core.
const MOST_SPINS: u32 = 10_000;
/// Fewest pauses, and all that there are where ranks share cores: the peer that is waited for may need this very core.
const FEWEST_SPINS: u32 = 16;
/// What [`MOST_SPINS`] take, more or less: who comes later is not worth spinning for.
const LONGEST_SPIN: Duration = Duration::from_micros(500);
/// Yields before a rank parks, where ranks share cores: to a peer, that is cheaper than a sleep and a wake-up.
const YIELDS: u32 = 200;
/// A yield of this length has given the core to a process that computes: peers wait, and give it back, earlier.
const LONG_YIELD: Duration = Duration::from_millis(1);
/// Fewest waits without yields that follow such a one: so many sleeps and wake-ups cost about as much as that yield.
const FEWEST_WITHOUT_YIELDS: u32 = 128;
/// Most, where each trial of yields has been as dear.
const MOST_WITHOUT_YIELDS: u32 = 8192;
/// Most pauses between two looks. A look takes the line away from the peer that is writing it: a rank that looks all
/// the time slows down the very peer it waits for, and stays on its heels. Looks therefore become rarer, up to the time
/// that a chunk takes.
const MAX_PAUSES: u32 = 64;
/// What another thread or a peer says is noticed after this time at the latest.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);
/// How often a rank that waits asks whether its peers' processes live.
const PROCESSES_INTERVAL: Duration = Duration::from_millis(10);

/// How long a rank spins and yields before it parks. It learns that from its waits.
///
/// The limit of the spins is from one wait to the next twice what sufficed, or would have, or half of what was in vain.
/// On an idle machine words come while the rank spins. Beside a busy process they often come only once the rank has
/// left its core to the peer, and then all spinning is lost.
#[derive(Debug)]
pub struct WaitPolicy {
    most_spins: u32,
    spins: u32,
    yields: u32,
    /// Waits without yields, after a long one.
    without_yields: u32,
    /// Waits since the last long yield, these included.
    waits: u32,
}

impl WaitPolicy {
    /// For a group of `world_size` ranks.
    pub fn new(world_size: usize) -> Self {
        let (most_spins, yields) = if world_size <= cores() { (MOST_SPINS, 0) } else { (FEWEST_SPINS, YIELDS) };
        let without_yields = FEWEST_WITHOUT_YIELDS;
        Self { most_spins, spins: most_spins, yields, without_yields, waits: without_yields }
    }

    /// Yields that a wait has, from now on.
    fn yields(&self) -> u32 {
        if self.waits < self.without_yields { 0 } else { self.yields }
    }

    /// A yield has taken so long. If it comes as soon after waits without yields as these were many, they become twice
    /// as many.
    fn learn_yield(&mut self, took: Duration) {
        if took >= LONG_YIELD {
            let soon = self.waits < 2 * self.without_yields;
            let twice = (2 * self.without_yields).min(MOST_WITHOUT_YIELDS);
            self.without_yields = if soon { twice } else { FEWEST_WITHOUT_YIELDS };
            self.waits = 0;
        }
    }

    /// A wait is over, in which spinning was in vain, or was not.
    fn learn_wait(&mut self, in_vain: bool) {
        self.waits = self.waits.saturating_add(1);
        self.spins = if in_vain { (self.spins / 2).max(FEWEST_SPINS) } else { (2 * self.spins).min(self.most_spins) };
    }
}

/// How far one wait has come.
struct Backoff {
    spun: u32,
    pauses: u32,
    yielded: u32,
    /// When it began to park.
    parked: Option<Instant>,
    sleeper: Sleeper,
    /// It left its core to the peer that it waited for.
    gave_way: bool,
    /// For how long it had parked when it last asked whether the peers' processes live.
    asked_for_processes: Duration,
    /// A rank that takes part in nothing more, unless what it has sent before is there by now.
    gone: Option<usize>,
    /// For whom it parked last.
    missing: RankSet,
}

impl Backoff {
    fn new() -> Self {
        Self {
            spun: 0,
            pauses: 1,
            yielded: 0,
            parked: None,
            sleeper: Sleeper::default(),
            gave_way: false,
            asked_for_processes: Duration::ZERO,
            gone: None,
            missing: RankSet::default(),
        }
    }
}

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
        let timeout = self.timeout.map(|timeout| match awaited {
            Awaited::FirstHand => timeout,
            Awaited::SecondHand => timeout.saturating_add(timeout / 2),
        });
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
        if let Some(End { error, unless }) = interrupts.lifecycle.end_of(operation, missing, asks) {
            if unless == backoff.gone {
                return Err(error);
            }
            backoff.gone = unless;
            return Ok(());
        }
        backoff.gone = None;
        if timeout.is_some_and(|timeout| waited >= timeout) {
            return Err(Error::Timeout { operation, waited, missing });
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
        if backoff.spun < policy.spins {
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

/// Cores this process may run on, asked for once. An atomic, since the race detector does not see into the library's
/// cells.
fn cores() -> usize {
    static CORES: AtomicUsize = AtomicUsize::new(0);
    match CORES.load(Ordering::Relaxed) {
        0 => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            CORES.store(cores, Ordering::Relaxed);
            cores
        }
        cores => cores,
    }
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::exchange::Member;
    use lamport_rs_protocol::geometry::Geometry;
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

    #[test]
    fn spins_become_fewer_where_they_are_in_vain_and_more_where_they_are_not() {
        let mut policy = WaitPolicy { most_spins: MOST_SPINS, ..WaitPolicy::new(2) };
        (0..20).for_each(|_| policy.learn_wait(true));
        assert_eq!(policy.spins, FEWEST_SPINS);
        (0..20).for_each(|_| policy.learn_wait(false));
        assert_eq!(policy.spins, MOST_SPINS);
    }

    /// Waits without yields after a long one.
    fn without_yields(policy: &mut WaitPolicy) -> u32 {
        policy.learn_yield(LONG_YIELD);
        let mut waits = 0;
        while policy.yields() == 0 {
            policy.learn_wait(true);
            waits += 1;
        }
        waits
    }

    #[test]
    fn a_yield_that_has_given_the_core_away_is_followed_by_waits_without_any_and_by_more_if_the_next_is_as_dear() {
        let mut policy = WaitPolicy::new(2 * cores());
        (0..FEWEST_WITHOUT_YIELDS).for_each(|_| policy.learn_wait(false));
        policy.learn_yield(LONG_YIELD / 2);
        assert_eq!(policy.yields(), YIELDS);
        let dear = [(); 3].map(|()| without_yields(&mut policy));
        assert_eq!(dear, [FEWEST_WITHOUT_YIELDS, 2 * FEWEST_WITHOUT_YIELDS, 4 * FEWEST_WITHOUT_YIELDS]);
        (0..20).for_each(|_| _ = without_yields(&mut policy));
        assert_eq!(without_yields(&mut policy), MOST_WITHOUT_YIELDS);
        // As many that are not dear.
        (0..MOST_WITHOUT_YIELDS).for_each(|_| policy.learn_wait(false));
        assert_eq!(without_yields(&mut policy), FEWEST_WITHOUT_YIELDS);
    }
}
