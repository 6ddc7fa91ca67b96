//! What a later call of the user's drops, rather than a thread of this library's: while device memory is freed, no thread
//! of the process can launch anything, and a peer may wait for a launch. And what nobody drops, as CUDA graphs use it.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

/// Something to drop, once that is allowed.
struct Deferred {
    /// Dropped with this.
    _value: Box<dyn Any + Send>,
    is_ready: Box<dyn Fn() -> bool + Send>,
}

static DEFERRED: Mutex<Vec<Deferred>> = Mutex::new(Vec::new());

/// Leaves `value` for the first [`drop_deferred`] that finds it ready. Calls nothing of its own now.
pub fn defer_drop<T: Send + 'static>(value: T, is_ready: impl Fn() -> bool + Send + 'static) {
    let deferred = Deferred { _value: Box::new(value), is_ready: Box::new(is_ready) };
    DEFERRED.lock().unwrap_or_else(PoisonError::into_inner).push(deferred);
}

/// Gives a reference back. If it was the last, the value is left for [`drop_deferred`].
pub fn defer_last<T: Send + Sync + 'static>(reference: Arc<T>) {
    if let Some(last) = Arc::into_inner(reference) {
        defer_drop(last, || true);
    }
}

/// Drops what was deferred and is ready, in the calling thread. Returns how many values still wait, or 0 if another thread
/// is looking at them right now.
pub fn drop_deferred() -> usize {
    let mut deferred = match DEFERRED.try_lock() {
        Ok(deferred) => deferred,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // Or this process was forked while another thread of its parent's did so.
        Err(TryLockError::WouldBlock) => return 0,
    };
    let ready: Vec<_> = deferred.extract_if(.., |deferred| (deferred.is_ready)()).collect();
    let waiting = deferred.len();
    // To drop them may defer others.
    drop(deferred);
    drop(ready);
    waiting
}

static CAPTURED: Mutex<Vec<Arc<dyn Any + Send + Sync>>> = Mutex::new(Vec::new());

/// Keeps a value that a CUDA graph uses. Nothing tells at no cost when a graph has gone (docs/decisions.md).
pub fn keep_captured<T: Send + Sync + 'static>(value: Arc<T>) {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner).push(value);
}

/// Lets go what is kept for graphs and nobody else has: it is dropped, or deferred.
///
/// # Safety
/// No graph that has captured an operation of it runs, or is launched again.
pub unsafe fn drop_captured() {
    let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
    let unused: Vec<_> = captured.extract_if(.., |value| Arc::strong_count(value) == 1).collect();
    drop(captured);
    drop(unused);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    /// The list is the process's, and tests run in one: others' entries may be there.
    #[test]
    fn values_are_dropped_when_they_are_ready_and_not_before() {
        let (value, is_ready) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let (kept, asked) = (value.clone(), is_ready.clone());
        defer_drop(kept, move || asked.load(Relaxed));
        while drop_deferred() == 0 {}
        assert_eq!(Arc::strong_count(&value), 2);
        is_ready.store(true, Relaxed);
        while Arc::strong_count(&value) > 1 {
            drop_deferred();
        }
    }

    #[test]
    fn what_graphs_use_is_kept_until_it_is_said_that_none_does() {
        let value = Arc::new(());
        keep_captured(value.clone());
        // SAFETY: there is no graph.
        let let_go = || unsafe { drop_captured() };
        let_go();
        assert_eq!(Arc::strong_count(&value), 2);
        let watched = Arc::downgrade(&value);
        drop(value);
        drop_deferred();
        assert_eq!(watched.strong_count(), 1);
        let_go();
        assert_eq!(watched.strong_count(), 0);
    }

    #[test]
    fn only_a_last_reference_is_deferred() {
        let (value, dropped) = {
            let value = Arc::new(());
            (Arc::new(value.clone()), value)
        };
        defer_last(value.clone());
        assert_eq!(Arc::strong_count(&value), 1);
        defer_last(value);
        while Arc::strong_count(&dropped) > 1 {
            drop_deferred();
        }
    }
}
