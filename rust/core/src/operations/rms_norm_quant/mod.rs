//! The sum over ranks, plus a residual, the norm of its rows, and a quantiser of these.
//!
//! | module | concept |
//! | --- | --- |
//! | this | operands and their checks |
//! | [`format`](mod@format) | what a row becomes, on the host |
//! | [`host`] | the operation over shared memory |
//! | `fp8` | numbers of eight bits |
//! | `cuda` | the operation over device memory |

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod format;
mod fp8;
pub mod host;

pub use lamport_rs_kernels::Sink;
pub use lamport_rs_kernels::sink::Format;
use lamport_rs_kernels::sink::ScaleLayout;
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
    /// Where the quantised rows go, of the input's shape but for how many columns an element holds.
    pub quantised: Tensor,
    /// The tensor's scale, if the quantiser takes one: one float32.
    pub scale: Option<Tensor>,
    /// Where the scales go that it computes: `[…, elements of a row]`, or two dimensions of whole tiles. Not looked at, if
    /// there are none.
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

    /// What the quantiser writes, or reads beside the rows.
    fn quantised(&self) -> impl Iterator<Item = Named<'_>> {
        let computed = self.sink.format().group_columns.map(|_| named("scale_out", &self.scales));
        [named("out", &self.quantised)]
            .into_iter()
            .chain(computed)
            .chain(self.scale.as_ref().map(|it| named("scale", it)))
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let input = &self.norm.input;
        named("input", input).check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        named("input", input).check_columns(self.sink.column_multiple())?;
        let format = self.sink.format();
        let (quantised, scales) = (named("out", &self.quantised), named("scale_out", &self.scales));
        quantised.check_dtype(&[format.code])?;
        quantised.check_shape(input.shape.with_columns(input.columns() / format.columns_per_code).as_slice())?;
        if format.group_columns.is_some() {
            scales.check_dtype(&[format.scale])?;
            scales.check_shape(scales_of(self.sink, input.shape).0.as_slice())?;
        }
        self.check_given_scale()?;
        for operand in self.quantised() {
            operand.check_place(device)?;
            operand.check_writable()?;
        }
        self.norm.check_with(device, self.output())?;
        quantised.check_layout()?;
        if format.group_columns.is_some() {
            self.check_scales_layout(scales)?;
        }
        if let Some(scale) = self.scale.filter(|scale| scale.is_negated) {
            named("scale", &scale).check_layout()?;
        }
        for (index, operand) in self.quantised().enumerate() {
            for other in self.others().chain(self.quantised().skip(index + 1)) {
                operand.check_separate(other)?;
            }
        }
        Ok(())
    }

    fn check_given_scale(&self) -> Result<()> {
        match &self.scale {
            Some(scale) if self.sink.format().is_given => {
                named("scale", scale).check_dtype(&[Dtype::Float32])?;
                if scale.elements() != 1 {
                    return Err(Error::Argument(format!(
                        "scale has shape {:?}, but must have one element",
                        scale.shape
                    )));
                }
                Ok(())
            }
            None if !self.sink.format().is_given => Ok(()),
            scale => {
                let what = if scale.is_some() { "takes no scale" } else { "needs a scale" };
                Err(Error::Argument(format!("{} {what}", self.sink.name())))
            }
        }
    }

    fn check_scales_layout(&self, scales: Named<'_>) -> Result<()> {
        if self.sink.format().layout != ScaleLayout::RowMajor {
            let (_, expected) = scales_of(self.sink, self.norm.input.shape);
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

    fn others(&self) -> impl Iterator<Item = Named<'_>> {
        let AllReduceRmsNorm { input, residual, weight, residual_output, .. } = &self.norm;
        [("input", input), ("weight", weight), ("residual_out", residual_output)]
            .into_iter()
            .chain(residual.as_ref().map(|residual| ("residual", residual)))
            .chain(self.output().map(|output| ("norm_out", output)))
            .map(|(name, tensor)| named(name, tensor))
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
        let format = sink.format();
        let quantised =
            places.tensor(&question.with_columns(question.columns() / format.columns_per_code), format.code)?;
        let scale = if format.is_given { Some(places.tensor(&[1], Dtype::Float32)?) } else { None };
        let (shape, strides) = scales_of(sink, norm.input.shape);
        let scales = Tensor { strides, ..places.tensor(shape.as_slice(), format.scale)? };
        Ok(Self { norm, has_output: true, sink, quantised, scale, scales })
    }
}

/// Shape and strides of the scales of rows of `shape`.
fn scales_of(sink: Sink, shape: Dimensions) -> (Dimensions, Dimensions) {
    let sizes = shape.as_slice();
    let outer = &sizes[..sizes.len().saturating_sub(1)];
    let rows = outer.iter().product();
    let elements = sink.scale_elements(sizes.last().copied().unwrap_or(1));
    let [row, next] = sink.element_strides(rows, elements);
    if sink.format().layout == ScaleLayout::Swizzled {
        let two = |values: [usize; 2]| Dimensions::new(values).expect("there may be more than two dimensions");
        return (two([sink.scale_rows(rows), elements]), two([row, next]));
    }
    let mut strides = shape.with_columns(next);
    let mut stride = row;
    for dimension in (0..outer.len()).rev() {
        strides = strides.with(dimension, stride);
        stride *= outer[dimension].max(1);
    }
    (shape.with_columns(elements), strides)
}
