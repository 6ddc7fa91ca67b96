//! Waiting without a barrier: spin briefly, then yield, then sleep.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_protocol::exchange::{Awaited, Member, Wait};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::rank_set::RankSet;

use crate::error::Error;
use crate::floating_point::DefaultSettings;
use crate::operations::operation::Operation;

/// Pauses (some 50 ns each) before the processor is first offered to another rank, where each rank has a core.
const SPINS: u32 = 4_000;
/// Likewise where it has not: the peer that is waited for may need this very core.
const SPINS_OVERSUBSCRIBED: u32 = 50;
/// Most pauses between two looks. A look takes the line away from the peer that is writing it: a rank that looks all the
/// time slows down the very peer it waits for, and stays on its heels. Looks therefore become rarer, up to the time that
/// a chunk takes.
const MAX_PAUSES: u32 = 64;
/// Yields before the first sleep.
const YIELDS: u32 = 200;
/// The first sleep, and the longest.
const SLEEP: Range = Range { first: Duration::from_micros(20), longest: Duration::from_millis(1) };
/// How often a sleeping rank asks whether it should stop.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);

struct Range {
    first: Duration,
    longest: Duration,
}

/// Asked while a rank sleeps: whether to give up (a signal has come). May run a signal's handler, and so anything.
pub type Interrupted<'a> = &'a mut dyn FnMut() -> bool;

/// Why a wait ended without what it was for.
enum GivenUp {
    /// It lasted this long.
    TimedOut(Duration),
    /// The caller asked for it.
    Interrupted,
    /// The workspace was cleaned up.
    CleanedUp,
}

/// The stages of one wait.
struct Backoff<'a> {
    /// Set when there is nothing left to wait for, by whichever thread or handler.
    cleaned_up: &'a AtomicBool,
    spins: u32,
    spun: u32,
    pauses: u32,
    yields: u32,
    started: Option<Instant>,
    /// When the caller was last asked whether to go on.
    asked: Option<Instant>,
    sleep: Duration,
}

impl<'a> Backoff<'a> {
    fn spinning(spins: u32, cleaned_up: &'a AtomicBool) -> Self {
        Self { cleaned_up, spins, spun: 0, pauses: 1, yields: 0, started: None, asked: None, sleep: SLEEP.first }
    }

    /// To be called between two looks, for up to `timeout` (`None`: for ever).
    fn pause(&mut self, timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Result<(), GivenUp> {
        if self.spun < self.spins {
            (0..self.pauses).for_each(|_| std::hint::spin_loop());
            self.spun += self.pauses;
            self.pauses = (2 * self.pauses).min(MAX_PAUSES);
            return Ok(());
        }
        if self.cleaned_up.load(Ordering::Relaxed) {
            return Err(GivenUp::CleanedUp);
        }
        let now = Instant::now();
        let waited = now - *self.started.get_or_insert(now);
        if timeout.is_some_and(|timeout| waited >= timeout) {
            return Err(GivenUp::TimedOut(waited));
        }
        if now - *self.asked.get_or_insert(now) >= INTERRUPT_INTERVAL {
            self.asked = Some(now);
            if interrupted() {
                return Err(GivenUp::Interrupted);
            }
        }
        if self.yields < YIELDS {
            self.yields += 1;
            std::thread::yield_now();
            return Ok(());
        }
        let left = timeout.map_or(SLEEP.longest, |timeout| timeout - waited);
        std::thread::sleep(self.sleep.min(left));
        self.sleep = (self.sleep * 2).min(SLEEP.longest);
        Ok(())
    }

    /// To be called when what was waited for has come, before the next wait.
    fn renew(&mut self) {
        *self = Self::spinning(self.spins, self.cleaned_up);
    }
}

/// The bounded wait of one operation for its peers.
pub struct BoundedWait<'a> {
    rank: usize,
    operation: Operation,
    timeout: Option<Duration>,
    interrupted: Interrupted<'a>,
    settings: &'a mut DefaultSettings,
    backoff: Backoff<'a>,
}

impl<'a> BoundedWait<'a> {
    /// Waits up to `timeout` (`None`: for ever) for each word of `member`'s `operation`, unless it hears that the
    /// workspace is cleaned up. `interrupted` is the caller's, and is asked with the caller's floating-point `settings`.
    pub fn new(
        member: Member,
        operation: Operation,
        timeout: Option<Duration>,
        cleaned_up: &'a AtomicBool,
        interrupted: Interrupted<'a>,
        settings: &'a mut DefaultSettings,
    ) -> Self {
        let spins = if member.geometry.world_size() <= cores() { SPINS } else { SPINS_OVERSUBSCRIBED };
        let backoff = Backoff::spinning(spins, cleaned_up);
        Self { rank: member.rank, operation, timeout, interrupted, settings, backoff }
    }
}

impl Wait for BoundedWait<'_> {
    type Error = Error;

    fn pause(&mut self, awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Error> {
        // As in `kernels/wait.cuh`.
        let timeout = self.timeout.map(|timeout| match awaited {
            Awaited::FirstHand => timeout,
            Awaited::SecondHand => timeout.saturating_add(timeout / 2),
        });
        let Self { operation, interrupted, settings, .. } = self;
        let operation = *operation;
        self.backoff.pause(timeout, &mut || settings.suspended(&mut *interrupted)).map_err(|given_up| match given_up {
            GivenUp::TimedOut(waited) => Error::Timeout { operation, waited, missing: missing() },
            GivenUp::Interrupted => Error::Interrupted { operation, missing: missing() },
            GivenUp::CleanedUp => Error::CleanedUpMeanwhile { operation },
        })
    }

    fn resume(&mut self) {
        self.backoff.renew();
    }

    fn mismatch(&mut self, peer: usize, found: Header) -> Error {
        Error::Mismatch { rank: self.rank, own: self.operation, peer, theirs: Operation(found) }
    }
}

/// Cores this process may run on, asked for once.
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
    use lamport_rs_protocol::geometry::Geometry;

    use super::*;

    const OPERATION: Operation = Operation([1; 4]);

    /// What ends a wait in which nothing comes.
    fn end(timeout: Duration, awaited: Awaited, interrupted: Interrupted<'_>) -> Error {
        let (cleaned_up, mut settings) = (AtomicBool::default(), DefaultSettings::enter());
        let mut wait = wait(timeout, &cleaned_up, interrupted, &mut settings);
        loop {
            if let Err(error) = wait.pause(awaited, RankSet::default) {
                return error;
            }
        }
    }

    fn wait<'a>(
        timeout: Duration,
        cleaned_up: &'a AtomicBool,
        interrupted: Interrupted<'a>,
        settings: &'a mut DefaultSettings,
    ) -> BoundedWait<'a> {
        let member = Member { rank: 0, geometry: Geometry::new(2, 4096).unwrap() };
        BoundedWait::new(member, OPERATION, Some(timeout), cleaned_up, interrupted, settings)
    }

    #[test]
    fn second_hand_data_is_awaited_half_as_long_again() {
        let timeout = Duration::from_millis(20);
        for (awaited, least) in [(Awaited::FirstHand, timeout), (Awaited::SecondHand, timeout * 3 / 2)] {
            let error = end(timeout, awaited, &mut || false);
            assert!(matches!(error, Error::Timeout { waited, .. } if waited >= least), "{awaited:?}: {error}");
        }
    }

    #[test]
    fn a_limit_that_no_clock_reaches_is_none() {
        let error = end(Duration::MAX, Awaited::SecondHand, &mut || true);
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    }

    #[test]
    fn a_mismatch_names_both_ranks_and_both_operations() {
        let (cleaned_up, mut settings, mut never) = (AtomicBool::default(), DefaultSettings::enter(), || false);
        let error = wait(Duration::MAX, &cleaned_up, &mut never, &mut settings).mismatch(1, [2; 4]);
        let expected =
            matches!(error, Error::Mismatch { rank: 0, own: OPERATION, peer: 1, theirs: Operation([2, 2, 2, 2]) });
        assert!(expected, "{error:?}");
    }
}
