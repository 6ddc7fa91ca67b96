//! A pool of the small memory that every workspace needs.
//!
//! The driver takes as long for a page as for megabytes, and ranks of one host wait for each other in it. So one
//! allocation is cut into buffers for several workspaces, and what a workspace gives back serves the next one. The
//! process keeps the memory: as much as the most workspaces needed that there were at a time.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use super::cuda::DeviceMemory;
use super::pinned::PINNED_BYTES;
use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::error::Result;

/// Bytes for a workspace's control words and table.
pub const CONTROL_BYTES: usize = 8 << 10;

/// Buffers that are cut from one allocation.
const BUFFERS_PER_ALLOCATION: usize = 8;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// Buffers of one kind, on one device, that nobody has.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Place>>);

/// A buffer of a pool, until dropped. Whoever drops it has seen to it that nothing uses the memory any more.
#[derive(Debug)]
pub(crate) struct PooledBuffer {
    device: Arc<Device>,
    kind: Kind,
    place: Place,
    is_abandoned: bool,
}

impl Pool {
    /// That of `device` for memory of a kind. There is one for as long as the process lives.
    fn of(device: &Device, kind: Kind) -> &'static Self {
        static POOLS: Mutex<BTreeMap<(usize, Kind), &'static Pool>> = Mutex::new(BTreeMap::new());
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.entry((device.index, kind)).or_insert_with(|| Box::leak(Box::default()))
    }

    fn free(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a buffer is that nobody has. What is in it is whatever was there before.
    fn take(&self, device: &Arc<Device>, kind: Kind) -> Result<Place> {
        let mut free = self.free();
        if let Some(place) = free.pop() {
            return Ok(place);
        }
        let bytes = kind.buffer_bytes();
        let first = allocate(device, kind, BUFFERS_PER_ALLOCATION * bytes)?;
        counter(kind).fetch_add(1, Relaxed);
        free.extend((1..BUFFERS_PER_ALLOCATION).map(|index| first.offset_by(index * bytes)));
        Ok(first)
    }
}

impl Kind {
    const fn buffer_bytes(self) -> usize {
        match self {
            Self::Device => CONTROL_BYTES,
            Self::Pinned => PINNED_BYTES,
        }
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
        Ok(Self {
            device: device.clone(),
            kind,
            place: Pool::of(device, kind).take(device, kind)?,
            is_abandoned: false,
        })
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
        assert!(bytes <= self.kind.buffer_bytes(), "{bytes} bytes do not fit into a buffer");
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
            Pool::of(&self.device, self.kind).free().push(self.place);
        }
    }
}
