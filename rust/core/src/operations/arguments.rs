//! Each operation's operands and their checks, the same for every backend. A failed check has changed nothing.
//!
//! First comes what no copy of an operand would mend, then its layout, of which the caller may make a copy and call
//! again. So an [`Error::Layout`] is followed by the operation, unless memory runs out. What one operand shares with
//! another is asked last: copies share nothing. Only outputs are asked before, as they are written in the end.

use lamport_rs_protocol::algorithm::Algorithm;

use super::named::Named;
use super::operation::{Description, Kind};
use crate::error::{Error, Result};
use crate::tensor::{Device, Dtype, Tensor};

/// Widths of the normalised rows are multiples of this many elements: a vector of 16-bit values.
const COLUMN_MULTIPLE: usize = 8;

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
        self.check_with(device, Some(&self.output))
    }

    /// Likewise, of an operation whose normalised rows go to `output`, if anywhere.
    pub(super) fn check_with(&self, device: Device, output: Option<&Tensor>) -> Result<()> {
        let input = named("input", &self.input);
        let residual = self.residual.as_ref().map(|residual| named("residual", residual));
        let weight = named("weight", &self.weight);
        let output = output.map(|output| named("out", output));
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

    /// For one matrix, or for two.
    pub fn kind(&self) -> Kind {
        if self.norms[1].is_some() { Kind::MinimaxRmsQk } else { Kind::MinimaxRms }
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

fn named<'a>(name: &'a str, tensor: &'a Tensor) -> Named<'a> {
    Named { name, tensor }
}

fn check_weight(weight: Named<'_>, input: &Tensor, columns: usize) -> Result<()> {
    weight.check_shape(&[columns])?;
    if input.dtype == Dtype::Float32 {
        weight.check_dtype(&[Dtype::Float32])
    } else {
        weight.check_dtype(&[input.dtype, Dtype::Float32])
    }
}

fn check_epsilon(epsilon: f32) -> Result<()> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::Argument(format!("eps is {epsilon}, but must be finite and not negative")))
}
