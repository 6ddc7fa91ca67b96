//! What a later call of the user's drops, rather than a thread of this library's: while device memory is freed, no thread
//! of the process can launch anything, and a peer may wait for a launch. And what nobody drops, as CUDA graphs use it.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted, beside, interrupted_wait};

/// What has memory that kernels may use.
pub trait Teardown: Send + Sync + 'static {
    /// Returns once nothing of this rank uses the memory any more. It is called before the value is dropped, so that
    /// freeing the memory takes little time.
    fn give_up(&self);
}

impl Teardown for Arc<dyn Teardown> {
    fn give_up(&self) {
        (**self).give_up();
    }
}

/// Something to drop, once that is allowed.
struct Deferred {
    value: Box<dyn Teardown>,
    is_ready: Box<dyn Fn() -> bool + Send + Sync>,
}

static DEFERRED: Mutex<Vec<Deferred>> = Mutex::new(Vec::new());

/// Leaves `value` for the first [`drop_deferred`] that finds it ready. Calls nothing of its own now.
pub(crate) fn defer_drop(value: impl Teardown, is_ready: impl Fn() -> bool + Send + Sync + 'static) {
    let deferred = Deferred { value: Box::new(value), is_ready: Box::new(is_ready) };
    DEFERRED.lock().unwrap_or_else(PoisonError::into_inner).push(deferred);
}

/// A value that is dropped in a call of the user's: if it is not taken out, [`drop_deferred`] drops it.
pub struct DroppedByUser<T: Teardown>(Option<T>);

impl<T: Teardown> DroppedByUser<T> {
    /// Of `value`.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value.
    pub fn take(mut self) -> T {
        self.0.take().expect("it is taken out once")
    }
}

impl<T: Teardown> Deref for DroppedByUser<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is there until taken out")
    }
}

impl<T: Teardown> Drop for DroppedByUser<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            defer_drop(value, || true);
        }
    }
}

/// What was deferred and is ready. It is deferred again if nobody drops it by [`Self::drop_now`].
struct Ready(Vec<Deferred>);

impl Ready {
    /// Takes it. Nothing, if another thread is looking right now.
    fn take() -> Self {
        Self(try_deferred().map_or_else(Vec::new, |mut all| all.extract_if(.., |each| (each.is_ready)()).collect()))
    }

    fn give_up(&self) {
        self.0.iter().for_each(|each| each.value.give_up());
    }

    /// Returns how many values wait after that. (To drop values may defer others.)
    fn drop_now(mut self) -> usize {
        self.0.clear();
        try_deferred().map_or(0, |deferred| deferred.len())
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            DEFERRED.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.0);
        }
    }
}

/// The list, unless another thread is looking at it right now, or did so when this process was forked.
fn try_deferred() -> Option<MutexGuard<'static, Vec<Deferred>>> {
    match DEFERRED.try_lock() {
        Ok(deferred) => Some(deferred),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Drops what was deferred and is ready, in the calling thread. Returns how many values wait after that, or 0 if another
/// thread is looking at them right now.
pub fn drop_deferred() -> usize {
    let ready = Ready::take();
    ready.give_up();
    ready.drop_now()
}

/// Drops what was deferred as soon as it is ready, until nothing is left, for up to `limit`, or until `interrupted` says
/// so. Returns whether anything was there.
pub fn await_deferred(limit: Duration, interrupted: Interrupted<'_>) -> bool {
    let began = Instant::now();
    if drop_deferred() == 0 {
        return false;
    }
    while drop_deferred() > 0 && began.elapsed() < limit && !interrupted() {
        thread::sleep(INTERRUPT_INTERVAL);
    }
    true
}

/// Drops all that was deferred, ready or not: for tests that would wait a second for it each time.
///
/// # Safety
/// No peer has any of its memory mapped, and this process made all of it, not one that it was forked from.
#[doc(hidden)]
pub unsafe fn drop_all_deferred() {
    let all = Ready(try_deferred().map_or_else(Vec::new, |mut all| std::mem::take(&mut *all)));
    all.give_up();
    all.drop_now();
}

/// Like [`drop_deferred`], but waits for kernels no longer than until `interrupted` says so, which is an error: a later
/// call drops it.
pub fn drop_deferred_until(interrupted: Interrupted<'_>) -> Result<usize> {
    let ready = Ready::take();
    if ready.0.is_empty() {
        return Ok(ready.drop_now());
    }
    let wait = move || {
        ready.give_up();
        ready
    };
    match beside(wait, interrupted) {
        Ok(Some(ready)) => Ok(ready.drop_now()),
        Ok(None) => Err(interrupted_wait()),
        // Without another thread for the wait.
        Err(_) => Ok(drop_deferred()),
    }
}

static CAPTURED: Mutex<Vec<Arc<dyn Teardown>>> = Mutex::new(Vec::new());

/// Keeps a value that a CUDA graph uses. Nothing tells at no cost when a graph has gone (docs/appendix/decisions.md).
#[cfg(feature = "cuda")]
pub(crate) fn keep_captured(value: Arc<dyn Teardown>) {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner).push(value);
}

/// Lets go what is kept for graphs and nobody else has: the next [`drop_deferred`] drops it.
///
/// # Safety
/// No graph that has captured an operation of it runs, or is launched again.
pub unsafe fn let_captured_go() {
    let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
    let unused: Vec<_> = captured.extract_if(.., |value| Arc::strong_count(value) == 1).collect();
    drop(captured);
    unused.into_iter().for_each(|value| defer_drop(value, || true));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    /// Of whom somebody else knows whether it is still there. It must be given up before it is dropped.
    struct Watched {
        _value: Arc<()>,
        is_given_up: AtomicBool,
    }

    impl Watched {
        fn new(value: &Arc<()>) -> Self {
            Self { _value: value.clone(), is_given_up: AtomicBool::new(false) }
        }
    }

    impl Teardown for Watched {
        fn give_up(&self) {
            self.is_given_up.store(true, Relaxed);
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            assert!(self.is_given_up.load(Relaxed), "it was dropped before it was given up");
        }
    }

    /// What is waited for until a flag is set.
    struct Awaited(Watched, Arc<AtomicBool>);

    impl Teardown for Awaited {
        fn give_up(&self) {
            while !self.1.load(Relaxed) {
                thread::yield_now();
            }
            self.0.give_up();
        }
    }

    /// The list is the process's, and tests run in one: others' entries may be there.
    #[test]
    fn values_are_dropped_when_they_are_ready_and_not_before() {
        let (value, is_ready) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let (kept, asked) = (Watched::new(&value), is_ready.clone());
        defer_drop(kept, move || asked.load(Relaxed));
        while drop_deferred() == 0 {}
        assert_eq!(Arc::strong_count(&value), 2);
        is_ready.store(true, Relaxed);
        while Arc::strong_count(&value) > 1 {
            drop_deferred();
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn what_graphs_use_is_kept_until_it_is_said_that_none_does() {
        let inner = Arc::new(());
        let value = Arc::new(Watched::new(&inner));
        let watched = Arc::downgrade(&inner);
        drop(inner);
        keep_captured(value.clone());
        // SAFETY: there is no graph.
        let let_go = || unsafe { let_captured_go() };
        let_go();
        drop_deferred();
        drop(value);
        drop_deferred();
        assert_eq!(watched.strong_count(), 1);
        let_go();
        while watched.strong_count() > 0 {
            drop_deferred();
        }
    }

    #[test]
    fn what_is_not_taken_out_is_dropped_later() {
        let value = Arc::new(());
        drop(DroppedByUser::new(Watched::new(&value)));
        assert_eq!(Arc::strong_count(&value), 2);
        while Arc::strong_count(&value) > 1 {
            assert!(drop_deferred_until(&mut || false).is_ok());
        }
        let taken = DroppedByUser::new(Watched::new(&value)).take();
        taken.give_up();
        drop(taken);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn what_an_interrupted_caller_waited_for_is_dropped_later() {
        let (value, has_ended) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        // Other tests' threads leave it alone.
        let own = thread::current().id();
        let is_own = move || thread::current().id() == own;
        defer_drop(Awaited(Watched::new(&value), has_ended.clone()), is_own);
        assert!(drop_deferred_until(&mut || true).is_err());
        assert_eq!(Arc::strong_count(&value), 2);
        has_ended.store(true, Relaxed);
        while Arc::strong_count(&value) > 1 {
            assert!(drop_deferred_until(&mut || false).is_ok());
        }
    }
}
