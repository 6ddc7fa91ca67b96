//! Memory that kernels are given.

use std::cell::UnsafeCell;

/// A line of the cache, so that all memory is aligned as a device's is.
#[derive(Clone, Copy)]
#[repr(C, align(128))]
struct Line([u8; 128]);

/// Memory at a fixed address, which the machine writes while it runs and the tests read when it does not.
pub struct Memory {
    lines: Box<[UnsafeCell<Line>]>,
    bytes: usize,
}

impl Memory {
    /// `bytes` bytes, all of them `byte`.
    pub fn filled(bytes: usize, byte: u8) -> Self {
        let lines = (0..bytes.div_ceil(128)).map(|_| UnsafeCell::new(Line([byte; 128]))).collect();
        Self { lines, bytes }
    }

    pub fn of_bytes(bytes: &[u8]) -> Self {
        let memory = Self::filled(bytes.len(), 0);
        // SAFETY: as much memory as is copied, which no machine has been told of.
        unsafe { memory.pointer().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        memory
    }

    pub fn of_words(words: impl Iterator<Item = u32>) -> Self {
        Self::of_bytes(&words.flat_map(u32::to_ne_bytes).collect::<Vec<_>>())
    }

    pub fn address(&self) -> u64 {
        self.pointer() as u64
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The content. No machine runs meanwhile: it runs only within [`crate::machine::Machine::run`].
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: all of it is initialised, and nobody writes.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.bytes) }.to_vec()
    }

    pub fn words(&self) -> Vec<u32> {
        self.bytes().chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes"))).collect()
    }

    /// Writes `bytes` from byte `at` on. No machine runs meanwhile.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.bytes);
        // SAFETY: within the memory, which nobody else reads or writes now.
        unsafe { self.pointer().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn pointer(&self) -> *mut u8 {
        self.lines.as_ptr().cast_mut().cast()
    }
}
