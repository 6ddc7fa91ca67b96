//! The sum over ranks, plus a residual if there is one, and the layer norm of its rows.
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
use super::operand_checks::named;
use super::operands::Operands;
use super::question::{Places, Question};
use super::rms_norm::AllReduceRmsNorm;
use crate::error::{Error, Result};
use crate::tensor::{Device, Dtype, Tensor};

/// `residual_output = sum over ranks of input + residual`, `output = layer_norm(residual_output) × weight + bias`.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceLayerNorm {
    /// As with RMSNorm: 16-bit rows, and no bias of the weights. `epsilon` is added to the variance.
    pub norm: AllReduceRmsNorm,
    /// `[hidden]`, of the weights' dtype, the same on every rank.
    pub bias: Option<Tensor>,
}

impl AllReduceLayerNorm {
    /// What all ranks must have in common. There is one algorithm.
    pub fn describe(&self) -> Description {
        let has_bias = if self.bias.is_some() { 1.0 } else { 0.0 };
        Description {
            kind: Kind::AllReduceLayerNorm,
            scalars: [self.norm.epsilon, has_bias],
            ..self.norm.describe(Algorithm::OneShot)
        }
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let norm = &self.norm;
        // Before the rest, as of operations that quantise.
        named("input", &norm.input).check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        if norm.algorithm == Some(Algorithm::TwoShot) {
            return Err(Error::Argument(
                "all_reduce_layer_norm is one-shot only; pass algorithm=\"auto\" or \"one_shot\"".to_owned(),
            ));
        }
        let bias = self.bias.as_ref().map(|bias| named("bias", bias));
        if let Some(bias) = bias {
            bias.check_dtype(&[norm.weight.dtype])?;
            bias.check_shape(&[norm.input.columns()])?;
            bias.check_place(device)?;
        }
        norm.check(device)?;
        bias.map_or(Ok(()), |bias| {
            bias.check_layout()?;
            named("out", &norm.output).check_separate(bias)?;
            named("residual_out", &norm.residual_output).check_separate(bias)
        })
    }
}

impl Operands for AllReduceLayerNorm {
    fn kind(&self) -> Kind {
        Kind::AllReduceLayerNorm
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        Ok(Self { norm: AllReduceRmsNorm::from_question(question, places)?, bias: None })
    }
}
