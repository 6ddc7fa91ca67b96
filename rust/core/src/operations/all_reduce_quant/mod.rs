//! The sum over ranks of rows, and a quantiser of these.
//!
//! | module | concept |
//! | --- | --- |
//! | this | operands and their checks |
//! | [`host`] | the operation over shared memory |
//! | `cuda` | the operation over device memory |

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;

pub use lamport_rs_kernels::variants::HELD_COLUMNS;
use lamport_rs_protocol::algorithm::Algorithm;

use super::Kind;
use super::description::Description;
use super::operand_checks::named;
use super::operands::Operands;
use super::quantised::Quantised;
use super::question::{Places, Question};
use crate::error::Result;
use crate::tensor::{Device, Tensor};

/// `sum = sum over ranks of input`, and `quantised × scales = sum`, more or less.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceQuant {
    /// What this rank contributes, `[…, hidden]`.
    pub input: Tensor,
    /// What becomes of the sum.
    pub quantised: Quantised,
    /// The sum; may be `input`. See [`Self::sum_place`].
    pub sum: Tensor,
    /// Whether the sum is asked for.
    pub has_sum: bool,
    /// How to reduce, the same on every rank; `None` for the fastest.
    pub algorithm: Option<Algorithm>,
}

impl AllReduceQuant {
    /// What all ranks must have in common.
    pub fn describe(&self, algorithm: Algorithm) -> Description {
        let Self { input, quantised, .. } = self;
        Description {
            kind: Kind::AllReduceQuant,
            dtype: input.dtype,
            weight: input.dtype,
            algorithm,
            rows: input.rows(),
            columns: [input.columns(), 0],
            scalars: [0.0; 2],
            has_residual: false,
            format: Some(quantised.sink),
        }
    }

    /// Where the sum goes. Rows that some kernel does not hold in registers need a place for it, asked for or not; if
    /// neither, `sum` is not looked at.
    pub fn sum_place(&self) -> Option<&Tensor> {
        (self.has_sum || self.input.columns() > HELD_COLUMNS).then_some(&self.sum)
    }

    /// All rows that are written.
    pub fn rows(&self) -> impl Iterator<Item = &Tensor> {
        [&self.quantised.rows].into_iter().chain(self.sum_place())
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let input = named("input", &self.input);
        self.quantised.check(&self.input, device)?;
        input.check_place(device)?;
        let sum = self.sum_place().map(|sum| named("sum_out", sum));
        if let Some(sum) = sum {
            sum.check_dtype(&[self.input.dtype])?;
            sum.check_shape(self.input.shape.as_slice())?;
            sum.check_place(device)?;
            sum.check_writable()?;
        }
        self.quantised.check_apart(self.sum_place().map(|sum| ("sum_out", sum)).into_iter())?;
        for operand in [input].into_iter().chain(sum) {
            operand.check_layout()?;
        }
        if let Some(sum) = sum {
            sum.check_overlap(input)?;
        }
        let sum = self.sum_place().map(|sum| ("sum_out", sum));
        self.quantised.check_layout(&self.input, [("input", &self.input)].into_iter().chain(sum))
    }
}

impl Operands for AllReduceQuant {
    fn kind(&self) -> Kind {
        Kind::AllReduceQuant
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let quantised = Quantised::from_question(question, places)?;
        let mut rows = || places.tensor(&question.shape, question.dtype);
        Ok(Self { input: rows()?, quantised, sum: rows()?, has_sum: true, algorithm: question.algorithm })
    }
}
