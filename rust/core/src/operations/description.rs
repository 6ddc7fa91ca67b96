//! What an operation is, as ranks tell each other and as errors say it.
//!
//! It travels as the [header](lamport_rs_protocol::header) of the operation, four words without their highest bit:
//!
//! | word | bits | what |
//! | --- | --- | --- |
//! | 0 | 0 … 30 | number: the calls on this workspace so far, those that were refused or had nothing to do among them |
//! | 1 | 27 … 30 | kind |
//! | 1 | 25, 26 | dtype |
//! | 1 | 24 | 1: two-shot |
//! | 1 | 23 | 1: weights are float32 and the values are not |
//! | 1 | 0 … 22 | columns; of Q and K, eighths of each in 11 bits; with a quantiser, which one in the upper 4 bits |
//! | 2 | 0 … 30 | rows; elements where there are no rows |
//! | 3 | 0 … 30 | digest of all that is above, in full, of the scalars, and of whether there is a residual |
//!
//! Headers lie in the ranks' blocks: whoever moves their bits raises
//! [`LAYOUT_VERSION`](lamport_rs_protocol::geometry::LAYOUT_VERSION).
//!
//! Numbers that do not fit are cut where they are only shown: the digest has them in full.

use std::fmt;

use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::header::Header;

use super::Kind;
use super::kind::Shown;
use crate::tensor::Dtype;

/// Bits of a word of a header: all but the highest, so that no word is the sentinel.
const WORD_MASK: u32 = 0x7fff_ffff;
/// Bits of an operation's number.
pub const NUMBER_MASK: u32 = WORD_MASK;
const KIND_SHIFT: u32 = 27;
const DTYPE_SHIFT: u32 = 25;
const TWO_SHOT: u32 = 1 << 24;
const FLOAT32_WEIGHT: u32 = 1 << 23;
const COLUMN_BITS: u32 = 23;
const PAIR_BITS: u32 = COLUMN_BITS / 2;
/// Bits of the columns of rows that are quantised.
const QUANT_COLUMN_BITS: u32 = COLUMN_BITS - 4;
/// Widths of Q and K are multiples of this.
const PAIR_UNIT: usize = 8;

/// One operation: what all ranks of a group must have in common, in full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Description {
    /// Which collective.
    pub kind: Kind,
    /// Of inputs and outputs.
    pub dtype: Dtype,
    /// Of the weights; the values' own where there are none.
    pub weight: Dtype,
    /// How it reduces.
    pub algorithm: Algorithm,
    /// Rows, or elements where there are no rows.
    pub rows: usize,
    /// Columns of each matrix; 0 where there is none.
    pub columns: [usize; 2],
    /// Epsilon and the weights' bias; 0 where there is none. Of a layer norm 1, if there are biases.
    pub scalars: [f32; 2],
    /// Whether there is something to add to the sum.
    pub has_residual: bool,
    /// How the result is quantised, if it is.
    pub format: Option<Sink>,
}

impl Description {
    /// As ranks tell it, with `number` in its place.
    pub fn header(&self, number: u32) -> Header {
        let dtype =
            Dtype::ALL.iter().position(|dtype| *dtype == self.dtype).expect("every dtype is in the list") as u32;
        let mut shape = (self.kind as u32) << KIND_SHIFT | dtype << DTYPE_SHIFT | self.shown_columns();
        if self.algorithm == Algorithm::TwoShot {
            shape |= TWO_SHOT;
        }
        if self.weight != self.dtype {
            shape |= FLOAT32_WEIGHT;
        }
        let rows = u32::try_from(self.rows).unwrap_or(u32::MAX).min(WORD_MASK);
        [number & WORD_MASK, shape, rows, self.digest(shape)]
    }

    /// Bytes of the inputs that are reduced or normalised, on one rank.
    pub fn bytes(&self) -> u64 {
        let columns = self.columns.iter().sum::<usize>().max(1);
        (self.rows as u64).wrapping_mul(columns as u64).wrapping_mul(self.dtype.size() as u64)
    }

    fn shown_columns(&self) -> u32 {
        let cut = |columns: usize, bits: u32| u32::try_from(columns).unwrap_or(u32::MAX).min((1 << bits) - 1);
        match self.kind.shown() {
            Shown::SpreadPair => {
                let [q, k] = self.columns.map(|columns| cut(columns / PAIR_UNIT, PAIR_BITS));
                q << PAIR_BITS | k
            }
            Shown::QuantisedRows => self.format_code() << QUANT_COLUMN_BITS | cut(self.columns[0], QUANT_COLUMN_BITS),
            _ => cut(self.columns[0], COLUMN_BITS),
        }
    }

    fn format_code(&self) -> u32 {
        self.format.map_or(0, |format| format as u32)
    }

    /// Multiplies and folds (the mixing step of MurmurHash3): every bit of what goes in changes about half of the result.
    fn digest(&self, shape: u32) -> u32 {
        // -0.0 is +0.0. As bits: the caller's settings may take subnormal numbers for zeros.
        let bits = self.scalars.map(f32::to_bits);
        let [epsilon, bias] = bits.map(|bits| if bits == (-0.0_f32).to_bits() { 0 } else { u64::from(bits) });
        let residual = u64::from(self.has_residual) << 32 | u64::from(self.format_code()) << 40;
        let fields = [
            residual | u64::from(shape),
            self.rows as u64,
            self.columns[0] as u64,
            self.columns[1] as u64,
            epsilon << 32 | bias,
        ];
        let mixed = fields.into_iter().fold(0x9e37_79b9_7f4a_7c15_u64, |state, field| {
            let mixed = (state ^ field).wrapping_mul(0xff51_afd7_ed55_8ccd);
            (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
        });
        (mixed >> 33) as u32 & WORD_MASK
    }
}

/// An operation as a header tells it: for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation(pub Header);

impl Operation {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.0[0]
    }

    /// Whether errors show the other in the same words, but for the digest.
    pub fn is_shown_as(&self, other: &Self) -> bool {
        self.0[..3] == other.0[..3]
    }

    /// The name of the collective, if the header is one.
    pub fn name(&self) -> Option<&'static str> {
        self.kind().map(Kind::name)
    }

    fn kind(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u32 == self.0[1] >> KIND_SHIFT)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [number, shape, rows, digest] = self.0;
        let dtype = Dtype::ALL.get((shape >> DTYPE_SHIFT & 3) as usize);
        let (Some(kind), Some(dtype)) = (self.kind(), dtype) else {
            return write!(f, "something that is no operation ({:08x?})", self.0);
        };
        write!(f, "operation {number}, {} of ", kind.name())?;
        let columns = shape & ((1 << COLUMN_BITS) - 1);
        match kind.shown() {
            Shown::Elements => write!(f, "{rows} {}", dtype.name())?,
            Shown::Rows | Shown::SpreadRows => write!(f, "[{rows}, {columns}] {}", dtype.name())?,
            Shown::QuantisedRows => {
                let (code, columns) = (columns >> QUANT_COLUMN_BITS, columns & ((1 << QUANT_COLUMN_BITS) - 1));
                let format = Sink::ALL.into_iter().find(|format| *format as u32 == code);
                let name = format.map_or("an unknown format", Sink::name);
                write!(f, "[{rows}, {columns}] {} to {name}", dtype.name())?;
            }
            Shown::SpreadPair => {
                let [q, k] =
                    [columns >> PAIR_BITS, columns & ((1 << PAIR_BITS) - 1)].map(|part| part * PAIR_UNIT as u32);
                write!(f, "[{rows}, {q} + {k}] {}", dtype.name())?;
            }
        }
        if shape & FLOAT32_WEIGHT != 0 {
            write!(f, ", weights float32")?;
        }
        if kind.shown().has_algorithm() {
            let algorithm = if shape & TWO_SHOT != 0 { Algorithm::TwoShot } else { Algorithm::OneShot };
            write!(f, ", {}", algorithm.name())?;
        }
        write!(f, " (digest {digest:08x})")
    }
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::sentinel::SENTINEL;

    use super::*;

    fn norm() -> Description {
        Description {
            kind: Kind::AllReduceRmsNorm,
            dtype: Dtype::BFloat16,
            weight: Dtype::Float32,
            algorithm: Algorithm::TwoShot,
            rows: 32,
            columns: [4096, 0],
            scalars: [1e-6, 0.0],
            has_residual: true,
            format: None,
        }
    }

    #[test]
    fn an_operation_is_described_by_its_header() {
        let text = Operation(norm().header(7)).to_string();
        let expected = "operation 7, all_reduce_rms_norm of [32, 4096] bfloat16, weights float32, two_shot (digest ";
        assert!(text.starts_with(expected), "{text}");
        let pair = Description { kind: Kind::MinimaxRmsQk, columns: [3072, 512], weight: Dtype::BFloat16, ..norm() };
        let text = Operation(pair.header(0)).to_string();
        assert!(text.starts_with("operation 0, minimax_allreduce_rms_qk of [32, 3072 + 512] bfloat16 ("), "{text}");
        let quant = Description { kind: Kind::AllReduceRmsNormQuant, format: Some(Sink::Fp8Token), ..norm() };
        let text = Operation(quant.header(0)).to_string();
        assert!(text.contains("all_reduce_rms_norm_quant of [32, 4096] bfloat16 to fp8_token, weights"), "{text}");
        let sum = Description { kind: Kind::AllReduceQuant, weight: Dtype::BFloat16, has_residual: false, ..quant };
        let text = Operation(sum.header(0)).to_string();
        assert!(text.contains("all_reduce_quant of [32, 4096] bfloat16 to fp8_token, two_shot"), "{text}");
        assert!(Operation([1, 2, 3, 4]).to_string().contains("no operation"));
    }

    /// If this fails, raise `LAYOUT_VERSION`: ranks with other bits would take one operation for another.
    #[test]
    fn the_bits_of_headers_are_those_of_the_layouts_version() {
        let rest = 2 << 25 | 1 << 24 | 1 << 23 | 4096;
        assert_eq!(norm().header(7), [7, 2 << 27 | rest, 32, 0x75be_de3f]);
        let finalised = Description { kind: Kind::MoeFinalizeAllReduce, ..norm() };
        assert_eq!(finalised.header(8), [8, 8 << 27 | rest, 32, 0x0bc6_6bf3]);
    }

    #[test]
    fn whatever_differs_shows_in_the_header_and_no_word_is_the_sentinel() {
        let norm = norm();
        let all = [
            norm,
            Description { kind: Kind::MinimaxRms, ..norm },
            Description { dtype: Dtype::Float16, ..norm },
            Description { weight: Dtype::BFloat16, ..norm },
            Description { algorithm: Algorithm::OneShot, ..norm },
            Description { rows: 31, ..norm },
            Description { rows: usize::MAX, ..norm },
            Description { rows: usize::MAX - 1, ..norm },
            Description { columns: [4088, 0], ..norm },
            Description { columns: [4096, 8], ..norm },
            Description { columns: [1 << 30, 0], ..norm },
            Description { columns: [(1 << 30) + 8, 0], ..norm },
            Description { scalars: [1e-5, 0.0], ..norm },
            Description { scalars: [1e-6, 1.0], ..norm },
            Description { has_residual: false, ..norm },
            Description { kind: Kind::AllReduceRmsNormQuant, format: Some(Sink::Fp8Token), ..norm },
            Description { kind: Kind::AllReduceRmsNormQuant, format: Some(Sink::Fp8Group), ..norm },
            Description { kind: Kind::AllReduceQuant, format: Some(Sink::Fp8Token), ..norm },
            Description { kind: Kind::AllReduceQuant, format: Some(Sink::Fp8Group), ..norm },
            Description { kind: Kind::MoeFinalizeAllReduceRmsNorm, ..norm },
            Description { kind: Kind::MoeFinalizeAllReduce, ..norm },
        ];
        let headers = all.map(|description| description.header(u32::MAX));
        for (index, header) in headers.iter().enumerate() {
            assert!(header.iter().all(|word| *word < SENTINEL), "{header:x?}");
            assert!(!headers[..index].contains(header), "{:?}", all[index]);
        }
        assert_ne!(norm.header(1), norm.header(2));
    }

    #[test]
    fn bytes_are_those_of_the_input() {
        assert_eq!(norm().bytes(), 32 * 4096 * 2);
        assert_eq!(Description { kind: Kind::AllReduce, rows: 10, columns: [0; 2], ..norm() }.bytes(), 20);
        assert_eq!(Description { kind: Kind::MinimaxRmsQk, rows: 2, columns: [24, 8], ..norm() }.bytes(), 128);
    }

    #[test]
    fn zeros_of_both_signs_are_the_same_scalar() {
        let negative = Description { scalars: [0.0, -0.0], ..norm() };
        assert_eq!(negative.header(1), Description { scalars: [0.0, 0.0], ..norm() }.header(1));
    }
}
