//! Whether there is a driver, and what its errors say.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

use crate::error::{Error, Result};
use crate::limits::no_descriptors;

/// Initialises the driver, or says why there is none. Cheap once that succeeded; what failed may succeed the next time.
pub fn initialise() -> Result<()> {
    static IS_INITIALISED: AtomicBool = AtomicBool::new(false);
    if IS_INITIALISED.load(Ordering::Acquire) {
        return Ok(());
    }
    // cudarc's loader panics where there is no library, so it is looked for first.
    // SAFETY: loads a library and unloads it again.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoCuda(match no_descriptors() {
            Some(reason) => format!("the driver's library, libcuda.so.1, cannot be opened: {reason}"),
            None => "the driver's library, libcuda.so.1, is not on this machine".to_owned(),
        }));
    }
    cudarc::driver::result::init().map_err(|error| Error::NoCuda(error_of("cuInit", error).to_string()))?;
    IS_INITIALISED.store(true, Ordering::Release);
    Ok(())
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
