//! The sum over ranks, plus a residual, the norm of its rows, and a quantiser of these.
//!
//! | module | concept |
//! | --- | --- |
//! | this | operands and their checks |
//! | [`format`](mod@format) | what a row becomes, on the host |
//! | [`host`] | the operation over shared memory |
//! | `cuda` | the operation over device memory |

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod format;
pub mod host;

use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm;

use super::arguments::AllReduceRmsNorm;
use super::named::Named;
use super::operation::{Description, Kind};
use crate::error::{Error, Result};
use crate::tensor::{Device, Dtype, Tensor};

/// `residual_output = sum over ranks of input + residual`, `output = rms_norm(residual_output) × weight`, and
/// `quantised × scales = output`, more or less.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceRmsNormQuant {
    /// The operation without a quantiser.
    pub norm: AllReduceRmsNorm,
    /// Whether `norm.output` is asked for. If not, it is not looked at.
    pub has_output: bool,
    /// The quantiser.
    pub sink: Sink,
    /// Where the quantised rows go, of the input's shape.
    pub quantised: Tensor,
    /// Where the scales go, float32: `[…, scales of a row]`. If they are given, one.
    pub scales: Tensor,
}

impl AllReduceRmsNormQuant {
    /// What all ranks must have in common.
    pub fn describe(&self, algorithm: Algorithm) -> Description {
        Description { kind: Kind::AllReduceRmsNormQuant, format: Some(self.sink), ..self.norm.describe(algorithm) }
    }

    /// The normalised rows, if they are asked for.
    pub fn output(&self) -> Option<&Tensor> {
        self.has_output.then_some(&self.norm.output)
    }

    /// All that is written.
    pub fn outputs(&self) -> impl Iterator<Item = &Tensor> {
        let scales = self.sink.scales_of_row(self.norm.input.columns()).map(|_| &self.scales);
        [&self.norm.residual_output, &self.quantised].into_iter().chain(scales).chain(self.output())
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let input = &self.norm.input;
        let named = |name, tensor| Named { name, tensor };
        named("input", input).check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        named("input", input).check_columns(self.sink.column_multiple())?;
        let (quantised, scales) = (named("out", &self.quantised), named("scale", &self.scales));
        quantised.check_dtype(&[Dtype::Float8E4M3])?;
        quantised.check_shape(input.shape.as_slice())?;
        scales.check_dtype(&[Dtype::Float32])?;
        match self.sink.scales_of_row(input.columns()) {
            Some(count) => scales.check_shape(input.shape.with_columns(count).as_slice())?,
            None if self.scales.elements() != 1 => {
                return Err(Error::Argument(format!(
                    "scale has shape {:?}, but must have one element",
                    self.scales.shape
                )));
            }
            None => {}
        }
        for operand in [quantised, scales] {
            operand.check_place(device)?;
            operand.check_writable()?;
        }
        self.norm.check_with(device, self.output())?;
        for operand in [quantised, scales] {
            // One number may lie anywhere.
            if operand.name != "scale" || self.scales.elements() != 1 || self.scales.is_negated {
                operand.check_layout()?;
            }
            for (name, other) in self.others() {
                operand.check_separate(named(name, other))?;
            }
        }
        quantised.check_separate(scales)
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let AllReduceRmsNorm { input, residual, weight, residual_output, .. } = &self.norm;
        [("input", input), ("weight", weight), ("residual_out", residual_output)]
            .into_iter()
            .chain(residual.as_ref().map(|residual| ("residual", residual)))
            .chain(self.output().map(|output| ("norm_out", output)))
    }
}
