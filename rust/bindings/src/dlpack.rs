//! Handing memory to torch without a copy: the DLPack protocol (<https://dmlc.github.io/dlpack/latest/c_api.html>).

use std::ffi::{CStr, c_void};

use pyo3::ffi;
use pyo3::prelude::*;

use crate::backend::AnyWorkspace;

/// `kDLCPU` of DLPack's device types.
pub const CPU: i32 = 1;
/// `kDLCUDA` of DLPack's device types.
pub const CUDA: i32 = 2;
/// `kDLCUDAHost`: pinned host memory.
pub const CUDA_HOST: i32 = 3;
/// `kDLInt` of DLPack's element types.
pub const INT: u8 = 0;
/// `kDLFloat` of DLPack's element types.
pub const FLOAT: u8 = 2;
/// `kDLBfloat` of DLPack's element types.
pub const BFLOAT: u8 = 4;
const NAME: &CStr = c"dltensor";

/// `DLTensor`.
#[repr(C)]
pub struct DlTensor {
    /// The elements, before `byte_offset` is added.
    pub data: *mut c_void,
    /// One of the device types.
    pub device_type: i32,
    /// Which device of the type.
    pub device_id: i32,
    /// Number of dimensions.
    pub dimensions: i32,
    /// One of the element types.
    pub type_code: u8,
    /// Bits per element.
    pub type_bits: u8,
    /// Elements per element: 1.
    pub type_lanes: u16,
    /// Sizes.
    pub shape: *mut i64,
    /// Strides in elements, or null if the elements lie side by side.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

impl Default for DlTensor {
    fn default() -> Self {
        Self {
            data: std::ptr::null_mut(),
            device_type: CPU,
            device_id: 0,
            dimensions: 0,
            type_code: INT,
            type_bits: 64,
            type_lanes: 1,
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            byte_offset: 0,
        }
    }
}

#[repr(C)]
struct DlManagedTensor {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DlManagedTensor)>,
}

/// A tensor on its way, with what it needs to stay valid.
struct Export {
    managed: DlManagedTensor,
    shape: [i64; 1],
    /// Keeps the elements alive for as long as the consumer's tensor is.
    _owner: AnyWorkspace,
}

/// A capsule with a one-dimensional int64 tensor of `length` elements at `pointer`, which `owner` keeps valid.
pub fn capsule(
    py: Python<'_>,
    pointer: *mut c_void,
    length: usize,
    (device_type, device_id): (i32, i32),
    owner: AnyWorkspace,
) -> PyResult<Bound<'_, PyAny>> {
    let tensor = DlTensor { data: pointer, device_type, device_id, dimensions: 1, ..DlTensor::default() };
    let managed = DlManagedTensor { tensor, context: std::ptr::null_mut(), deleter: Some(delete) };
    let export = Box::into_raw(Box::new(Export { managed, shape: [length as i64], _owner: owner }));
    // SAFETY: `export` is a valid allocation that nobody else knows of yet; its fields are at stable addresses.
    let managed = unsafe {
        (*export).managed.tensor.shape = (*export).shape.as_mut_ptr();
        (*export).managed.context = export.cast();
        &raw mut (*export).managed
    };
    // SAFETY: the interpreter's lock is held (`py`), and the name is static. The capsule's destructor, or the consumer
    // that renames the capsule, calls the deleter once.
    let capsule = unsafe { ffi::PyCapsule_New(managed.cast(), NAME.as_ptr(), Some(destroy)) };
    if capsule.is_null() {
        // SAFETY: no capsule came to own the allocation.
        unsafe { delete(managed) };
    }
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }
}

/// Called by the consumer when its tensor is gone.
unsafe extern "C" fn delete(managed: *mut DlManagedTensor) {
    // SAFETY: `context` is the `Export` that `capsule` leaked, and DLPack calls the deleter once.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Export>()) });
}

/// Called when the capsule is gone. A capsule that was consumed has another name by then.
unsafe extern "C" fn destroy(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter passes a valid capsule, and holds its lock.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) == 1 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}
