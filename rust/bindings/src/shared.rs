//! What Python's objects share of the core's.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use lamport_rs_core::deferred::{DroppedByUser, Teardown, drop_deferred};
use lamport_rs_core::interrupts::beside;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::is_first_thread;

/// A reference to what frees memory when the last one is gone. That may take long: freeing device memory waits for
/// kernels. So the last one lets go without the interpreter's lock, wherever that is, and other threads go on. In the
/// thread that hears Ctrl-C, it goes on without waiting when that comes, and a later call frees the memory.
///
/// The last one must not go while a lock is held that others take with the interpreter's.
pub struct Shared<T: Teardown>(Option<Arc<T>>);

impl<T: Teardown> Shared<T> {
    /// The first reference to `value`.
    pub fn new(value: T) -> Self {
        Arc::new(value).into()
    }

    /// A reference that does not keep it.
    pub fn downgrade(&self) -> Weak<T> {
        Arc::downgrade(self.inner())
    }

    /// A reference, if it is still there.
    pub fn upgrade(weak: &Weak<T>) -> Option<Self> {
        weak.upgrade().map(Self::from)
    }

    #[inline]
    fn inner(&self) -> &Arc<T> {
        self.0.as_ref().expect("it is there until dropped")
    }
}

impl<T: Teardown> From<Arc<T>> for Shared<T> {
    fn from(inner: Arc<T>) -> Self {
        Self(Some(inner))
    }
}

impl<T: Teardown> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Teardown> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.inner()
    }
}

impl<T: Teardown> Drop for Shared<T> {
    fn drop(&mut self) {
        let mut last = self.0.take().and_then(Arc::into_inner);
        if last.is_none() {
            return;
        }
        let mut let_go = || match last.take() {
            Some(last) if is_first_thread() => drop_unless_interrupted(last),
            last => drop(last),
        };
        if holds_the_lock() {
            let _ = Python::try_attach(|py| py.detach(&mut let_go));
        } else {
            let_go();
        }
        // Where there is no interpreter any more, there is no lock to let go either, and signals end the process.
    }
}

/// If Ctrl-C comes, it is left for a later call.
fn drop_unless_interrupted<T: Teardown>(last: T) {
    let last = DroppedByUser::new(last);
    let wait = move || {
        last.give_up();
        last
    };
    match beside(wait, &mut interrupt_is_pending) {
        Ok(Some(last)) => drop(last.take()),
        Ok(None) => {}
        // There is no thread to be had for the wait. It was left for a later call: this one.
        Err(_) => drop(drop_deferred()),
    }
}

/// Whether Ctrl-C was pressed, which is raised in the main thread once this is over: here nothing can be raised. By
/// CPython's own count: PyO3's does not know of a lock that torch has let go, see `holds_the_lock`.
fn interrupt_is_pending() -> bool {
    // SAFETY: to be called in any state. The first call forgets the signal, the second is it again; the thread has the
    // interpreter's lock meanwhile.
    unsafe {
        if ffi::Py_IsInitialized() == 0 {
            return false;
        }
        let before = ffi::PyGILState_Ensure();
        let is_pending = ffi::PyOS_InterruptOccurred() != 0;
        if is_pending {
            ffi::PyErr_SetInterrupt();
        }
        ffi::PyGILState_Release(before);
        is_pending
    }
}

/// Whether this thread has the interpreter's lock. PyO3 counts who attached, and cannot know that torch lets the lock go
/// while it frees a tensor, be it one of this package's memory, in a thread that is attached further up.
fn holds_the_lock() -> bool {
    unsafe extern "C" {
        // Not of the limited API, but in every CPython since 3.4.
        fn PyGILState_Check() -> std::ffi::c_int;
    }
    // SAFETY: to be called in any state.
    unsafe { PyGILState_Check() == 1 }
}
