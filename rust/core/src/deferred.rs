//! What another thread drops, later.

use std::mem::ManuallyDrop;
use std::thread;

/// Drops `value` on a thread of its own, once `wait`, which is given it, has returned there. If there is no thread to be
/// had, it stays.
pub fn drop_after<T: Send + 'static>(value: T, wait: impl FnOnce(&T) + Send + 'static) {
    let value = ManuallyDrop::new(value);
    let thread = thread::Builder::new().name("lamport-rs-free".into());
    let _ = thread.spawn(move || {
        wait(&value);
        drop(ManuallyDrop::into_inner(value));
    });
}
