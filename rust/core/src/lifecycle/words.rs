//! The words of pages, in memory.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use lamport_rs_protocol::notices::{Notices, PAGE_WORDS, StatusWords};

/// The words of pages, each of which is at least [`PAGE_WORDS`] long and valid for as long as this is used. Where there is
/// no page, words are 0 and stay so.
#[derive(Debug)]
pub struct Words(pub(super) Vec<Option<NonNull<AtomicU32>>>);

// SAFETY: the words are accessed as atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Those of one page, at least as long as [`PAGE_WORDS`], for as long as it is mapped there.
    pub(super) fn of_one(page: NonNull<u8>) -> Self {
        Self(vec![Some(page.cast())])
    }

    /// What is told in one page alone.
    pub(super) fn notices(&self) -> Notices<'_, Self> {
        Notices { words: self, rank: 0, world_size: 1, epoch: 0 }
    }

    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn word(&self, rank: usize, word: usize) -> Option<&AtomicU32> {
        assert!(word < PAGE_WORDS);
        // SAFETY: within the page, which is mapped, and aligned as pages are; all accesses are atomic.
        self.0[rank].map(|page| unsafe { page.add(word).as_ref() })
    }
}

impl StatusWords for Words {
    #[inline]
    fn load(&self, rank: usize, word: usize) -> u32 {
        self.word(rank, word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        if let Some(word) = self.word(rank, word) {
            word.store(value, Ordering::Release);
        }
    }

    fn replace(&self, rank: usize, word: usize, current: u32, new: u32) -> bool {
        let replace =
            |word: &AtomicU32| word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        self.word(rank, word).is_some_and(replace)
    }
}
