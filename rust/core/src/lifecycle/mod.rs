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
//!
//! [`lamport_rs_protocol::notices`] says how they tell it, and why nothing is lost.

pub mod notice;
pub mod pages;
mod process;
mod reset;
pub mod tally;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lamport_rs_protocol::notices::Notices;
use lamport_rs_protocol::rank_set::RankSet;

use self::notice::Notice;
use self::pages::{Pages, Words};
use self::tally::Tally;
use crate::error::{Cause, Error, Result};
use crate::memory::fork::Home;
use crate::operations::operation::Operation;

/// How often `check` asks whether the peers' processes live, which takes a system call.
const PROCESSES_INTERVAL: Duration = Duration::from_millis(50);

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
    failure: Mutex<Option<Error>>,
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
                self.remember(&error, epoch);
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
        if !told.is_empty()
            && let (sender, error) = first_of(&notices, told)
            && !has_left_in_order(sender, &error)
        {
            return Some((error, notices.epoch));
        }
        let now = self.made.elapsed();
        let asked = Duration::from_millis(self.asked_for_processes.load(Ordering::Relaxed));
        if now < asked + PROCESSES_INTERVAL {
            return None;
        }
        self.asked_for_processes.store(now.as_millis() as u64, Ordering::Relaxed);
        let others = RankSet(u16::MAX >> (u16::BITS as usize - notices.world_size) & !told.0);
        self.death_of(others).map(|(_, error)| (error, notices.epoch))
    }

    /// Why no operation may run, if that is so.
    fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[cold]
    fn failed_earlier(&self) -> Error {
        Error::Failed(self.failure().map(|error| error.to_string()).unwrap_or_default())
    }

    #[cold]
    fn learn(&self, notices: &Notices<'_, Words>, told: RankSet) -> Error {
        let (_, error) = first_of(notices, told);
        self.remember(&error, notices.epoch);
        error
    }

    /// Notes what this rank has found out by itself, unless it has failed before. Peers may have told something since.
    #[cold]
    pub fn find_out(&self, error: impl FnOnce() -> Error) -> Result<()> {
        self.check_here()?;
        if self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = error();
        self.fail(&error);
        Err(error)
    }

    /// Notes why no operation may run in this epoch. The first reason counts.
    fn remember(&self, error: &Error, epoch: u32) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // What was said before a reset is over.
        if epoch == self.epoch() {
            failure.get_or_insert_with(|| error.clone());
            self.failed.store(true, Ordering::Release);
        }
    }

    /// Forgets why no operation might run. All ranks do.
    fn begin_epoch(&self) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        *failure = None;
        self.epoch.fetch_add(1, Ordering::Release);
        self.failed.store(false, Ordering::Release);
    }

    /// Refuses all further operations, because one failed, and tells the peers.
    pub fn fail(&self, error: &Error) {
        self.remember(error, self.epoch());
        self.notices().tell(Notice::failed(self.rank, error).words());
    }

    /// Refuses all further operations of all ranks, and ends those that wait. Any thread may call it, and a signal's
    /// handler: it waits for nothing and allocates nothing.
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.check_here()?;
        self.notices().tell(Notice::ended(self.rank, Cause::Aborted, reason).words());
        Ok(())
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
        let told = notices.told();
        if !told.is_empty() {
            let (sender, error) = first_of(&notices, told);
            if !has_left_in_order(sender, &error) {
                return Some(End { error: error.seen_by(self.rank, operation), unless: None });
            }
        }
        let unless = |rank: usize, error| Some(End { error, unless: Some(rank) });
        if let Some(rank) = notices.left(missing).iter().next() {
            return unless(rank, Error::Aborted { rank, cause: Cause::CleanedUp, reason: String::new() });
        }
        if let Some(peer) = missing.iter().find(|peer| notices.has_refused(*peer, operation.number())) {
            return unless(peer, Error::PeerRefused { rank: self.rank, operation, peer });
        }
        let (rank, error) = asks_for_processes.then(|| self.death_of(missing)).flatten()?;
        unless(rank, error)
    }

    /// One of `ranks` whose process has ended, and the error of that.
    fn death_of(&self, ranks: RankSet) -> Option<(usize, Error)> {
        let (rank, process) = self.pages.ended(ranks)?;
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

impl Drop for Lifecycle {
    fn drop(&mut self) {
        self.clean_up();
    }
}
