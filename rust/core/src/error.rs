//! What can go wrong. Every text says what was expected, what was found, and what to do.

use std::time::Duration;

use lamport_rs_kernels::plan::PlanError;
use lamport_rs_protocol::geometry::GeometryError;
use lamport_rs_protocol::rank_set::RankSet;
use thiserror::Error;

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
    /// A tensor that no workspace is large enough for. Nothing was changed.
    #[error("{0}; split the tensor")]
    TooLarge(String),
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
    /// There is no CUDA here.
    #[error("CUDA is not available: {0}")]
    NoCuda(String),
    /// The group could not agree: the same text on every rank.
    #[error("{0}")]
    Agreement(String),
    /// The transport of the exchange failed on this rank.
    #[error("exchanging handles failed on this rank: {0}")]
    Transport(String),
    /// Peers did not come within the timeout.
    #[error(
        "{operation}: waited {waited:?} for {missing}; they are dead, hung, or called something else. \
         This workspace can no longer be used: clean it up on every rank and create a new one"
    )]
    Timeout {
        /// What was waiting.
        operation: &'static str,
        /// How long.
        waited: Duration,
        /// For whom.
        missing: RankSet,
    },
    /// The caller asked to stop waiting (a signal).
    #[error(
        "{operation}: interrupted while waiting for {missing}; this workspace can no longer be used: clean it up on \
         every rank and create a new one"
    )]
    Interrupted {
        /// What was waiting.
        operation: &'static str,
        /// For whom.
        missing: RankSet,
    },
    /// An earlier operation ended half-way.
    #[error("this workspace failed earlier and can no longer be used ({0}); create a new one on every rank")]
    Failed(String),
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
    /// A failed system call.
    pub fn system(call: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::System { call: call.into(), reason: reason.to_string() }
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
