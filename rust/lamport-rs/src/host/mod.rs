//! Collectives over shared memory: slices in, slices out. Needs no GPU.
//!
//! An operation returns when its result is there. Results are the same bits on every rank.

mod experts;
mod layer_norm;
mod operations;
mod place;
mod quantised;

use std::sync::Arc;
use std::time::Duration;

use lamport_rs_core::workspace::host::HostWorkspace;

pub use self::experts::Experts;
pub use self::quantised::Quantised;
use crate::error::{Error, Result};
use crate::handle::{Handle, Status};
use crate::options::Options;
use crate::rendezvous::{Rendezvous, Transport};

/// One rank of a group whose ranks are processes, or threads, of one machine.
///
/// All ranks call the same operations in the same order. To drop it is to leave the group.
#[derive(Debug)]
pub struct Communicator {
    workspace: Arc<HostWorkspace>,
    handle: Handle,
}

impl Communicator {
    /// Joins the group as `rank` of `world_size`, with up to 16 ranks. Collective: all ranks get a communicator, or all
    /// get an error.
    pub fn new(rank: usize, world_size: usize, rendezvous: &mut dyn Rendezvous, options: Options) -> Result<Self> {
        let settings = options.settings(rank, world_size);
        let workspace = HostWorkspace::create(&settings, &mut Transport(rendezvous)).map_err(Error::of_core)?;
        let workspace = Arc::new(workspace);
        Ok(Self { handle: Handle::of_host(&workspace), workspace })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.workspace.member().rank
    }

    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.workspace.member().geometry.world_size()
    }

    /// Makes a call. One that is refused here counts, so that the peers notice.
    fn call(&mut self, operation: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        operation(self).inspect_err(|_| self.workspace.note_refusal())
    }

    /// Begins anew after a failure. Collective: all ranks call it, for which this waits up to `timeout`; `None` for ever.
    pub fn reset(&mut self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        self.workspace.reset(timeout.into(), &mut never).map_err(Error::of_core)
    }

    /// See [`Handle::abort`].
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.handle.abort(reason)
    }

    /// See [`Handle::check`].
    pub fn check(&self) -> Result<()> {
        self.handle.check()
    }

    /// See [`Handle::status`].
    pub fn status(&self) -> Status {
        self.handle.status()
    }

    /// What other threads may have, to look after this one while it waits.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // A handle may outlive it, and the memory with that.
        self.workspace.lifecycle().clean_up();
    }
}

fn never() -> bool {
    false
}
