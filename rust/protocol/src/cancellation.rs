//! How an abort ends the waits of ranks that begin anew, where a [notice](crate::notices) of the epoch is no news.
//!
//! Who aborts counts that first, and says why, in its own page ([`Notices::cancel`]), and then tells a notice. A rank that
//! begins anew notes the counts of all ranks before anything else. If one changes while it waits for the others to stop, its
//! wait is over. So an abort ends the waits that there are, though it may not be the rank's first notice of the epoch, and
//! none that begins after it: whoever has heard of the abort finds it counted.
//!
//! A rank's own abort while all begin anew may be told in the epoch that ends. So it is told in the next, too. Whoever aborts
//! looks for the epoch once more after it has told, with a sequentially consistent fence between the two, and tells again in
//! another. Who ends an epoch looks for this rank's count after it, with such a fence. So one of both finds what the other
//! has done.

use crate::notices::{CANCELLATION_NOTICE, CANCELLATIONS, NOTICE_WORDS, Notices, StatusWords};

/// While a notice is written, a count has this.
const IS_WRITTEN: u32 = 1;

impl<W: StatusWords> Notices<'_, W> {
    /// Ends the waits of ranks that begin anew, and says why in a `notice` of at most [`NOTICE_WORDS`]. Before the notice is
    /// told. Of two threads that call it at the same time, the first one's counts; it may be a thread that a signal's handler
    /// has interrupted here.
    pub fn cancel(&self, notice: &[u32]) {
        let count = self.cancellations(self.rank);
        if !self.words.replace(self.rank, CANCELLATIONS, count, count | IS_WRITTEN) {
            return;
        }
        for (at, word) in notice.iter().take(NOTICE_WORDS).enumerate() {
            self.words.store(self.rank, CANCELLATION_NOTICE + at, *word);
        }
        self.words.store(self.rank, CANCELLATIONS, count.wrapping_add(IS_WRITTEN + 1));
    }

    /// How often `rank` has cancelled what waits.
    pub fn cancellations(&self, rank: usize) -> u32 {
        self.words.load(rank, CANCELLATIONS) & !IS_WRITTEN
    }

    /// Why it has done so the last time.
    pub fn cancellation(&self, rank: usize) -> [u32; NOTICE_WORDS] {
        std::array::from_fn(|at| self.words.load(rank, CANCELLATION_NOTICE + at))
    }
}
