//! The sentinel: the one word that no payload may contain.
//!
//! It is the bit pattern of `-0.0f32`. One pattern serves every dtype, so one fill serves every operation. All
//! comparisons are on bits: compared as floats, `-0.0` would equal `+0.0`, and with flush-to-zero every negative
//! subnormal too, and a poll would never end.

use wide::u32x4;

use crate::memory::Line;

/// "Nothing has arrived here yet": the bits of `-0.0f32`.
pub const SENTINEL: u32 = 0x8000_0000;

/// Words in a [`Vector`].
pub const VECTOR_WORDS: usize = 4;

/// Bytes in a [`Vector`]: the unit of every push, clear and poll.
pub const VECTOR_BYTES: usize = 16;

/// Four 32-bit words that travel together, and may arrive apart: the unit of validity is the single word.
pub type Vector = [u32; VECTOR_WORDS];

/// What a slot holds where nothing has arrived.
pub const EMPTY: Vector = [SENTINEL; VECTOR_WORDS];

/// Rewrites the one word that must not travel.
///
/// For float32 that turns `-0.0` into `+0.0`; for a pair of 16-bit values, the pair `(+0, -0)` into `(+0, +0)`. Every
/// other bit pattern, NaN payloads included, passes unchanged. A rank also scrubs its own contribution, so that all
/// ranks reduce the same bits.
#[inline(always)]
pub const fn scrub_word(word: u32) -> u32 {
    if word == SENTINEL { 0 } else { word }
}

/// [`scrub_word`] on each word of a vector.
#[inline(always)]
pub fn scrub(vector: Vector) -> Vector {
    let words = u32x4::from(vector);
    (words & !words.simd_eq(u32x4::from(EMPTY))).into()
}

/// Whether all four words have arrived. They do so in no order, so each of them is compared.
#[inline(always)]
pub fn has_arrived(vector: Vector) -> bool {
    !u32x4::from(vector).simd_eq(u32x4::from(EMPTY)).any()
}

/// Whether all words of a line have arrived.
#[inline(always)]
pub fn line_has_arrived(line: Line) -> bool {
    let [a, b, c, d] = line.map(|vector| u32x4::from(vector).simd_eq(u32x4::from(EMPTY)));
    !(a | b | c | d).any()
}
