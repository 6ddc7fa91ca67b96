//! What any thread may ask and say about a communicator, at any time.

use std::sync::Arc;
use std::time::Duration;

use lamport_rs_core::lifecycle::Lifecycle;
#[cfg(feature = "cuda")]
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_core::workspace::host::HostWorkspace;

use crate::error::{Error, Result};

/// What other threads have of a communicator: they may ask how it is, and abort it, while an operation runs.
#[derive(Clone, Debug)]
pub struct Handle(Workspace);

#[derive(Clone, Debug)]
enum Workspace {
    Host(Arc<HostWorkspace>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaWorkspace>),
}

/// What a communicator has done, and what became of it, on this rank.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// Why it cannot be used, if that is so.
    pub failure: Option<String>,
    /// Resets so far.
    pub resets: u32,
    /// The operations that have begun, by name.
    pub work: Vec<Work>,
    /// The longest wait for peers that went beyond spinning; on GPUs, of what the host saw.
    pub longest_wait: Duration,
    /// The ranks that this wait was for.
    pub longest_wait_for: Vec<usize>,
}

/// How often an operation was called.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Work {
    /// Its name.
    pub operation: &'static str,
    /// How often.
    pub calls: u64,
    /// Bytes of this rank's inputs.
    pub bytes: u64,
}

impl Handle {
    pub(crate) fn of_host(workspace: &Arc<HostWorkspace>) -> Self {
        Self(Workspace::Host(workspace.clone()))
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn of_cuda(workspace: &Arc<CudaWorkspace>) -> Self {
        Self(Workspace::Cuda(workspace.clone()))
    }

    fn lifecycle(&self) -> &Lifecycle {
        match &self.0 {
            Workspace::Host(workspace) => workspace.lifecycle(),
            #[cfg(feature = "cuda")]
            Workspace::Cuda(workspace) => workspace.lifecycle(),
        }
    }

    /// Ends the operations of all ranks that wait, and refuses all further ones, until a reset. Waits for nothing.
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.lifecycle().abort(reason).map_err(Error::of_core)
    }

    /// An error if anything went wrong, on this rank or a peer. Waits for nothing.
    pub fn check(&self) -> Result<()> {
        let checked = match &self.0 {
            Workspace::Host(workspace) => workspace.lifecycle().check(),
            #[cfg(feature = "cuda")]
            Workspace::Cuda(workspace) => workspace.check(),
        };
        checked.map_err(Error::of_core)
    }

    /// What was done so far. Waits for nothing.
    pub fn status(&self) -> Status {
        let lifecycle = self.lifecycle();
        let work = |work: &lamport_rs_core::lifecycle::tally::Work| Work {
            operation: work.kind.name(),
            calls: work.operations,
            bytes: work.bytes,
        };
        let (longest_wait, ranks) = lifecycle.tally.longest_wait();
        Status {
            failure: lifecycle.fault().map(|(error, _)| error.to_string()),
            resets: lifecycle.epoch(),
            work: lifecycle.tally.work().iter().map(work).collect(),
            longest_wait,
            longest_wait_for: ranks.iter().collect(),
        }
    }
}
