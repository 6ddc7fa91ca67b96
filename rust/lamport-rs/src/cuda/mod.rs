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
//!   for any address). Lengths and devices are checked, and what is written is borrowed mutably.
//! - The borrows end when the call returns, and the kernel runs later. From there on cudarc orders it: each operation makes
//!   its stream wait for the buffers' events and records them again, as cudarc's copies do, so that other streams, and the
//!   memory's release, wait for the operation.
//! - Streams that an operation has yet to follow are kept alive by the communicator, and the workspace by graphs that have
//!   captured operations on it.
//!
//! **The boundary** is cudarc's: what its types do not guarantee, this module cannot. Whoever calls
//! `CudaContext::disable_event_tracking` (unsafe), as captures of graphs usually need, orders streams and keeps buffers
//! alive by themselves. A captured graph holds addresses, not borrows: it must not be launched when its buffers are gone,
//! and cudarc's `CudaGraph::launch` does not check that. Peers are trusted not to write where they should not, once they
//! have mapped this rank's memory: they are processes of the same job.

mod buffer;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream, sys};
use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnDevice;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::tensor;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

pub use self::buffer::{Buffer, BufferMut};
use self::streams::KeptStreams;
use crate::element::{Element, RmsNorm, WeightFor, check_length, rows_of, tensor};
use crate::error::{Error, Result};
use crate::handle::{Handle, Status};
use crate::options::Options;
use crate::rendezvous::{Rendezvous, Transport};

/// Devices that this process sees; an error if there are none, or no driver.
///
/// cudarc panics where the driver's library cannot be loaded: ask this first.
pub fn device_count() -> Result<usize> {
    Ok(lamport_rs_core::cuda::device::device_count()?)
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
    /// The context is the device's primary one, as [`CudaContext::new`] returns it.
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
        let workspace = CudaWorkspace::create(&settings, device, &mut Transport(rendezvous))?;
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

    /// `buffer = sum over ranks of buffer`, of as many elements on each rank. Views begin at multiples of 16 bytes.
    pub fn all_reduce<T: Element>(&mut self, buffer: &mut impl BufferMut<T>, stream: &Arc<CudaStream>) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_context("buffer", buffer.stream())?;
            let length = buffer.len();
            let (address, _used) = buffer.device_ptr_mut(stream);
            this.context.check_err().map_err(ordering_failed)?;
            // SAFETY: the buffer is of this device, as long, and borrowed alone; cudarc orders what comes after.
            unsafe { this.sum::<T>(address, address, length, stream) }
        })
    }

    /// `output = sum over ranks of input`, of as many elements on each rank. Views begin at multiples of 16 bytes.
    pub fn all_reduce_into<T: Element>(
        &mut self,
        input: &impl Buffer<T>,
        output: &mut impl BufferMut<T>,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_context("input", input.stream())?;
            this.check_context("output", output.stream())?;
            let length = input.len();
            check_length("output", output.len(), length)?;
            let (from, _read) = input.device_ptr(stream);
            let (to, _written) = output.device_ptr_mut(stream);
            this.context.check_err().map_err(ordering_failed)?;
            // SAFETY: as in `all_reduce`.
            unsafe { this.sum::<T>(from, to, length, stream) }
        })
    }

    /// Likewise, at addresses of the device: for memory that is not cudarc's.
    ///
    /// # Safety
    /// Both are valid for `length` elements until the stream has passed the operation. Nothing else writes the input
    /// meanwhile, or accesses the output, which may be the input.
    pub unsafe fn all_reduce_at<T: Element>(
        &mut self,
        input: sys::CUdeviceptr,
        output: sys::CUdeviceptr,
        length: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.enqueue(stream, |this| unsafe { this.sum::<T>(input, output, length, stream) })
    }

    /// # Safety
    /// As for [`Self::all_reduce_at`], with a stream of this context.
    unsafe fn sum<T: Element>(&self, input: u64, output: u64, length: usize, stream: &CudaStream) -> Result<()> {
        let operand = |address| self.operand::<T, 1>(address, [length]);
        let operands = AllReduce { input: operand(input), output: operand(output), algorithm: None };
        // SAFETY: the caller's promise.
        Ok(unsafe { operands.run_on_device(&self.workspace, Purpose::Run(stream.cu_stream())) }?)
    }

    /// `residual += sum over ranks of hidden; hidden = rms_norm(residual) × weight`, row by row.
    ///
    /// A row has as many elements as `weight`, a multiple of 8. The residual is the same on every rank. Views begin at
    /// multiples of 16 bytes. A group of one rank has no kernels for it: [`crate::ErrorKind::Unsupported`].
    pub fn all_reduce_rms_norm<T: Element, W: WeightFor<T>>(
        &mut self,
        hidden: &mut impl BufferMut<T>,
        residual: &mut impl BufferMut<T>,
        weight: &impl Buffer<W>,
        norm: RmsNorm,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_context("hidden", hidden.stream())?;
            this.check_context("residual", residual.stream())?;
            this.check_context("weight", weight.stream())?;
            let columns = weight.len();
            let rows = rows_of("hidden", hidden.len(), columns)?;
            check_length("residual", residual.len(), hidden.len())?;
            let (hidden, _hidden) = hidden.device_ptr_mut(stream);
            let (residual, _residual) = residual.device_ptr_mut(stream);
            let (weight, _weight) = weight.device_ptr(stream);
            this.context.check_err().map_err(ordering_failed)?;
            let input = this.operand::<T, 2>(hidden, [rows, columns]);
            let added = this.operand::<T, 2>(residual, [rows, columns]);
            let operands = AllReduceRmsNorm {
                input,
                residual: Some(added),
                weight: this.operand::<W, 1>(weight, [columns]),
                epsilon: norm.epsilon(),
                weight_bias: norm.weight_bias(),
                algorithm: None,
                output: input,
                residual_output: added,
            };
            // SAFETY: the buffers are of this device, as long, and borrowed, what is written alone; cudarc orders what
            // comes after.
            Ok(unsafe { operands.run_on_device(&this.workspace, Purpose::Run(stream.cu_stream())) }?)
        })
    }

    /// `output = rms_norm(row) × weight` of rows that are spread over the ranks, as in MiniMax's attention: each rank has
    /// its part of every row, as many elements as its `weight`, a multiple of 8.
    ///
    /// Views begin at multiples of 16 bytes. A group of one rank has no kernels for it:
    /// [`crate::ErrorKind::Unsupported`].
    pub fn minimax_rms<T: Element, W: WeightFor<T>>(
        &mut self,
        input: &impl Buffer<T>,
        weight: &impl Buffer<W>,
        output: &mut impl BufferMut<T>,
        epsilon: f32,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_context("input", input.stream())?;
            this.check_context("weight", weight.stream())?;
            this.check_context("output", output.stream())?;
            let columns = weight.len();
            let rows = rows_of("input", input.len(), columns)?;
            check_length("output", output.len(), input.len())?;
            let (input, _input) = input.device_ptr(stream);
            let (weight, _weight) = weight.device_ptr(stream);
            let (output, _output) = output.device_ptr_mut(stream);
            this.context.check_err().map_err(ordering_failed)?;
            let norm = Norm {
                input: this.operand::<T, 2>(input, [rows, columns]),
                weight: this.operand::<W, 1>(weight, [columns]),
                output: this.operand::<T, 2>(output, [rows, columns]),
            };
            let operands = MinimaxRms::one(norm, epsilon);
            // SAFETY: as in `all_reduce_rms_norm`.
            Ok(unsafe { operands.run_on_device(&this.workspace, Purpose::Run(stream.cu_stream())) }?)
        })
    }

    /// Checks the stream, runs `operation` on it, and keeps it as long as it is needed. A call that was refused here
    /// counts, so that the peers notice.
    fn enqueue(&mut self, stream: &Arc<CudaStream>, operation: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if let Err(error) = streams::check(stream, &self.context) {
            self.workspace.note_refusal(std::ptr::null_mut());
            return Err(error);
        }
        let is_new = self.streams.keep(stream);
        let outcome = operation(self);
        if outcome.is_err() {
            self.workspace.note_refusal(stream.cu_stream());
        }
        if is_new && let Some(remembered) = self.workspace.remembered_streams() {
            self.streams.forget_all_but(&remembered);
        }
        outcome
    }

    fn check_context(&self, name: &str, stream: &CudaStream) -> Result<()> {
        if *stream.context() == self.context {
            return Ok(());
        }
        let (found, expected) = (stream.context().ordinal(), self.context.ordinal());
        Err(Error::argument(format!(
            "{name} is of a context of cuda:{found}, but the communicator's is the primary one of cuda:{expected}"
        )))
    }

    fn operand<T: Element, const N: usize>(&self, address: u64, shape: [usize; N]) -> tensor::Tensor {
        let device = tensor::Device::Cuda(self.context.ordinal());
        tensor(std::ptr::without_provenance_mut::<T>(address as usize), device, shape)
    }

    /// Waits for all work on the device, replayed graphs included, and raises what went wrong in it.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.workspace.synchronise()?)
    }

    /// Begins anew after a failure, once the device has stopped. Collective: all ranks call it, for which this waits up to
    /// `timeout`; `None` for ever. Graphs that were captured before are right again.
    pub fn reset(&mut self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        Ok(self.workspace.reset(timeout.into(), &mut || false)?)
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

/// A stream that does not wait for a buffer's events must not use it.
fn ordering_failed(error: cudarc::driver::DriverError) -> Error {
    lamport_rs_core::cuda::driver::error_of("ordering the stream behind a buffer's other uses", error).into()
}
