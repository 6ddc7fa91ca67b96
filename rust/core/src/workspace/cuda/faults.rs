//! What a rank's kernels tell its host of faults, and what the host tells kernels that wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::rank_set::RankSet;

use super::waits::Waits;
use crate::error::{Error, Result};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::watcher::Watched;
use crate::memory::pinned::PinnedWords;
use crate::operations::description::Operation;

/// The faults of one rank's workspace.
#[derive(Debug)]
pub struct Faults {
    /// The words that the kernels and the host have in common.
    pub words: PinnedWords,
    lifecycle: Arc<Lifecycle>,
    timeout: Option<Duration>,
    /// Whether kernels say which operation failed.
    is_checked: bool,
    /// Locked while the kernels are told anything.
    telling: Mutex<Telling>,
}

#[derive(Debug, Default)]
struct Telling {
    /// When kernels that still wait give up in any case.
    deadline: Option<Instant>,
    waits: Waits,
    /// When peers are no longer told of a call that sent nothing.
    forget_skipped: Option<Instant>,
}

/// How long peers are told of a call that sent nothing: longer than they usually wait. Its number comes again after 2^31
/// operations, which take most of an hour.
const SKIPPED_IS_TOLD: Duration = Duration::from_secs(600);

impl Faults {
    /// Of a workspace whose operations wait for `timeout`, and compare what the ranks run if `is_checked`.
    pub fn new(words: PinnedWords, lifecycle: Arc<Lifecycle>, timeout: Option<Duration>, is_checked: bool) -> Self {
        Self { words, lifecycle, timeout, is_checked, telling: Mutex::default() }
    }

    /// The error that this rank's kernels have reported, if nobody knows it yet.
    #[inline]
    pub fn check(&self) -> Result<()> {
        match self.words.faults() {
            0 => Ok(()),
            _ => self.find_out(true),
        }
    }

    #[cold]
    fn find_out(&self, is_raised: bool) -> Result<()> {
        // Before the words are read, which a reset clears before it ends an epoch.
        let epoch = self.lifecycle.epoch();
        match self.words.faults() {
            0 => Ok(()),
            faults => self.lifecycle.find_out(epoch, is_raised, || self.explain(faults)),
        }
    }

    /// The error that a kernel reported.
    fn explain(&self, faults: u32) -> Error {
        let (missing, differing) = (RankSet(faults as u16), RankSet((faults >> MAX_WORLD_SIZE) as u16));
        let rank = self.lifecycle.rank();
        if differing.contains(rank) {
            return Error::ForeignKernel;
        }
        let told = if self.is_checked { self.words.operation() } else { None };
        let operation = Operation(told.unwrap_or_default());
        if let Some(peer) = differing.iter().next() {
            return Error::Mismatch { rank, own: operation, peer, theirs: Operation(self.words.peer_operation(peer)) };
        }
        // Its kernels gave up before the time was up, if they were told to.
        match self.lifecycle.end_of(operation, missing, true) {
            Some(end) => end.error,
            None => Error::Timeout { rank, operation, waited: self.timeout.unwrap_or_default(), missing },
        }
    }

    fn telling(&self) -> MutexGuard<'_, Telling> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kernels that still wait after `grace` give up.
    pub fn give_up_after(&self, grace: Duration) {
        self.telling().deadline = Some(Instant::now() + grace);
    }

    /// Forgets what kernels have reported. None runs, and no peer's waits.
    pub fn clear(&self) {
        // What is read from the words is told with this lock held: nothing of it is told later.
        let mut telling = self.telling();
        telling.forget_skipped = None;
        self.words.clear();
    }

    /// What kernels that have ended told of calls that sent nothing is told to peers from now on.
    pub fn hear_of_skipped(&self) {
        self.tell_skipped(&mut self.telling());
    }

    /// Tells peers of a call that sent nothing.
    fn tell_skipped(&self, telling: &mut Telling) {
        if let Some(number) = self.words.take_skipped() {
            self.lifecycle.refuse_from(Some(number));
            telling.forget_skipped = Some(Instant::now() + SKIPPED_IS_TOLD);
        } else if telling.forget_skipped.is_some_and(|then| Instant::now() >= then) {
            self.lifecycle.refuse_from(None);
            telling.forget_skipped = None;
        }
    }

    /// Notes which operation waits, and whether for what a peer never sends, as it has skipped that call.
    fn hear_of_waits(&self, telling: &mut Telling) {
        let epoch = self.lifecycle.epoch();
        let waiting = self.words.take_waiting().map(Operation);
        if let Some(error) = waiting.and_then(|operation| self.lifecycle.refusal_of(operation)) {
            let _ = self.lifecycle.find_out(epoch, false, || error);
        }
        let waiting = waiting.map(|operation| (operation.number(), self.lifecycle.missing_in(operation.number())));
        let over = telling.waits.look(Instant::now(), waiting);
        // Of operations that have completed.
        if let Some((waited, missing)) = over.filter(|_| !self.lifecycle.has_failed()) {
            self.lifecycle.tally.note_wait(waited, missing);
        }
    }

    /// All ranks have begun anew, and nothing holds any more that kernels were told before.
    pub fn begin_epoch(&self) {
        let mut telling = self.telling();
        self.words.tell_ended(RankSet::default());
        *telling = Telling::default();
        self.lifecycle.forget_waits();
    }
}

impl Watched for Faults {
    fn look(&self) {
        // The next call raises it.
        let _ = self.find_out(false);
        let mut telling = self.telling();
        self.tell_skipped(&mut telling);
        self.hear_of_waits(&mut telling);
        let is_over = telling.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let ended = if is_over { self.lifecycle.everybody() } else { self.lifecycle.ended() };
        // What they have sent is there, and a kernel that is told polls once more. Who has ended is asked for and told
        // under one lock, so that nothing is told after a reset that was so before.
        self.words.tell_ended(ended);
    }
}
