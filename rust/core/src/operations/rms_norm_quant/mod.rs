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

pub use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm;

use super::Kind;
use super::description::Description;
use super::operand_checks::{Named, named};
use super::operands::Operands;
use super::question::{Places, Question};
use super::rms_norm::AllReduceRmsNorm;
use crate::error::{Error, Result};
use crate::tensor::{Device, Dimensions, Dtype, Tensor};

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

    /// All rows that are written.
    pub fn rows(&self) -> impl Iterator<Item = &Tensor> {
        [&self.norm.residual_output, &self.quantised].into_iter().chain(self.output())
    }

    /// As what they are passed.
    fn scales_name(&self) -> &'static str {
        if self.sink.group_columns().is_none() { "scale" } else { "scale_out" }
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let input = &self.norm.input;
        named("input", input).check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        named("input", input).check_columns(self.sink.column_multiple())?;
        let (quantised, scales) = (named("out", &self.quantised), named(self.scales_name(), &self.scales));
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
        quantised.check_layout()?;
        self.check_scales_layout(scales)?;
        for operand in [quantised, scales] {
            for (name, other) in self.others() {
                operand.check_separate(named(name, other))?;
            }
        }
        quantised.check_separate(scales)
    }

    fn check_scales_layout(&self, scales: Named<'_>) -> Result<()> {
        if self.sink.is_column_major() {
            let input = &self.norm.input;
            let expected = scale_strides(self.sink, scales.tensor.shape, input.columns());
            let lies = scales.tensor.shape.as_slice().iter().zip(scales.tensor.strides.as_slice());
            let mut lies = lies.zip(expected.as_slice());
            let is_empty = scales.tensor.elements() == 0;
            if scales.tensor.is_negated
                || !is_empty && !lies.all(|((&size, own), expected)| size == 1 || own == expected)
            {
                return Err(Error::Argument(format!(
                    "scale_out has shape {:?} and strides {:?}, but must have strides {expected:?}: leave scale_out to the \
                     operation",
                    scales.tensor.shape, scales.tensor.strides
                )));
            }
            return Ok(());
        }
        // One number may lie anywhere.
        if scales.tensor.elements() != 1 || scales.tensor.is_negated {
            scales.check_layout()?;
        }
        Ok(())
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let AllReduceRmsNorm { input, residual, weight, residual_output, .. } = &self.norm;
        [("input", input), ("weight", weight), ("residual_out", residual_output)]
            .into_iter()
            .chain(residual.as_ref().map(|residual| ("residual", residual)))
            .chain(self.output().map(|output| ("norm_out", output)))
    }
}

impl Operands for AllReduceRmsNormQuant {
    fn kind(&self) -> Kind {
        Kind::AllReduceRmsNormQuant
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let sink = question.format.ok_or_else(|| {
            let names = Sink::ALL.map(Sink::name).join(", ");
            Error::Argument(format!("{} needs a format, one of {names}", question.kind.name()))
        })?;
        let norm = AllReduceRmsNorm::from_question(question, places)?;
        let quantised = places.tensor(&question.shape, Dtype::Float8E4M3)?;
        let columns = question.columns();
        let scales = match sink.scales_of_row(columns) {
            Some(count) => {
                let mut scales = places.tensor(&question.with_columns(count), Dtype::Float32)?;
                scales.strides = scale_strides(sink, scales.shape, columns);
                scales
            }
            None => places.tensor(&[1], Dtype::Float32)?,
        };
        Ok(Self { norm, has_output: true, sink, quantised, scales })
    }
}

/// Strides of scales of `shape`, where the rows that are quantised have `columns` columns.
fn scale_strides(sink: Sink, shape: Dimensions, columns: usize) -> Dimensions {
    let sizes = shape.as_slice();
    let outer = &sizes[..sizes.len().saturating_sub(1)];
    let [row, next] = sink.scale_strides(outer.iter().product(), columns);
    let mut strides = shape.with_columns(next);
    let mut stride = row;
    for dimension in (0..outer.len()).rev() {
        strides = strides.with(dimension, stride);
        stride *= outer[dimension].max(1);
    }
    strides
}
