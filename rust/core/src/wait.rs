//! Waiting without a barrier: spin briefly, then yield, then sleep.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_protocol::exchange::{Awaited, Wait};
use lamport_rs_protocol::rank_set::RankSet;

use crate::error::Error;

/// Pauses (some 50 ns each) before the processor is first offered to another rank, where each rank has a core.
const SPINS: u32 = 4_000;
/// Likewise where it has not: the peer, or the thread, that is waited for may need this very core.
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
pub enum GivenUp {
    /// It lasted this long.
    TimedOut(Duration),
    /// The caller asked for it.
    Interrupted,
    /// The workspace was cleaned up.
    CleanedUp,
}

/// The stages of one wait.
pub struct Patience<'a> {
    /// Set when there is nothing left to wait for, by whichever thread or handler.
    cleaned_up: &'a AtomicBool,
    spins: u32,
    spun: u32,
    pauses: u32,
    yields: u32,
    started: Option<Instant>,
    asked: Duration,
    sleep: Duration,
}

impl<'a> Patience<'a> {
    /// Of one who may need the core that he waits on.
    pub fn oversubscribed(cleaned_up: &'a AtomicBool) -> Self {
        Self::spinning(SPINS_OVERSUBSCRIBED, cleaned_up)
    }

    fn spinning(spins: u32, cleaned_up: &'a AtomicBool) -> Self {
        Self {
            cleaned_up,
            spins,
            spun: 0,
            pauses: 1,
            yields: 0,
            started: None,
            asked: Duration::ZERO,
            sleep: SLEEP.first,
        }
    }

    /// To be called between two looks, for up to `timeout` (`None`: for ever).
    pub fn pause(&mut self, timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Result<(), GivenUp> {
        if self.spun < self.spins {
            (0..self.pauses).for_each(|_| std::hint::spin_loop());
            self.spun += self.pauses;
            self.pauses = (2 * self.pauses).min(MAX_PAUSES);
            return Ok(());
        }
        if self.cleaned_up.load(Ordering::Relaxed) {
            return Err(GivenUp::CleanedUp);
        }
        let waited = self.started.get_or_insert_with(Instant::now).elapsed();
        if timeout.is_some_and(|timeout| waited >= timeout) {
            return Err(GivenUp::TimedOut(waited));
        }
        if self.yields < YIELDS {
            self.yields += 1;
            std::thread::yield_now();
            return Ok(());
        }
        if waited - self.asked >= INTERRUPT_INTERVAL {
            self.asked = waited;
            if interrupted() {
                return Err(GivenUp::Interrupted);
            }
        }
        let left = timeout.map_or(SLEEP.longest, |timeout| timeout - waited);
        std::thread::sleep(self.sleep.min(left));
        self.sleep = (self.sleep * 2).min(SLEEP.longest);
        Ok(())
    }

    /// To be called when there is reason to wait as long again: the wait goes on as it was.
    pub fn restart_clock(&mut self) {
        (self.started, self.asked) = (None, Duration::ZERO);
    }

    /// To be called when what was waited for has come, before the next wait.
    fn renew(&mut self) {
        *self = Self::spinning(self.spins, self.cleaned_up);
    }
}

/// The bounded wait of one operation for its peers.
pub struct BoundedWait<'a> {
    operation: &'static str,
    timeout: Option<Duration>,
    interrupted: Interrupted<'a>,
    arrivals: &'a AtomicUsize,
    patience: Patience<'a>,
}

/// What an operation and those who are not it tell each other while it waits.
#[derive(Debug, Default)]
pub struct Signals {
    /// Set by them: there is nothing left to wait for.
    pub cleaned_up: AtomicBool,
    /// Counted by it: something that it waited for has come.
    pub arrivals: AtomicUsize,
}

impl<'a> BoundedWait<'a> {
    /// Waits up to `timeout` (`None`: for ever) for each word of `operation`, in a group of `world_size` ranks, unless
    /// it hears that the workspace is cleaned up.
    pub fn new(
        operation: &'static str,
        world_size: usize,
        timeout: Option<Duration>,
        signals: &'a Signals,
        interrupted: Interrupted<'a>,
    ) -> Self {
        let spins = if world_size <= cores() { SPINS } else { SPINS_OVERSUBSCRIBED };
        let patience = Patience::spinning(spins, &signals.cleaned_up);
        Self { operation, timeout, interrupted, arrivals: &signals.arrivals, patience }
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
        let operation = self.operation;
        self.patience.pause(timeout, self.interrupted).map_err(|given_up| match given_up {
            GivenUp::TimedOut(waited) => Error::Timeout { operation, waited, missing: missing() },
            GivenUp::Interrupted => Error::Interrupted { operation, missing: missing() },
            GivenUp::CleanedUp => Error::CleanedUpMeanwhile { operation },
        })
    }

    fn resume(&mut self) {
        // One operation at a time counts.
        self.arrivals.store(self.arrivals.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.patience.renew();
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
    use super::*;

    #[test]
    fn second_hand_data_is_awaited_half_as_long_again() {
        let (timeout, signals) = (Duration::from_millis(20), Signals::default());
        for (awaited, least) in [(Awaited::FirstHand, timeout), (Awaited::SecondHand, timeout * 3 / 2)] {
            let mut never = || false;
            let mut wait = BoundedWait::new("a wait", 2, Some(timeout), &signals, &mut never);
            let error = loop {
                if let Err(error) = wait.pause(awaited, RankSet::default) {
                    break error;
                }
            };
            assert!(matches!(error, Error::Timeout { waited, .. } if waited >= least), "{awaited:?}: {error}");
        }
    }

    #[test]
    fn a_limit_that_no_clock_reaches_is_none() {
        let signals = Signals::default();
        let mut interrupted = || true;
        let mut wait = BoundedWait::new("a wait", 2, Some(Duration::MAX), &signals, &mut interrupted);
        let error = loop {
            if let Err(error) = wait.pause(Awaited::SecondHand, RankSet::default) {
                break error;
            }
        };
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    }
}
