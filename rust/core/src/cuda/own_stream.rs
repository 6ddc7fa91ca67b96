//! Streams of this package's own, for kernels that wait for peers: on a stream that other workspaces' kernels are on too,
//! one that waits would stand before one that is waited for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use super::device::Device;
use super::driver::check;
use crate::error::Result;

/// A stream of the driver's.
#[derive(Debug)]
struct Handle(sys::CUstream);

// SAFETY: a stream may be used from any thread.
unsafe impl Send for Handle {}

/// A stream that nobody else has, until dropped. The null stream neither waits for it nor makes it wait. The process keeps
/// it for the next one who needs one: as many as were needed at a time.
#[derive(Debug)]
pub(crate) struct OwnStream {
    device: usize,
    handle: Handle,
}

static CREATED: AtomicUsize = AtomicUsize::new(0);

/// How many streams this process has made so, and keeps.
pub fn created() -> usize {
    CREATED.load(Relaxed)
}

/// Those that nobody has, by device.
fn free() -> MutexGuard<'static, BTreeMap<usize, Vec<Handle>>> {
    static FREE: Mutex<BTreeMap<usize, Vec<Handle>>> = Mutex::new(BTreeMap::new());
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnStream {
    /// Takes one of `device`, whose context is current.
    pub fn take(device: &Device) -> Result<Self> {
        let kept = free().get_mut(&device.index).and_then(Vec::pop);
        let handle = match kept {
            Some(handle) => handle,
            None => Handle(create()?),
        };
        Ok(Self { device: device.index, handle })
    }

    /// For the driver.
    pub fn handle(&self) -> sys::CUstream {
        self.handle.0
    }
}

fn create() -> Result<sys::CUstream> {
    let mut stream = std::ptr::null_mut();
    let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: the context is current.
    check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
    CREATED.fetch_add(1, Relaxed);
    Ok(stream)
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        free().entry(self.device).or_default().push(Handle(self.handle.0));
    }
}
