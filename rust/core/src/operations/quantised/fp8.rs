//! The numbers of eight bits that quantised rows and their scales consist of.

/// The largest value of FP8 e4m3.
pub const FP8_MAX: f32 = 448.0;
/// UE8M0's NaN.
const UE8M0_NAN: u32 = 255;

/// The nearest FP8 e4m3, of two the even one; beyond the largest, that. A NaN becomes the positive one.
pub fn to_e4m3(value: f32) -> u8 {
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
pub fn from_e4m3(code: u8) -> f32 {
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
pub fn to_ue8m0(value: f32) -> u8 {
    // The least of all, 2^-127.
    const LEAST: u32 = 0x40_0000;
    let bits = value.to_bits();
    let exponent = if bits <= LEAST { 0 } else { (bits + 0x7f_ffff) >> 23 };
    exponent.min(UE8M0_NAN) as u8
}

/// The reciprocal of a power of two up to 2^126; NaN for NaN.
pub fn reciprocal_of_ue8m0(byte: u8) -> f32 {
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
}
