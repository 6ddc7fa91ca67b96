//! Reading and writing operands vector by vector.

use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};

use crate::tensor::{Dtype, Tensor};

use super::element::{Element, Lanes};
use super::processor::Processor;

/// `bytes` bytes that an operation reads or writes: a tensor without gaps, or one row.
#[derive(Clone, Copy)]
pub struct Operand {
    pointer: *mut u8,
    bytes: usize,
}

impl Operand {
    /// All of a contiguous tensor.
    ///
    /// # Safety
    /// The tensor's pointer is valid for its bytes, for reading and, if it is written, for writing, while the operand
    /// is used.
    pub unsafe fn contiguous(tensor: &Tensor) -> Self {
        Self { pointer: tensor.pointer, bytes: tensor.bytes() }
    }

    /// The rows of a tensor whose rows are evenly spaced.
    ///
    /// # Safety
    /// As for [`Operand::contiguous`], for the rows.
    pub unsafe fn rows(tensor: &Tensor) -> impl Iterator<Item = Self> + use<> {
        let stride = tensor.row_stride().unwrap_or(0) * tensor.dtype.size();
        let (pointer, bytes) = (tensor.pointer, tensor.columns() * tensor.dtype.size());
        (0..tensor.rows()).map(move |row| Self { pointer: pointer.wrapping_add(row * stride), bytes })
    }

    /// Vectors it takes; the last may be partial.
    pub fn vectors(&self) -> usize {
        self.bytes.div_ceil(VECTOR_BYTES)
    }

    /// Vector `at`; zeros beyond the end.
    #[inline(always)]
    pub fn read(&self, at: usize) -> Vector {
        let offset = at * VECTOR_BYTES;
        let pointer = self.pointer.wrapping_add(offset);
        if offset + VECTOR_BYTES <= self.bytes {
            // SAFETY: within the operand; the constructor's promise.
            return unsafe { pointer.cast::<Vector>().read_unaligned() };
        }
        let mut bytes = [0_u8; VECTOR_BYTES];
        let left = self.bytes.saturating_sub(offset);
        // SAFETY: as above; `left` is below 16.
        unsafe { std::ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), left) };
        // SAFETY: plain data of equal size.
        unsafe { std::mem::transmute::<[u8; VECTOR_BYTES], Vector>(bytes) }
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
        // SAFETY: plain data of equal size.
        let bytes = unsafe { std::mem::transmute::<Vector, [u8; VECTOR_BYTES]>(vector) };
        let left = self.bytes.saturating_sub(offset);
        // SAFETY: as above; `left` is below 16.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, left) };
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
