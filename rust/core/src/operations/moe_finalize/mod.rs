//! The sum over ranks of rows that experts made, alone, and with a residual and the norm of its rows.
//!
//! | module | concept |
//! | --- | --- |
//! | this | operands and their checks |
//! | [`host`] | finalisation, and the operations over shared memory |
//! | `cuda` | the operations over device memory |

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;

use lamport_rs_protocol::algorithm::Algorithm;

use super::Kind;
use super::all_reduce::AllReduce;
use super::description::Description;
use super::operand_checks::{COLUMN_MULTIPLE, Named, check_weight_dtype, named};
use super::operands::Operands;
use super::question::{Places, Question};
use super::rms_norm::AllReduceRmsNorm;
use crate::error::Result;
use crate::tensor::{Device, Dimensions, Dtype, Tensor};

/// What this rank's experts made. A token's row is `sum over j of weights[token, j] × rows[index[token, j]]`, in float32
/// from `j = 0` on, plus `shared[token]`, rounded once to the rows' dtype.
///
/// An index of -1 adds nothing, whatever its weight. Any other that is no number of a row makes the token's row NaN.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// `[…, hidden]`: as many rows as there may be.
    pub rows: Tensor,
    /// `[…, experts of a token]`, int32.
    pub index: Tensor,
    /// As many, of the rows' dtype or float32.
    pub weights: Tensor,
    /// `[…, hidden]`, a row for each token: a shared expert's, if this rank has one.
    pub shared: Option<Tensor>,
}

impl Experts {
    /// The shape of the finalised rows.
    pub fn shape(&self) -> Dimensions {
        self.index.shape.with_columns(self.rows.columns())
    }

    fn named(&self) -> impl Iterator<Item = Named<'_>> {
        let shared = self.shared.as_ref().map(|shared| named("shared_rows", shared));
        [named("expert_rows", &self.rows), named("row_index", &self.index), named("expert_weights", &self.weights)]
            .into_iter()
            .chain(shared)
    }

    /// Checks what no copy of an operand would mend, and that `output` is like the finalised rows.
    fn check(&self, output: Named<'_>, device: Device) -> Result<()> {
        let rows = named("expert_rows", &self.rows);
        rows.check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        rows.check_columns(COLUMN_MULTIPLE)?;
        named("row_index", &self.index).check_dtype(&[Dtype::Int32])?;
        named("row_index", &self.index).check_columns(1)?;
        let weights = named("expert_weights", &self.weights);
        weights.check_shape(self.index.shape.as_slice())?;
        check_weight_dtype(weights, self.rows.dtype)?;
        if let Some(shared) = &self.shared {
            named("shared_rows", shared).check_dtype(&[self.rows.dtype])?;
            named("shared_rows", shared).check_shape(self.shape().as_slice())?;
        }
        output.check_dtype(&[self.rows.dtype])?;
        output.check_shape(self.shape().as_slice())?;
        self.named().chain([output]).try_for_each(|operand| operand.check_place(device))
    }

    /// Checks how they lie, and that `outputs`, which were checked before, share nothing with them: a row of these may be
    /// written before another row has been made of the same operands.
    fn check_layout<'a>(&self, outputs: impl Iterator<Item = Named<'a>> + Clone) -> Result<()> {
        self.named().try_for_each(|operand| operand.check_layout())?;
        for operand in self.named() {
            outputs.clone().try_for_each(|output| output.check_separate(operand))?;
        }
        Ok(())
    }

    /// Of rows such as the question is about, one expert's for each token.
    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let each = question.with_columns(1);
        Ok(Self {
            rows: places.tensor(&question.shape, question.dtype)?,
            index: places.tensor(&each, Dtype::Int32)?,
            weights: places.tensor(&each, Dtype::Float32)?,
            shared: None,
        })
    }
}

/// `residual_output = sum over ranks of finalised rows + residual`, `output = rms_norm(residual_output) × weight`.
#[derive(Clone, Copy, Debug)]
pub struct MoeFinalizeAllReduceRmsNorm {
    experts: Experts,
    /// Of the finalised rows as if they were in the output.
    norm: AllReduceRmsNorm,
}

impl MoeFinalizeAllReduceRmsNorm {
    /// The operation on what `experts` made. `norm.input` and `norm.algorithm` are not looked at. Its outputs may not be
    /// among the operands, but for `residual_output`, which may be `residual`.
    pub fn new(experts: Experts, norm: AllReduceRmsNorm) -> Self {
        Self { experts, norm: AllReduceRmsNorm { input: norm.output, algorithm: Some(Algorithm::OneShot), ..norm } }
    }

    /// What all ranks must have in common. There is one algorithm. How many experts' rows a rank has, how many a token has,
    /// their weights' dtype, and whether there is a shared expert, is each rank's own affair.
    pub fn describe(&self) -> Description {
        Description { kind: Kind::MoeFinalizeAllReduceRmsNorm, ..self.norm.describe(Algorithm::OneShot) }
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let output = named("out", &self.norm.output);
        self.experts.check(output, device)?;
        self.norm.check(device)?;
        if let Some(residual) = &self.norm.residual {
            output.check_separate(named("residual", residual))?;
        }
        self.experts.check_layout([output, named("residual_out", &self.norm.residual_output)].into_iter())
    }
}

/// `output = sum over ranks of finalised rows`.
#[derive(Clone, Copy, Debug)]
pub struct MoeFinalizeAllReduce {
    experts: Experts,
    /// As above.
    sum: AllReduce,
}

impl MoeFinalizeAllReduce {
    /// The operation on what `experts` made, with its sum in `output`, which may not be among the operands.
    pub fn new(experts: Experts, output: Tensor) -> Self {
        Self { experts, sum: AllReduce { input: output, output, algorithm: Some(Algorithm::OneShot) } }
    }

    /// What all ranks must have in common, and no more.
    pub fn describe(&self) -> Description {
        let output = &self.sum.output;
        Description {
            kind: Kind::MoeFinalizeAllReduce,
            rows: output.rows(),
            columns: [output.columns(), 0],
            ..self.sum.describe(Algorithm::OneShot)
        }
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        let output = named("out", &self.sum.output);
        self.experts.check(output, device)?;
        self.sum.check(device)?;
        self.experts.check_layout([output].into_iter())
    }
}

impl Operands for MoeFinalizeAllReduceRmsNorm {
    fn kind(&self) -> Kind {
        Kind::MoeFinalizeAllReduceRmsNorm
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let norm = AllReduceRmsNorm::from_question(question, places)?;
        Ok(Self::new(Experts::from_question(question, places)?, norm))
    }
}

impl Operands for MoeFinalizeAllReduce {
    fn kind(&self) -> Kind {
        Kind::MoeFinalizeAllReduce
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let output = places.tensor(&question.shape, question.dtype)?;
        Ok(Self::new(Experts::from_question(question, places)?, output))
    }
}
