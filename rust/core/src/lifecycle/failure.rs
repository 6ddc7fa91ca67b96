//! Why a workspace may not be used, as it was first said.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;

#[derive(Debug)]
struct Failure {
    error: Error,
    /// Whether a caller knows: the first one is to hear the error itself.
    is_raised: bool,
}

/// The first failure of an epoch, if there is any, and the epochs that were.
#[derive(Debug, Default)]
pub(super) struct FirstFailure {
    /// Resets so far.
    epoch: AtomicU32,
    /// Whether `failure` is there.
    is_there: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl FirstFailure {
    /// Resets so far.
    #[inline]
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether there is one.
    #[inline]
    pub(super) fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Acquire)
    }

    fn locked(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It, if there is one.
    pub(super) fn error(&self) -> Option<Error> {
        self.locked().as_ref().map(|failure| failure.error.clone())
    }

    /// What a caller is to hear of it.
    #[cold]
    pub(super) fn raise(&self) -> Error {
        match &mut *self.locked() {
            // A reset came between.
            None => Error::Failed { first: String::new(), can_reset: true },
            Some(failure) if failure.is_raised => failure.error.failed_earlier(),
            Some(failure) => {
                failure.is_raised = true;
                failure.error.clone()
            }
        }
    }

    /// Notes why no operation may run in `epoch`. The first reason counts.
    pub(super) fn note(&self, error: &Error, epoch: u32, is_raised: bool) {
        let mut failure = self.locked();
        // What was said before a reset is over.
        if epoch == self.epoch() {
            failure.get_or_insert_with(|| Failure { error: error.clone(), is_raised }).is_raised |= is_raised;
            self.is_there.store(true, Ordering::Release);
        }
    }

    /// Notes why none may ever run, whatever was the reason before.
    pub(super) fn replace(&self, error: Error) {
        *self.locked() = Some(Failure { error, is_raised: true });
        self.is_there.store(true, Ordering::Release);
    }

    /// Forgets why no operation might run. All ranks do.
    pub(super) fn begin_epoch(&self) {
        let mut failure = self.locked();
        *failure = None;
        self.epoch.fetch_add(1, Ordering::Release);
        self.is_there.store(false, Ordering::Release);
    }
}
