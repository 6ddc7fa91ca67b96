//! A workspace of whichever backend.

use std::sync::{Arc, Weak};
use std::time::Duration;

use lamport_rs_core::Result;
use lamport_rs_core::interrupts::Interrupted;
use lamport_rs_core::lifecycle::Lifecycle;
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_core::workspace::exclusive::ThreadGate;
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_protocol::exchange::Member;

use crate::shared::Shared;

/// One rank's workspace.
#[derive(Clone)]
pub enum AnyWorkspace {
    /// Over shared memory.
    Host(Shared<HostWorkspace>),
    /// Over device memory.
    Cuda(Shared<CudaWorkspace>),
}

impl AnyWorkspace {
    /// Rank and geometry.
    pub fn member(&self) -> Member {
        match self {
            Self::Host(workspace) => workspace.member(),
            Self::Cuda(workspace) => workspace.member(),
        }
    }

    /// Where the pointer table is, and its length.
    pub fn table(&self) -> (u64, usize) {
        match self {
            Self::Host(workspace) => (workspace.table().as_ptr() as u64, workspace.table().len()),
            Self::Cuda(workspace) => workspace.table(),
        }
    }

    /// What lets one call in at a time, of one thread. A call stays inside until it has the interpreter's lock again, so that
    /// no other comes between its operation and its return.
    pub fn calls(&self) -> &ThreadGate {
        match self {
            Self::Host(workspace) => &workspace.calls,
            Self::Cuda(workspace) => &workspace.calls,
        }
    }

    /// Whether it may be used, and what peers are told.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        match self {
            Self::Host(workspace) => workspace.lifecycle(),
            Self::Cuda(workspace) => workspace.lifecycle(),
        }
    }

    /// What went wrong, as it was first said. Does not wait for the device.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Host(workspace) => workspace.lifecycle().check(),
            Self::Cuda(workspace) => workspace.check(),
        }
    }

    /// How long its operations wait; `None` for ever.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Host(workspace) => workspace.timeout,
            Self::Cuda(workspace) => workspace.timeout,
        }
    }

    /// Begins anew, with all ranks.
    pub fn reset(&self, timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Result<()> {
        match self {
            Self::Host(workspace) => workspace.reset(timeout, interrupted),
            Self::Cuda(workspace) => workspace.reset(timeout, interrupted),
        }
    }

    /// A reference that does not keep it.
    pub fn downgrade(&self) -> WeakWorkspace {
        match self {
            Self::Host(workspace) => WeakWorkspace::Host(workspace.downgrade()),
            Self::Cuda(workspace) => WeakWorkspace::Cuda(workspace.downgrade()),
        }
    }
}

/// A workspace that may be gone.
pub enum WeakWorkspace {
    /// Over shared memory.
    Host(Weak<HostWorkspace>),
    /// Over device memory.
    Cuda(Weak<CudaWorkspace>),
}

impl WeakWorkspace {
    /// The workspace, if it is still there.
    pub fn upgrade(&self) -> Option<AnyWorkspace> {
        match self {
            Self::Host(workspace) => Shared::upgrade(workspace).map(AnyWorkspace::Host),
            Self::Cuda(workspace) => Shared::upgrade(workspace).map(AnyWorkspace::Cuda),
        }
    }

    /// Whether it is gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Host(workspace) => workspace.strong_count() == 0,
            Self::Cuda(workspace) => workspace.strong_count() == 0,
        }
    }
}
