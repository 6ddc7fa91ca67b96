//! Waiting without a barrier: spin briefly, then yield, then sleep.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_protocol::exchange::{Awaited, Wait};
use lamport_rs_protocol::rank_set::RankSet;

use crate::error::Error;
use crate::floating_point::DefaultSettings;

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
    /// When the caller was last asked whether to go on.
    asked: Option<Instant>,
    sleep: Duration,
}

impl<'a> Patience<'a> {
    /// Of one who may need the core that he waits on.
    pub fn oversubscribed(cleaned_up: &'a AtomicBool) -> Self {
        Self::spinning(SPINS_OVERSUBSCRIBED, cleaned_up)
    }

    fn spinning(spins: u32, cleaned_up: &'a AtomicBool) -> Self {
        Self { cleaned_up, spins, spun: 0, pauses: 1, yields: 0, started: None, asked: None, sleep: SLEEP.first }
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
        let now = Instant::now();
        let waited = now - *self.started.get_or_insert(now);
        if timeout.is_some_and(|timeout| waited >= timeout) {
            return Err(GivenUp::TimedOut(waited));
        }
        // Before the yields are over, too: a clock that is restarted again and again must not put off the question.
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

    /// To be called when there is reason to wait as long again: the wait goes on as it was.
    pub fn restart_clock(&mut self) {
        self.started = None;
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
    settings: &'a mut DefaultSettings,
    signals: &'a Signals,
    patience: Patience<'a>,
}

/// What an operation and those who are not it tell each other while it waits.
#[derive(Debug, Default)]
pub struct Signals {
    /// Set by them: there is nothing left to wait for.
    pub cleaned_up: AtomicBool,
    /// Counted by it: something that it waited for has come, or it is over.
    pub steps: AtomicUsize,
}

impl Signals {
    /// For the operation, of which there is one at a time.
    pub fn get_ahead(&self) {
        self.steps.store(self.steps.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

impl<'a> BoundedWait<'a> {
    /// Waits up to `timeout` (`None`: for ever) for each word of `operation`, in a group of `world_size` ranks, unless
    /// it hears that the workspace is cleaned up. `interrupted` is the caller's, and is asked with his `settings`.
    pub fn new(
        operation: &'static str,
        world_size: usize,
        timeout: Option<Duration>,
        signals: &'a Signals,
        interrupted: Interrupted<'a>,
        settings: &'a mut DefaultSettings,
    ) -> Self {
        let spins = if world_size <= cores() { SPINS } else { SPINS_OVERSUBSCRIBED };
        let patience = Patience::spinning(spins, &signals.cleaned_up);
        Self { operation, timeout, interrupted, settings, signals, patience }
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
        self.patience.pause(timeout, &mut || settings.suspended(&mut *interrupted)).map_err(|given_up| match given_up {
            GivenUp::TimedOut(waited) => Error::Timeout { operation, waited, missing: missing() },
            GivenUp::Interrupted => Error::Interrupted { operation, missing: missing() },
            GivenUp::CleanedUp => Error::CleanedUpMeanwhile { operation },
        })
    }

    fn resume(&mut self) {
        self.signals.get_ahead();
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
            let (mut never, mut settings) = (|| false, DefaultSettings::enter());
            let mut wait = BoundedWait::new("a wait", 2, Some(timeout), &signals, &mut never, &mut settings);
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
        let (mut interrupted, mut settings) = (|| true, DefaultSettings::enter());
        let mut wait = BoundedWait::new("a wait", 2, Some(Duration::MAX), &signals, &mut interrupted, &mut settings);
        let error = loop {
            if let Err(error) = wait.pause(Awaited::SecondHand, RankSet::default) {
                break error;
            }
        };
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    }

    #[test]
    fn a_clock_that_is_restarted_all_the_time_does_not_put_off_an_interrupt() {
        let (cleaned_up, began) = (AtomicBool::new(false), Instant::now());
        let mut patience = Patience::oversubscribed(&cleaned_up);
        while patience.pause(Some(Duration::from_millis(200)), &mut || true).is_ok() {
            patience.restart_clock();
            assert!(began.elapsed() < Duration::from_secs(20), "nobody was asked");
        }
        assert!(matches!(patience.pause(Some(Duration::ZERO), &mut || true), Err(GivenUp::TimedOut(_))));
    }
}
