//! torch's tensors at the cost of a function call: DLPack's exchange API
//! (<https://dmlc.github.io/dlpack/latest/c_api.html>), which torch has from 2.10 on.
//!
//! The type of a tensor carries a table of C functions. One of them describes a tensor in place, without an object or an
//! allocation. Reading the same as attributes takes a microsecond per tensor.

use std::ffi::{CStr, c_int, c_void};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::dlpack::{self, DlTensor};

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
    current_work_stream: Option<unsafe extern "C" fn(c_int, i32, *mut *mut c_void) -> c_int>,
}

// SAFETY: the table is constant, and its functions may be called wherever the interpreter's lock is held.
unsafe impl Sync for ExchangeApi {}

/// `torch.Tensor` and its table, looked up once: `None` where torch has none that this module can read.
static TORCH: PyOnceLock<Option<(Py<PyType>, &'static ExchangeApi)>> = PyOnceLock::new();

impl ExchangeApi {
    fn torch(py: Python<'_>) -> Option<&'static (Py<PyType>, &'static Self)> {
        let look_up = || {
            let kind = py.import("torch")?.getattr("Tensor")?.cast_into::<PyType>()?;
            let table = Self::find(&kind);
            Ok::<_, PyErr>(table.map(|table| (kind.unbind(), table)))
        };
        TORCH.get_or_try_init(py, look_up).ok()?.as_ref()
    }

    /// The table of `tensor`'s type, if it is torch's.
    pub fn of(tensor: &Bound<'_, PyAny>) -> Option<&'static Self> {
        let (torch, table) = Self::torch(tensor.py())?;
        let kind = tensor.get_type();
        (kind.is(torch) || kind.is_subclass(torch.bind(tensor.py())).unwrap_or(false)).then_some(table)
    }

    fn find(kind: &Bound<'_, PyType>) -> Option<&'static Self> {
        let capsule = kind.getattr(intern!(kind.py(), "__dlpack_c_exchange_api__")).ok()?;
        // SAFETY: a null pointer and an exception, cleared below, if it is no capsule of that name.
        let header = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), CAPSULE_NAME.as_ptr()) }.cast::<Header>();
        if header.is_null() {
            PyErr::take(kind.py());
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

    /// torch's current stream of CUDA device `index`, as a driver's handle, if torch has the table.
    pub fn current_stream(py: Python<'_>, index: usize) -> Option<*mut c_void> {
        let (_, table) = Self::torch(py)?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the interpreter's lock is held, and the stream is written where this says.
        let status = unsafe { table.current_work_stream?(dlpack::CUDA, i32::try_from(index).ok()?, &mut stream) };
        if status != 0 {
            PyErr::take(py);
            return None;
        }
        Some(stream)
    }
}
