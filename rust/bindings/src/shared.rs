//! What Python's objects share of the core's.

use std::ops::Deref;
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

/// A reference to what frees memory when the last one is gone. That may take long: freeing device memory waits for
/// kernels. So the last one lets go without the interpreter's lock, wherever that is, and other threads go on.
///
/// The last one must not go while a lock is held that others take with the interpreter's.
pub struct Shared<T: Send + Sync>(Option<Arc<T>>);

impl<T: Send + Sync> Shared<T> {
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

impl<T: Send + Sync> From<Arc<T>> for Shared<T> {
    fn from(inner: Arc<T>) -> Self {
        Self(Some(inner))
    }
}

impl<T: Send + Sync> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Send + Sync> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.inner()
    }
}

impl<T: Send + Sync> Drop for Shared<T> {
    fn drop(&mut self) {
        let mut last = self.0.take().and_then(Arc::into_inner);
        if last.is_some() && holds_the_lock() {
            // There is no lock to let go where there is no interpreter any more.
            let _ = Python::try_attach(|py| py.detach(|| drop(last.take())));
        }
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
