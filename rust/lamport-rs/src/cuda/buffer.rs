//! What operations take.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

mod sealed {
    pub trait Sealed {}
}
use sealed::Sealed;

/// Device memory that is read: [`CudaSlice`], [`CudaView`] or [`CudaViewMut`].
pub trait Buffer<T>: DevicePtr<T> + Sealed {}

/// Device memory that is written: [`CudaSlice`] or [`CudaViewMut`].
pub trait BufferMut<T>: DevicePtrMut<T> + Sealed {}

impl<T> Sealed for CudaSlice<T> {}
impl<T> Sealed for CudaView<'_, T> {}
impl<T> Sealed for CudaViewMut<'_, T> {}
impl<T> Buffer<T> for CudaSlice<T> {}
impl<T> Buffer<T> for CudaView<'_, T> {}
impl<T> Buffer<T> for CudaViewMut<'_, T> {}
impl<T> BufferMut<T> for CudaSlice<T> {}
impl<T> BufferMut<T> for CudaViewMut<'_, T> {}
