//! What ends an operation that waits: what peers have told, or that they take part in nothing more.

use std::sync::atomic::Ordering;

use lamport_rs_protocol::notices::{Notices, Stage, Stages, StatusWords};
use lamport_rs_protocol::rank_set::RankSet;

use super::words::Words;
use super::{Lifecycle, notice};
use crate::error::{Cause, Error};
use crate::operations::description::Operation;

/// What ends an operation that waits.
pub struct End {
    /// Its error.
    pub error: Error,
    /// A rank that takes part in nothing more. But it may have sent what is awaited before: the operation has to look
    /// once more, and ends if it still misses that rank.
    pub unless: Option<usize>,
    /// That rank may have gone because its process ends: who waits a little hears that.
    pub may_change: bool,
}

impl End {
    fn at_once(error: Error) -> Self {
        Self { error, unless: None, may_change: false }
    }
}

impl Lifecycle {
    /// What ends an operation that waits for `missing`, if anything does. `asks_for_processes`: a system call more.
    pub fn end_of(&self, operation: Operation, missing: RankSet, asks_for_processes: bool) -> Option<End> {
        if self.cleaned_up.load(Ordering::Relaxed) {
            return Some(End::at_once(Error::CleanedUpMeanwhile { operation }));
        }
        let notices = self.notices();
        if let Some(error) = fault_of(&notices, notices.told()) {
            return Some(End::at_once(error.seen_by(self.rank, operation)));
        }
        let unless = |(rank, error)| End { error, unless: Some(rank), may_change: false };
        if let Some(rank) = notices.left(missing).iter().next() {
            return Some(self.departure_of(rank));
        }
        // Before the next: what was refused is said until all have stopped.
        if let Some(refusal) = self.refusal_by(missing, operation) {
            return Some(unless(refusal));
        }
        if let Some(rank) = self.stopped().iter().find(|rank| missing.contains(*rank)) {
            let reason = "it has called reset()".into();
            return Some(unless((rank, Error::Aborted { rank, cause: Cause::Aborted, reason })));
        }
        self.death_of(missing, asks_for_processes).map(unless)
    }

    /// Why `rank` has gone. Takes a system call.
    #[cold]
    pub(super) fn departure_of(&self, rank: usize) -> End {
        let ranks = RankSet(1 << rank);
        let in_order = !self.notices().left_in_order(ranks).is_empty();
        let death = if in_order { None } else { self.death_of(ranks, true) };
        let may_change = !in_order && death.is_none();
        let error = match death {
            Some((_, error)) => error,
            None => Error::Aborted { rank, cause: Cause::CleanedUp, reason: String::new() },
        };
        End { error, unless: Some(rank), may_change }
    }

    /// One of `peers` that has refused its call of this operation's number, or had nothing to do in it, and the error of
    /// that.
    fn refusal_by(&self, peers: RankSet, operation: Operation) -> Option<(usize, Error)> {
        let notices = self.notices();
        let peer = peers.iter().find(|peer| notices.has_refused(*peer, operation.number()))?;
        Some((peer, Error::PeerRefused { rank: self.rank, operation, peer }))
    }

    /// The error of an operation that some peer has refused, or had nothing to do in, if one has.
    pub fn refusal_of(&self, operation: Operation) -> Option<Error> {
        let peers = self.everybody().without(RankSet(1 << self.rank));
        self.refusal_by(peers, operation).map(|(_, error)| error)
    }

    /// This rank waits in its operation `number`: the ranks that do not say so too.
    pub fn missing_in(&self, number: u32) -> RankSet {
        let notices = self.notices();
        notices.wait_in(number);
        notices.not_waiting_in(number)
    }

    /// It waits in none.
    pub fn forget_waits(&self) {
        self.notices().wait_in(0);
    }

    /// The ranks that wait for the others in a reset.
    fn stopped(&self) -> RankSet {
        self.everybody().without(Stages(self.notices()).missing(Stage::Stopped))
    }

    /// The ranks for which nobody need wait any more: they send nothing, and what they have sent is there. All of them, if
    /// anything has failed. Takes a system call.
    pub fn ended(&self) -> RankSet {
        let notices = self.notices();
        let everybody = self.everybody();
        if self.failure.is_there() || fault_of(&notices, notices.told()).is_some() {
            return everybody;
        }
        RankSet(self.stopped().0 | notices.left(everybody).0 | self.dead().0)
    }

    /// One of `ranks` whose process has ended, or is about to, and the error of that. `asks_for_processes`: a system call more.
    pub(super) fn death_of(&self, ranks: RankSet, asks_for_processes: bool) -> Option<(usize, Error)> {
        let ending = self.pages.ending(ranks);
        let dead = if ending.is_empty() && asks_for_processes { self.pages.ended(ranks) } else { ending };
        let rank = dead.iter().next()?;
        let process = self.pages.process(rank)?;
        Some((rank, Error::Aborted { rank, cause: Cause::Ended, reason: format!("process {process} is gone") }))
    }
}

/// Whether a notice says that its own sender was cleaned up: others may not need it any more.
fn has_left_in_order(sender: usize, error: &Error) -> bool {
    matches!(error, Error::Aborted { rank, cause: Cause::CleanedUp, .. } if *rank == sender)
}

/// What one of the ranks that have told something says, and which: a fault rather than what may follow from one. Each
/// notice is read once: its sender may change it.
pub(super) fn first_of(notices: &Notices<'_, impl StatusWords>, told: RankSet) -> (usize, Error) {
    let mut told = told.iter().map(|sender| (sender, notice::read(sender, &notices.read(sender))));
    let is_fault = |(sender, error): &(usize, Error)| !has_left_in_order(*sender, error);
    let first = told.next().expect("somebody has told something");
    if is_fault(&first) { first } else { told.find(is_fault).unwrap_or(first) }
}

/// The fault that one of the ranks that have told something says, if any does.
#[inline]
pub(super) fn fault_of(notices: &Notices<'_, Words>, told: RankSet) -> Option<Error> {
    if told.is_empty() {
        return None;
    }
    let (sender, error) = first_of(notices, told);
    (!has_left_in_order(sender, &error)).then_some(error)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use lamport_rs_protocol::notices::{NOTICE_WORDS, PAGE_WORDS};

    use super::*;
    use crate::lifecycle::notice::Notice;
    use crate::lifecycle::pages::Pages;

    /// Pages of which every word changes when it was loaded: all notices are of an abort then.
    struct Changing {
        pages: Vec<Notice>,
        loaded: RefCell<Vec<[bool; PAGE_WORDS]>>,
    }

    impl StatusWords for Changing {
        fn load(&self, rank: usize, word: usize) -> u32 {
            let at = word - (PAGE_WORDS - 2 * NOTICE_WORDS);
            let again = std::mem::replace(&mut self.loaded.borrow_mut()[rank][word], true);
            let aborted = Notice::ended(rank, Cause::Aborted, "second thoughts");
            if again { aborted.words()[at] } else { self.pages[rank].words()[at] }
        }

        fn store(&self, _rank: usize, _word: usize, _value: u32) {
            unreachable!("nothing is told")
        }

        fn replace(&self, _rank: usize, _word: usize, _current: u32, _new: u32) -> bool {
            unreachable!("nothing is told")
        }
    }

    /// What is heard of ranks of which each has ended for one of these causes.
    fn heard(causes: [Cause; 2]) -> (usize, Error) {
        let pages = causes.into_iter().enumerate().map(|(rank, cause)| Notice::ended(rank, cause, "")).collect();
        let words = Changing { pages, loaded: RefCell::new(vec![[false; PAGE_WORDS]; 2]) };
        first_of(&Notices { words: &words, rank: 0, world_size: 2, epoch: 0 }, RankSet(0b11))
    }

    #[test]
    fn a_notice_that_changes_meanwhile_is_what_it_was_when_it_was_read() {
        for causes in [[Cause::CleanedUp, Cause::CleanedUp], [Cause::CleanedUp, Cause::Ended]] {
            let rank = if causes[1] == Cause::CleanedUp { 0 } else { 1 };
            let (sender, error) = heard(causes);
            let is_it =
                matches!(&error, Error::Aborted { rank: of, cause, .. } if *of == rank && *cause == causes[rank]);
            assert!(is_it && sender == rank, "{sender}: {error:?}");
        }
    }

    #[test]
    fn no_error_advises_a_reset_once_a_peer_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let lifecycle = Lifecycle::new(0, Pages::beside(child.id()));
        assert!(lifecycle.end_of(Operation([0; 4]), RankSet(0b10), true).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let first = lifecycle.end_of(Operation([0; 4]), RankSet(0b10), true).unwrap().error;
        assert!(matches!(first, Error::Aborted { rank: 1, cause: Cause::Ended, .. }), "{first:?}");
        lifecycle.fail(&first);
        let later = lifecycle.check_usable().unwrap_err();
        for text in [first, later].map(|error| error.to_string()) {
            assert!(text.contains(&format!("rank 1 has ended: process {} is gone", child.id())), "{text}");
            assert!(text.ends_with("create a new one on every rank") && !text.contains("reset"), "{text}");
        }
    }
}
