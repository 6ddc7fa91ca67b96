//! What a row becomes: its quantised values and their scales, from the formats' definitions.

use half::{bf16, f16};
use lamport_rs_kernels::Sink;
use lamport_rs_kernels::sink::ScalePlaces;
use lamport_rs_protocol::sentinel::Vector;

use super::Quantised;
use super::fp8::{FP8_MAX, from_e4m3, reciprocal_of_ue8m0, to_e4m3, to_ue8m0};
use crate::tensor::{Dtype, Tensor};

/// The least scale of a row: rows of zeros have it.
const LEAST_ROW_SCALE: f32 = 1.0 / (FP8_MAX * 512.0);
/// Groups of smaller values have the scale of this one.
const LEAST_OF_GROUP: f32 = 1e-10;
/// No power of two is less, before it is rounded, that is the scale of a group.
const LEAST_UE8M0_OF_GROUP: f32 = 1e-10;
/// The largest value of FP4 e2m1.
const FP4_MAX: f32 = 6.0;
/// A byte that is NaN in UE8M0, and in e4m3.
const NAN_BYTE: u8 = 0xff;

/// Quantises rows one after the other.
pub struct RowQuantiser {
    sink: Sink,
    dtype: Dtype,
    /// Of the row in hand.
    values: Vec<f32>,
    quantised: *mut u8,
    /// The one that is given.
    scale: Option<*const f32>,
    scales: *mut u8,
    places: ScalePlaces,
    rows: usize,
}

impl RowQuantiser {
    /// # Safety
    /// The operands were checked, and their pointers are valid while this is used.
    pub unsafe fn new(quantised: &Quantised, input: &Tensor) -> Self {
        let Quantised { sink, rows, scale, scales } = quantised;
        Self {
            sink: *sink,
            dtype: input.dtype,
            values: Vec::with_capacity(input.columns()),
            quantised: rows.pointer,
            scale: scale.map(|scale| scale.pointer.cast_const().cast()),
            scales: scales.pointer,
            places: sink.scale_places(input.rows(), input.columns()),
            rows: input.rows(),
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
            let largest = largest_magnitude(values);
            let first = row * columns + index * group;
            match self.sink.format().in_kernel {
                // A scale that is given is multiplied by, as its reciprocal: as the common kernels have it.
                Sink::Fp8Static => {
                    let inverse = 1.0 / self.given_scale();
                    self.put_fp8(first, values, |value| value * inverse);
                }
                Sink::Fp8Token => self.put_with_scale(row, index, values, at_least(largest / FP8_MAX, LEAST_ROW_SCALE)),
                Sink::Fp8GroupUe8m0 => {
                    self.put_with_ue8m0(row, index, values, at_least(largest / FP8_MAX, LEAST_UE8M0_OF_GROUP));
                }
                Sink::Nvfp4 => self.put_nvfp4(row, index, values, largest),
                Sink::Mxfp8 => self.put_with_ue8m0(row, index, values, largest / FP8_MAX),
                _ => self.put_with_scale(row, index, values, at_least(largest, LEAST_OF_GROUP) / FP8_MAX),
            }
        }
        for index in self.sink.scales_of_row(columns)..self.sink.padded_scales_of_row(columns) {
            self.put_scale(row, index, &[0]);
        }
        if row + 1 == self.rows {
            self.clear_padding(columns);
        }
        self.values.clear();
    }

    /// Rows that only the tensor of scales has.
    fn clear_padding(&self, columns: usize) {
        for row in self.rows..self.sink.scale_rows(self.rows) {
            for index in 0..self.sink.scales_of_row(columns) {
                self.put_scale(row, index, &[0]);
            }
        }
    }

    /// Makes the scales of `rows` rows NaN, if they are computed.
    pub fn spoil_scales(&self, rows: usize, columns: usize) {
        for index in 0..self.sink.padded_scales_of_row(columns) {
            for row in 0..rows {
                match self.sink.format().scale {
                    Dtype::Float32 => self.put_scale(row, index, &f32::NAN.to_ne_bytes()),
                    _ => self.put_scale(row, index, &[NAN_BYTE]),
                }
            }
        }
    }

    /// FP8 e4m3, divided by `scale`.
    fn put_with_scale(&self, row: usize, index: usize, values: &[f32], scale: f32) {
        self.put_scale(row, index, &scale.to_ne_bytes());
        self.put_fp8(row * self.values.len() + index * values.len(), values, |value| value / scale);
    }

    /// FP8 e4m3, divided by the least power of two that is not below `scale`.
    fn put_with_ue8m0(&self, row: usize, index: usize, values: &[f32], scale: f32) {
        let scale = to_ue8m0(scale);
        self.put_scale(row, index, &[scale]);
        let inverse = reciprocal_of_ue8m0(scale);
        self.put_fp8(row * self.values.len() + index * values.len(), values, |value| value * inverse);
    }

    /// FP4 e2m1, two to a byte, the first in the lower half.
    fn put_nvfp4(&self, row: usize, index: usize, values: &[f32], largest: f32) {
        let given = self.given_scale();
        let scale = to_e4m3(given * (largest * (1.0 / FP4_MAX)));
        self.put_scale(row, index, &[scale]);
        let scale = from_e4m3(scale);
        let factor = if scale == 0.0 { 0.0 } else { 1.0 / (scale * (1.0 / given)) };
        let first = (row * self.values.len() + index * values.len()) / 2;
        for (at, pair) in values.chunks_exact(2).enumerate() {
            let codes = to_e2m1(pair[0] * factor) | to_e2m1(pair[1] * factor) << 4;
            // SAFETY: within the quantised rows, as the constructor's caller promised.
            unsafe { self.quantised.wrapping_add(first + at).write(codes) };
        }
    }

    /// Values from `first` on, as `scaled` makes them.
    fn put_fp8(&self, first: usize, values: &[f32], scaled: impl Fn(f32) -> f32) {
        for (at, &value) in values.iter().enumerate() {
            // SAFETY: within the quantised rows, as the constructor's caller promised.
            unsafe { self.quantised.wrapping_add(first + at).write(to_e4m3(scaled(value))) };
        }
    }

    fn put_scale(&self, row: usize, index: usize, bytes: &[u8]) {
        let place = self.scales.wrapping_add(self.places.of(row, index));
        // SAFETY: within the scales, as the constructor's caller promised: a row has as many with those that are 0.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// NaN if none is.
    fn given_scale(&self) -> f32 {
        // SAFETY: it is a number, as the constructor's caller promised.
        self.scale.map_or(f32::NAN, |scale| unsafe { scale.read_unaligned() })
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

/// The nearest FP4 e2m1, of two the even one; beyond the largest, that, as any NaN.
fn to_e2m1(value: f32) -> u8 {
    /// A float32 of this size has 1/2 in its last place. Below 1 values are multiples of that.
    const UNIT: f32 = 4_194_304.0;
    let (sign, magnitude) = ((value.to_bits() >> 28) as u8 & 8, value.abs());
    let code = if value.is_nan() {
        return 7;
    } else if magnitude >= FP4_MAX {
        7
    } else if magnitude < 1.0 {
        (magnitude + UNIT).to_bits() - UNIT.to_bits()
    } else {
        // The exponent's bias is 1 and not 127; one bit of the fraction is left.
        let bits = magnitude.to_bits();
        (bits + 0x1f_ffff + (bits >> 22 & 1) - (126 << 23)) >> 22
    };
    sign | code as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bits_have_eight_magnitudes_and_halfway_goes_to_the_even_one() {
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0_f32];
        for (code, pair) in magnitudes.windows(2).enumerate() {
            let (code, middle) = (code as u8, f32::midpoint(pair[0], pair[1]));
            assert_eq!((to_e2m1(pair[0]), to_e2m1(-pair[0])), (code, code | 8));
            assert_eq!((to_e2m1(middle), to_e2m1(middle.next_down())), (code + code % 2, code));
            assert_eq!(to_e2m1(middle.next_up()), code + 1);
        }
        assert_eq!([6.0, 7.0, 1e30, f32::INFINITY, f32::NAN, -f32::NAN].map(to_e2m1), [7; 6]);
        assert_eq!(to_e2m1(-7.0), 15);
    }

    #[test]
    fn the_largest_magnitude_is_nan_if_one_is() {
        assert_eq!(largest_magnitude(&[1.0, -896.0, 3.0]), 896.0);
        assert_eq!(largest_magnitude(&[0.0, -0.0]).to_bits(), 0);
        assert!(largest_magnitude(&[1.0, f32::NAN, f32::INFINITY]).is_nan());
        assert!(at_least(f32::NAN, 1.0).is_nan());
    }
}
