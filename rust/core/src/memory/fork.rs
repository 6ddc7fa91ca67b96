//! Noticing that a process was forked from the one that mapped the memory.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Remembers the process that made it.
///
/// A question is asked for every operation, so it should not take a system call (0.1 us): the kernel empties a page of
/// this in every process that is forked, and a load tells. Where it does not (before Linux 4.14), the process is asked
/// for its number.
#[derive(Debug)]
pub struct Home {
    process: u32,
    /// A word that is 1 at home and 0 elsewhere, at the start of a page of its own.
    page: Option<NonNull<AtomicU32>>,
}

// SAFETY: the page is this value's own, stays mapped until it is dropped, and is only accessed as an atomic.
unsafe impl Send for Home {}
// SAFETY: as above.
unsafe impl Sync for Home {}

impl Home {
    /// This process.
    pub fn here() -> Self {
        Self { process: std::process::id(), page: Self::page() }
    }

    fn page() -> Option<NonNull<AtomicU32>> {
        let bytes = rustix::param::page_size();
        // SAFETY: a fresh mapping at an address of the kernel's choosing aliases nothing of this process.
        let page = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .ok()?;
        // SAFETY: the page was mapped just now, and nobody else knows of it.
        unsafe {
            if madvise(page, bytes, Advice::LinuxWipeOnFork).is_err() {
                let _ = munmap(page, bytes);
                return None;
            }
        }
        let word = NonNull::new(page.cast::<AtomicU32>())?;
        // SAFETY: the page is mapped, aligned and zeros, which is a valid `AtomicU32`.
        unsafe { word.as_ref() }.store(1, Ordering::Relaxed);
        Some(word)
    }

    /// The number of the process that made this.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Whether this process is another, forked from it.
    #[inline]
    pub fn is_elsewhere(&self) -> bool {
        match self.page {
            // SAFETY: the page is mapped for as long as `self` lives, in forked processes too.
            Some(word) => unsafe { word.as_ref() }.load(Ordering::Relaxed) == 0,
            None => std::process::id() != self.process,
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(word) = self.page {
            // SAFETY: the page is this value's own.
            let unmapped = unsafe { munmap(word.as_ptr().cast(), rustix::param::page_size()) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // That a forked process is elsewhere is tested from Python: a process of several threads, as this one, must do
    // nothing after a fork.
    #[test]
    fn home_is_where_it_was_made_by_either_way_of_asking() {
        let home = Home::here();
        assert!(!home.is_elsewhere());
        let process = home.process();
        assert!(!Home { process, page: None }.is_elsewhere());
        assert!(Home { process: process + 1, page: None }.is_elsewhere());
    }
}
