//! Whether there is a driver, and what its errors say.

use std::sync::OnceLock;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;
use libloading::Library;

use crate::error::{Error, Result};
use crate::limits::no_descriptors;

/// `cuStreamGetCaptureInfo_v2`, which all drivers have, but of cudarc's bindings those for CUDA 12 alone.
type StreamCaptureInfo = unsafe extern "C" fn(
    sys::CUstream,
    *mut sys::CUstreamCaptureStatus,
    *mut u64,
    *mut sys::CUgraph,
    *mut *const sys::CUgraphNode,
    *mut usize,
) -> sys::CUresult;

/// The driver, once it is initialised.
#[derive(Debug)]
struct Driver {
    stream_capture_info: StreamCaptureInfo,
    /// What has the function.
    _library: Library,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Initialises the driver, or says why there is none. Cheap once that succeeded; what failed may succeed the next time.
pub fn initialise() -> Result<()> {
    if DRIVER.get().is_some() {
        return Ok(());
    }
    // cudarc's loader panics where there is no library, or no such function in it.
    let library = open().ok_or_else(|| {
        Error::NoCuda(match no_descriptors() {
            Some(reason) => format!("the driver's library, libcuda.so.1, cannot be opened: {reason}"),
            None => "the driver's library, libcuda.so.1, is not on this machine".to_owned(),
        })
    })?;
    check_functions(&library)?;
    cudarc::driver::result::init().map_err(|error| Error::NoCuda(error_of("cuInit", error).to_string()))?;
    // SAFETY: this is the function's type.
    let function = unsafe { library.get::<StreamCaptureInfo>(b"cuStreamGetCaptureInfo_v2") };
    let stream_capture_info = *function.expect("the library was found to have it");
    // Another thread may have been first; its library is the same.
    let _ = DRIVER.set(Driver { stream_capture_info, _library: library });
    Ok(())
}

/// The status of a stream's capture, and the number of an active one.
///
/// # Safety
/// The stream is there.
pub unsafe fn stream_capture(
    stream: sys::CUstream,
) -> std::result::Result<(sys::CUstreamCaptureStatus, u64), sys::CUresult> {
    let driver = DRIVER.get().expect("whoever has a stream has initialised the driver");
    let (mut status, mut number) = (sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE, 0);
    let (graph, nodes, count) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the caller's stream; the outputs that are not wanted may be null.
    match unsafe { (driver.stream_capture_info)(stream, &mut status, &mut number, graph, nodes, count) } {
        sys::CUresult::CUDA_SUCCESS => Ok((status, number)),
        error => Err(error),
    }
}

/// The library whose functions cudarc calls: the one that the program is linked to, or else the first that cudarc finds.
/// A preloaded library that stands before a few of the driver's functions is not the driver.
fn open() -> Option<Library> {
    let linked = Library::from(libloading::os::unix::Library::this());
    if check_functions(&linked).is_ok() {
        return Some(linked);
    }
    // SAFETY: it is the driver, whose initialisers expect nothing.
    ["libcuda.so", "libcuda.so.1"].into_iter().find_map(|name| unsafe { Library::new(name) }.ok())
}

/// The functions of the driver that are called, by the names that its library has for them.
const FUNCTIONS: [&str; 39] = [
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuIpcCloseMemHandle",
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetAddressRange_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD2D32Async",
    "cuMemsetD32_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamGetCaptureInfo_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Whether the library has them all. Calls of one that it lacks would panic, wherever that is.
fn check_functions(library: &Library) -> Result<()> {
    // SAFETY: the symbols are not called.
    let has = |name: &&str| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
    let mut missing = FUNCTIONS.iter().filter(|name| !has(name));
    let Some(first) = missing.next() else { return Ok(()) };
    let others = match missing.count() {
        0 => String::new(),
        others => format!(" and {others} more functions"),
    };
    Err(Error::NoCuda(format!(
        "the driver's library, libcuda.so.1, lacks {first}{others}; install a driver for CUDA 12.2 or later, and see that \
         no other library of that name is found before it (LD_LIBRARY_PATH)"
    )))
}

/// An event of the current context, to order by, not to time with. A thread that waits for it sleeps.
pub fn new_event() -> Result<sys::CUevent> {
    const FLAGS: u32 =
        sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
    let mut event = std::ptr::null_mut();
    // SAFETY: `event` is written.
    check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, FLAGS) })?;
    Ok(event)
}

/// The error of a call through cudarc's safe-ish wrappers.
pub fn error_of(call: impl Into<String>, error: DriverError) -> Error {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    Error::Driver { call: call.into(), name: text(error.error_name()), text: text(error.error_string()) }
}

/// The error, if any, of a plain call.
pub fn check(call: &str, result: sys::CUresult) -> Result<()> {
    result.result().map_err(|error| error_of(call, error))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    /// What is called by the way of cudarc's own wrappers, and what those call.
    const WRAPPERS: [(&str, &str); 11] = [
        ("ctx::get_current", "cuCtxGetCurrent"),
        ("ctx::set_current", "cuCtxSetCurrent"),
        ("ctx::synchronize", "cuCtxSynchronize"),
        ("device::get", "cuDeviceGet"),
        ("device::get_attribute", "cuDeviceGetAttribute"),
        ("device::get_count", "cuDeviceGetCount"),
        ("device::get_name", "cuDeviceGetName"),
        ("device::get_uuid", "cuDeviceGetUuid"),
        ("event::destroy", "cuEventDestroy_v2"),
        ("init", "cuInit"),
        ("primary_ctx::retain", "cuDevicePrimaryCtxRetain"),
    ];

    #[test]
    fn all_functions_that_are_called_are_looked_for() {
        let mut found = 0;
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            let words = |prefix: &'static str| {
                text.match_indices(prefix).map(move |(at, _)| at + prefix.len()).map(|at| {
                    let end = text[at..].find(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).unwrap();
                    text[at..at + end].to_owned()
                })
            };
            for name in words("sys::cu").filter(|name| name.starts_with(char::is_uppercase)) {
                found += 1;
                assert!(FUNCTIONS.contains(&format!("cu{name}").as_str()), "{}: cu{name}", path.display());
            }
            for wrapper in words(" result::").filter(|name| !name.starts_with(char::is_uppercase)) {
                let known = WRAPPERS.iter().find(|(name, _)| *name == wrapper);
                let (_, name) = known.unwrap_or_else(|| panic!("{}: which function is {wrapper}?", path.display()));
                found += 1;
                assert!(FUNCTIONS.contains(name));
            }
        }
        assert!(found > 30, "{found}");
    }
}
