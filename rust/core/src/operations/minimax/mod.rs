//! The norm of rows that are spread over the ranks, of one matrix or two.
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

/// One matrix whose rows are spread over the ranks, normalised by the root mean square of the whole row.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// This rank's part, `[…, width]`; rows may lie apart.
    pub input: Tensor,
    /// This rank's part of the weight, `[width]`, of the input's dtype or float32.
    pub weight: Tensor,
    /// `[…, width]`, contiguous.
    pub output: Tensor,
}

/// The MiniMax operation: [`Norm`] of one matrix, or of two (Q and K) at once.
#[derive(Clone, Copy, Debug)]
pub struct MinimaxRms {
    /// The matrices: `[Some(input), None]` or `[Some(q), Some(k)]`, with as many rows each.
    pub norms: [Option<Norm>; 2],
    /// Added to the mean of squares.
    pub epsilon: f32,
}

impl MinimaxRms {
    /// One matrix.
    pub fn one(norm: Norm, epsilon: f32) -> Self {
        Self { norms: [Some(norm), None], epsilon }
    }

    /// Q and K out of the rows `[q | k | …]` of a packed `qkv`, `[…, ≥ q_size + kv_size]`.
    pub fn packed(
        qkv: Tensor,
        sizes: [i64; 2],
        weights: [Tensor; 2],
        outputs: [Tensor; 2],
        epsilon: f32,
    ) -> Result<Self> {
        let [q_size, kv_size] = sizes;
        for (name, size) in [("q_size", q_size), ("kv_size", kv_size)] {
            if size <= 0 || size % COLUMN_MULTIPLE as i64 != 0 {
                return Err(Error::Argument(format!(
                    "{name} is {size} elements, but must be a positive multiple of {COLUMN_MULTIPLE}"
                )));
            }
        }
        let (q_size, kv_size) = (q_size as usize, kv_size as usize);
        if qkv.shape.as_slice().is_empty() || qkv.columns().checked_sub(q_size).is_none_or(|rest| rest < kv_size) {
            return Err(Error::Argument(format!(
                "qkv has shape {:?}, but its last dimension must hold q_size + kv_size = {q_size} + {kv_size} elements",
                qkv.shape
            )));
        }
        let step = qkv.strides.as_slice().last().copied().unwrap_or(1) * qkv.dtype.size();
        let part = |offset: usize, columns: usize| Tensor {
            pointer: qkv.pointer.wrapping_add(offset * step),
            shape: qkv.shape.with_columns(columns),
            ..qkv
        };
        let norm = |input, index: usize| Some(Norm { input, weight: weights[index], output: outputs[index] });
        Ok(Self { norms: [norm(part(0, q_size), 0), norm(part(q_size, kv_size), 1)], epsilon })
    }

    /// What all ranks must have in common. The exchange does not need equal widths, but the result does: each rank takes
    /// the whole row to be as many times its own part as there are ranks.
    pub fn describe(&self) -> Description {
        let [first, second] = self.norms;
        let columns = [first, second].map(|norm| norm.map_or(0, |norm| norm.input.columns()));
        let dtypes = first.map_or((Dtype::Float32, Dtype::Float32), |norm| (norm.input.dtype, norm.weight.dtype));
        Description {
            kind: self.kind(),
            dtype: dtypes.0,
            weight: dtypes.1,
            algorithm: Algorithm::OneShot,
            rows: self.tokens(),
            columns,
            scalars: [self.epsilon, 0.0],
            has_residual: false,
            format: None,
        }
    }

    /// Rows of each matrix.
    pub fn tokens(&self) -> usize {
        self.norms[0].map_or(0, |norm| norm.input.rows())
    }

    /// Number of matrices.
    pub fn matrices(&self) -> usize {
        self.norms.iter().flatten().count()
    }

    /// Checks the operands for a workspace on `device`.
    pub fn check(&self, device: Device) -> Result<()> {
        check_epsilon(self.epsilon)?;
        let [first, second] = self.named();
        let norms = || first.iter().chain(&second);
        for norm in norms() {
            norm.check_values(device)?;
        }
        if let (Some(q), Some(k)) = (first, second) {
            k.weight.check_dtype(&[q.weight.tensor.dtype])?;
            q.output.check_apart(k.output)?;
        }
        for norm in norms() {
            norm.check_layout()?;
        }
        for norm in norms() {
            norm.output.check_overlap(norm.input)?;
            norm.output.check_separate(norm.weight)?;
        }
        if let (Some(q), Some(k)) = (first, second) {
            // A matrix may be read when the other's output is written, in either order.
            q.output.check_separate(Named { name: "the columns of K in qkv", ..k.input })?;
            q.output.check_separate(k.weight)?;
            k.output.check_separate(Named { name: "the columns of Q in qkv", ..q.input })?;
            k.output.check_separate(q.weight)?;
        }
        Ok(())
    }

    fn named(&self) -> [Option<NamedNorm<'_>>; 2] {
        let names = match self.norms[1] {
            None => [["input", "norm_weight", "out"]; 2],
            Some(_) => [["qkv", "norm_weight_q", "q_out"], ["qkv", "norm_weight_k", "k_out"]],
        };
        [0, 1].map(|index| {
            let ([input, weight, output], norm) = (names[index], self.norms[index].as_ref()?);
            Some(NamedNorm {
                input: named(input, &norm.input),
                weight: named(weight, &norm.weight),
                output: named(output, &norm.output),
            })
        })
    }
}

/// The operands of a [`Norm`] under their names.
#[derive(Clone, Copy)]
struct NamedNorm<'a> {
    input: Named<'a>,
    weight: Named<'a>,
    output: Named<'a>,
}

impl NamedNorm<'_> {
    fn check_values(&self, device: Device) -> Result<()> {
        let input = self.input.tensor;
        self.input.check_dtype(&Dtype::ALL)?;
        self.input.check_columns(COLUMN_MULTIPLE)?;
        self.output.check_dtype(&[input.dtype])?;
        self.output.check_shape(input.shape.as_slice())?;
        check_weight(self.weight, input, input.columns())?;
        for operand in [self.input, self.weight, self.output] {
            operand.check_place(device)?;
        }
        self.output.check_writable()
    }

    fn check_layout(&self) -> Result<()> {
        self.input.check_rows()?;
        self.weight.check_layout()?;
        self.output.check_layout()
    }
}

impl Operands for MinimaxRms {
    fn kind(&self) -> Kind {
        if self.norms[1].is_some() { Kind::MinimaxRmsQk } else { Kind::MinimaxRms }
    }

    fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        if question.kind == Kind::MinimaxRms {
            let input = places.tensor(&question.shape, question.dtype)?;
            let weight = places.tensor(&[question.columns()], question.weight)?;
            let output = places.tensor(&question.shape, question.dtype)?;
            return Ok(Self::one(Norm { input, weight, output }, 0.0));
        }
        let [q, k] = question.sizes.map(|columns| usize::try_from(columns).unwrap_or(0));
        // Without the columns behind them: rows that those make begin anywhere are copied.
        let columns = question.columns().min(q.saturating_add(k));
        let input = places.tensor(&question.with_columns(columns), question.dtype)?;
        let weights = [places.tensor(&[q], question.weight)?, places.tensor(&[k], question.weight)?];
        let mut output = |columns| places.tensor(&question.with_columns(columns), question.dtype);
        Self::packed(input, question.sizes, weights, [output(q)?, output(k)?], 0.0)
    }
}
