//! The operations.

use std::sync::Arc;

use cudarc::driver::{CudaStream, sys};
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnDevice;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::tensor;

use super::{Buffer, BufferMut, Communicator};
use crate::element::{Element, RmsNorm, WeightFor, check_length, rows_of, tensor};
use crate::error::{Error, Result};

impl Communicator {
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
    /// Both are valid for `length` elements until the stream has passed the operation, also if it is refused. Nothing else
    /// writes the input meanwhile, or accesses the output, which may be the input.
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

    fn operand<T: Element, const N: usize>(&self, address: u64, shape: [usize; N]) -> tensor::Tensor {
        let device = tensor::Device::Cuda(self.context.ordinal());
        tensor(std::ptr::without_provenance_mut::<T>(address as usize), device, shape)
    }
}

/// A stream that does not wait for a buffer's events must not use it.
fn ordering_failed(error: cudarc::driver::DriverError) -> Error {
    lamport_rs_core::cuda::driver::error_of("ordering the stream behind a buffer's other uses", error).into()
}
