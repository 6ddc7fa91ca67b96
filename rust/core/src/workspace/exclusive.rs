//! Who may use a workspace: one operation at a time, of the process that made it, until it fails or is cleaned up.
//!
//! A second operation is refused, and does not wait: if two threads call operations at the same time, nothing says that
//! they come in the same order on every rank, and sums would be paired wrongly.
//!
//! An operation that waits may run a signal's handler, and the handler may do anything, also with this workspace. So what
//! a handler or another thread must be able to say and to ask at any time (that the workspace is cleaned up; whether it
//! may still be used) takes no exclusive access, and nothing here waits.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::memory::fork::Home;

/// The holder where there is none.
const NOBODY: usize = 0;

/// Lets one thread in at a time, and none twice.
#[derive(Debug, Default)]
pub struct Gate(AtomicUsize);

/// Being inside.
pub struct Entered<'a> {
    gate: &'a Gate,
    /// The gate says whose it is.
    of_this_thread: PhantomData<*const ()>,
}

impl Gate {
    /// Enters for `operation`. An error if another operation is inside: of this thread, whose handler calls this one, or
    /// of another.
    #[inline]
    pub fn enter(&self, operation: &'static str) -> Result<Entered<'_>> {
        match self.0.compare_exchange(NOBODY, this_thread(), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Entered { gate: self, of_this_thread: PhantomData }),
            Err(holder) if holder == this_thread() => Err(Error::WithinOperation { operation }),
            Err(_) => Err(Error::InUse { operation }),
        }
    }
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.0.store(NOBODY, Ordering::Release);
    }
}

/// A number that no other running thread has.
#[inline]
fn this_thread() -> usize {
    // The address of something of the thread's own, which is cheaper to get than the system's or Rust's number.
    thread_local!(static OWN: Cell<u8> = const { Cell::new(0) });
    OWN.with(|own| std::ptr::from_ref(own).addr())
}

/// What one operation at a time may touch, and whether any may.
#[derive(Debug)]
pub struct Exclusive<T> {
    home: Home,
    /// Set by whichever thread or handler: there is nothing left to wait for.
    cleaned_up: AtomicBool,
    /// Why no further operation may run.
    failure: OnceLock<String>,
    gate: Gate,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is accessed through an `Access` only, of which there is one at a time: the gate passes it from thread
// to thread with acquire and release.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    /// `value`, in this process.
    pub fn new(value: T) -> Self {
        Self {
            home: Home::here(),
            cleaned_up: AtomicBool::new(false),
            failure: OnceLock::new(),
            gate: Gate::default(),
            value: UnsafeCell::new(value),
        }
    }

    /// Refuses all further operations, and ends the one that waits.
    pub fn clean_up(&self) {
        self.cleaned_up.store(true, Ordering::Relaxed);
    }

    /// Set once it is cleaned up.
    pub fn cleaned_up(&self) -> &AtomicBool {
        &self.cleaned_up
    }

    /// Refuses all further operations, because one failed for this reason. The first reason counts.
    pub fn fail(&self, reason: impl Into<String>) {
        self.failure.get_or_init(|| reason.into());
    }

    /// Whether an operation may run.
    #[inline]
    pub fn check_usable(&self) -> Result<()> {
        if self.cleaned_up.load(Ordering::Relaxed) {
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

    /// Access for `operation`.
    #[inline]
    pub fn access(&self, operation: &'static str) -> Result<Access<'_, T>> {
        self.check_usable()?;
        let entered = self.gate.enter(operation)?;
        // Again: the holder before may have failed.
        self.check_usable()?;
        Ok(Access { exclusive: self, _entered: entered })
    }
}

/// One operation's hold on a workspace.
pub struct Access<'a, T> {
    exclusive: &'a Exclusive<T>,
    _entered: Entered<'a>,
}

impl<T> Deref for Access<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: there is one access at a time.
        unsafe { &*self.exclusive.value.get() }
    }
}

impl<T> DerefMut for Access<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is one access at a time.
        unsafe { &mut *self.exclusive.value.get() }
    }
}

impl<T> Drop for Access<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The group is out of step, as after an error.
            self.exclusive.fail("an operation panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_one_in_at_a_time_and_says_whose_operation_is_inside() {
        let gate = Gate::default();
        let entered = gate.enter("first").unwrap();
        assert!(matches!(gate.enter("second"), Err(Error::WithinOperation { operation: "second" })));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| gate.enter("third").map(drop));
            assert!(matches!(other.join().unwrap(), Err(Error::InUse { operation: "third" })));
        });
        drop(entered);
        assert!(gate.enter("fourth").is_ok());
    }
}
