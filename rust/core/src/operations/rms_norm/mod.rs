//! The sum over ranks, plus a residual if there is one, and the norm of its rows.
//!
//! | module | concept |
//! | --- | --- |
//! | this | operands and their checks |
//! | [`host`] | the operation over shared memory |
//! | `cuda` | the operation over device memory |

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;

use lamport_rs_protocol::algorithm::Algorithm;

use super::Kind;
use super::description::Description;
use super::operand_checks::{COLUMN_MULTIPLE, Named, check_epsilon, check_weight, named};
use super::operands::Operands;
use super::question::{Places, Question};
use crate::error::{Error, Result};
use crate::tensor::{Device, Dtype, Tensor};

/// `residual_output = sum over ranks of input + residual`, `output = rms_norm(residual_output) × weight`.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceRmsNorm {
    /// What this rank contributes, `[…, hidden]`.
    pub input: Tensor,
    /// Added to the sum, if there is one: `[…, hidden]`, the same on every rank.
    pub residual: Option<Tensor>,
    /// `[hidden]`, of the input's dtype or float32.
    pub weight: Tensor,
    /// Added to the mean of squares.
    pub epsilon: f32,
    /// Added to each weight: 0, or 1 where weights are kept as their distance from 1.
    pub weight_bias: f32,
    /// How to reduce, the same on every rank; `None` for the fastest.
    pub algorithm: Option<Algorithm>,
    /// The normalised sum; may be `input`.
    pub output: Tensor,
    /// The sum; may be `residual`, or `input` without one.
    pub residual_output: Tensor,
}

impl AllReduceRmsNorm {
    /// What all ranks must have in common.
    pub fn describe(&self, algorithm: Algorithm) -> Description {
        Description {
            kind: Kind::AllReduceRmsNorm,
            dtype: self.input.dtype,
            weight: self.weight.dtype,
            algorithm,
            rows: self.input.rows(),
            columns: [self.input.columns(), 0],
            scalars: [self.epsilon, self.weight_bias],
            has_residual: self.residual.is_some(),
            format: None,
        }
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        self.check_with(device, Some(named("out", &self.output)))
    }

    /// Likewise, of an operation whose normalised rows go to `output`, if anywhere.
    pub(super) fn check_with(&self, device: Device, output: Option<Named<'_>>) -> Result<()> {
        let input = named("input", &self.input);
        let residual = self.residual.as_ref().map(|residual| named("residual", residual));
        let weight = named("weight", &self.weight);
        let residual_output = named("residual_out", &self.residual_output);
        input.check_dtype(&Dtype::ALL)?;
        input.check_columns(COLUMN_MULTIPLE)?;
        for operand in residual.into_iter().chain(output).chain([residual_output]) {
            operand.check_dtype(&[self.input.dtype])?;
            operand.check_shape(self.input.shape.as_slice())?;
        }
        check_weight(weight, &self.input, self.input.columns())?;
        check_epsilon(self.epsilon)?;
        if !self.weight_bias.is_finite() {
            return Err(Error::Argument(format!("weight_bias is {}, but must be finite", self.weight_bias)));
        }
        let operands = || [input].into_iter().chain(residual).chain([weight]).chain(output).chain([residual_output]);
        for operand in operands() {
            operand.check_place(device)?;
        }
        let written = || output.into_iter().chain([residual_output]);
        for operand in written() {
            operand.check_writable()?;
        }
        if let Some(output) = output {
            output.check_apart(residual_output)?;
        }
        for operand in operands() {
            operand.check_layout()?;
        }
        for operand in written() {
            for read in [input].into_iter().chain(residual) {
                operand.check_overlap(read)?;
            }
        }
        written().try_for_each(|operand| operand.check_separate(weight))
    }
}

impl Operands for AllReduceRmsNorm {
    fn kind(&self) -> Kind {
        Kind::AllReduceRmsNorm
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let mut rows = || places.tensor(&question.shape, question.dtype);
        let (input, output, residual_output) = (rows()?, rows()?, rows()?);
        Ok(Self {
            input,
            residual: None,
            weight: places.tensor(&[question.columns()], question.weight)?,
            epsilon: 0.0,
            weight_bias: 0.0,
            algorithm: question.algorithm,
            output,
            residual_output,
        })
    }
}
