//! The life of a workspace, whatever its memory: it works; it fails or is aborted, on all ranks; a reset, of all ranks,
//! makes it work again; it is cleaned up.
//!
//! | module | concept |
//! | --- | --- |
//! | [`pages`] | the shared memory through which ranks tell each other, and whether their processes live |
//! | [`notice`] | what they tell |
//! | [`tally`] | what the workspace has done, for `status` |
//!
//! [`lamport_rs_protocol::notices`] says how they tell it, and why nothing is lost.

pub mod notice;
pub mod pages;
pub mod tally;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lamport_rs_protocol::notices::{NONE_REFUSED, Notices, Stage, Stages};
use lamport_rs_protocol::rank_set::RankSet;

use self::notice::Notice;
use self::pages::{Pages, Words};
use self::tally::Tally;
use crate::error::{Cause, Error, Result};
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted};
use crate::memory::fork::Home;
use crate::operations::operation::{NUMBER_MASK, Operation};

/// Between two looks of a rank that waits in a reset: peers are late by as much as their devices take to stop.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

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
        let told = self.notices().told();
        if told.is_empty() { Ok(()) } else { Err(self.learn(told)) }
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
        self.check_here()?;
        if self.failed.load(Ordering::Acquire) {
            return self.failure().map_or(Ok(()), Err);
        }
        let told = self.notices().told();
        if told.is_empty() { Ok(()) } else { self.learn_of_faults(told) }
    }

    #[cold]
    fn learn_of_faults(&self, told: RankSet) -> Result<()> {
        let notices = self.notices();
        let errors = told.iter().map(|sender| notice::read(sender, &notices.read(sender)));
        match errors.into_iter().find(|error| !matches!(error, Error::Aborted { cause: Cause::CleanedUp, .. })) {
            Some(error) => {
                self.remember(&error);
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Why no operation may run, if that is so.
    pub fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[cold]
    fn failed_earlier(&self) -> Error {
        Error::Failed(self.failure().map(|error| error.to_string()).unwrap_or_default())
    }

    #[cold]
    fn learn(&self, told: RankSet) -> Error {
        let sender = told.iter().next().expect("somebody has told something");
        let error = notice::read(sender, &self.notices().read(sender));
        self.remember(&error);
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

    /// The first reason counts.
    fn remember(&self, error: &Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        self.failed.store(true, Ordering::Release);
    }

    /// Refuses all further operations, because one failed, and tells the peers.
    pub fn fail(&self, error: &Error) {
        self.remember(error);
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

    /// Lets peers know that this rank has refused its call `number`.
    pub fn refuse(&self, number: u32) {
        if !self.home.is_elsewhere() {
            self.notices().refuse(number);
        }
    }

    /// What ends an operation that waits for `missing`. If anything does, the operation must look once more at what it
    /// awaits before it believes it: a peer may have sent all and left. `asks_for_processes`: a system call more.
    pub fn end_of(&self, operation: Operation, missing: RankSet, asks_for_processes: bool) -> Option<Error> {
        if self.cleaned_up.load(Ordering::Relaxed) {
            return Some(Error::CleanedUpMeanwhile { operation });
        }
        let notices = self.notices();
        for sender in notices.told().iter() {
            match notice::read(sender, &notices.read(sender)) {
                // It may have sent all that this operation awaits.
                Error::Aborted { cause: Cause::CleanedUp, .. } if !missing.contains(sender) => {}
                error => return Some(error.seen_by(self.rank, operation)),
            }
        }
        let number = operation.number();
        if let Some(peer) = missing.iter().find(|peer| notices.has_refused(*peer, number, NUMBER_MASK)) {
            return Some(Error::PeerRefused { rank: self.rank, operation, peer });
        }
        if asks_for_processes { self.death_of(missing) } else { None }
    }

    /// The error that one of `ranks` has ended with its process.
    fn death_of(&self, ranks: RankSet) -> Option<Error> {
        let rank = self.pages.ended(ranks).iter().next()?;
        let process = self.pages.process(rank).unwrap_or_default();
        Some(Error::Aborted { rank, cause: Cause::Ended, reason: format!("process {process} is gone") })
    }

    /// Begins anew, with all ranks: `stop` returns when this rank stores nothing more into its peers' slots, `refill`
    /// when its own slots are as they were at first. The workspace works again then.
    pub fn reset(
        &self,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
        stop: impl FnOnce() -> Result<()>,
        refill: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.check_here()?;
        if self.half_reset.load(Ordering::Relaxed) {
            return Err(Error::HalfReset);
        }
        stop()?;
        let stages = Stages(self.notices());
        stages.arrive(Stage::Stopped);
        self.wait_for(Stage::Stopped, timeout, interrupted).inspect_err(|_| stages.arrive(Stage::None))?;
        // From here on some ranks may have begun anew, and others not.
        self.half_reset.store(true, Ordering::Relaxed);
        refill()?;
        // Calls are counted anew.
        self.notices().refuse(NONE_REFUSED);
        stages.arrive(Stage::Filled);
        self.wait_for(Stage::Filled, timeout, interrupted)?;
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        *failure = None;
        self.failed.store(false, Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::Release);
        self.half_reset.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn wait_for(&self, stage: Stage, timeout: Option<Duration>, interrupted: &mut dyn FnMut() -> bool) -> Result<()> {
        let began = Instant::now();
        let mut asked = began;
        loop {
            let missing = Stages(self.notices()).missing(stage);
            if missing.is_empty() {
                return Ok(());
            }
            self.check_here()?;
            if let Some(rank) = self.notices().left(missing).iter().next() {
                return Err(Error::Aborted { rank, cause: Cause::CleanedUp, reason: String::new() });
            }
            if let Some(error) = self.death_of(missing) {
                return Err(error);
            }
            let now = Instant::now();
            let waited = now - began;
            if timeout.is_some_and(|timeout| waited >= timeout) {
                return Err(Error::ResetTimeout { waited, missing });
            }
            if now - asked >= INTERRUPT_INTERVAL {
                asked = now;
                if interrupted() {
                    return Err(Error::ResetTimeout { waited, missing });
                }
            }
            std::thread::sleep(RESET_INTERVAL);
        }
    }
}

impl Drop for Lifecycle {
    fn drop(&mut self) {
        self.clean_up();
    }
}
