//! What aborts a workspace from code that knows nothing of Rust or Python: a C function and its argument.

use std::ffi::c_void;
use std::sync::Arc;

use super::Lifecycle;

/// A C function that aborts, for a signal's handler or a thread of a runtime's own.
pub type AbortFunction = unsafe extern "C" fn(*mut c_void);

/// What the function's argument points to.
struct AbortHook {
    lifecycle: Arc<Lifecycle>,
    reason: String,
}

/// A function and its argument, which may be called at any time and any number of times until the process ends: it waits
/// for nothing, allocates nothing and takes no lock. So what it needs, some KiB, is never given back.
pub fn abort_hook(lifecycle: Arc<Lifecycle>, reason: &str) -> (AbortFunction, *mut c_void) {
    let hook = Box::new(AbortHook { lifecycle, reason: reason.to_owned() });
    (abort, Box::into_raw(hook).cast())
}

/// # Safety
/// `hook` is what [`abort_hook`] has returned.
unsafe extern "C" fn abort(hook: *mut c_void) {
    // SAFETY: the caller's promise; it is never freed, and nobody changes it.
    let AbortHook { lifecycle, reason } = unsafe { &*hook.cast::<AbortHook>() };
    // Cleaned up, or forked: there is nothing to abort.
    let _ = lifecycle.abort(reason);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Cause, Error};

    #[test]
    fn a_hook_aborts_on_all_ranks_and_may_be_called_when_the_workspace_has_gone() {
        let [first, second] = Lifecycle::pair();
        let (function, hook) = abort_hook(first.clone(), "why");
        assert!(second.check().is_ok());
        // SAFETY: they belong together.
        unsafe { function(hook) };
        for lifecycle in [&first, &second] {
            match lifecycle.check().unwrap_err() {
                Error::Aborted { rank: 0, cause: Cause::Aborted, reason } => assert_eq!(reason, "why"),
                other => panic!("{other:?}"),
            }
        }
        first.clean_up();
        drop((first, second));
        // SAFETY: as above.
        unsafe { function(hook) };
    }
}
