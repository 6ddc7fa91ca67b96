//! A pool of the small memory that every workspace needs.
//!
//! The driver takes as long for a page as for megabytes, and ranks of one host wait for each other in it. So one
//! allocation is cut into buffers for several workspaces, and what a workspace gives back serves the next one. The
//! device keeps the memory: as much as the most workspaces needed that there were at a time.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::device::Device;
use super::driver::check;
use super::memory::DeviceMemory;
use crate::error::Result;

/// Buffers that are cut from one allocation.
const BUFFERS_PER_ALLOCATION: usize = 8;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of the device.
    Device,
    /// Of the host, pinned, which kernels can write.
    Pinned,
}

/// How many allocations of a kind the pools of this process have made, and keep.
pub fn allocations(kind: Kind) -> usize {
    counter(kind).load(Relaxed)
}

fn counter(kind: Kind) -> &'static AtomicUsize {
    static DEVICE: AtomicUsize = AtomicUsize::new(0);
    static PINNED: AtomicUsize = AtomicUsize::new(0);
    match kind {
        Kind::Device => &DEVICE,
        Kind::Pinned => &PINNED,
    }
}

/// Where a buffer is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// For kernels.
    address: u64,
    /// For this process's processor, if it is pinned memory; otherwise null.
    pointer: *mut u8,
}

// SAFETY: addresses of memory that is never freed, whichever thread has them. What is read and written there is the
// business of those who do so.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// Buffers of one kind and size, on one device.
#[derive(Debug)]
pub struct Pool {
    kind: Kind,
    buffer_bytes: usize,
    free: Mutex<Vec<Place>>,
}

/// A buffer of a pool, until dropped. Whoever drops it has seen to it that nothing uses the memory any more.
#[derive(Debug)]
pub struct PooledBuffer {
    device: Arc<Device>,
    kind: Kind,
    place: Place,
    is_abandoned: bool,
}

impl Pool {
    /// Buffers of `buffer_bytes` bytes each. None is allocated yet.
    pub const fn new(kind: Kind, buffer_bytes: usize) -> Self {
        Self { kind, buffer_bytes, free: Mutex::new(Vec::new()) }
    }

    /// Where a buffer is that nobody has. What is in it is whatever was there before.
    fn take(&self, device: &Arc<Device>) -> Result<Place> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = free.pop() {
            return Ok(place);
        }
        let first = allocate(device, self.kind, BUFFERS_PER_ALLOCATION * self.buffer_bytes)?;
        counter(self.kind).fetch_add(1, Relaxed);
        free.extend((1..BUFFERS_PER_ALLOCATION).map(|index| first.offset_by(index * self.buffer_bytes)));
        Ok(first)
    }

    fn give_back(&self, place: Place) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(place);
    }
}

impl Place {
    fn offset_by(self, bytes: usize) -> Self {
        Self { address: self.address + bytes as u64, pointer: self.pointer.wrapping_add(bytes) }
    }
}

/// Allocates `bytes` bytes for ever. The device's context is current.
fn allocate(device: &Arc<Device>, kind: Kind, bytes: usize) -> Result<Place> {
    match kind {
        Kind::Device => {
            let memory = ManuallyDrop::new(DeviceMemory::allocate(device, bytes)?);
            Ok(Place { address: memory.address(), pointer: std::ptr::null_mut() })
        }
        Kind::Pinned => allocate_pinned(bytes),
    }
}

fn allocate_pinned(bytes: usize) -> Result<Place> {
    let (mut address, mut pointer) = (0, std::ptr::null_mut());
    let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
    // SAFETY: the context is current.
    check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut pointer, bytes, flags) })?;
    // SAFETY: the pointer is that of a mapped allocation.
    check("cuMemHostGetDevicePointer", unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, pointer, 0) })
        .inspect_err(|_| {
            // SAFETY: allocated above, and nobody knows it yet.
            let _ = unsafe { sys::cuMemFreeHost(pointer) };
        })?;
    Ok(Place { address, pointer: pointer.cast() })
}

impl PooledBuffer {
    /// Takes a buffer of `device`'s.
    pub fn take(device: &Arc<Device>, kind: Kind) -> Result<Self> {
        let _entered = device.enter()?;
        Ok(Self { device: device.clone(), kind, place: device.pool(kind).take(device)?, is_abandoned: false })
    }

    /// Where it is, for kernels.
    pub fn address(&self) -> u64 {
        self.place.address
    }

    /// Where it is for this process's processor; null in memory of the device.
    pub fn pointer(&self) -> *mut u8 {
        self.place.pointer
    }

    /// Copies `values` to its start, in the default stream's order. It is memory of the device.
    pub fn write<T: Copy>(&self, values: &[T]) -> Result<()> {
        let bytes = size_of_val(values);
        assert!(bytes <= self.device.pool(self.kind).buffer_bytes, "{bytes} bytes do not fit into a buffer");
        let _entered = self.device.enter()?;
        // SAFETY: the buffer is that large.
        check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(self.address(), values.as_ptr().cast(), bytes) })
    }

    /// Nobody is to get it after this: kernels may still use it.
    pub fn abandon(&mut self) {
        self.is_abandoned = true;
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        if !self.is_abandoned {
            self.device.pool(self.kind).give_back(self.place);
        }
    }
}
