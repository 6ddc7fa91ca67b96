//! What can go wrong. Every text says what was expected, what was found, and what to do.

mod advice;
mod cause;
mod told;
mod words;

use std::time::Duration;

pub use cause::Cause;
use lamport_rs_kernels::plan::PlanError;
use lamport_rs_protocol::geometry::GeometryError;
use lamport_rs_protocol::rank_set::RankSet;
use thiserror::Error;
use words::{GONE, NO_LONGER, after_colon, explain_mismatch, failed_advice, while_waiting};

use crate::limits::Reason;
use crate::operations::description::Operation;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// The crate's error.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// An impossible shape of the group or its memory.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// An argument that an operation cannot take. Nothing was changed.
    #[error("{0}")]
    Argument(String),
    /// An operand that is right but for the place or the order of its elements: a copy of it will do. Found only after
    /// all that a copy would not mend. Nothing was changed.
    #[error("{0}")]
    Layout(String),
    /// A tensor that no workspace is large enough for. Nothing was changed.
    #[error("{0}; split the tensor")]
    TooLarge(String),
    /// An operation on another stream than the last one, which nothing can wait for.
    #[error(
        "the last operation was on a stream that is being captured now, so this one cannot follow it from another \
         stream, and this rank is out of step: create a new workspace on every rank, and next time end the capture \
         first, or capture on a stream of its own"
    )]
    StreamIsCaptured,
    /// A system call that failed.
    #[error("{call} failed: {reason}")]
    System {
        /// The call.
        call: String,
        /// The system's text, and what to do about it.
        reason: String,
    },
    /// A call of the CUDA driver that failed.
    #[error("{call} failed: {name} ({text})")]
    Driver {
        /// The call.
        call: String,
        /// The driver's name for the error.
        name: String,
        /// The driver's text for it.
        text: String,
    },
    /// A defect, of this package or of a library below it.
    #[error("a panic: {0}; this is a defect, of lamport-rs or of a library that it uses: please report it")]
    Panicked(String),
    /// There is no CUDA here.
    #[error("CUDA is not available: {0}")]
    NoCuda(String),
    /// The group could not agree: the same text on every rank.
    #[error("{0}")]
    Agreement(String),
    /// The transport of the rendezvous failed on this rank.
    #[error("exchanging handles failed on this rank: {0}")]
    Transport(String),
    /// Peers did not come within the timeout.
    #[error(
        "{operation}: rank {rank} waited {waited:?} for {missing}; they are dead, hung, or have called less. {NO_LONGER}"
    )]
    Timeout {
        /// Who was waiting.
        rank: usize,
        /// In what.
        operation: Operation,
        /// How long.
        waited: Duration,
        /// For whom.
        missing: RankSet,
    },
    /// The caller asked to stop waiting (a signal).
    #[error(
        "{operation}: interrupted{}. {NO_LONGER}",
        while_waiting(.missing)
    )]
    Interrupted {
        /// What was interrupted.
        operation: Operation,
        /// For whom it waited; no rank if it did not wait.
        missing: RankSet,
    },
    /// The workspace was given up while an operation waited, by a signal's handler or another thread.
    #[error(
        "{operation}: this workspace was cleaned up while the operation ran, which has no result; create a new one on \
         every rank"
    )]
    CleanedUpMeanwhile {
        /// What was waiting.
        operation: Operation,
    },
    /// A peer runs another operation.
    #[error(
        "the ranks differ: rank {rank} runs {own}, but rank {peer} runs {theirs}. {} {NO_LONGER}",
        explain_mismatch(own, theirs)
    )]
    Mismatch {
        /// This rank.
        rank: usize,
        /// What it runs.
        own: Operation,
        /// One that differs.
        peer: usize,
        /// What that runs.
        theirs: Operation,
    },
    /// A peer's caller was refused the operation that this rank runs.
    #[error(
        "the ranks differ: rank {rank} runs {operation}, but rank {peer} has refused its call of that number: it is \
         a call that was refused, or had nothing to do, there. {NO_LONGER}"
    )]
    PeerRefused {
        /// A rank that waits.
        rank: usize,
        /// What it runs.
        operation: Operation,
        /// The rank that has refused.
        peer: usize,
    },
    /// A rank has ended: it takes part in nothing more.
    #[error("rank {rank} {cause}{}. {}", after_colon(reason), cause.advice())]
    Aborted {
        /// Which one; it may be this one.
        rank: usize,
        /// In what way.
        cause: Cause,
        /// Why, in its own words.
        reason: String,
    },
    /// A rank whose buffer others have has given it up at the end of its construction, or has ended since.
    #[error("rank {rank} {cause}{}. Create a new buffer on every rank", after_colon(reason))]
    BufferLost {
        /// Which one.
        rank: usize,
        /// In what way.
        cause: Cause,
        /// Why, in its own words.
        reason: String,
    },
    /// Peers did not come to a reset.
    #[error(
        "reset: waited {waited:?} for {missing}, which did not call it, or could not go on; all ranks must call it"
    )]
    ResetTimeout {
        /// How long.
        waited: Duration,
        /// For whom.
        missing: RankSet,
    },
    /// An error that advises a reset, in a group that can have none.
    #[error("{}. {GONE}", .0.reason())]
    WithoutReset(Box<Error>),
    /// A reset of ranks that have no memory of the host in common.
    #[error(
        "a reset takes pages of shared memory that some ranks of this group could not map, as they do not see each other's \
         processes: create a new workspace on every rank"
    )]
    PagesMissing,
    /// A reset that ended half-way.
    #[error("a reset of this workspace has failed half-way, so it stays as it is: create a new one on every rank")]
    HalfReset,
    /// An operation was called by what another operation on the same workspace called while it waited.
    #[error(
        "{operation} was called from within another operation on the same workspace, by a signal's handler; a handler may \
         clean the workspace up, or use another one. The other operation goes on, but this call counts: ranks that did \
         not make it will differ from here on"
    )]
    WithinOperation {
        /// What was called.
        operation: &'static str,
    },
    /// An operation was called while another thread's ran on the same workspace.
    #[error(
        "{operation} was called while another thread's operation ran on the same workspace. A workspace serves one \
         operation at a time, and threads that call at will would come in another order on other ranks: use a \
         workspace per thread, or one thread for both. The other operation goes on, but this call counts: ranks that \
         did not make it will differ from here on"
    )]
    InUse {
        /// What was called.
        operation: &'static str,
    },
    /// A norm on a device in a group of one, which has no peer that the kernels could wait for.
    #[error("norms have no kernels for a group of one rank, which needs no exchange")]
    SingleRank,
    /// A call of another thread than the one that the workspace is bound to.
    #[error(
        "{operation} was called in another thread than the one that this workspace is bound to, which is the one that made \
         it or that called bind_to_thread() last. If threads take turns, nothing says that they come in the same order on \
         every rank: use a workspace per thread, or call lamport_rs.bind_to_thread(workspace) in the one that is to use it \
         from now on, on every rank. This call counts: ranks that did not make it will differ from here on"
    )]
    OtherThread {
        /// What was called.
        operation: &'static str,
    },
    /// Use in a process that was forked from the one that the workspace belongs to.
    #[error(
        "this workspace belongs to process {creator}, from which this one ({process}) was forked: its peers would take what \
         this process sends for the other's; create a new one on every rank, after the fork"
    )]
    Forked {
        /// The process that created the workspace.
        creator: u32,
        /// This one.
        process: u32,
    },
    /// The control words are not what the package left in them.
    #[error(
        "the control words of this workspace's table are not as this package left them: slot index {} and extent to clear {}, \
         but {} and {} were expected; another kernel has used the table. A workspace serves either foreign kernels or the \
         package's own operations: create one for each", found.0, found.1, expected.0, expected.1
    )]
    ForeignControl {
        /// Slot index, and extent in bytes.
        found: (i32, i64),
        /// Likewise.
        expected: (i32, i64),
    },
    /// A foreign kernel has used the table between two operations of the package's own, on a GPU.
    #[error(
        "a foreign kernel has used the table of this workspace between two operations of this package: its data may lie \
         where the second looked for its own, whose results are NaN for that. A workspace serves either foreign kernels or the \
         package's own operations: create one for each, on every rank"
    )]
    ForeignKernel,
    /// An earlier operation ended half-way.
    #[error("this workspace failed earlier and can no longer be used ({first}); {}", failed_advice(*can_reset))]
    Failed {
        /// The first error, without what to do about it.
        first: String,
        /// Whether all ranks are there that a reset takes.
        can_reset: bool,
    },
    /// Use after `cleanup()`.
    #[error("this workspace was cleaned up; create a new one on every rank")]
    CleanedUp,
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Bytes { bytes, most } if bytes > most => Self::TooLarge(error.to_string()),
            _ => Self::Argument(error.to_string()),
        }
    }
}

impl Error {
    /// Whether an operation had begun that did not complete, or could not begin because the group has failed: what its
    /// outputs hold means nothing.
    pub fn spoils_outputs(&self) -> bool {
        matches!(
            self.itself(),
            Self::Timeout { .. }
                | Self::Mismatch { .. }
                | Self::PeerRefused { .. }
                | Self::Aborted { .. }
                | Self::Interrupted { .. }
                | Self::CleanedUpMeanwhile { .. }
                | Self::ForeignControl { .. }
                | Self::Failed { .. }
        )
    }

    /// A failed system call.
    pub fn system(call: impl Into<String>, reason: impl Into<Reason>) -> Self {
        Self::System { call: call.into(), reason: reason.into().to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_is_too_large_for_the_kernels_is_no_bad_argument() {
        let too_large = Error::from(PlanError::Bytes { bytes: 11, most: 10 });
        assert!(matches!(&too_large, Error::TooLarge(text) if text.contains("between 1 and 10")), "{too_large}");
        assert!(matches!(Error::from(PlanError::Bytes { bytes: 0, most: 10 }), Error::Argument(_)));
    }
}
