//! Who may use a workspace: one operation at a time, of one thread of the process that made it, until it fails or is
//! cleaned up.
//!
//! A second operation is refused, and does not wait: if two threads call operations, nothing says that they come in the
//! same order on every rank, and sums would be paired wrongly. That holds as well if their calls never overlap. So a
//! [`ThreadGate`] lets one thread in, until another is named.
//!
//! An operation that waits may run a signal's handler, and the handler may do anything, also with this workspace. So what
//! a handler or another thread must be able to say and to ask at any time is the [`Lifecycle`]'s, which takes no
//! exclusive access, and nothing here waits.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Cause, Error, Result};
use crate::lifecycle::Lifecycle;

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

/// Lets one operation in at a time, of the thread that it is bound to.
#[derive(Debug)]
pub struct ThreadGate {
    gate: Gate,
    thread: AtomicUsize,
}

impl ThreadGate {
    /// A gate for the calling thread.
    #[expect(clippy::new_without_default, reason = "it depends on the thread")]
    pub fn new() -> Self {
        Self { gate: Gate::default(), thread: AtomicUsize::new(this_thread()) }
    }

    /// Enters for `operation`. An error if the calling thread is another one, or if another operation is inside.
    #[inline]
    pub fn enter(&self, operation: &'static str) -> Result<Entered<'_>> {
        // Before: another thread does not stand in the way of the one that may enter.
        self.check_thread(operation)?;
        let entered = self.gate.enter(operation)?;
        // Again: another may have been named meanwhile. Now none can be.
        self.check_thread(operation)?;
        Ok(entered)
    }

    #[inline]
    fn check_thread(&self, operation: &'static str) -> Result<()> {
        if self.thread.load(Ordering::Relaxed) == this_thread() {
            Ok(())
        } else {
            Err(Error::OtherThread { operation })
        }
    }

    /// Likewise, from a thread that runs the operation in the place of the one that it is bound to, which waits.
    pub fn enter_for_another(&self, operation: &'static str) -> Result<Entered<'_>> {
        self.gate.enter(operation)
    }

    /// Lets the calling thread in from now on, and no other. An error if an operation is inside.
    pub fn bind(&self) -> Result<()> {
        let _entered = self.gate.enter("bind_to_thread")?;
        self.thread.store(this_thread(), Ordering::Relaxed);
        Ok(())
    }
}

/// A number that no other thread of this process has, had or will have. Never [`NOBODY`].
#[inline]
fn this_thread() -> usize {
    static LAST: AtomicUsize = AtomicUsize::new(NOBODY);
    thread_local!(static OWN: Cell<usize> = const { Cell::new(NOBODY) });
    OWN.with(|own| {
        if own.get() == NOBODY {
            own.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
        }
        own.get()
    })
}

/// What one operation at a time may touch, and whether any may.
#[derive(Debug)]
pub struct Exclusive<T> {
    /// Whether any may.
    pub lifecycle: Arc<Lifecycle>,
    gate: Gate,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is accessed through an `Access` only, of which there is one at a time: the gate passes it from thread
// to thread with acquire and release.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    /// `value`, in this process.
    pub fn new(value: T, lifecycle: Arc<Lifecycle>) -> Self {
        Self { lifecycle, gate: Gate::default(), value: UnsafeCell::new(value) }
    }

    /// Access for `operation`.
    #[inline]
    pub fn access(&self, operation: &'static str) -> Result<Access<'_, T>> {
        match self.gate.enter(operation) {
            Ok(entered) => {
                self.lifecycle.check_usable()?;
                Ok(Access { exclusive: self, _entered: entered })
            }
            // That it cannot be used at all says more.
            Err(error) => Err(self.lifecycle.check_usable().err().unwrap_or(error)),
        }
    }

    /// Access for `operation` although others have failed.
    pub fn access_failed(&self, operation: &'static str) -> Result<Access<'_, T>> {
        Ok(Access { exclusive: self, _entered: self.gate.enter(operation)? })
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
            self.exclusive.lifecycle.fail(&Error::Aborted {
                rank: self.exclusive.lifecycle.rank(),
                cause: Cause::Failed,
                reason: "an operation panicked".into(),
            });
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

    #[test]
    fn a_gate_lets_no_other_thread_in_than_the_one_it_is_bound_to() {
        let gate = ThreadGate::new();
        let elsewhere =
            |call: &(dyn Fn() -> Result<()> + Sync)| std::thread::scope(|scope| scope.spawn(call).join().unwrap());
        let enter = || gate.enter("call").map(drop);
        assert!(enter().is_ok());
        assert!(matches!(elsewhere(&enter), Err(Error::OtherThread { operation: "call" })));
        assert!(elsewhere(&|| gate.enter_for_another("call").map(drop)).is_ok());
        assert!(enter().is_ok());

        let entered = gate.enter("call").unwrap();
        assert!(matches!(elsewhere(&|| gate.bind()), Err(Error::InUse { .. })));
        drop(entered);
        assert!(elsewhere(&|| gate.bind()).is_ok());
        // A thread that has ended gives its number to no other.
        assert!(matches!(elsewhere(&enter), Err(Error::OtherThread { .. })));
        assert!(matches!(enter(), Err(Error::OtherThread { .. })));
    }
}
