//! Reading and writing operands vector by vector.

use lamport_rs_protocol::memory::{LINE_BYTES, LINE_VECTORS, Line};
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};

use crate::tensor::{Dtype, Tensor};

use super::element::{Element, Lanes};
use super::processor::Processor;

/// `bytes` bytes that an operation reads or writes: a tensor without gaps, or one row.
#[derive(Clone, Copy)]
pub struct Operand {
    pointer: *mut u8,
    bytes: usize,
    /// Whether whole lines are written past the caches.
    streamed: bool,
}

/// Least bytes of an output that is streamed: more than stays in a second-level cache anyway.
const STREAMED_BYTES: usize = 4 << 20;

impl Operand {
    /// All of a contiguous tensor.
    ///
    /// # Safety
    /// The tensor's pointer is valid for its bytes, for reading and, if it is written, for writing, while the operand
    /// is used.
    pub unsafe fn contiguous(tensor: &Tensor) -> Self {
        Self { pointer: tensor.pointer, bytes: tensor.bytes(), streamed: false }
    }

    /// A contiguous tensor that is only written. A large one goes to memory past the caches: each of its lines would
    /// otherwise be read before it is written. [`Operand::finish`] must follow the last write.
    ///
    /// # Safety
    /// As for [`Operand::contiguous`].
    pub unsafe fn streamed(tensor: &Tensor) -> Self {
        // SAFETY: the caller's promise.
        let operand = unsafe { Self::contiguous(tensor) };
        let aligned = (operand.pointer as usize).is_multiple_of(LINE_BYTES);
        Self { streamed: aligned && operand.bytes >= STREAMED_BYTES, ..operand }
    }

    /// Makes what was written visible, to this thread and others.
    pub fn finish<P: Processor>(&self) {
        if self.streamed {
            P::finish_streaming();
        }
    }

    /// The rows of a tensor whose rows are evenly spaced.
    ///
    /// # Safety
    /// As for [`Operand::contiguous`], for the rows.
    pub unsafe fn rows(tensor: &Tensor) -> impl Iterator<Item = Self> + use<> {
        let stride = tensor.row_stride().unwrap_or(0) * tensor.dtype.size();
        let (pointer, bytes) = (tensor.pointer, tensor.columns() * tensor.dtype.size());
        (0..tensor.rows()).map(move |row| Self { pointer: pointer.wrapping_add(row * stride), bytes, streamed: false })
    }

    /// Vectors it takes; the last may be partial.
    pub fn vectors(&self) -> usize {
        self.bytes.div_ceil(VECTOR_BYTES)
    }

    /// Vector `at`; zeros beyond the end.
    #[inline(always)]
    pub fn read(&self, at: usize) -> Vector {
        let offset = at * VECTOR_BYTES;
        if offset + VECTOR_BYTES <= self.bytes {
            // SAFETY: within the operand; the constructor's promise.
            return unsafe { self.pointer.wrapping_add(offset).cast::<Vector>().read_unaligned() };
        }
        let mut bytes = [0_u8; VECTOR_BYTES];
        self.read_end(offset, &mut bytes);
        // SAFETY: plain data of equal size.
        unsafe { std::mem::transmute::<[u8; VECTOR_BYTES], Vector>(bytes) }
    }

    /// The line from vector `at` on; zeros beyond the end.
    #[inline(always)]
    pub fn read_line(&self, at: usize) -> Line {
        let offset = at * VECTOR_BYTES;
        if offset + LINE_BYTES <= self.bytes {
            // SAFETY: as in `read`.
            return unsafe { self.pointer.wrapping_add(offset).cast::<Line>().read_unaligned() };
        }
        let mut bytes = [0_u8; LINE_BYTES];
        self.read_end(offset, &mut bytes);
        // SAFETY: as in `read`.
        unsafe { std::mem::transmute::<[u8; LINE_BYTES], Line>(bytes) }
    }

    /// Reads what is left from `offset` on. Out of line: it would cost the loops over whole vectors their registers.
    #[cold]
    #[inline(never)]
    fn read_end(&self, offset: usize, bytes: &mut [u8]) {
        let left = self.bytes.saturating_sub(offset);
        let from = self.pointer.wrapping_add(offset);
        // SAFETY: within the operand, as the constructor's caller promised.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes[..left].as_mut_ptr(), left) };
    }

    /// Writes vector `at`, or what of it is within the operand.
    #[inline(always)]
    pub fn write(&self, at: usize, vector: Vector) {
        let offset = at * VECTOR_BYTES;
        let pointer = self.pointer.wrapping_add(offset);
        if offset + VECTOR_BYTES <= self.bytes {
            // SAFETY: within the operand; the constructor's promise.
            unsafe { pointer.cast::<Vector>().write_unaligned(vector) };
            return;
        }
        self.write_end(offset, vector);
    }

    /// Writes the line from vector `at` on, or what of it is within the operand.
    #[inline(always)]
    pub fn write_line<P: Processor>(&self, at: usize, line: Line) {
        let offset = at * VECTOR_BYTES;
        if offset + LINE_BYTES > self.bytes {
            (at..).zip(line).for_each(|(at, vector)| self.write_end(at * VECTOR_BYTES, vector));
            return;
        }
        let pointer = self.pointer.wrapping_add(offset);
        if self.streamed && at.is_multiple_of(LINE_VECTORS) {
            // SAFETY: within the operand, whose start and whose lines are aligned.
            unsafe { P::stream_line(pointer, line) };
        } else {
            // SAFETY: as in `write`.
            unsafe { pointer.cast::<Line>().write_unaligned(line) };
        }
    }

    /// Writes `element` over all of it, of which a vector has a whole number: a vector at a time, since whoever interrupts
    /// an operation on a large tensor waits for this.
    pub fn fill(&self, element: &[u8]) {
        let mut bytes = [0_u8; VECTOR_BYTES];
        bytes.chunks_exact_mut(element.len()).for_each(|place| place.copy_from_slice(element));
        // SAFETY: plain data of equal size.
        let vector = unsafe { std::mem::transmute::<[u8; VECTOR_BYTES], Vector>(bytes) };
        (0..self.vectors()).for_each(|at| self.write(at, vector));
    }

    /// Writes what of `vector` is within the operand.
    #[cold]
    #[inline(never)]
    fn write_end(&self, offset: usize, vector: Vector) {
        // SAFETY: plain data of equal size.
        let bytes = unsafe { std::mem::transmute::<Vector, [u8; VECTOR_BYTES]>(vector) };
        let left = self.bytes.saturating_sub(offset).min(VECTOR_BYTES);
        // SAFETY: as in `read_end`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer.wrapping_add(offset), left) };
    }
}

/// A norm's weight, in the elements' dtype or in float32.
#[derive(Clone, Copy)]
pub struct Weight {
    values: Operand,
    dtype: Dtype,
}

impl Weight {
    /// The weight in `tensor`.
    ///
    /// # Safety
    /// As for [`Operand::contiguous`].
    pub unsafe fn new(tensor: &Tensor) -> Self {
        // SAFETY: the caller's promise.
        Self { values: unsafe { Operand::contiguous(tensor) }, dtype: tensor.dtype }
    }

    /// The factors of vector `at` of a row of `E`.
    #[inline(always)]
    pub fn lanes<E: Element, P: Processor>(&self, at: usize) -> E::Lanes {
        if self.dtype != Dtype::Float32 {
            return E::widen::<P>(self.values.read(at));
        }
        // One vector of 16-bit elements takes two of float32.
        let per_vector = E::Lanes::COUNT / 4;
        let mut values = [0.0_f32; 8];
        for part in 0..per_vector {
            let vector = self.values.read(at * per_vector + part);
            values[4 * part..4 * part + 4].copy_from_slice(&vector.map(f32::from_bits));
        }
        E::arrange(&values)
    }
}
