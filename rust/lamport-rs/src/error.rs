//! What can go wrong.

use std::fmt;

use lamport_rs_core as core;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// The crate's error: its text says what was expected, what was found, on which rank, and what to do.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    ranks: Vec<usize>,
}

/// What an [`Error`] means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument that the call cannot take. Nothing was changed. A refused operation counts as a call: if the other
    /// ranks make theirs, they get [`ErrorKind::Mismatch`].
    Argument,
    /// The ranks did not meet, or did not agree. All ranks get an error.
    Rendezvous,
    /// Peers did not come within the timeout. [`Error::ranks`] are those.
    Timeout,
    /// A rank has called `abort`, has failed, or has ended. [`Error::ranks`] is that one.
    Aborted,
    /// The ranks called different operations.
    Mismatch,
    /// The communicator has failed earlier: reset it on all ranks, or create a new one.
    Unusable,
    /// The CUDA driver, or that there is none.
    Cuda,
    /// The operating system.
    System,
    /// What this group cannot do.
    Unsupported,
    /// A defect of this crate: please report it.
    Defect,
}

impl Error {
    /// What it means for the caller.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The ranks that are to blame, if that is known.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The core's error, whose type is no part of the API.
    pub(crate) fn of_core(error: core::Error) -> Self {
        Self { kind: kind_of(error.itself()), ranks: ranks_of(error.itself()), text: error.to_string() }
    }

    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Argument, text: text.into(), ranks: vec![] }
    }

    pub(crate) fn rendezvous(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Rendezvous, text: text.into(), ranks: vec![] }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

fn kind_of(error: &core::Error) -> ErrorKind {
    use core::Error as E;
    match error {
        E::Geometry(_) | E::Argument(_) | E::Layout(_) | E::TooLarge(_) => ErrorKind::Argument,
        E::Agreement(_) | E::Transport(_) => ErrorKind::Rendezvous,
        E::Timeout { .. } | E::ResetTimeout { .. } => ErrorKind::Timeout,
        E::Aborted { .. } | E::BufferLost { .. } | E::Interrupted { .. } => ErrorKind::Aborted,
        E::Mismatch { .. } | E::PeerRefused { .. } | E::ForeignControl { .. } | E::ForeignKernel => ErrorKind::Mismatch,
        E::Failed { .. }
        | E::CleanedUp
        | E::CleanedUpMeanwhile { .. }
        | E::HalfReset
        | E::Forked { .. }
        | E::StreamIsCaptured
        | E::WithoutReset(_) => ErrorKind::Unusable,
        E::Driver { .. } | E::NoCuda(_) => ErrorKind::Cuda,
        E::System { .. } => ErrorKind::System,
        E::SingleRank | E::PagesMissing => ErrorKind::Unsupported,
        E::Panicked(_) | E::WithinOperation { .. } | E::InUse { .. } | E::OtherThread { .. } => ErrorKind::Defect,
    }
}

fn ranks_of(error: &core::Error) -> Vec<usize> {
    match error {
        core::Error::Timeout { missing, .. } | core::Error::ResetTimeout { missing, .. } => missing.iter().collect(),
        core::Error::Aborted { rank, .. } | core::Error::BufferLost { rank, .. } => vec![*rank],
        core::Error::Mismatch { peer, .. } | core::Error::PeerRefused { peer, .. } => vec![*peer],
        _ => vec![],
    }
}
