//! What values become that share a scale, from the formats' definitions, and the numbers that these consist of.

use lamport_rs_kernels::Sink;

use super::rows::RowQuantiser;
use crate::operations::host::element::bits_of;

/// The largest value of FP8 e4m3.
const FP8_MAX: f32 = 448.0;
/// The least scale of a row: rows of zeros have it.
const LEAST_ROW_SCALE: f32 = 1.0 / (FP8_MAX * 512.0);
/// Groups of smaller values have the scale of this one.
const LEAST_OF_GROUP: f32 = 1e-10;
/// No power of two is less, before it is rounded, that is the scale of a group.
const LEAST_UE8M0_OF_GROUP: f32 = 1e-10;
/// UE8M0's NaN.
const UE8M0_NAN: u32 = 255;
/// The largest value of FP4 e2m1.
const FP4_MAX: f32 = 6.0;

impl RowQuantiser {
    /// Stores what the columns become that share scale `index`, or that of the tensor.
    pub(super) fn put(&self, row: usize, index: usize, values: &[f32]) {
        let largest = largest_magnitude(values);
        let first = row * self.values.len() + index * values.len();
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

    /// FP8 e4m3, divided by `scale`.
    fn put_with_scale(&self, row: usize, index: usize, values: &[f32], scale: f32) {
        self.put_scale(row, index, &bits_of(scale).to_ne_bytes());
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
        let pairs = values.chunks_exact(2).map(|pair| to_e2m1(pair[0] * factor) | to_e2m1(pair[1] * factor) << 4);
        self.put_codes(first, pairs);
    }

    /// Values from `first` on, as `scaled` makes them.
    fn put_fp8(&self, first: usize, values: &[f32], scaled: impl Fn(f32) -> f32) {
        self.put_codes(first, values.iter().map(|&value| to_e4m3(scaled(value))));
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

/// What a code stands for.
fn from_e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * f32::powi(2.0, exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The least power of two that is not below `value`, which is not negative, as the exponent 2^(byte - 127). What is beyond
/// the largest becomes NaN, as NaN does.
fn to_ue8m0(value: f32) -> u8 {
    // The least of all, 2^-127.
    const LEAST: u32 = 0x40_0000;
    let bits = value.to_bits();
    let exponent = if bits <= LEAST { 0 } else { (bits + 0x7f_ffff) >> 23 };
    exponent.min(UE8M0_NAN) as u8
}

/// The reciprocal of a power of two up to 2^126; NaN for NaN.
fn reciprocal_of_ue8m0(byte: u8) -> f32 {
    if u32::from(byte) == UE8M0_NAN { f32::NAN } else { f32::from_bits((254 - u32::from(byte)) << 23) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn powers_of_two_are_their_own_and_what_lies_between_goes_up() {
        for exponent in -126..127_i32 {
            let (power, byte) = (f32::powi(2.0, exponent), (exponent + 127) as u8);
            assert_eq!((to_ue8m0(power), to_ue8m0(power * 1.5), to_ue8m0(power.next_up())), (byte, byte + 1, byte + 1));
            assert_eq!(reciprocal_of_ue8m0(byte) * power, 1.0);
        }
        let least = f32::from_bits(0x40_0000);
        assert_eq!((to_ue8m0(0.0), to_ue8m0(least), to_ue8m0(least.next_up())), (0, 0, 1));
        assert_eq!([f32::NAN, f32::INFINITY, f32::MAX].map(to_ue8m0), [255; 3]);
        assert!(reciprocal_of_ue8m0(255).is_nan());
    }

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
