//! Calls that send nothing.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counts calls that send nothing, until the operations' numbers are moved on by as many.
///
/// A call that is refused on one rank, or has nothing to do there, sends nothing. If its caller goes on, all later
/// operations of that rank would be paired with others of its peers'. So such calls have numbers too.
#[derive(Debug, Default)]
pub struct Skipped(AtomicU32);

impl Skipped {
    /// Notes calls that send nothing.
    pub fn note(&self, calls: u32) {
        self.0.fetch_add(calls, Relaxed);
    }

    /// How many were noted. They are not any more.
    #[inline]
    pub fn take(&self) -> u32 {
        // A load first: it is all there is to do, almost always.
        match self.0.load(Relaxed) {
            0 => 0,
            _ => self.0.swap(0, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Skipped;

    #[test]
    fn calls_that_are_skipped_count() {
        let skipped = Skipped::default();
        assert_eq!(skipped.take(), 0);
        skipped.note(1);
        skipped.note(2);
        assert_eq!((skipped.take(), skipped.take()), (3, 0));
    }
}
