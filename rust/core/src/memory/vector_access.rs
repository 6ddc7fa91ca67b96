//! The accesses to slots: the only place where memory that other processes write is read or written.
//!
//! On x86-64 they are written in assembly, because Rust's memory model has no vector access that may race. A vector is
//! one instruction of 16 bytes; a line is two of 32, or four of 16. The processor's promise is stronger than what the
//! protocol asks: an aligned 4-byte part of such an access is never torn, loads are not reordered with loads, nor stores
//! with stores. (A processor may do 32 bytes as two times 16: the protocol asks for no order among words.) Elsewhere, and
//! where a race detector or model checker has to see the accesses (feature `portable`), they are relaxed atomics.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use lamport_rs_protocol::memory::Line;
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, VECTOR_WORDS, Vector};

/// How to load and store a vector that other ranks access at the same time.
pub trait VectorAccess {
    /// Loads four words, each whole.
    ///
    /// # Safety
    /// `pointer` is aligned to 16 and valid for 16 bytes, which are otherwise accessed through this trait only.
    unsafe fn load(pointer: *const u8) -> Vector;

    /// Stores four words, each whole.
    ///
    /// # Safety
    /// As for [`VectorAccess::load`].
    unsafe fn store(pointer: *mut u8, vector: Vector);

    /// Loads a line.
    ///
    /// # Safety
    /// As for [`VectorAccess::load`], with 64 in the place of 16.
    #[inline(always)]
    unsafe fn load_line(pointer: *const u8) -> Line {
        // SAFETY: the caller's promise.
        std::array::from_fn(|vector| unsafe { Self::load(pointer.add(vector * VECTOR_BYTES)) })
    }

    /// Stores a line.
    ///
    /// # Safety
    /// As for [`VectorAccess::load_line`].
    #[inline(always)]
    unsafe fn store_line(pointer: *mut u8, line: Line) {
        for (index, vector) in line.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { Self::store(pointer.add(index * VECTOR_BYTES), vector) };
        }
    }
}

/// Four relaxed atomics.
pub struct Portable;

impl VectorAccess for Portable {
    #[inline(always)]
    unsafe fn load(pointer: *const u8) -> Vector {
        // SAFETY: the caller's promise; `AtomicU32` has the layout of `u32`, and all accesses to these words are atomic.
        let words = unsafe { &*pointer.cast::<[AtomicU32; VECTOR_WORDS]>() };
        [words[0].load(Relaxed), words[1].load(Relaxed), words[2].load(Relaxed), words[3].load(Relaxed)]
    }

    #[inline(always)]
    unsafe fn store(pointer: *mut u8, vector: Vector) {
        // SAFETY: as in `load`.
        let words = unsafe { &*pointer.cast::<[AtomicU32; VECTOR_WORDS]>() };
        for (word, value) in words.iter().zip(vector) {
            word.store(value, Relaxed);
        }
    }
}

/// SSE2's instructions.
#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
pub struct Sse2;

/// AVX's instructions: for lines the wider ones, for vectors the same in the encoding that code compiled for AVX must
/// not mix with SSE2's.
#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
pub struct Avx;

#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::{__m128i, __m256i};

    use lamport_rs_protocol::memory::{LINE_BYTES, Line};

    use super::{Avx, Sse2, VECTOR_BYTES, Vector, VectorAccess};

    const HALF_LINE: usize = LINE_BYTES / 2;
    /// Slots are written in ascending order, to lines that another processor has: asking for them this many bytes early
    /// made large all-reduces a tenth faster.
    const AHEAD: usize = 1024;

    /// Asks for the line that will soon be stored to.
    #[inline(always)]
    fn ask_for_line(pointer: *mut u8) {
        // SAFETY: a prefetch has no effect on memory, and none at all where nothing is mapped.
        unsafe {
            asm!("prefetchw [{pointer} + {AHEAD}]", pointer = in(reg) pointer, AHEAD = const AHEAD,
                 options(nostack, preserves_flags));
        }
    }

    macro_rules! load {
        ($move:literal, $class:ident, $type:ty, $pointer:expr) => {{
            let value: $type;
            // SAFETY: the caller's promise of valid, aligned bytes.
            unsafe {
                asm!(concat!($move, " {value}, [{pointer}]"), pointer = in(reg) $pointer, value = out($class) value,
                     options(nostack, preserves_flags, readonly));
            }
            value
        }};
    }

    macro_rules! store {
        ($move:literal, $class:ident, $pointer:expr, $value:expr) => {
            // SAFETY: the caller's promise of valid, aligned bytes.
            unsafe {
                asm!(concat!($move, " [{pointer}], {value}"), pointer = in(reg) $pointer, value = in($class) $value,
                     options(nostack, preserves_flags));
            }
        };
    }

    impl VectorAccess for Sse2 {
        #[inline(always)]
        unsafe fn load(pointer: *const u8) -> Vector {
            let vector = load!("movdqa", xmm_reg, __m128i, pointer);
            // SAFETY: both types are 16 bytes without invalid patterns.
            unsafe { std::mem::transmute::<__m128i, Vector>(vector) }
        }

        #[inline(always)]
        unsafe fn store(pointer: *mut u8, vector: Vector) {
            // SAFETY: as in `load`.
            let vector = unsafe { std::mem::transmute::<Vector, __m128i>(vector) };
            store!("movdqa", xmm_reg, pointer, vector);
        }

        #[inline(always)]
        unsafe fn store_line(pointer: *mut u8, line: Line) {
            ask_for_line(pointer);
            for (index, vector) in line.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { Self::store(pointer.add(index * VECTOR_BYTES), vector) };
            }
        }
    }

    impl VectorAccess for Avx {
        #[inline(always)]
        unsafe fn load(pointer: *const u8) -> Vector {
            let vector = load!("vmovdqa", xmm_reg, __m128i, pointer);
            // SAFETY: both types are 16 bytes without invalid patterns.
            unsafe { std::mem::transmute::<__m128i, Vector>(vector) }
        }

        #[inline(always)]
        unsafe fn store(pointer: *mut u8, vector: Vector) {
            // SAFETY: as in `load`.
            let vector = unsafe { std::mem::transmute::<Vector, __m128i>(vector) };
            store!("vmovdqa", xmm_reg, pointer, vector);
        }

        #[inline(always)]
        unsafe fn load_line(pointer: *const u8) -> Line {
            // SAFETY: the caller's promise; types of equal size without invalid patterns.
            unsafe {
                std::mem::transmute::<[__m256i; 2], Line>([load_half(pointer), load_half(pointer.add(HALF_LINE))])
            }
        }

        #[inline(always)]
        unsafe fn store_line(pointer: *mut u8, line: Line) {
            ask_for_line(pointer);
            // SAFETY: as in `load_line`.
            unsafe {
                let [low, high] = std::mem::transmute::<Line, [__m256i; 2]>(line);
                store_half(pointer, low);
                store_half(pointer.add(HALF_LINE), high);
            }
        }
    }

    /// Loads half a line.
    ///
    /// # Safety
    /// The processor has AVX; otherwise as for [`VectorAccess::load`], with 32 in the place of 16.
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn load_half(pointer: *const u8) -> __m256i {
        load!("vmovdqa", ymm_reg, __m256i, pointer)
    }

    /// Stores half a line.
    ///
    /// # Safety
    /// As for [`load_half`].
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn store_half(pointer: *mut u8, half: __m256i) {
        store!("vmovdqa", ymm_reg, pointer, half);
    }
}
