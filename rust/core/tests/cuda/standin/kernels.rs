//! What the driver loads for a PTX text: the module with that text, compiled for the host.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use lamport_rs_kernels::{ModuleKey, modules};

use crate::compile::Sources;

/// Of the driver's devices.
const COMPUTE_CAPABILITY: (u32, u32) = (9, 0);

/// The path of the object file, which stays valid; null if this is no module's PTX.
///
/// # Safety
/// `ptx` is NUL-terminated.
pub unsafe extern "C" fn resolve(ptx: *const c_char) -> *const c_char {
    static PATHS: Mutex<Option<HashMap<ModuleKey, CString>>> = Mutex::new(None);
    // SAFETY: the caller's promise.
    let ptx = unsafe { CStr::from_ptr(ptx) };
    let Some(key) = key_of(ptx) else { return std::ptr::null() };
    let mut paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || {
        let path = Sources::of_kernels().compile(key);
        CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL")
    };
    paths.get_or_insert_default().entry(key).or_insert_with(compile).as_ptr()
}

fn key_of(ptx: &CStr) -> Option<ModuleKey> {
    let text = ptx.to_str().ok()?;
    let is_it = |key: &ModuleKey| {
        let entry = format!(".entry {}(", key.function().to_str().expect("kernels have ASCII names"));
        text.contains(&entry) && modules::ptx(*key, COMPUTE_CAPABILITY).as_deref() == Some(ptx)
    };
    ModuleKey::all().find(is_it)
}
