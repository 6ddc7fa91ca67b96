//! Where an operation finds a slice.

use std::marker::PhantomData;

use lamport_rs_core::tensor::{ALIGNMENT, Device, Dtype, Tensor};

use crate::element::{Element, elements, tensor_of};

/// Where the operation finds a slice: where it is, or at an aligned place if it is not.
pub(super) struct Place<'a, T> {
    original: *mut T,
    length: usize,
    copy: Option<Vec<u128>>,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<'a, T: Copy> Place<'a, T> {
    /// To be read only.
    pub(super) fn of(slice: &'a [T]) -> Self {
        Self::at(slice.as_ptr().cast_mut(), slice.len())
    }

    /// To be read and written.
    pub(super) fn of_mut(slice: &'a mut [T]) -> Self {
        Self::at(slice.as_mut_ptr(), slice.len())
    }

    fn at(original: *mut T, length: usize) -> Self {
        let is_aligned = length == 0 || original.addr().is_multiple_of(ALIGNMENT);
        let copy = (!is_aligned).then(|| {
            let mut copy = vec![0_u128; (length * size_of::<T>()).div_ceil(size_of::<u128>())];
            // SAFETY: the slice has as many elements, and the copy room for them.
            unsafe { copy.as_mut_ptr().cast::<T>().copy_from_nonoverlapping(original, length) };
            copy
        });
        Self { original, length, copy, borrowed: PhantomData }
    }

    /// Elements of the slice.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// As an operand of this shape and dtype, all of whose elements are in the slice.
    pub(super) fn operand_of<const N: usize>(&mut self, dtype: Dtype, shape: [usize; N]) -> Tensor {
        assert!(elements(shape) <= self.length * size_of::<T>() / dtype.size(), "an operand is within its slice");
        let pointer = self.copy.as_mut().map_or(self.original, |copy| copy.as_mut_ptr().cast());
        tensor_of(pointer.cast(), dtype, Device::Cpu, shape)
    }

    /// Copies the result into the slice, if it is not there. The slice was borrowed to be written.
    pub(super) fn give_back(self) {
        if let Some(copy) = self.copy {
            // SAFETY: both have as many elements; `of_mut` borrowed the slice alone.
            unsafe { self.original.copy_from_nonoverlapping(copy.as_ptr().cast(), self.length) };
        }
    }
}

impl<T: Element> Place<'_, T> {
    /// As an operand of this shape, which has as many elements as the slice.
    pub(super) fn operand<const N: usize>(&mut self, shape: [usize; N]) -> Tensor {
        assert_eq!(elements(shape), self.length, "an operand is its slice");
        self.operand_of(T::DTYPE, shape)
    }
}
