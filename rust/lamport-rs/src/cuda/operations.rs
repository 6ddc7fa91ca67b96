//! The operations.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, DevicePtr as _, sys};
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnDevice;
use lamport_rs_core::tensor::{Device, Dtype, Tensor};

use super::{Buffer, BufferMut, Communicator};
use crate::element::{Element, RmsNorm, WeightFor, check_length, packed_rows, rows_of, tensor, tensor_of};
use crate::error::{Error, Result};

impl Communicator {
    /// `buffer = sum over ranks of buffer`, of as many elements on each rank. Views begin at multiples of 16 bytes.
    pub fn all_reduce<T: Element>(&mut self, buffer: &mut impl BufferMut<T>, stream: &Arc<CudaStream>) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([("buffer", buffer.stream())])?;
            let length = buffer.len();
            let (address, _used) = buffer.device_ptr_mut(stream);
            // SAFETY: the buffer is of this device, as long, and borrowed alone; cudarc orders what comes after.
            unsafe { this.run_behind(&this.sum::<T>(address, address, length), stream) }
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
            this.check_contexts([("input", input.stream()), ("output", output.stream())])?;
            let length = input.len();
            check_length("output", output.len(), length)?;
            let (from, _read) = input.device_ptr(stream);
            let (to, _written) = output.device_ptr_mut(stream);
            // SAFETY: as in `all_reduce`.
            unsafe { this.run_behind(&this.sum::<T>(from, to, length), stream) }
        })
    }

    /// Likewise, at addresses of the device, multiples of 16 bytes: for memory that is not cudarc's.
    ///
    /// # Safety
    /// Both are of the communicator's device, and valid for `length` elements until the stream has passed the operation,
    /// also if it is refused. Nothing else writes the input meanwhile, or accesses the output, which may be the input.
    pub unsafe fn all_reduce_at<T: Element>(
        &mut self,
        input: sys::CUdeviceptr,
        output: sys::CUdeviceptr,
        length: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.enqueue(stream, |this| unsafe { this.run(&this.sum::<T>(input, output, length), stream) })
    }

    fn sum<T: Element>(&self, input: u64, output: u64, length: usize) -> AllReduce {
        let operand = |address| self.operand::<T, 1>(address, [length]);
        AllReduce { input: operand(input), output: operand(output), algorithm: None }
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
            this.check_contexts([
                ("hidden", hidden.stream()),
                ("residual", residual.stream()),
                ("weight", weight.stream()),
            ])?;
            let (shape, weights) = (rows_of("hidden", hidden.len(), weight.len())?, [weight.len()]);
            check_length("residual", residual.len(), hidden.len())?;
            let (hidden, _hidden) = hidden.device_ptr_mut(stream);
            let (residual, _residual) = residual.device_ptr_mut(stream);
            let (weight, _weight) = weight.device_ptr(stream);
            let (input, added) = (this.operand::<T, 2>(hidden, shape), this.operand::<T, 2>(residual, shape));
            let operands = norm.of_sum(input, Some(added), this.operand::<W, 1>(weight, weights), (input, added));
            // SAFETY: the buffers are of this device, as long, and borrowed, what is written alone; cudarc orders what
            // comes after.
            unsafe { this.run_behind(&operands, stream) }
        })
    }

    /// `sum = sum over ranks of input + residual`, and `output = rms_norm(sum) × weight`, row by row. `outputs` are
    /// `output` and `sum`. Without a residual nothing is added; [`CudaSlice::as_view`](cudarc::driver::CudaSlice::as_view)
    /// makes a view of one.
    ///
    /// All but the weight are of one length, and the rest is as for [`Self::all_reduce_rms_norm`].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    pub fn all_reduce_rms_norm_into<T: Element, W: WeightFor<T>>(
        &mut self,
        input: &impl Buffer<T>,
        residual: Option<CudaView<'_, T>>,
        weight: &impl Buffer<W>,
        (output, sum): (&mut impl BufferMut<T>, &mut impl BufferMut<T>),
        norm: RmsNorm,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.normalise_into(
            input,
            residual,
            (weight, None),
            (output, sum),
            stream,
            |input, residual, (weight, _), outputs| norm.of_sum(input, residual, weight, outputs),
        )
    }

    /// An operation that normalises the sum, with its outputs in buffers of their own. `operands` makes it of the input, the
    /// residual, the weight and the bias, and the outputs, which are of the normalised rows and of the sum.
    pub(super) fn normalise_into<T: Element, W: WeightFor<T>, O: OnDevice>(
        &mut self,
        input: &impl Buffer<T>,
        residual: Option<CudaView<'_, T>>,
        (weight, bias): (&impl Buffer<W>, Option<CudaView<'_, W>>),
        (output, sum): (&mut impl BufferMut<T>, &mut impl BufferMut<T>),
        stream: &Arc<CudaStream>,
        operands: impl FnOnce(Tensor, Option<Tensor>, (Tensor, Option<Tensor>), (Tensor, Tensor)) -> O,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([
                ("input", input.stream()),
                ("weight", weight.stream()),
                ("output", output.stream()),
                ("the output of the sum", sum.stream()),
            ])?;
            let (shape, weights) = (rows_of("input", input.len(), weight.len())?, [weight.len()]);
            this.check_optional("residual", residual.as_ref(), input.len())?;
            this.check_optional("bias", bias.as_ref(), weight.len())?;
            check_length("output", output.len(), input.len())?;
            check_length("the output of the sum", sum.len(), input.len())?;
            let (input, _input) = input.device_ptr(stream);
            let (residual, _residual) = residual.as_ref().map(|residual| residual.device_ptr(stream)).unzip();
            let (weight, _weight) = weight.device_ptr(stream);
            let (bias, _bias) = bias.as_ref().map(|bias| bias.device_ptr(stream)).unzip();
            let (output, _output) = output.device_ptr_mut(stream);
            let (sum, _sum) = sum.device_ptr_mut(stream);
            let rows = |address| this.operand::<T, 2>(address, shape);
            let of_columns = |address| this.operand::<W, 1>(address, weights);
            let scaling = (of_columns(weight), bias.map(of_columns));
            let operands = operands(rows(input), residual.map(rows), scaling, (rows(output), rows(sum)));
            // SAFETY: as in `all_reduce_rms_norm`.
            unsafe { this.run_behind(&operands, stream) }
        })
    }

    /// Checks that a buffer, if it is there, is of this context and as long as it must be.
    pub(super) fn check_optional<T>(&self, name: &str, buffer: Option<&impl Buffer<T>>, length: usize) -> Result<()> {
        buffer.map_or(Ok(()), |buffer| {
            self.check_contexts([(name, buffer.stream())])?;
            check_length(name, buffer.len(), length)
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
            this.check_contexts([("input", input.stream()), ("weight", weight.stream()), ("output", output.stream())])?;
            let (shape, weights) = (rows_of("input", input.len(), weight.len())?, [weight.len()]);
            check_length("output", output.len(), input.len())?;
            let (input, _input) = input.device_ptr(stream);
            let (weight, _weight) = weight.device_ptr(stream);
            let (output, _output) = output.device_ptr_mut(stream);
            let norm = Norm {
                input: this.operand::<T, 2>(input, shape),
                weight: this.operand::<W, 1>(weight, weights),
                output: this.operand::<T, 2>(output, shape),
            };
            // SAFETY: as in `all_reduce_rms_norm`.
            unsafe { this.run_behind(&MinimaxRms::one(norm, epsilon), stream) }
        })
    }

    /// [`Self::minimax_rms`] for Q and K at once, out of the rows `[q | k | …]` of a packed `qkv`.
    ///
    /// `weights` and `outputs` are of Q and of K. `columns` is the number of elements of a row of `qkv`, a multiple of 16
    /// bytes. This rank's part of Q has as many columns as Q's weight, and that of K as many as K's, each a multiple of 8;
    /// what stands behind them is not read. An output has as many rows as `qkv`, side by side.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    pub fn minimax_rms_qk<T: Element, W: WeightFor<T>>(
        &mut self,
        qkv: &impl Buffer<T>,
        columns: usize,
        (weight_q, weight_k): (&impl Buffer<W>, &impl Buffer<W>),
        (q, k): (&mut impl BufferMut<T>, &mut impl BufferMut<T>),
        epsilon: f32,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([
                ("qkv", qkv.stream()),
                ("the weight of Q", weight_q.stream()),
                ("the weight of K", weight_k.stream()),
                ("the output of Q", q.stream()),
                ("the output of K", k.stream()),
            ])?;
            let widths = [weight_q.len(), weight_k.len()];
            let [packed, q_shape, k_shape] = packed_rows::<T>(qkv.len(), columns, widths, [q.len(), k.len()])?;
            let (qkv, _qkv) = qkv.device_ptr(stream);
            let (weight_q, _weight_q) = weight_q.device_ptr(stream);
            let (weight_k, _weight_k) = weight_k.device_ptr(stream);
            let (q, _q) = q.device_ptr_mut(stream);
            let (k, _k) = k.device_ptr_mut(stream);
            let operands = MinimaxRms::packed(
                this.operand::<T, 2>(qkv, packed),
                widths.map(|width| width as i64),
                [this.operand::<W, 1>(weight_q, [widths[0]]), this.operand::<W, 1>(weight_k, [widths[1]])],
                [this.operand::<T, 2>(q, q_shape), this.operand::<T, 2>(k, k_shape)],
                epsilon,
            )
            .map_err(Error::of_core)?;
            // SAFETY: as in `all_reduce_rms_norm`. Q and K are parts of `qkv`: `packed` has checked that a row holds them.
            unsafe { this.run_behind(&operands, stream) }
        })
    }

    /// Runs the operation behind what cudarc has put in front of it on the stream, if it could.
    ///
    /// # Safety
    /// As for [`Self::run`].
    pub(super) unsafe fn run_behind(&self, operands: &impl OnDevice, stream: &CudaStream) -> Result<()> {
        // A stream that does not wait for a buffer's events must not use it.
        self.take_error("ordering the stream behind a buffer's other uses")?;
        // SAFETY: the caller's promise.
        unsafe { self.run(operands, stream) }
    }

    /// # Safety
    /// The operands' places are valid until the stream, which is of this context, has passed the operation, also if this
    /// returns an error. Nobody else accesses an output meanwhile, or writes an input.
    unsafe fn run(&self, operands: &impl OnDevice, stream: &CudaStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { operands.run_on_device(&self.workspace, Purpose::Run(stream.cu_stream())) }.map_err(Error::of_core)
    }

    pub(super) fn operand<T: Element, const N: usize>(&self, address: u64, shape: [usize; N]) -> Tensor {
        let device = Device::Cuda(self.context.ordinal());
        tensor(std::ptr::without_provenance_mut::<T>(address as usize), device, shape)
    }

    /// Likewise, of elements of any dtype.
    pub(super) fn operand_of<const N: usize>(&self, address: u64, dtype: Dtype, shape: [usize; N]) -> Tensor {
        let device = Device::Cuda(self.context.ordinal());
        tensor_of(std::ptr::without_provenance_mut(address as usize), dtype, device, shape)
    }
}
