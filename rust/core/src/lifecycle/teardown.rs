//! How a workspace is given up, and when its memory may be freed.

use std::sync::atomic::Ordering;

use lamport_rs_protocol::rank_set::RankSet;

use super::Lifecycle;
use super::notice::Notice;
use crate::error::Cause;

impl Lifecycle {
    /// Whether this rank has given it up.
    pub fn is_cleaned_up(&self) -> bool {
        self.cleaned_up.load(Ordering::Relaxed)
    }

    /// Refuses all further operations, ends the one that waits, and tells the peers.
    pub fn clean_up(&self) {
        self.leave(!self.is_end_expected.load(Ordering::Relaxed));
    }

    /// Likewise, where nobody has said that this is the end: the process may end, and let it go for that.
    pub fn let_go(&self) {
        self.leave(false);
    }

    /// What cleans it up next does so because of an error, of which the process may end.
    pub fn expect_an_end(&self) {
        self.is_end_expected.store(true, Ordering::Relaxed);
    }

    fn leave(&self, in_order: bool) {
        if !self.cleaned_up.swap(true, Ordering::Relaxed) && !self.home.is_elsewhere() {
            let notices = self.notices();
            if in_order {
                notices.leave()
            } else {
                notices.let_go()
            }
            notices.tell(Notice::ended(self.rank, Cause::CleanedUp, "").words());
        }
    }

    /// Lets peers know that this rank has none of their memory mapped any more: they may free it. After `clean_up`.
    pub(crate) fn unmap(&self) {
        if !self.home.is_elsewhere() {
            self.notices().unmap();
        }
    }

    /// Whether it can be known that peers have this rank's memory mapped no more.
    pub fn hears_of_unmapping(&self) -> bool {
        self.pages.are_complete()
    }

    /// Whether no peer has this rank's memory mapped any more, if it [`Self::hears_of_unmapping`]. Takes a system call.
    pub fn is_unmapped(&self) -> bool {
        let others = self.everybody().without(RankSet(1 << self.rank));
        let mapping = self.notices().mapping(others);
        mapping.without(self.pages.ended(mapping)).is_empty()
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        self.clean_up();
    }
}
