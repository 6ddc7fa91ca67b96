//! Instruction sets, chosen when an operation runs.
//!
//! The results are the same bits with each: only conversions that are defined exactly, and no fused multiply-add.

use half::f16;
use lamport_rs_protocol::memory::Line;
use lamport_rs_protocol::sentinel::Vector;

use crate::memory::vector_access::{Portable, VectorAccess};

/// Of every NaN among float16 results, as GPUs have it.
const NAN: u16 = 0x7fff;

/// What differs between instruction sets.
pub trait Processor {
    /// How slots are accessed.
    type Access: VectorAccess;

    /// Eight float16 values, widened.
    fn widen_float16(vector: Vector) -> [f32; 8];
    /// The inverse, rounding to nearest even; [`NAN`] for every NaN.
    fn narrow_float16(values: [f32; 8]) -> Vector;

    /// Writes a line of an operand past the caches, where there is a way. Nobody may look at it, this thread included,
    /// before [`Processor::finish_streaming`].
    ///
    /// # Safety
    /// `pointer` is aligned to 64, and valid for writing 64 bytes.
    #[inline(always)]
    unsafe fn stream_line(pointer: *mut u8, line: Line) {
        // SAFETY: the caller's promise.
        unsafe { pointer.cast::<Line>().write(line) };
    }

    /// Makes what was streamed visible, to this thread and others.
    #[inline(always)]
    fn finish_streaming() {}
}

/// A computation that is compiled for each instruction set.
pub trait Job {
    /// What it returns.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`, so that they are compiled for `P`.
    fn run<P: Processor>(self) -> Self::Output;
}

/// Runs `job` with the best instruction set of this processor.
pub fn dispatch<J: Job>(job: J) -> J::Output {
    #[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
    {
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c") {
            // SAFETY: the processor has the features.
            return unsafe { x86_64::with_avx2(job) };
        }
        job.run::<x86_64::Baseline>()
    }
    #[cfg(not(all(target_arch = "x86_64", not(feature = "portable"))))]
    job.run::<AnyProcessor>()
}

/// What every Rust target can do.
pub struct AnyProcessor;

impl Processor for AnyProcessor {
    type Access = Portable;

    #[inline(always)]
    fn widen_float16(vector: Vector) -> [f32; 8] {
        std::array::from_fn(|lane| f16::from_bits((vector[lane / 2] >> (16 * (lane % 2))) as u16).to_f32())
    }

    #[inline(always)]
    fn narrow_float16(values: [f32; 8]) -> Vector {
        let bits = values.map(|value| u32::from(if value.is_nan() { NAN } else { f16::from_f32(value).to_bits() }));
        std::array::from_fn(|word| bits[2 * word] | bits[2 * word + 1] << 16)
    }
}

#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
mod x86_64 {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, _MM_FROUND_TO_NEAREST_INT, _mm_and_si128, _mm_blendv_epi8, _mm_cmpgt_epi16,
        _mm_set1_epi16, _mm_sfence, _mm_stream_si128, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm256_stream_si256,
    };

    use half::f16;

    use super::{AnyProcessor, Job, Line, NAN, Processor, Vector};
    use crate::memory::vector_access::{Avx, Sse2};

    /// What every x86-64 processor can do.
    pub struct Baseline;

    impl Processor for Baseline {
        type Access = Sse2;

        #[inline(always)]
        fn widen_float16(vector: Vector) -> [f32; 8] {
            AnyProcessor::widen_float16(vector)
        }

        #[inline(always)]
        fn narrow_float16(values: [f32; 8]) -> Vector {
            AnyProcessor::narrow_float16(values)
        }

        #[inline(always)]
        unsafe fn stream_line(pointer: *mut u8, line: Line) {
            for (at, vector) in line.into_iter().enumerate() {
                // SAFETY: the caller's promise; types of equal size without invalid patterns.
                unsafe {
                    let vector = std::mem::transmute::<Vector, __m128i>(vector);
                    _mm_stream_si128(pointer.cast::<__m128i>().add(at), vector);
                }
            }
        }

        #[inline(always)]
        fn finish_streaming() {
            // SAFETY: every x86-64 processor has the instruction.
            unsafe { _mm_sfence() };
        }
    }

    /// AVX2 and F16C: every server processor since 2013.
    struct Avx2;

    impl Processor for Avx2 {
        type Access = Avx;

        #[inline(always)]
        fn widen_float16(vector: Vector) -> [f32; 8] {
            // SAFETY: plain data of equal size; `Avx2` is used by `with_avx2` only, where F16C is there.
            unsafe {
                std::mem::transmute::<__m256, [f32; 8]>(_mm256_cvtph_ps(std::mem::transmute::<Vector, __m128i>(vector)))
            }
        }

        #[inline(always)]
        fn narrow_float16(values: [f32; 8]) -> Vector {
            // SAFETY: as above.
            unsafe {
                let values = std::mem::transmute::<[f32; 8], __m256>(values);
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
                let nan = _mm_set1_epi16(NAN as i16);
                let infinity = _mm_set1_epi16(f16::INFINITY.to_bits() as i16);
                let is_nan = _mm_cmpgt_epi16(_mm_and_si128(halves, nan), infinity);
                std::mem::transmute::<__m128i, Vector>(_mm_blendv_epi8(halves, nan, is_nan))
            }
        }

        #[inline(always)]
        unsafe fn stream_line(pointer: *mut u8, line: Line) {
            // SAFETY: the caller's promise; types of equal size without invalid patterns. AVX is there, as above.
            unsafe {
                let halves = std::mem::transmute::<Line, [__m256i; 2]>(line);
                _mm256_stream_si256(pointer.cast::<__m256i>(), halves[0]);
                _mm256_stream_si256(pointer.cast::<__m256i>().add(1), halves[1]);
            }
        }

        #[inline(always)]
        fn finish_streaming() {
            Baseline::finish_streaming();
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    pub fn with_avx2<J: Job>(job: J) -> J::Output {
        job.run::<Avx2>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct RoundTrip(Vector);

    impl Job for RoundTrip {
        type Output = ([f32; 8], Vector);
        #[inline(always)]
        fn run<P: Processor>(self) -> Self::Output {
            let wide = P::widen_float16(self.0);
            (wide, P::narrow_float16(wide))
        }
    }

    #[test]
    fn the_instruction_sets_agree_on_every_float16() {
        for bits in 0..=u16::MAX {
            let vector = [u32::from(bits) | u32::from(bits.wrapping_add(1)) << 16; 4];
            let (wide, narrow) = dispatch(RoundTrip(vector));
            let portable = AnyProcessor::widen_float16(vector);
            assert_eq!(wide.map(f32::to_bits), portable.map(f32::to_bits), "{bits:#x}");
            assert_eq!(narrow, AnyProcessor::narrow_float16(portable), "{bits:#x}");
            let expected = if f16::from_bits(bits).is_nan() { NAN } else { bits };
            assert_eq!(narrow[0] as u16, expected, "{bits:#x}");
        }
    }
}
