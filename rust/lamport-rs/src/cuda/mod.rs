//! Collectives over the memory of NVIDIA GPUs, with cudarc's types.
//!
//! An operation is enqueued on a stream, and runs in that stream's order, as a kernel does. Its error, if a peer does not
//! come, is that of a later call, of [`Communicator::check`] or of [`Communicator::synchronize`]; its outputs are NaN then.
//!
//! # Soundness
//!
//! Safe code cannot make an operation read or write memory that is gone, or that something else writes:
//!
//! - Buffers are cudarc's own types ([`Buffer`] and [`BufferMut`] are sealed, since anybody can implement cudarc's traits
//!   for any address). Lengths are checked, and what is written is borrowed mutably.
//! - Buffers and streams are of the very [`CudaContext`] that the communicator was made with, since cudarc counts streams
//!   and switches events by that object, and not by the device.
//! - The borrows end when the call returns, and the kernel runs later. From there on cudarc orders it: each operation makes
//!   its stream wait for the buffers' events and records them again, as cudarc's copies do, so that other streams, and the
//!   memory's release, wait for the operation.
//! - Streams that an operation has yet to follow are kept alive by the communicator. Its workspace is kept for the process
//!   once a graph has captured operations on it.
//!
//! **The boundary** is cudarc's: what its types do not guarantee, this module cannot. Whoever calls
//! `CudaContext::disable_event_tracking` (unsafe), as captures of graphs usually need, orders streams and keeps buffers
//! alive by themselves. A captured graph holds addresses, not borrows: it must not be launched when its buffers are gone,
//! and cudarc's `CudaGraph::launch` does not check that. Peers are trusted not to write where they should not, once they
//! have mapped this rank's memory: they are processes of the same job. So is whoever carries the messages of the
//! [`Rendezvous`]: they say which memory is a peer's.

mod buffer;
mod experts;
mod layer_norm;
mod operations;
mod quantised;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};
use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::cuda::driver::error_of;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

pub use self::buffer::{Buffer, BufferMut};
pub use self::experts::Experts;
pub use self::quantised::Quantised;
use self::streams::KeptStreams;
use crate::error::{Error, Result};
use crate::handle::{Handle, Status};
use crate::options::Options;
use crate::rendezvous::{Rendezvous, Transport};

/// Devices that this process sees; an error if there are none, or no driver.
///
/// cudarc panics where the driver's library cannot be loaded: ask this first.
pub fn device_count() -> Result<usize> {
    lamport_rs_core::cuda::device::device_count().map_err(Error::of_core)
}

/// One rank of a group whose ranks have a GPU each, on one machine.
///
/// All ranks enqueue the same operations in the same order. Operations on different streams follow one another. To drop it
/// is to leave the group, once its kernels have ended.
#[derive(Debug)]
pub struct Communicator {
    workspace: Arc<CudaWorkspace>,
    handle: Handle,
    context: Arc<CudaContext>,
    streams: KeptStreams,
}

impl Communicator {
    /// Joins the group as `rank` of `world_size`, with up to 16 ranks, on the context's device. Collective: all ranks get a
    /// communicator, or all get an error.
    ///
    /// The context is the device's primary one, as [`CudaContext::new`] returns it. Buffers and streams are made with this
    /// very object or clones of its `Arc`: another `CudaContext::new` of the device does not know this one's streams.
    pub fn new(
        rank: usize,
        world_size: usize,
        context: &Arc<CudaContext>,
        rendezvous: &mut dyn Rendezvous,
        options: Options,
    ) -> Result<Self> {
        let settings = options.settings(rank, world_size);
        let device = match context.is_primary() {
            true => Device::get(context.ordinal()),
            // The peers wait for this rank, and hear of it there.
            false => Err(lamport_rs_core::Error::Argument(
                "the context is not the device's primary one; pass what CudaContext::new returns".to_owned(),
            )),
        };
        let workspace = CudaWorkspace::create(&settings, device, &mut Transport(rendezvous)).map_err(Error::of_core)?;
        let handle = Handle::of_cuda(&workspace);
        Ok(Self { workspace, handle, context: context.clone(), streams: KeptStreams::default() })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.workspace.member().rank
    }

    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.workspace.member().geometry.world_size()
    }

    /// The context of buffers and streams.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Checks the stream, runs `operation` on it, and keeps it as long as it is needed. A call that was refused here
    /// counts, so that the peers notice.
    fn enqueue(&mut self, stream: &Arc<CudaStream>, operation: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if let Err(error) = streams::check(stream, &self.context) {
            // SAFETY: the default stream.
            unsafe { self.workspace.note_refusal(std::ptr::null_mut()) };
            return Err(error);
        }
        let is_new = self.streams.keep(stream);
        // What is there already is not this operation's. It may have left a buffer without an event, so it is an error here.
        let outcome = self
            .take_error("what was done with the context before this call, such as the release of a buffer")
            .and_then(|()| operation(self));
        if outcome.is_err() {
            // SAFETY: it was checked, and is kept.
            unsafe { self.workspace.note_refusal(stream.cu_stream()) };
        }
        if is_new && let Some(remembered) = self.workspace.remembered_streams() {
            self.streams.forget_all_but(&remembered);
        }
        outcome
    }

    /// Checks that the streams of these buffers, by their names, are of this context.
    fn check_contexts<const N: usize>(&self, streams: [(&str, &Arc<CudaStream>); N]) -> Result<()> {
        streams.into_iter().try_for_each(|(name, stream)| streams::check_context(name, stream, &self.context))
    }

    /// Takes the context's error, which says that something before `event` has failed that could return none.
    fn take_error(&self, event: &str) -> Result<()> {
        self.context.check_err().map_err(|error| Error::of_core(error_of(event, error)))
    }

    /// Waits for all work on the device, replayed graphs included, and raises what went wrong in it.
    pub fn synchronize(&self) -> Result<()> {
        self.workspace.synchronise().map_err(Error::of_core)
    }

    /// Begins anew after a failure, once the device has stopped. Collective: all ranks call it, for which this waits up to
    /// `timeout`; `None` for ever. Graphs that were captured before are right again.
    pub fn reset(&mut self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        self.workspace.reset(timeout.into(), &mut || false).map_err(Error::of_core)
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

    /// What other threads may have, to look after this one.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // A handle may outlive it, and the memory with that.
        self.workspace.clean_up();
    }
}
