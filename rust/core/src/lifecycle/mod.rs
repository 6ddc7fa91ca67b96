//! The life of a workspace, whatever its memory: it works; it fails or is aborted, on all ranks; a reset, of all ranks,
//! makes it work again; it is cleaned up.
//!
//! | module | concept |
//! | --- | --- |
//! | `construction` | how it ends before there is a workspace |
//! | `failure` | why it may not be used |
//! | `ending` | what ends an operation that waits |
//! | `teardown` | how it is given up, and when its memory may be freed |
//! | `life` | how peers hear that this process ends |
//! | `memory` | its memory until then: unmapping, and freeing what peers have mapped |
//! | [`pages`] | the shared memory through which ranks tell each other |
//! | `process` | whether a peer's process lives |
//! | [`notice`] | what they tell |
//! | `rarely` | when `check` asks what takes a system call |
//! | `reset` | how all ranks reset |
//! | [`tally`] | what the workspace has done, for `status` |
//! | [`words`] | the words of such pages |
//! | [`watcher`] | a thread that looks on behalf of operations on a device |
//!
//! [`lamport_rs_protocol::notices`] says how they tell it, and why nothing is lost.

mod construction;
mod ending;
mod failure;
pub mod hook;
pub mod life;
pub(crate) mod memory;
pub mod notice;
pub mod pages;
mod process;
mod rarely;
mod reset;
pub mod tally;
mod teardown;
pub mod watcher;
pub mod words;

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use lamport_rs_protocol::notices::Notices;
use lamport_rs_protocol::rank_set::RankSet;

pub use self::ending::End;
use self::ending::{fault_of, first_of};
use self::failure::FirstFailure;
use self::notice::Notice;
use self::pages::Pages;
use self::rarely::Rarely;
use self::tally::Tally;
use self::words::Words;
use crate::error::{Cause, Error, Result};
use crate::limits::Reason;
use crate::memory::fork::Home;

/// How often `check` asks whether the peers' processes live, which takes a system call.
const PROCESSES_INTERVAL: Duration = Duration::from_millis(50);

/// Whether one rank's workspace may be used, and what its peers have told.
#[derive(Debug)]
pub struct Lifecycle {
    home: Home,
    rank: usize,
    pages: Pages,
    /// Set by whichever thread or handler: there is nothing left to wait for.
    cleaned_up: AtomicBool,
    /// Why no further operation may run, until a reset.
    failure: FirstFailure,
    half_reset: AtomicBool,
    /// What cleans it up does so because of an error.
    is_end_expected: AtomicBool,
    /// When `check` asks whether the peers' processes live.
    asks_for_processes: Rarely,
    /// What it has done.
    pub tally: Tally,
}

impl Lifecycle {
    /// Of a workspace that `rank` has just made, in this process.
    pub(crate) fn new(rank: usize, pages: Pages) -> Self {
        Self {
            home: Home::here(),
            rank,
            pages,
            cleaned_up: AtomicBool::new(false),
            failure: FirstFailure::default(),
            half_reset: AtomicBool::new(false),
            is_end_expected: AtomicBool::new(false),
            asks_for_processes: Rarely::new(PROCESSES_INTERVAL),
            tally: Tally::default(),
        }
    }

    #[inline]
    fn notices(&self) -> Notices<'_, Words> {
        let (words, epoch) = (&self.pages.words, self.failure.epoch());
        Notices { words, rank: self.rank, world_size: words.world_size(), epoch }
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Resets so far.
    pub fn epoch(&self) -> u32 {
        self.failure.epoch()
    }

    /// Whether an operation may run: the error says why not. Waits for nothing.
    #[inline]
    pub fn check_usable(&self) -> Result<()> {
        self.check_here()?;
        if self.failure.is_there() {
            return Err(self.advised(self.failure.raise()));
        }
        let notices = self.notices();
        let told = notices.told();
        if told.is_empty() { Ok(()) } else { Err(self.advised(self.learn(&notices, told))) }
    }

    /// `error` as a caller is to hear it: it advises no reset where there can be none. Takes a system call.
    #[cold]
    pub fn advised(&self, error: Error) -> Error {
        let everybody = self.everybody();
        let is_possible = self.pages.reset_ruled_out().is_none()
            && self.notices().left(everybody).is_empty()
            && self.dead().is_empty();
        if is_possible { error } else { error.without_reset() }
    }

    /// Whether it is known to have failed.
    pub fn has_failed(&self) -> bool {
        self.failure.is_there()
    }

    /// Whether this process may do anything with it.
    #[inline]
    fn check_here(&self) -> Result<()> {
        if self.cleaned_up.load(Ordering::Relaxed) {
            return Err(Error::CleanedUp);
        }
        if self.home.is_elsewhere() {
            return Err(Error::Forked { creator: self.home.process(), process: std::process::id() });
        }
        Ok(())
    }

    /// What went wrong, as it was first said. That a peer was cleaned up is no fault as long as nobody needs it. Waits for
    /// nothing.
    #[inline]
    pub fn check(&self) -> Result<()> {
        match self.fault() {
            None => Ok(()),
            Some((error, epoch)) => {
                self.failure.note(&error, epoch, true);
                Err(error)
            }
        }
    }

    /// What `check` would raise, without taking note of it.
    pub fn fault(&self) -> Option<(Error, u32)> {
        self.first_fault().map(|(error, epoch)| (self.advised(error), epoch))
    }

    fn first_fault(&self) -> Option<(Error, u32)> {
        // Its epoch first: a reset may come at any time.
        let notices = self.notices();
        if let Err(error) = self.check_here() {
            return Some((error, notices.epoch));
        }
        if self.failure.is_there() {
            return self.failure.error().map(|error| (error, notices.epoch));
        }
        let told = notices.told();
        if let Some(error) = fault_of(&notices, told) {
            return Some((error.seen_between_operations_by(self.rank), notices.epoch));
        }
        if !self.asks_for_processes.is_due() {
            return None;
        }
        let everybody = self.everybody();
        let others = everybody.without(notices.left_in_order(everybody));
        self.death_of(others, true).map(|(_, error)| (error, notices.epoch))
    }

    #[cold]
    fn learn(&self, notices: &Notices<'_, Words>, told: RankSet) -> Error {
        let (sender, error) = first_of(notices, told);
        let error = match error {
            Error::Aborted { rank, cause: Cause::CleanedUp, .. } if rank == sender => self.departure_of(rank).error,
            error => error.seen_between_operations_by(self.rank),
        };
        self.failure.note(&error, notices.epoch, true);
        error
    }

    /// Notes what this rank has found out by itself in `epoch`, and tells the peers, unless it has failed before. Peers may
    /// have told something since. `is_raised`: whether a caller is told.
    #[cold]
    pub fn find_out(&self, epoch: u32, is_raised: bool, error: impl FnOnce() -> Error) -> Result<()> {
        self.check_here()?;
        if self.failure.is_there() {
            return Ok(());
        }
        let error = error();
        self.fail_in(epoch, &error, is_raised);
        Err(self.advised(error))
    }

    /// Refuses all further operations, because one failed, and tells the peers.
    pub fn fail(&self, error: &Error) {
        self.fail_in(self.epoch(), error, true);
    }

    fn fail_in(&self, epoch: u32, error: &Error, is_raised: bool) {
        self.failure.note(error, epoch, is_raised);
        Notices { epoch, ..self.notices() }.tell(Notice::failed(self.rank, error).words());
    }

    /// The peers whose processes have ended, or are about to. Takes a system call.
    pub fn dead(&self) -> RankSet {
        let everybody = self.everybody();
        RankSet(self.pages.ending(everybody).0 | self.pages.ended(everybody).0)
    }

    /// Refuses all further operations of all ranks, and ends those that wait, resets among them. Any thread may call it,
    /// and a signal's handler: it waits for nothing and allocates nothing.
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.check_here()?;
        let notice = Notice::ended(self.rank, Cause::Aborted, reason);
        self.notices().cancel(notice.words());
        // A reset may end the epoch meanwhile: either it finds this, or this finds that.
        loop {
            let notices = self.notices();
            notices.tell(notice.words());
            fence(Ordering::SeqCst);
            if self.epoch() == notices.epoch {
                return Ok(());
            }
        }
    }

    /// Whether this process was forked from the one that it belongs to.
    pub fn is_elsewhere(&self) -> bool {
        self.home.is_elsewhere()
    }

    /// Lets peers know that this rank has refused its call `number`, or had nothing to do in it.
    pub fn refuse(&self, number: u32) {
        if !self.home.is_elsewhere() {
            self.notices().refuse(number);
        }
    }

    /// Likewise, of a row of calls of which the first was `number`, or of none: whatever was refused before is of no concern
    /// any more.
    pub fn refuse_from(&self, number: Option<u32>) {
        if self.home.is_elsewhere() {
            return;
        }
        self.notices().serve();
        if let Some(number) = number {
            self.notices().refuse(number);
        }
    }

    /// This rank begins an operation: calls that were refused before are of no concern any more.
    #[inline]
    pub fn serve(&self) {
        self.notices().serve();
    }

    /// Why deaths of peers' processes are noticed by the timeout alone, if that is so.
    pub fn unwatched(&self) -> Option<Reason> {
        self.pages.unwatched()
    }

    /// All ranks of the group.
    pub fn everybody(&self) -> RankSet {
        RankSet(u16::MAX >> (u16::BITS as usize - self.pages.words.world_size()))
    }
}

#[cfg(test)]
impl Lifecycle {
    /// Those of a group of two threads.
    pub fn pair() -> [std::sync::Arc<Self>; 2] {
        let pages: [Pages; 2] = Pages::in_process(2).unwrap().try_into().unwrap();
        let mut ranks = 0..;
        pages.map(|pages| Self::new(ranks.next().unwrap(), pages).into())
    }
}
