//! torch's tensors at the cost of a function call: DLPack's exchange API
//! (<https://dmlc.github.io/dlpack/latest/c_api.html>), which torch has from 2.10 on.
//!
//! The type of a tensor carries a table of C functions. One of them describes a tensor in place, without an object or an
//! allocation. Reading the same as attributes takes a microsecond per tensor.

use std::ffi::{CStr, c_int, c_void};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

use crate::dlpack::DlTensor;

/// The version of the table's layout that this module reads.
const MAJOR_VERSION: u32 = 1;
const CAPSULE_NAME: &CStr = c"dlpack_exchange_api";

#[repr(C)]
struct Header {
    major: u32,
    minor: u32,
    previous: *mut Header,
}

/// The functions of the table. Those that are not called here keep their places.
#[repr(C)]
pub struct ExchangeApi {
    header: Header,
    managed_tensor_allocator: *const c_void,
    managed_tensor_from_object: *const c_void,
    managed_tensor_to_object: *const c_void,
    tensor_from_object: Option<unsafe extern "C" fn(*mut ffi::PyObject, *mut DlTensor) -> c_int>,
    current_work_stream: *const c_void,
}

impl ExchangeApi {
    /// The table of `tensor`'s type, if it has one that this module can read.
    pub fn of<'py>(tensor: &Bound<'py, PyAny>) -> Option<&'py Self> {
        let capsule = tensor.get_type().getattr(intern!(tensor.py(), "__dlpack_c_exchange_api__")).ok()?;
        // SAFETY: a null pointer and an exception, cleared below, if it is no capsule of that name.
        let header = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), CAPSULE_NAME.as_ptr()) }.cast::<Header>();
        if header.is_null() {
            PyErr::take(tensor.py());
            return None;
        }
        // SAFETY: the capsule's name says that it is such a table, and the standard that it lives as long as the
        // interpreter. The layout is known for the major version that is checked.
        unsafe { ((*header).major == MAJOR_VERSION).then(|| &*header.cast::<Self>()) }
    }

    /// What `tensor`, an object of the type that the table is from, is. Shape and strides are valid as long as it is.
    pub fn describe(&self, tensor: &Bound<'_, PyAny>) -> Option<DlTensor> {
        let mut description = DlTensor::default();
        // SAFETY: the table is that of the object's type, and the interpreter's lock is held.
        let status = unsafe { self.tensor_from_object?(tensor.as_ptr(), &mut description) };
        if status != 0 {
            PyErr::take(tensor.py());
            return None;
        }
        Some(description)
    }
}
