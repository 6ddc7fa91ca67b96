//! What a workspace has done, for `status`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use lamport_rs_protocol::rank_set::RankSet;

use crate::operations::Kind;
use crate::operations::description::Description;

/// Operations and bytes by kind, and the longest wait. One operation at a time writes, or the
/// watcher of operations on a device; anybody reads.
#[derive(Debug, Default)]
pub struct Tally {
    operations: [AtomicU64; Kind::ALL.len()],
    bytes: [AtomicU64; Kind::ALL.len()],
    longest_wait_nanoseconds: AtomicU64,
    longest_wait_for: AtomicU32,
}

/// How often operations of a kind have begun, and the bytes of their inputs on this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Which collective.
    pub kind: Kind,
    /// Calls.
    pub operations: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Tally {
    /// An operation has begun.
    #[inline]
    pub fn count(&self, description: &Description) {
        let kind = description.kind.index();
        // Loads and stores: nobody else writes, and indivisible additions would take longer.
        let add = |to: &AtomicU64, value: u64| to.store(to.load(Relaxed).wrapping_add(value), Relaxed);
        add(&self.operations[kind], 1);
        add(&self.bytes[kind], description.bytes());
    }

    /// An operation has waited so long, at last for `missing`.
    pub fn note_wait(&self, waited: Duration, missing: RankSet) {
        let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        if nanoseconds > self.longest_wait_nanoseconds.load(Relaxed) {
            self.longest_wait_nanoseconds.store(nanoseconds, Relaxed);
            self.longest_wait_for.store(missing.0.into(), Relaxed);
        }
    }

    /// The work so far, of kinds that there was any of.
    pub fn work(&self) -> Vec<Work> {
        let work = |kind: Kind| Work {
            kind,
            operations: self.operations[kind.index()].load(Relaxed),
            bytes: self.bytes[kind.index()].load(Relaxed),
        };
        Kind::ALL.into_iter().map(work).filter(|work| work.operations > 0).collect()
    }

    /// The longest wait that went beyond spinning, and for whom.
    pub fn longest_wait(&self) -> (Duration, RankSet) {
        let nanoseconds = self.longest_wait_nanoseconds.load(Relaxed);
        (Duration::from_nanos(nanoseconds), RankSet(self.longest_wait_for.load(Relaxed) as u16))
    }
}
