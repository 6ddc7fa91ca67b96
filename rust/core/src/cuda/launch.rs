//! Modules, loaded when an operation first needs them, and launches.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{DriverError, sys};
use lamport_rs_kernels::plan::LaunchPlan;
use lamport_rs_kernels::{ModuleKey, modules};

use super::device::Device;
use super::driver::{check, error_of};
use crate::error::{Error, Result};

/// The kernels of a device that were loaded. They stay loaded, as graphs refer to them.
#[derive(Debug, Default)]
pub struct Modules(Mutex<HashMap<ModuleKey, Function>>);

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub struct Function(sys::CUfunction);

// SAFETY: a function handle may be used from any thread.
unsafe impl Send for Function {}

impl Modules {
    /// The kernel of `key`, for `device`, whose modules these are and whose context is current.
    pub fn function(&self, key: ModuleKey, device: &Device) -> Result<Function> {
        let mut functions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&key) {
            return Ok(*function);
        }
        let function = load(key, device)?;
        functions.insert(key, function);
        Ok(function)
    }

    /// The kernel of `key`, if it is loaded. Waits for nothing: loading, of another thread too, waits for kernels that run.
    pub fn loaded(&self, key: ModuleKey) -> Option<Function> {
        self.0.try_lock().ok()?.get(&key).copied()
    }
}

/// Environment variable: with `1`, the PTX is loaded, which the driver compiles, even where there is machine code.
const PTX: &str = "LAMPORT_RS_PTX";

fn load(key: ModuleKey, device: &Device) -> Result<Function> {
    let capability = device.plan.compute_capability;
    let wants_ptx = std::env::var(PTX).is_ok_and(|value| value == "1");
    let machine_code = if wants_ptx { None } else { modules::machine_code(key, capability) };
    let _relaxed = RelaxedCapture::begin()?;
    // SAFETY: it is an ELF file.
    let loaded = machine_code.map(|code| unsafe { load_image(&code) });
    let module = match loaded {
        Some(Ok(module)) => module,
        Some(Err(error)) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(not_loaded(error)),
        // Drivers refuse machine code with several errors. If it is something else, the PTX meets it, too.
        _ => {
            let ptx = modules::ptx(key, capability)
                .ok_or_else(|| Error::NoCuda(format!("there is no kernel {} for {}", key.name(), device.name)))?;
            // SAFETY: it is a NUL-terminated text.
            unsafe { load_image(ptx.as_bytes_with_nul()) }.map_err(not_loaded)?
        }
    };
    let mut function = std::ptr::null_mut();
    // SAFETY: the module was loaded, and the name is NUL-terminated.
    let got = unsafe { sys::cuModuleGetFunction(&mut function, module, key.function().as_ptr()) };
    check("cuModuleGetFunction", got).inspect_err(|_| {
        // SAFETY: nobody else knows the module.
        let _ = unsafe { sys::cuModuleUnload(module) };
    })?;
    Ok(Function(function))
}

/// # Safety
/// The device's context is current, and `image` is an ELF file, or PTX that ends in a NUL.
unsafe fn load_image(image: &[u8]) -> std::result::Result<sys::CUmodule, DriverError> {
    let mut module = std::ptr::null_mut();
    // SAFETY: the caller's promises; both formats tell the driver where they end.
    unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) }.result()?;
    Ok(module)
}

fn not_loaded(error: DriverError) -> Error {
    error_of("cuModuleLoadData", error)
}

/// While it lives, this thread may make calls that a stream capture would otherwise forbid: neither loading a module nor
/// allocating and freeing memory touches the captured stream.
#[derive(Debug)]
pub(crate) struct RelaxedCapture(sys::CUstreamCaptureMode);

impl RelaxedCapture {
    /// Begins it.
    pub(crate) fn begin() -> Result<Self> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: `mode` is read and written.
        check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) })?;
        Ok(Self(mode))
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        // SAFETY: as in `begin`.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut self.0) };
    }
}

impl Function {
    /// Launches the kernel with its one parameter struct.
    ///
    /// # Safety
    /// The device's context is current, `stream` belongs to it, `parameters` is the struct that the kernel takes, and
    /// what it points to stays valid until the kernel has ended.
    pub unsafe fn launch<P>(self, plan: &LaunchPlan, stream: sys::CUstream, parameters: &P) -> Result<()> {
        let mut pointers = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let mut attributes = launch_attributes();
        let config = sys::CUlaunchConfig {
            gridDimX: plan.grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: plan.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: if plan.dependent_launch { attributes.len() as u32 } else { 0 },
        };
        // SAFETY: the caller's promises; the driver copies the parameters before it returns.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, self.0, pointers.as_mut_ptr(), std::ptr::null_mut())
        })
    }
}

/// The kernel may start before the one in front of it has ended. And it is in CUDA's memory synchronisation domain for
/// communication: a fence of another stream's kernel does not wait for stores that are on their way to peers.
fn launch_attributes() -> [sys::CUlaunchAttribute; 2] {
    let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
    [
        attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        ),
        attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN,
            sys::CUlaunchAttributeValue { memSyncDomain: sys::CUlaunchMemSyncDomain::CU_LAUNCH_MEM_SYNC_DOMAIN_REMOTE },
        ),
    ]
}
