//! The 16-byte accesses to slots: the only place where memory that other processes write is read or written.
//!
//! On x86-64 they are one instruction each, written in assembly, because Rust's memory model has no vector access that
//! may race. The processor's promise is stronger than what the protocol asks: an aligned 4-byte part of such an access
//! is never torn, loads are not reordered with loads, nor stores with stores. Elsewhere, and where a race detector or
//! model checker has to see the accesses (feature `portable`), they are four relaxed atomics.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use lamport_rs_protocol::sentinel::{VECTOR_WORDS, Vector};

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

/// One SSE2 instruction.
#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
pub struct Sse2;

/// One AVX instruction: the same access in the encoding that code compiled for AVX must not mix with SSE2's.
#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
pub struct Avx;

#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::__m128i;

    use super::{Avx, Sse2, Vector, VectorAccess};

    const CACHE_LINE: usize = 64;
    /// Slots are written in ascending order, to lines that another processor has: asking for them this many bytes early
    /// made large all-reduces a tenth faster.
    const AHEAD: usize = 1024;

    macro_rules! vector_access {
        ($access:ty, $move:literal) => {
            impl VectorAccess for $access {
                #[inline(always)]
                unsafe fn load(pointer: *const u8) -> Vector {
                    let vector: __m128i;
                    // SAFETY: the caller's promise of 16 valid, aligned bytes.
                    unsafe {
                        asm!(concat!($move, " {vector}, [{pointer}]"), pointer = in(reg) pointer,
                             vector = out(xmm_reg) vector, options(nostack, preserves_flags, readonly));
                    }
                    // SAFETY: both types are 16 bytes without invalid patterns.
                    unsafe { std::mem::transmute::<__m128i, Vector>(vector) }
                }

                #[inline(always)]
                unsafe fn store(pointer: *mut u8, vector: Vector) {
                    if (pointer as usize).is_multiple_of(CACHE_LINE) {
                        // SAFETY: a prefetch has no effect on memory, and none at all where nothing is mapped.
                        unsafe {
                            asm!("prefetchw [{pointer} + {AHEAD}]", pointer = in(reg) pointer, AHEAD = const AHEAD,
                                 options(nostack, preserves_flags));
                        }
                    }
                    // SAFETY: both types are 16 bytes without invalid patterns.
                    let vector = unsafe { std::mem::transmute::<Vector, __m128i>(vector) };
                    // SAFETY: the caller's promise of 16 valid, aligned bytes.
                    unsafe {
                        asm!(concat!($move, " [{pointer}], {vector}"), pointer = in(reg) pointer,
                             vector = in(xmm_reg) vector, options(nostack, preserves_flags));
                    }
                }
            }
        };
    }

    vector_access!(Sse2, "movdqa");
    vector_access!(Avx, "vmovdqa");
}
