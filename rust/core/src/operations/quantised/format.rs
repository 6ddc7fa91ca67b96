//! What a row becomes: its quantised values and their scales, from the formats' definitions.

use half::{bf16, f16};
use lamport_rs_kernels::Sink;
use lamport_rs_protocol::sentinel::Vector;

use super::Quantised;
use crate::tensor::{Dtype, Tensor};

/// The largest value of FP8 e4m3.
const FP8_MAX: f32 = 448.0;
/// The least scale of a row: rows of zeros have it.
const LEAST_ROW_SCALE: f32 = 1.0 / (FP8_MAX * 512.0);
/// Groups of smaller values have the scale of this one.
const LEAST_OF_GROUP: f32 = 1e-10;

/// Quantises rows one after the other.
pub struct RowQuantiser {
    sink: Sink,
    dtype: Dtype,
    /// Of the row in hand.
    values: Vec<f32>,
    quantised: *mut u8,
    scales: *mut f32,
    /// From a scale to that of the next row, and to the next of its row.
    scale_strides: [usize; 2],
}

impl RowQuantiser {
    /// # Safety
    /// The operands were checked, and their pointers are valid while this is used.
    pub unsafe fn new(quantised: &Quantised, input: &Tensor) -> Self {
        let Quantised { sink, rows, scales } = quantised;
        Self {
            sink: *sink,
            dtype: input.dtype,
            values: Vec::with_capacity(input.columns()),
            quantised: rows.pointer,
            scales: scales.pointer.cast(),
            scale_strides: sink.scale_strides(input.rows(), input.columns()),
        }
    }

    /// Takes the next vector of a row.
    pub fn take(&mut self, vector: Vector) {
        let halves = vector.into_iter().flat_map(|word| [word as u16, (word >> 16) as u16]);
        match self.dtype {
            Dtype::Float16 => self.values.extend(halves.map(|bits| f16::from_bits(bits).to_f32())),
            _ => self.values.extend(halves.map(|bits| bf16::from_bits(bits).to_f32())),
        }
    }

    /// Stores what row `row` becomes, of which all vectors were taken.
    pub fn finish(&mut self, row: usize) {
        let columns = self.values.len();
        let group = self.sink.columns_of_scale(columns);
        for (index, values) in self.values.chunks_exact(group).enumerate() {
            let place = self.scale(row, index);
            let largest = largest_magnitude(values);
            let scale = match self.sink {
                // SAFETY: the one scale that is given.
                Sink::Fp8Static => unsafe { place.read_unaligned() },
                Sink::Fp8Token => at_least(largest / FP8_MAX, LEAST_ROW_SCALE),
                Sink::Fp8Group | Sink::Fp8GroupColumnMajor => at_least(largest, LEAST_OF_GROUP) / FP8_MAX,
            };
            let inverse = 1.0 / scale;
            for (at, value) in values.iter().enumerate() {
                // A scale that is given is multiplied by, as its reciprocal: as the common kernels have it.
                let scaled = if self.sink == Sink::Fp8Static { value * inverse } else { value / scale };
                let place = self.quantised.wrapping_add(row * columns + index * group + at);
                // SAFETY: within the quantised rows, as the constructor's caller promised.
                unsafe { place.write(to_e4m3(scaled)) };
            }
            if self.sink != Sink::Fp8Static {
                // SAFETY: within the scales, as the constructor's caller promised: a row has `columns / group`.
                unsafe { place.write_unaligned(scale) };
            }
        }
        self.values.clear();
    }

    /// Makes the scales of `rows` rows NaN, if they are computed.
    pub fn spoil_scales(&self, rows: usize, columns: usize) {
        for index in 0..self.sink.scales_of_row(columns).unwrap_or(0) {
            for row in 0..rows {
                // SAFETY: within the scales, as the constructor's caller promised.
                unsafe { self.scale(row, index).write_unaligned(f32::NAN) };
            }
        }
    }

    fn scale(&self, row: usize, index: usize) -> *mut f32 {
        self.scales.wrapping_add(row * self.scale_strides[0] + index * self.scale_strides[1])
    }
}

/// NaN if one of the values is.
fn largest_magnitude(values: &[f32]) -> f32 {
    // Bits of magnitudes are in the order of these, and those of a NaN above all.
    f32::from_bits(values.iter().map(|value| value.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// NaN if `value` is.
fn at_least(value: f32, least: f32) -> f32 {
    if value < least { least } else { value }
}

/// The nearest FP8 e4m3, of two the even one; beyond the largest, that. A NaN becomes the positive one.
fn to_e4m3(value: f32) -> u8 {
    const LARGEST: u32 = FP8_MAX.to_bits();
    /// Below it values are multiples of 2^-9.
    const LEAST_NORMAL: u32 = 0x3c80_0000;
    /// A float32 of this size has that unit in its last place.
    const UNIT: f32 = 16384.0;
    let (sign, magnitude) = ((value.to_bits() >> 24) as u8 & 0x80, value.to_bits() & 0x7fff_ffff);
    if value.is_nan() {
        return 0x7f;
    }
    let code = if magnitude >= LARGEST {
        0x7e
    } else if magnitude < LEAST_NORMAL {
        (f32::from_bits(magnitude) + UNIT).to_bits() - UNIT.to_bits()
    } else {
        // The exponent's bias is 7 and not 127; three bits of the fraction are left.
        (magnitude + 0x7_ffff + (magnitude >> 20 & 1) - (120 << 23)) >> 20
    };
    sign | code as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the format's definition.
    fn from_e4m3(code: u8) -> f32 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => fraction / 512.0,
            _ => (1.0 + fraction / 8.0) * f32::powi(2.0, exponent - 7),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_value_is_its_own_and_what_lies_between_goes_to_the_nearest() {
        for code in 0..0x7e_u8 {
            let (low, high) = (from_e4m3(code), from_e4m3(code + 1));
            assert_eq!((to_e4m3(low), to_e4m3(-low)), (code, code | 0x80));
            let middle = f32::midpoint(low, high);
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(to_e4m3(middle), even, "between {low} and {high}");
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(to_e4m3(f32::from_bits(middle.to_bits() + 1)), code + 1);
        }
        for large in [448.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!((to_e4m3(large), to_e4m3(-large)), (0x7e, 0xfe), "{large}");
        }
        assert_eq!((to_e4m3(f32::NAN), to_e4m3(-f32::NAN)), (0x7f, 0x7f));
    }

    #[test]
    fn the_largest_magnitude_is_nan_if_one_is() {
        assert_eq!(largest_magnitude(&[1.0, -896.0, 3.0]), 896.0);
        assert_eq!(largest_magnitude(&[0.0, -0.0]).to_bits(), 0);
        assert!(largest_magnitude(&[1.0, f32::NAN, f32::INFINITY]).is_nan());
        assert!(at_least(f32::NAN, 1.0).is_nan());
    }
}
