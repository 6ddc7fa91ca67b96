//! What may end an operation from without: a signal whose handler raises, another thread, or a peer.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use lamport_rs_protocol::rank_set::RankSet;

use crate::error::{Error, Result};
use crate::floating_point::DefaultSettings;
use crate::lifecycle::Lifecycle;
use crate::operations::description::Operation;

/// How often an operation that waits, or has more to do than one segment, asks whether it should stop.
pub const INTERRUPT_INTERVAL: Duration = Duration::from_millis(20);

/// Asked while an operation runs: whether to give up (a signal has come). May run a signal's handler, and so anything.
pub type Interrupted<'a> = &'a mut dyn FnMut() -> bool;

/// What may end an operation from without.
pub(crate) struct Interrupts<'a> {
    /// What they may end.
    pub operation: Operation,
    /// What this rank's other threads and the peers may say.
    pub lifecycle: &'a Lifecycle,
    interrupted: Interrupted<'a>,
    /// Of the operation; `interrupted` is the caller's, and is asked with the caller's.
    settings: DefaultSettings,
    /// When the caller was last asked whether to go on.
    asked: Option<Instant>,
}

impl<'a> Interrupts<'a> {
    /// Of `operation`, which computes with the default floating-point settings from now on.
    pub fn new(operation: Operation, lifecycle: &'a Lifecycle, interrupted: Interrupted<'a>) -> Self {
        Self { operation, lifecycle, interrupted, settings: DefaultSettings::enter(), asked: None }
    }

    /// To be called between two segments of the operation. An error if it should stop.
    pub fn check(&mut self) -> Result<()> {
        let operation = self.operation;
        match self.lifecycle.end_of(operation, RankSet::default(), false) {
            Some(end) => Err(end.error),
            None => self.check_caller(Instant::now(), RankSet::default()),
        }
    }

    /// Asks the caller from time to time, of which `now` may be one, whether to go on, while it waits for `missing`.
    pub fn check_caller(&mut self, now: Instant, missing: RankSet) -> Result<()> {
        let asked = self.asked.get_or_insert(now);
        if now - *asked >= INTERRUPT_INTERVAL {
            *asked = now;
            if self.settings.suspended(&mut *self.interrupted) {
                return Err(Error::Interrupted { operation: self.operation, missing });
            }
        }
        Ok(())
    }
}

/// The error of a wait for a device's kernels that ended before they did.
pub fn interrupted_wait() -> Error {
    Error::system("waiting for the device's kernels", "interrupted")
}

/// Runs `wait`, which hears nothing, on a thread of its own, and returns what that returns. `None` if `interrupted` said so
/// before: the thread goes on without the caller, and with all that it was given. An error if there is no thread to be had.
pub fn beside<T: Send + 'static>(
    wait: impl FnOnce() -> T + Send + 'static,
    interrupted: Interrupted<'_>,
) -> Result<Option<T>> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("lamport-rs-wait".into()).spawn(move || {
        // Whoever was interrupted does not listen any more.
        let _ = sender.send(wait());
    });
    let thread = thread.map_err(|error| Error::system("starting a thread", error))?;
    loop {
        match receiver.recv_timeout(INTERRUPT_INTERVAL) {
            Ok(outcome) => return Ok(Some(outcome)),
            Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
                Ok(()) => unreachable!("it has sent what it returned"),
                Err(panic) => std::panic::resume_unwind(panic),
            },
            Err(mpsc::RecvTimeoutError::Timeout) if interrupted() => return Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}
