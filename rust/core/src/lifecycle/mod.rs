//! The life of a workspace, whatever its memory: it works; it fails or is aborted, on all ranks; a reset, of all ranks,
//! makes it work again; it is cleaned up.
//!
//! | module | concept |
//! | --- | --- |
//! | [`pages`] | the shared memory through which ranks tell each other |
//! | `process` | whether a peer's process lives |
//! | [`notice`] | what they tell |
//! | `reset` | how all ranks begin anew |
//! | [`tally`] | what the workspace has done, for `status` |
//! | [`watcher`] | a thread that looks on behalf of operations on a device |
//!
//! [`lamport_rs_protocol::notices`] says how they tell it, and why nothing is lost.

pub mod notice;
pub mod pages;
mod process;
mod reset;
pub mod tally;
pub mod watcher;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lamport_rs_protocol::notices::{Notices, Stage, Stages};
use lamport_rs_protocol::rank_set::RankSet;

use self::notice::Notice;
use self::pages::{Pages, Words};
use self::tally::Tally;
use crate::error::{Cause, Error, Result};
use crate::limits::Reason;
use crate::memory::fork::Home;
use crate::operations::operation::Operation;

/// How often `check` asks whether the peers' processes live, which takes a system call.
const PROCESSES_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Failure {
    error: Error,
    /// Whether a caller knows: the first one is to hear the error itself.
    is_raised: bool,
}

/// Whether one rank's workspace may be used, and what its peers have told.
#[derive(Debug)]
pub struct Lifecycle {
    home: Home,
    rank: usize,
    pages: Pages,
    /// Resets so far.
    epoch: AtomicU32,
    /// Set by whichever thread or handler: there is nothing left to wait for.
    cleaned_up: AtomicBool,
    /// Whether `failure` is there.
    failed: AtomicBool,
    /// Why no further operation may run, until a reset.
    failure: Mutex<Option<Failure>>,
    half_reset: AtomicBool,
    made: Instant,
    /// Milliseconds after that, when `check` last asked whether the peers' processes live.
    asked_for_processes: AtomicU64,
    /// What it has done.
    pub tally: Tally,
}

impl Lifecycle {
    /// Of a workspace that `rank` has just made, in this process.
    pub fn new(rank: usize, pages: Pages) -> Self {
        Self {
            home: Home::here(),
            rank,
            pages,
            epoch: AtomicU32::new(0),
            cleaned_up: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            half_reset: AtomicBool::new(false),
            made: Instant::now(),
            asked_for_processes: AtomicU64::new(0),
            tally: Tally::default(),
        }
    }

    #[inline]
    fn notices(&self) -> Notices<'_, Words> {
        let (words, epoch) = (&self.pages.words, self.epoch.load(Ordering::Acquire));
        Notices { words, rank: self.rank, world_size: words.world_size(), epoch }
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Resets so far.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether an operation may run: the error says why not. Waits for nothing.
    #[inline]
    pub fn check_usable(&self) -> Result<()> {
        self.check_here()?;
        if self.failed.load(Ordering::Acquire) {
            return Err(self.failed_earlier());
        }
        let notices = self.notices();
        let told = notices.told();
        if told.is_empty() { Ok(()) } else { Err(self.learn(&notices, told)) }
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
                self.remember(&error, epoch, true);
                Err(error)
            }
        }
    }

    /// What `check` would raise, without taking note of it.
    pub fn fault(&self) -> Option<(Error, u32)> {
        // Its epoch first: a reset may come at any time.
        let notices = self.notices();
        if let Err(error) = self.check_here() {
            return Some((error, notices.epoch));
        }
        if self.failed.load(Ordering::Acquire) {
            return self.failure().map(|error| (error, notices.epoch));
        }
        let told = notices.told();
        if let Some(error) = fault_of(&notices, told) {
            return Some((error, notices.epoch));
        }
        let now = self.made.elapsed();
        let asked = Duration::from_millis(self.asked_for_processes.load(Ordering::Relaxed));
        if now < asked + PROCESSES_INTERVAL {
            return None;
        }
        self.asked_for_processes.store(now.as_millis() as u64, Ordering::Relaxed);
        let others = self.everybody().without(told);
        self.death_of(others).map(|(_, error)| (error, notices.epoch))
    }

    /// Why no operation may run, if that is so.
    fn failure(&self) -> Option<Error> {
        self.locked_failure().as_ref().map(|failure| failure.error.clone())
    }

    fn locked_failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn failed_earlier(&self) -> Error {
        match &mut *self.locked_failure() {
            // A reset came between.
            None => Error::Failed(String::new()),
            Some(failure) if failure.is_raised => Error::Failed(failure.error.to_string()),
            Some(failure) => {
                failure.is_raised = true;
                failure.error.clone()
            }
        }
    }

    #[cold]
    fn learn(&self, notices: &Notices<'_, Words>, told: RankSet) -> Error {
        let (_, error) = first_of(notices, told);
        self.remember(&error, notices.epoch, true);
        error
    }

    /// Notes what this rank has found out by itself in `epoch`, and tells the peers, unless it has failed before. Peers may
    /// have told something since. `is_raised`: whether a caller is told.
    #[cold]
    pub fn find_out(&self, epoch: u32, is_raised: bool, error: impl FnOnce() -> Error) -> Result<()> {
        self.check_here()?;
        if self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = error();
        self.fail_in(epoch, &error, is_raised);
        Err(error)
    }

    /// Notes why no operation may run in `epoch`. The first reason counts.
    fn remember(&self, error: &Error, epoch: u32, is_raised: bool) {
        let mut failure = self.locked_failure();
        // What was said before a reset is over.
        if epoch == self.epoch() {
            failure.get_or_insert_with(|| Failure { error: error.clone(), is_raised }).is_raised |= is_raised;
            self.failed.store(true, Ordering::Release);
        }
    }

    /// Forgets why no operation might run. All ranks do.
    fn begin_epoch(&self) {
        let mut failure = self.locked_failure();
        *failure = None;
        self.epoch.fetch_add(1, Ordering::Release);
        self.failed.store(false, Ordering::Release);
    }

    /// Refuses all further operations, because one failed, and tells the peers.
    pub fn fail(&self, error: &Error) {
        self.fail_in(self.epoch(), error, true);
    }

    fn fail_in(&self, epoch: u32, error: &Error, is_raised: bool) {
        self.remember(error, epoch, is_raised);
        Notices { epoch, ..self.notices() }.tell(Notice::failed(self.rank, error).words());
    }

    /// Refuses all further operations of all ranks, and ends those that wait. Any thread may call it, and a signal's
    /// handler: it waits for nothing and allocates nothing.
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.check_here()?;
        self.notices().tell(Notice::ended(self.rank, Cause::Aborted, reason).words());
        Ok(())
    }

    /// Lets peers know that this rank has none of their memory mapped any more: they may free it. After `clean_up`.
    pub fn unmap(&self) {
        if !self.home.is_elsewhere() {
            self.notices().unmap();
        }
    }

    /// Whether no peer has this rank's memory mapped any more, as far as that can be known. Takes a system call.
    pub fn is_unmapped(&self) -> bool {
        if !self.pages.are_complete() {
            return true;
        }
        let others = self.everybody().without(RankSet(1 << self.rank));
        let mapping = self.notices().mapping(others);
        mapping.without(self.pages.ended(mapping)).is_empty()
    }

    /// Whether this process was forked from the one that it belongs to.
    pub fn is_elsewhere(&self) -> bool {
        self.home.is_elsewhere()
    }

    /// Whether this rank has given it up.
    pub fn is_cleaned_up(&self) -> bool {
        self.cleaned_up.load(Ordering::Relaxed)
    }

    /// Refuses all further operations, ends the one that waits, and tells the peers.
    pub fn clean_up(&self) {
        if !self.cleaned_up.swap(true, Ordering::Relaxed) && !self.home.is_elsewhere() {
            self.notices().leave();
            self.notices().tell(Notice::ended(self.rank, Cause::CleanedUp, "").words());
        }
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

    /// A peer that has refused its call of this operation's number, or had nothing to do in it, and the error of that.
    pub fn refusal_of(&self, operation: Operation) -> Option<(usize, Error)> {
        let notices = self.notices();
        let peers = self.everybody().without(RankSet(1 << self.rank));
        let peer = peers.iter().find(|peer| notices.has_refused(*peer, operation.number()))?;
        Some((peer, Error::PeerRefused { rank: self.rank, operation, peer }))
    }

    /// This rank begins an operation: calls that were refused before are of no concern any more.
    #[inline]
    pub fn serve(&self) {
        self.notices().serve();
    }

    /// What ends an operation that waits for `missing`, if anything does. `asks_for_processes`: a system call more.
    pub fn end_of(&self, operation: Operation, missing: RankSet, asks_for_processes: bool) -> Option<End> {
        if self.cleaned_up.load(Ordering::Relaxed) {
            return Some(End { error: Error::CleanedUpMeanwhile { operation }, unless: None });
        }
        let notices = self.notices();
        if let Some(error) = fault_of(&notices, notices.told()) {
            return Some(End { error: error.seen_by(self.rank, operation), unless: None });
        }
        let unless = |rank: usize, error| Some(End { error, unless: Some(rank) });
        if let Some(rank) = notices.left(missing).iter().next() {
            return unless(rank, Error::Aborted { rank, cause: Cause::CleanedUp, reason: String::new() });
        }
        if let Some(rank) = self.stopped().iter().find(|rank| missing.contains(*rank)) {
            return unless(
                rank,
                Error::Aborted { rank, cause: Cause::Aborted, reason: "it has called reset()".into() },
            );
        }
        if let Some((peer, error)) = self.refusal_of(operation).filter(|(peer, _)| missing.contains(*peer)) {
            return unless(peer, error);
        }
        let (rank, error) = asks_for_processes.then(|| self.death_of(missing)).flatten()?;
        unless(rank, error)
    }

    /// The ranks that wait for the others in a reset.
    fn stopped(&self) -> RankSet {
        self.everybody().without(Stages(self.notices()).missing(Stage::Stopped))
    }

    /// Why deaths of peers' processes are noticed by the timeout alone, if that is so.
    pub fn unwatched(&self) -> Option<Reason> {
        self.pages.unwatched()
    }

    /// All ranks of the group.
    pub fn everybody(&self) -> RankSet {
        RankSet(u16::MAX >> (u16::BITS as usize - self.pages.words.world_size()))
    }

    /// The ranks for which nobody need wait any more: they send nothing, and what they have sent is there. All of them, if
    /// anything has failed. Takes a system call.
    pub fn ended(&self) -> RankSet {
        let notices = self.notices();
        let everybody = self.everybody();
        if self.failed.load(Ordering::Acquire) || fault_of(&notices, notices.told()).is_some() {
            return everybody;
        }
        RankSet(self.stopped().0 | notices.left(everybody).0 | self.pages.ended(everybody).0)
    }

    /// One of `ranks` whose process has ended, and the error of that.
    fn death_of(&self, ranks: RankSet) -> Option<(usize, Error)> {
        let rank = self.pages.ended(ranks).iter().next()?;
        let process = self.pages.process(rank)?;
        Some((rank, Error::Aborted { rank, cause: Cause::Ended, reason: format!("process {process} is gone") }))
    }
}

/// What ends an operation that waits.
pub struct End {
    /// Its error.
    pub error: Error,
    /// A rank that takes part in nothing more. But it may have sent what is awaited before: the operation has to look
    /// once more, and ends if it still misses that rank.
    pub unless: Option<usize>,
}

/// Whether a notice says that its own sender was cleaned up: others may not need it any more.
fn has_left_in_order(sender: usize, error: &Error) -> bool {
    matches!(error, Error::Aborted { rank, cause: Cause::CleanedUp, .. } if *rank == sender)
}

/// What one of the ranks that have told something says, and which: a fault rather than what may follow from one.
fn first_of(notices: &Notices<'_, Words>, told: RankSet) -> (usize, Error) {
    let read = |sender: usize| (sender, notice::read(sender, &notices.read(sender)));
    let fault = told.iter().map(read).find(|(sender, error)| !has_left_in_order(*sender, error));
    fault.unwrap_or_else(|| read(told.iter().next().expect("somebody has told something")))
}

/// The fault that one of the ranks that have told something says, if any does.
#[inline]
fn fault_of(notices: &Notices<'_, Words>, told: RankSet) -> Option<Error> {
    if told.is_empty() {
        return None;
    }
    let (sender, error) = first_of(notices, told);
    (!has_left_in_order(sender, &error)).then_some(error)
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        self.clean_up();
    }
}
