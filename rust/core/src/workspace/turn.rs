//! Who may use a workspace: one operation at a time, of the process that made it, until it fails or is given up.
//!
//! An operation that waits may run a signal's handler, and the handler may do anything, also with this workspace. And it
//! may wait for ever. So what a handler or another thread must be able to say and to ask at any time (that the workspace
//! is cleaned up; whether it may still be used) takes no turn; and a turn is nothing that a thread could be stuck
//! waiting for, as it could for a mutex.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::memory::fork::Home;
use crate::wait::{GivenUp, Interrupted, Patience, Signals};

/// The holder where there is none.
const NOBODY: usize = 0;

/// What one operation at a time may touch, and whether any may.
#[derive(Debug)]
pub struct Turns<T> {
    home: Home,
    signals: Signals,
    /// Why no further operation may run.
    failure: OnceLock<String>,
    /// The thread whose operation has the turn.
    holder: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is accessed through a `Turn` only, of which there is one at a time: `holder` passes it from thread to
// thread with acquire and release.
unsafe impl<T: Send> Sync for Turns<T> {}

impl<T> Turns<T> {
    /// Turns at `value` in this process.
    pub fn new(value: T) -> Self {
        Self {
            home: Home::here(),
            signals: Signals::default(),
            failure: OnceLock::new(),
            holder: AtomicUsize::new(NOBODY),
            value: UnsafeCell::new(value),
        }
    }

    /// Refuses all further operations, and ends the one that waits.
    pub fn clean_up(&self) {
        self.signals.cleaned_up.store(true, Ordering::Relaxed);
    }

    /// For the operation that has the turn.
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Refuses all further operations, because one failed for this reason. The first reason counts.
    pub fn fail(&self, reason: impl Into<String>) {
        self.failure.get_or_init(|| reason.into());
    }

    /// Whether an operation may run.
    #[inline]
    pub fn check_usable(&self) -> Result<()> {
        if self.signals.cleaned_up.load(Ordering::Relaxed) {
            return Err(Error::CleanedUp);
        }
        if self.home.is_elsewhere() {
            return Err(Error::Forked { creator: self.home.process(), process: std::process::id() });
        }
        match self.failure.get() {
            Some(failure) => Err(Error::Failed(failure.clone())),
            None => Ok(()),
        }
    }

    /// The turn for `operation`, once no other has it. Each of them may wait for its peers for `timeout`.
    #[inline]
    pub fn take(
        &self,
        operation: &'static str,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
    ) -> Result<Turn<'_, T>> {
        let turn = match self.try_take() {
            Some(turn) => turn,
            None => self.wait(operation, timeout, interrupted)?,
        };
        // Not before: the holder before may have failed.
        self.check_usable()?;
        Ok(turn)
    }

    #[inline]
    fn try_take(&self) -> Option<Turn<'_, T>> {
        let taken = self.holder.compare_exchange(NOBODY, this_thread(), Ordering::Acquire, Ordering::Relaxed);
        taken.ok().map(|_| Turn { turns: self, of_this_thread: PhantomData })
    }

    #[cold]
    fn wait(
        &self,
        operation: &'static str,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
    ) -> Result<Turn<'_, T>> {
        // In a forked process the holder may be a thread that is not there.
        self.check_usable()?;
        if self.holder.load(Ordering::Relaxed) == this_thread() {
            return Err(Error::WithinOperation { operation });
        }
        // Twice what a first-hand wait takes, and more than any other does, without anything that came meanwhile: a
        // holder that waits in vain gives up before, and its error, which names the absent rank, is the reason that this
        // one is given. An operation whose peers come one by one may last longer, and so may several in a row.
        let timeout = timeout.map(|timeout| timeout.saturating_mul(2));
        let mut patience = Patience::oversubscribed(&self.signals.cleaned_up);
        let mut seen = self.progress();
        loop {
            let progress = self.progress();
            if seen != progress {
                seen = progress;
                patience.restart_clock();
            }
            patience.pause(timeout, interrupted).map_err(|given_up| match given_up {
                GivenUp::TimedOut(waited) => Error::NoTurn { operation, waited },
                GivenUp::Interrupted => Error::TurnInterrupted { operation },
                GivenUp::CleanedUp => Error::CleanedUp,
            })?;
            if let Some(turn) = self.try_take() {
                return Ok(turn);
            }
        }
    }

    /// What changes when an operation gets ahead.
    fn progress(&self) -> usize {
        self.signals.steps.load(Ordering::Relaxed)
    }
}

/// A number that no other running thread has.
#[inline]
fn this_thread() -> usize {
    // The address of something of the thread's own, which is cheaper to get than the system's or Rust's number.
    thread_local!(static OWN: Cell<u8> = const { Cell::new(0) });
    OWN.with(|own| std::ptr::from_ref(own).addr())
}

/// One operation's hold on a workspace.
pub struct Turn<'a, T> {
    turns: &'a Turns<T>,
    /// `holder` says whose it is.
    of_this_thread: PhantomData<*const ()>,
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: there is one turn at a time.
        unsafe { &*self.turns.value.get() }
    }
}

impl<T> DerefMut for Turn<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is one turn at a time.
        unsafe { &mut *self.turns.value.get() }
    }
}

impl<T> Drop for Turn<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The group is out of step, as after an error.
            self.turns.fail("an operation panicked");
        }
        self.turns.signals.get_ahead();
        self.turns.holder.store(NOBODY, Ordering::Release);
    }
}
