//! What may end an operation from without: a signal whose handler raises, or the workspace's cleaning up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_protocol::rank_set::RankSet;

use crate::error::Error;
use crate::floating_point::DefaultSettings;
use crate::operations::operation::Operation;

/// How often an operation that waits, or has more to do than one segment, asks whether it should stop.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);

/// Asked while an operation runs: whether to give up (a signal has come). May run a signal's handler, and so anything.
pub type Interrupted<'a> = &'a mut dyn FnMut() -> bool;

/// Why an operation ends before its end.
pub enum Stop {
    /// The caller asked for it.
    Interrupted,
    /// The workspace was cleaned up.
    CleanedUp,
}

impl Stop {
    /// The operation's error, which waits for `missing`.
    pub fn error(self, operation: Operation, missing: RankSet) -> Error {
        match self {
            Self::Interrupted => Error::Interrupted { operation, missing },
            Self::CleanedUp => Error::CleanedUpMeanwhile { operation },
        }
    }
}

/// What may end an operation from without.
pub struct Interrupts<'a> {
    /// What they may end.
    pub operation: Operation,
    /// Set when there is nothing left to do, by whichever thread or handler.
    cleaned_up: &'a AtomicBool,
    interrupted: Interrupted<'a>,
    /// Of the operation; `interrupted` is the caller's, and is asked with the caller's.
    settings: DefaultSettings,
    /// When the caller was last asked whether to go on.
    asked: Option<Instant>,
}

impl<'a> Interrupts<'a> {
    /// Of `operation`, which computes with the default floating-point settings from now on.
    pub fn new(operation: Operation, cleaned_up: &'a AtomicBool, interrupted: Interrupted<'a>) -> Self {
        Self { operation, cleaned_up, interrupted, settings: DefaultSettings::enter(), asked: None }
    }

    /// To be called between two segments of the operation. An error if it should stop.
    pub fn check(&mut self) -> Result<(), Error> {
        self.check_at(Instant::now()).map_err(|stop| stop.error(self.operation, RankSet::default()))
    }

    /// Likewise for an operation that waits, at the time `now`.
    pub fn check_at(&mut self, now: Instant) -> Result<(), Stop> {
        let asked = self.asked.get_or_insert(now);
        if now - *asked >= INTERRUPT_INTERVAL {
            *asked = now;
            if self.settings.suspended(&mut *self.interrupted) {
                return Err(Stop::Interrupted);
            }
        }
        if self.cleaned_up.load(Ordering::Relaxed) { Err(Stop::CleanedUp) } else { Ok(()) }
    }
}
