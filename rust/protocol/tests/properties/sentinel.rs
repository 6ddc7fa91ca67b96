//! Scrubbing and arrival.

use lamport_rs_protocol::sentinel::{EMPTY, SENTINEL, VECTOR_WORDS, Vector, has_arrived, scrub, scrub_word};
use proptest::prelude::*;

/// All 32-bit words, which are also all pairs of 16-bit values. A word that passes unchanged and is not the sentinel does
/// not become it either.
#[test]
fn scrubbing_changes_the_sentinel_alone_and_never_yields_it() {
    let vectors =
        |high: u16| (0..1 << 16).step_by(4).map(move |low| [0, 1, 2, 3].map(|at| u32::from(high) << 16 | low | at));
    let changes = |vector: Vector, scrubbed: Vector| -> Vector { std::array::from_fn(|at| vector[at] ^ scrubbed[at]) };
    for high in (0..=u16::MAX).filter(|&high| high != 0x8000) {
        // Gathered and not asserted one by one: so all words take seconds.
        let gather = |gathered: Vector, vector| {
            let changed = changes(vector, scrub(vector));
            std::array::from_fn(|at| gathered[at] | changed[at])
        };
        assert_eq!(vectors(high).fold([0; 4], gather), [0; 4], "some word {high:#06x}____ changes");
    }
    let (first, rest) = (scrub([SENTINEL, SENTINEL | 1, SENTINEL | 2, SENTINEL | 3]), vectors(0x8000).skip(1));
    assert_eq!(first, [0, SENTINEL | 1, SENTINEL | 2, SENTINEL | 3]);
    rest.for_each(|vector| assert_eq!(scrub(vector), vector));
}

proptest! {
    #[test]
    fn a_vector_is_scrubbed_word_by_word(words: [u32; VECTOR_WORDS], sentinels in 0..1_u32 << VECTOR_WORDS) {
        let vector = std::array::from_fn(|at| if sentinels & (1 << at) != 0 { SENTINEL } else { words[at] });
        prop_assert_eq!(scrub(vector), vector.map(scrub_word));
    }
}

#[test]
fn the_sentinel_is_negative_zero_in_bits() {
    assert_eq!(SENTINEL, (-0.0_f32).to_bits());
    assert_eq!(EMPTY, [SENTINEL; VECTOR_WORDS]);
}

#[test]
fn scrubbing_makes_negative_zero_positive_in_float32() {
    assert_eq!(f32::from_bits(scrub_word((-0.0_f32).to_bits())).to_bits(), 0.0_f32.to_bits());
}

#[test]
fn scrubbing_keeps_float32_values_that_only_resemble_negative_zero() {
    let survivors = [
        ("+0", 0.0_f32.to_bits()),
        ("infinity", f32::INFINITY.to_bits()),
        ("-infinity", f32::NEG_INFINITY.to_bits()),
        ("quiet NaN with payload", 0x7fc1_2345),
        ("negative quiet NaN with payload", 0xffc1_2345),
        ("signalling NaN", 0x7f80_0001),
        ("negative signalling NaN", 0xff80_0001),
        ("smallest subnormal", 0x0000_0001),
        ("smallest negative subnormal", 0x8000_0001),
        ("largest negative subnormal", 0x807f_ffff),
        ("smallest negative normal", 0x8080_0000),
    ];
    for (name, bits) in survivors {
        assert_eq!(scrub_word(bits), bits, "{name}");
    }
}

/// Bit patterns of bfloat16 and float16, the low half being the first of the pair.
#[test]
fn scrubbing_keeps_16_bit_pairs_but_the_one_of_positive_and_negative_zero() {
    const ZERO: u16 = 0;
    const NEGATIVE_ZERO: u16 = 0x8000;
    let values = [
        ("+0", ZERO),
        ("-0", NEGATIVE_ZERO),
        ("smallest subnormal", 0x0001),
        ("smallest negative subnormal", 0x8001),
        ("bfloat16 infinity", 0x7f80),
        ("bfloat16 -infinity", 0xff80),
        ("bfloat16 NaN with payload", 0x7fc3),
        ("bfloat16 negative NaN with payload", 0xffc3),
        ("float16 infinity", 0x7c00),
        ("float16 -infinity", 0xfc00),
        ("float16 NaN with payload", 0x7e05),
        ("float16 negative NaN with payload", 0xfe05),
    ];
    let pair = |first: u16, second: u16| u32::from(second) << 16 | u32::from(first);
    for (first_name, first) in values {
        for (second_name, second) in values {
            let sent = pair(first, second);
            let arrives = if (first, second) == (ZERO, NEGATIVE_ZERO) { pair(ZERO, ZERO) } else { sent };
            assert_eq!(scrub_word(sent), arrives, "({first_name}, {second_name})");
        }
    }
}

#[test]
fn a_vector_has_arrived_when_none_of_its_words_is_the_sentinel() {
    for missing in 0..1_u32 << VECTOR_WORDS {
        // Words that differ from the sentinel in one bit, so that a comparison of anything less than all bits shows.
        for bit in 0..32 {
            let vector: [u32; VECTOR_WORDS] =
                std::array::from_fn(|word| if missing & (1 << word) != 0 { SENTINEL } else { SENTINEL ^ (1 << bit) });
            assert_eq!(has_arrived(vector), missing == 0, "{vector:08x?}");
            assert!(has_arrived(scrub(vector)), "{vector:08x?}, scrubbed");
        }
    }
}
