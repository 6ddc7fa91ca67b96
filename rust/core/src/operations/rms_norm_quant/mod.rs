//! The sum over ranks, plus a residual, the norm of its rows, and a quantiser of these.
//!
//! | module | concept |
//! | --- | --- |
//! | this | operands and their checks |
//! | [`host`] | the operation over shared memory |
//! | `cuda` | the operation over device memory |

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;

pub use lamport_rs_kernels::Sink;
pub use lamport_rs_kernels::sink::Format;
use lamport_rs_protocol::algorithm::Algorithm;

use super::Kind;
use super::description::Description;
use super::operand_checks::named;
use super::operands::Operands;
use super::quantised::Quantised;
use super::question::{Places, Question};
use super::rms_norm::AllReduceRmsNorm;
use crate::error::Result;
use crate::tensor::{Device, Tensor};

/// `residual_output = sum over ranks of input + residual`, `output = rms_norm(residual_output) × weight`, and
/// `quantised × scales = output`, more or less.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceRmsNormQuant {
    /// The operation without a quantiser.
    pub norm: AllReduceRmsNorm,
    /// Whether `norm.output` is asked for. If not, it is not looked at.
    pub has_output: bool,
    /// What becomes of the normalised rows.
    pub quantised: Quantised,
}

impl AllReduceRmsNormQuant {
    /// What all ranks must have in common.
    pub fn describe(&self, algorithm: Algorithm) -> Description {
        Description {
            kind: Kind::AllReduceRmsNormQuant,
            format: Some(self.quantised.sink),
            ..self.norm.describe(algorithm)
        }
    }

    /// The normalised rows, if they are asked for.
    pub fn output(&self) -> Option<&Tensor> {
        self.has_output.then_some(&self.norm.output)
    }

    /// All rows that are written.
    pub fn rows(&self) -> impl Iterator<Item = &Tensor> {
        [&self.norm.residual_output, &self.quantised.rows].into_iter().chain(self.output())
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let input = &self.norm.input;
        self.quantised.check(input, device)?;
        self.quantised.check_apart(self.outputs())?;
        self.norm.check_with(device, self.output().map(|output| named("norm_out", output)))?;
        self.quantised.check_layout(input, self.others())
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, &Tensor)> + Clone {
        let AllReduceRmsNorm { input, residual, weight, .. } = &self.norm;
        [("input", input), ("weight", weight)]
            .into_iter()
            .chain(residual.as_ref().map(|residual| ("residual", residual)))
            .chain(self.outputs())
    }

    fn outputs(&self) -> impl Iterator<Item = (&'static str, &Tensor)> + Clone {
        let output = self.output().map(|output| ("norm_out", output));
        [("residual_out", &self.norm.residual_output)].into_iter().chain(output)
    }
}

impl Operands for AllReduceRmsNormQuant {
    fn kind(&self) -> Kind {
        Kind::AllReduceRmsNormQuant
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let norm = AllReduceRmsNorm::from_question(question, places)?;
        Ok(Self { norm, has_output: true, quantised: Quantised::from_question(question, places)? })
    }
}
