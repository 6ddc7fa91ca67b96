//! The operations whose rows are quantised.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr as _, DevicePtrMut as _, DeviceSlice as _};
use lamport_rs_core::operations::all_reduce_quant::AllReduceQuant;
use lamport_rs_core::operations::quantised as core;
use lamport_rs_core::operations::rms_norm_quant::AllReduceRmsNormQuant;

use super::{Buffer, BufferMut, Communicator};
use crate::element::{HalfElement, RmsNorm, WeightFor, check_length, rows_in, rows_of};
use crate::error::Result;
use crate::quantised::check_sum;

/// How rows are quantised, and the device memory that the results go to. The scale for all rows, where there is one, is a
/// float32 on the device. Views of codes and scales begin at multiples of 16 bytes.
pub type Quantised<'a> = crate::quantised::Quantised<CudaViewMut<'a, u8>, CudaView<'a, f32>>;
/// Addresses, with lengths.
type Places = crate::quantised::Quantised<(u64, usize), (u64, usize)>;

impl Communicator {
    /// Calls `run` with what the core is to quantise, of rows of this shape.
    fn with_quantised(
        &self,
        mut quantised: Quantised<'_>,
        shape: [usize; 2],
        stream: &Arc<CudaStream>,
        run: impl FnOnce(core::Quantised) -> Result<()>,
    ) -> Result<()> {
        self.check_contexts([("the buffer of codes", quantised.codes.stream())])?;
        if let Some(scales) = &quantised.scales {
            self.check_contexts([("the buffer of scales", scales.stream())])?;
        }
        if let Some(scale) = &quantised.scale {
            self.check_contexts([("the scale", scale.stream())])?;
            check_length("the scale", scale.len(), 1)?;
        }
        let lengths = (quantised.codes.len(), quantised.scales.as_ref().map_or(0, CudaViewMut::len));
        let (codes, _codes) = quantised.codes.device_ptr_mut(stream);
        let (scales, _scales) = quantised.scales.as_mut().map(|scales| scales.device_ptr_mut(stream)).unzip();
        let (scale, _scale) = quantised.scale.as_ref().map(|scale| scale.device_ptr(stream)).unzip();
        let mut places = Places {
            format: quantised.format,
            codes: (codes, lengths.0),
            scales: scales.map(|address| (address, lengths.1)),
            scale: scale.map(|address| (address, 1)),
        };
        let bytes = |&mut (address, _): &mut _, dtype, shape| self.operand_of(address, dtype, shape);
        let scale = |&mut (address, length): &mut _| self.operand::<f32, 1>(address, [length]);
        run(places.of_rows(shape, |&(_, length)| length, bytes, scale)?)
    }

    /// Codes and scales of the sum over ranks of `input`, whose rows have `columns` elements: a multiple of
    /// [`QuantFormat::column_multiple`](crate::QuantFormat::column_multiple). The sum itself goes to `sum`, if it is asked
    /// for; rows of more than 2048 columns need it. Views begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    pub fn all_reduce_quant<T: HalfElement>(
        &mut self,
        input: &impl Buffer<T>,
        columns: usize,
        quantised: Quantised<'_>,
        mut sum: Option<CudaViewMut<'_, T>>,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([("input", input.stream())])?;
            if let Some(sum) = &sum {
                this.check_contexts([("the output of the sum", sum.stream())])?;
            }
            let shape = rows_in("input", input.len(), columns)?;
            check_sum(sum.as_ref().map(CudaViewMut::len), shape)?;
            let (input, _input) = input.device_ptr(stream);
            let (sum, _sum) = sum.as_mut().map(|sum| sum.device_ptr_mut(stream)).unzip();
            let rows = |address| this.operand::<T, 2>(address, shape);
            this.with_quantised(quantised, shape, stream, |quantised| {
                let operands = AllReduceQuant {
                    input: rows(input),
                    quantised,
                    has_sum: sum.is_some(),
                    // Not looked at, if there is none.
                    sum: rows(sum.unwrap_or(input)),
                    algorithm: None,
                };
                // SAFETY: as in `all_reduce_rms_norm`.
                unsafe { this.run_behind(&operands, stream) }
            })
        })
    }

    /// `sum = sum over ranks of input + residual`, and codes and scales of `rms_norm(sum) × weight`, row by row. `outputs`
    /// are these rows as they are, if they are asked for, and `sum`. Without a residual nothing is added.
    ///
    /// A row has as many elements as `weight`, a multiple of
    /// [`QuantFormat::column_multiple`](crate::QuantFormat::column_multiple). The residual and the weight are the same on
    /// every rank. Views begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    #[allow(clippy::too_many_arguments, reason = "what the operation reads and writes, and its stream")]
    pub fn all_reduce_rms_norm_quant<T: HalfElement, W: WeightFor<T>>(
        &mut self,
        input: &impl Buffer<T>,
        residual: Option<CudaView<'_, T>>,
        weight: &impl Buffer<W>,
        quantised: Quantised<'_>,
        (mut output, sum): (Option<CudaViewMut<'_, T>>, &mut impl BufferMut<T>),
        norm: RmsNorm,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([
                ("input", input.stream()),
                ("weight", weight.stream()),
                ("the output of the sum", sum.stream()),
            ])?;
            let (shape, weights) = (rows_of("input", input.len(), weight.len())?, [weight.len()]);
            this.check_optional("residual", residual.as_ref(), input.len())?;
            this.check_optional("output", output.as_ref(), input.len())?;
            check_length("the output of the sum", sum.len(), input.len())?;
            let (input, _input) = input.device_ptr(stream);
            let (residual, _residual) = residual.as_ref().map(|residual| residual.device_ptr(stream)).unzip();
            let (weight, _weight) = weight.device_ptr(stream);
            let (output, _output) = output.as_mut().map(|output| output.device_ptr_mut(stream)).unzip();
            let (sum, _sum) = sum.device_ptr_mut(stream);
            let rows = |address| this.operand::<T, 2>(address, shape);
            // Not looked at, if there is none.
            let outputs = (rows(output.unwrap_or(input)), rows(sum));
            let weight = this.operand::<W, 1>(weight, weights);
            let norm = norm.of_sum(rows(input), residual.map(rows), weight, outputs);
            this.with_quantised(quantised, shape, stream, |quantised| {
                let operands = AllReduceRmsNormQuant { norm, has_output: output.is_some(), quantised };
                // SAFETY: as in `all_reduce_rms_norm`.
                unsafe { this.run_behind(&operands, stream) }
            })
        })
    }
}
