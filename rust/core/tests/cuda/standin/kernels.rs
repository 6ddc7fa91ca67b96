//! What the driver loads for PTX or machine code: the module that has it, compiled for the host.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use lamport_rs_kernels::{ModuleKey, modules};

use crate::compile::Sources;

/// Of the driver's devices.
const COMPUTE_CAPABILITY: (u32, u32) = (9, 0);

/// The path of the object file, which stays valid; null if this is no module's PTX or machine code.
///
/// # Safety
/// `image` has `size` bytes.
pub unsafe extern "C" fn resolve(image: *const u8, size: usize) -> *const c_char {
    static PATHS: Mutex<Option<HashMap<ModuleKey, CString>>> = Mutex::new(None);
    // SAFETY: the caller's promise.
    let image = unsafe { std::slice::from_raw_parts(image, size) };
    let Some(key) = key_of(image) else { return std::ptr::null() };
    let mut paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let compile = || {
        let path = Sources::of_kernels().compile(key);
        CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL")
    };
    paths.get_or_insert_default().entry(key).or_insert_with(compile).as_ptr()
}

fn key_of(image: &[u8]) -> Option<ModuleKey> {
    let ptx = CStr::from_bytes_with_nul(image).ok();
    let is_it = |key: &ModuleKey| {
        contains(image, key.function().to_bytes())
            && match ptx {
                Some(ptx) => modules::ptx(*key, COMPUTE_CAPABILITY).as_deref() == Some(ptx),
                None => modules::machine_code(*key, COMPUTE_CAPABILITY).as_deref() == Some(image),
            }
    };
    ModuleKey::all().find(is_it)
}

fn contains(image: &[u8], text: &[u8]) -> bool {
    image.windows(text.len()).any(|window| window == text)
}
