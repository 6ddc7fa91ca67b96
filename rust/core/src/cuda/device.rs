//! A device's primary context: the one torch uses, so that memory and streams are shared with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};
use lamport_rs_kernels::plan;

use super::driver::{check, error_of, initialise};
use super::launch::{Modules, RelaxedCapture};
use super::null_stream::{self, NullStreams, set_current};
use crate::error::{Error, Result};
use crate::interrupts::{Interrupted, beside, interrupted_wait};
use crate::panics::caught;

/// A device of this process. There is one object per device, and it is never destroyed: the primary context outlives
/// the interpreter's objects that use it.
#[derive(Debug)]
pub struct Device {
    /// Its number in this process, as in torch.
    pub index: usize,
    /// Its UUID: the same in every process, whatever `CUDA_VISIBLE_DEVICES` is.
    pub uuid: [u8; 16],
    /// What the vendor calls it.
    pub name: String,
    /// What launch plans need to know.
    pub plan: plan::Device,
    /// Whether the ranks compare what operations they run.
    pub checks_operations: bool,
    /// Kernels loaded so far.
    pub(crate) modules: Modules,
    handle: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context handle may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Devices that this process sees; an error if there are none.
pub fn device_count() -> Result<usize> {
    initialise()?;
    match result::device::get_count().map_err(|error| error_of("cuDeviceGetCount", error))? {
        0 => Err(Error::NoCuda("this process sees no device".to_owned())),
        count => Ok(count as usize),
    }
}

/// Environment variable that says whether the ranks compare what operations they run on GPUs: `1` or `0`.
const CHECK: &str = "LAMPORT_RS_CHECK";
/// If it does not. docs/performance.md has what the comparison costs.
const CHECKED_BY_DEFAULT: bool = true;

fn operations_are_checked() -> bool {
    match std::env::var(CHECK).as_deref() {
        Ok("1") => true,
        Ok("0") => false,
        _ => CHECKED_BY_DEFAULT,
    }
}

/// The calling thread's context, until dropped.
#[derive(Debug)]
pub struct Entered {
    before: Option<sys::CUcontext>,
    /// Of the context before, and ours: what is enqueued in ours comes in its order.
    null_streams: Option<NullStreams>,
}

impl Device {
    /// The device of number `index`.
    pub fn get(index: usize) -> Result<Arc<Self>> {
        static DEVICES: Mutex<Option<HashMap<usize, Arc<Device>>>> = Mutex::new(None);
        initialise()?;
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = devices.get_or_insert_default();
        if let Some(device) = devices.get(&index) {
            return Ok(device.clone());
        }
        // The caller's peers may be waiting for it already.
        let device = Arc::new(caught(|| Self::open(index))?);
        devices.insert(index, device.clone());
        Ok(device)
    }

    fn open(index: usize) -> Result<Self> {
        let count = device_count()?;
        if index >= count {
            return Err(Error::NoCuda(format!("there is no cuda:{index}; this process sees {count} devices")));
        }
        let handle = result::device::get(index as i32).map_err(|error| error_of("cuDeviceGet", error))?;
        let attribute = |attribute| {
            // SAFETY: `handle` is a device.
            unsafe { result::device::get_attribute(handle, attribute) }
                .map(|value| value as u32)
                .map_err(|error| error_of("cuDeviceGetAttribute", error))
        };
        use sys::CUdevice_attribute as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let name = result::device::get_name(handle).map_err(|error| error_of("cuDeviceGetName", error))?;
        if major < 8 {
            return Err(Error::NoCuda(format!(
                "cuda:{index} ({name}) has compute capability {major}.{minor}; 8.0 or later is needed"
            )));
        }
        let uuid = result::device::get_uuid(handle).map_err(|error| error_of("cuDeviceGetUuid", error))?;
        // SAFETY: `handle` is a device. The context is retained for ever.
        let context = unsafe { result::primary_ctx::retain(handle) }
            .map_err(|error| error_of("cuDevicePrimaryCtxRetain", error))?;
        Ok(Self {
            index,
            uuid: uuid.bytes.map(|byte| byte as u8),
            name,
            plan: plan::Device {
                compute_capability: (major, minor),
                multiprocessors,
                threads_per_multiprocessor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
                blocks_per_multiprocessor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR)?,
            },
            checks_operations: operations_are_checked(),
            modules: Modules::default(),
            handle,
            context,
        })
    }

    /// Makes the device's context the calling thread's, as every driver call needs.
    #[inline]
    pub fn enter(&self) -> Result<Entered> {
        let current = result::ctx::get_current().map_err(|error| error_of("cuCtxGetCurrent", error))?;
        if current == Some(self.context) {
            return Ok(Entered { before: None, null_streams: None });
        }
        set_current(self.context)?;
        Ok(Entered { before: Some(current.unwrap_or(std::ptr::null_mut())), null_streams: None })
    }

    /// Likewise, for what is enqueued on `stream` until this is dropped. The null stream is that of the current context. If
    /// that is another one of the device, a green context say, its null stream waits for ours then, as ours does for it now.
    #[inline]
    pub fn enter_for(&self, stream: sys::CUstream) -> Result<Entered> {
        let mut entered = self.enter()?;
        match entered.before {
            Some(other) if stream.is_null() && !other.is_null() => self.follow_null_stream(&mut entered, other)?,
            _ => {}
        }
        Ok(entered)
    }

    #[cold]
    fn follow_null_stream(&self, entered: &mut Entered, other: sys::CUcontext) -> Result<()> {
        let null_streams = NullStreams { ours: self.context, other };
        if null_streams.device_of_other()? == self.handle {
            null_streams.ours_follows()?;
            entered.null_streams = Some(null_streams);
        }
        Ok(())
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("cuda:{} of process {}, {}, UUID {hex}", self.index, std::process::id(), self.name)
    }

    /// Copies between two places on the device, in `stream`'s order.
    ///
    /// # Safety
    /// Both are valid for `bytes` bytes until the stream has passed the copy; `stream` is one of the device's streams.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: usize, stream: sys::CUstream) -> Result<()> {
        let _entered = self.enter_for(stream)?;
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream) })
    }

    /// Waits for all work on `stream`.
    ///
    /// # Safety
    /// `stream` is one of the device's streams, or null for the default one.
    pub unsafe fn synchronise(&self, stream: sys::CUstream) -> Result<()> {
        let _entered = self.enter_for(stream)?;
        // SAFETY: the caller's promise.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })
    }

    /// Waits for the kernels of this process that run on the device, also beside a stream's capture, which a plain wait
    /// for the device would spoil: freeing memory waits for them.
    pub fn wait_for_kernels(&self) -> Result<()> {
        // While memory is freed no thread of the process can launch anything, maybe what a peer needs to go on. So the
        // longest part of the wait comes before that. Work on streams that do not follow the null stream is waited for
        // there still.
        let _ = self.enter().and_then(|_entered| null_stream::wait());
        // At the price of a capture, if there is one.
        self.free_a_byte().or_else(|_| self.synchronise_all())
    }

    /// Allocates memory, and frees it, which waits.
    fn free_a_byte(&self) -> Result<()> {
        let _relaxed = RelaxedCapture::begin()?;
        let address = self.allocate(1)?;
        // SAFETY: allocated just now, and nobody knows it.
        unsafe { self.free(address) }
    }

    /// Allocates `bytes` bytes of device memory, and returns where they are.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        let _entered = self.enter()?;
        let mut address = 0;
        // SAFETY: the context is current.
        check(&format!("cuMemAlloc of {bytes} bytes on cuda:{}", self.index), unsafe {
            sys::cuMemAlloc_v2(&mut address, bytes)
        })?;
        Ok(address)
    }

    /// Frees device memory, once no kernel uses it any more. After an error it is lost.
    ///
    /// # Safety
    /// [`Device::allocate`] returned the address, and it was not freed before.
    pub unsafe fn free(&self, address: u64) -> Result<()> {
        let (_entered, _relaxed) = (self.enter()?, RelaxedCapture::begin()?);
        // SAFETY: the caller's promise. The call waits for work that uses the memory.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(address) })
    }

    /// Waits for all work of this process on the device, until `interrupted` says so: the wait then goes on, on a thread of
    /// its own.
    pub fn synchronise_all_until(self: &Arc<Self>, interrupted: Interrupted<'_>) -> Result<()> {
        let device = self.clone();
        let ended = beside(move || caught(|| device.synchronise_all()), interrupted)?;
        ended.unwrap_or_else(|| Err(interrupted_wait()))
    }

    /// Waits for all work of this process on the device.
    pub fn synchronise_all(&self) -> Result<()> {
        let _entered = self.enter()?;
        result::ctx::synchronize().map_err(|error| error_of("cuCtxSynchronize", error))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(null_streams) = self.null_streams.take() {
            null_streams.other_follows();
        }
        if let Some(context) = self.before {
            // It was the thread's context before, or null.
            let _ = set_current(context);
        }
    }
}
