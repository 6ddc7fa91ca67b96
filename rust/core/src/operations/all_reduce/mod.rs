//! The sum over ranks.
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
use crate::error::Result;
use crate::tensor::{Device, Dtype, Tensor};

/// `output = sum over ranks of input`.
#[derive(Clone, Copy, Debug)]
pub struct AllReduce {
    /// What this rank contributes.
    pub input: Tensor,
    /// The sum; may be `input`.
    pub output: Tensor,
    /// How to reduce, the same on every rank; `None` for the fastest.
    pub algorithm: Option<Algorithm>,
}

impl AllReduce {
    /// What all ranks must have in common.
    pub fn describe(&self, algorithm: Algorithm) -> Description {
        let dtype = self.input.dtype;
        Description {
            kind: Kind::AllReduce,
            dtype,
            weight: dtype,
            algorithm,
            rows: self.input.elements(),
            columns: [0; 2],
            scalars: [0.0; 2],
            has_residual: false,
            format: None,
        }
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let (input, output) = (named("input", &self.input), named("out", &self.output));
        input.check_dtype(&Dtype::ALL)?;
        output.check_dtype(&[self.input.dtype])?;
        output.check_shape(self.input.shape.as_slice())?;
        for operand in [input, output] {
            operand.check_place(device)?;
        }
        output.check_writable()?;
        for operand in [input, output] {
            operand.check_layout()?;
        }
        output.check_overlap(input)
    }
}

impl Operands for AllReduce {
    fn kind(&self) -> Kind {
        Kind::AllReduce
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let mut tensor = || places.tensor(&question.shape, question.dtype);
        Ok(Self { input: tensor()?, output: tensor()?, algorithm: question.algorithm })
    }
}
