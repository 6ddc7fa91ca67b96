//! Dtypes as lanes of float32: what a vector holds, widened for the arithmetic.

use half::{bf16, f16};
use lamport_rs_protocol::sentinel::Vector;

use super::processor::Processor;

/// The elements of one vector in float32, in an order of the dtype's choosing.
pub trait Lanes: Copy {
    /// Number of lanes.
    const COUNT: usize;
    /// All zeros.
    const ZERO: Self;
    /// The same value in every lane.
    fn splat(value: f32) -> Self;
    /// Lane by lane.
    fn add(self, other: Self) -> Self;
    /// Lane by lane.
    fn multiply(self, other: Self) -> Self;
    /// Each lane times one factor.
    fn scale(self, factor: f32) -> Self;
    /// The sum of the lanes, always in the same order.
    fn sum(self) -> f32;
    /// Working memory as lanes.
    fn cast(scratch: &mut [f32]) -> &mut [Self];
}

impl<const N: usize> Lanes for [f32; N] {
    const COUNT: usize = N;
    const ZERO: Self = [0.0; N];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; N]
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * other[lane])
    }

    #[inline(always)]
    fn scale(self, factor: f32) -> Self {
        self.map(|value| value * factor)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        self.iter().sum()
    }

    #[inline(always)]
    fn cast(scratch: &mut [f32]) -> &mut [Self] {
        scratch.as_chunks_mut().0
    }
}

/// Evaluates an expression with `E` standing for the element type of a dtype.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $expression:expr) => {
        match $dtype {
            $crate::tensor::Dtype::Float32 => {
                type $E = f32;
                $expression
            }
            $crate::tensor::Dtype::Float16 => {
                type $E = half::f16;
                $expression
            }
            $crate::tensor::Dtype::BFloat16 => {
                type $E = half::bf16;
                $expression
            }
            _ => unreachable!("operands of this dtype are refused"),
        }
    };
}
pub(crate) use with_element;

/// An element type.
pub trait Element {
    /// What a vector of it holds.
    type Lanes: Lanes;

    /// Exact.
    fn widen<P: Processor>(vector: Vector) -> Self::Lanes;
    /// Rounds to nearest even, and a NaN to any.
    fn round<P: Processor>(lanes: Self::Lanes) -> Vector;
    /// Whether what was rounded has a NaN that may not be that of GPUs.
    #[inline(always)]
    fn has_several_nans(_rounded: Vector) -> bool {
        false
    }
    /// What was rounded, with the NaN of GPUs for every NaN: which of two a sum keeps depends on how it was compiled.
    #[inline(always)]
    fn with_one_nan(rounded: Vector) -> Vector {
        rounded
    }

    /// Rounds to nearest even, and every NaN to that of GPUs.
    #[inline(always)]
    fn narrow<P: Processor>(lanes: Self::Lanes) -> Vector {
        let rounded = Self::round::<P>(lanes);
        if Self::has_several_nans(rounded) { Self::with_one_nan(rounded) } else { rounded }
    }
    /// Values in memory order as lanes.
    fn arrange(values: &[f32]) -> Self::Lanes;
}

impl Element for f32 {
    type Lanes = [f32; 4];

    #[inline(always)]
    fn widen<P: Processor>(vector: Vector) -> [f32; 4] {
        vector.map(f32::from_bits)
    }

    #[inline(always)]
    fn round<P: Processor>(lanes: [f32; 4]) -> Vector {
        lanes.map(f32::to_bits)
    }

    #[inline(always)]
    fn has_several_nans(rounded: Vector) -> bool {
        rounded.iter().fold(false, |any, bits| any | (bits & 0x7fff_ffff > 0x7f80_0000))
    }

    #[cold]
    fn with_one_nan(rounded: Vector) -> Vector {
        rounded.map(|bits| bits_of(f32::from_bits(bits)))
    }

    #[inline(always)]
    fn arrange(values: &[f32]) -> [f32; 4] {
        std::array::from_fn(|lane| values[lane])
    }
}

impl Element for f16 {
    type Lanes = [f32; 8];

    #[inline(always)]
    fn widen<P: Processor>(vector: Vector) -> [f32; 8] {
        P::widen_float16(vector)
    }

    #[inline(always)]
    fn round<P: Processor>(lanes: [f32; 8]) -> Vector {
        P::narrow_float16(lanes)
    }

    #[inline(always)]
    fn arrange(values: &[f32]) -> [f32; 8] {
        std::array::from_fn(|lane| values[lane])
    }
}

/// Lanes 0 to 3 are the words' lower halves, lanes 4 to 7 the upper ones: so a word widens with one shift and one mask.
impl Element for bf16 {
    type Lanes = [f32; 8];

    #[inline(always)]
    fn widen<P: Processor>(vector: Vector) -> [f32; 8] {
        std::array::from_fn(|lane| {
            f32::from_bits(if lane < 4 { vector[lane] << 16 } else { vector[lane - 4] & 0xffff_0000 })
        })
    }

    #[inline(always)]
    fn round<P: Processor>(lanes: [f32; 8]) -> Vector {
        let rounded = lanes.map(round_to_bfloat16);
        std::array::from_fn(|word| rounded[word] >> 16 | rounded[word + 4] & 0xffff_0000)
    }

    #[inline(always)]
    fn arrange(values: &[f32]) -> [f32; 8] {
        std::array::from_fn(|lane| values[if lane < 4 { 2 * lane } else { 2 * (lane - 4) + 1 }])
    }
}

/// Of every NaN among results; the upper half, among those of 16 bits.
const NAN: u32 = 0x7fff_ffff;

/// The bits of a result.
#[inline(always)]
pub fn bits_of(value: f32) -> u32 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

/// The bits of `value` rounded to nearest even in the upper half; the lower half is to be cut off. Branch-free, so that
/// it is compiled to vector instructions, unlike `half::bf16::from_f32`.
#[inline(always)]
fn round_to_bfloat16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if value.is_nan() { NAN } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::host::processor::AnyProcessor;

    #[test]
    fn bfloat16_rounds_as_the_half_crate_does() {
        // Every upper half, with the lower halves around each rounding boundary.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let expected = if value.is_nan() { 0x7fff } else { bf16::from_f32(value).to_bits() };
                assert_eq!((round_to_bfloat16(value) >> 16) as u16, expected, "{:#x}", value.to_bits());
            }
        }
    }

    #[test]
    fn widening_and_narrowing_return_every_bfloat16() {
        for bits in 0..=u16::MAX {
            let vector = [u32::from(bits) | u32::from(!bits) << 16; 4];
            let back = bf16::narrow::<AnyProcessor>(bf16::widen::<AnyProcessor>(vector));
            let same_nan = |bits: u32| if bits & 0x7fff > 0x7f80 { 0x7fff } else { bits };
            assert_eq!(back[0] & 0xffff, same_nan(vector[0] & 0xffff), "{bits:#x}");
            assert_eq!(back[0] >> 16, same_nan(vector[0] >> 16), "{bits:#x}");
        }
    }

    #[test]
    fn every_other_float16_stays_and_every_nan_becomes_the_same_one() {
        for bits in 0..=u16::MAX {
            let vector = [u32::from(bits) | 0x3c00 << 16, 0x3c00 | u32::from(bits) << 16, 0, 0];
            let back = f16::narrow::<AnyProcessor>(f16::widen::<AnyProcessor>(vector));
            let expected = if f16::from_bits(bits).is_nan() { 0x7fff } else { u32::from(bits) };
            assert_eq!(back, [expected | 0x3c00 << 16, 0x3c00 | expected << 16, 0, 0], "{bits:#x}");
        }
    }

    #[test]
    fn every_nan_of_float32_becomes_the_same_one() {
        let bits = [0x7f80_0001, 0xffc0_0000, 0xffff_ffff, 0x7fc1_2345, 0xff80_0000, 0x7f80_0000, 0x8000_0001];
        for bits in bits {
            let back = f32::narrow::<AnyProcessor>([f32::from_bits(bits), 1.0, -0.0, 0.0]);
            let expected = if f32::from_bits(bits).is_nan() { 0x7fff_ffff } else { bits };
            assert_eq!(back, [expected, 1.0_f32.to_bits(), 0x8000_0000, 0]);
        }
    }

    #[test]
    fn arranged_weights_meet_the_elements_they_belong_to() {
        let values: Vec<f32> = (1..=8).map(|value| value as f32).collect();
        let words: Vec<u32> = (0..4)
            .map(|word| {
                u32::from(bf16::from_f32(values[2 * word]).to_bits())
                    | u32::from(bf16::from_f32(values[2 * word + 1]).to_bits()) << 16
            })
            .collect();
        let vector = [words[0], words[1], words[2], words[3]];
        assert_eq!(bf16::widen::<AnyProcessor>(vector), bf16::arrange(&values));
    }
}
