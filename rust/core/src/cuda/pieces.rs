//! Small memory that every workspace needs, in pieces of one size.
//!
//! The driver takes as long for a page as for megabytes, and ranks of one host wait for each other in it. So one
//! allocation serves several workspaces, and what a workspace gives back serves the next one. The device keeps the
//! memory: as much as the most workspaces needed that there were at a time.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::device::Device;
use super::driver::check;
use crate::error::Result;

/// Pieces of an allocation.
const PIECES: usize = 8;

/// A kind of memory.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Of the device.
    Device,
    /// Of the host, pinned, which kernels can write.
    Pinned,
}

/// Where a piece is.
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

/// The pieces of one kind that nobody has.
#[derive(Debug)]
pub struct Pieces {
    kind: Kind,
    bytes: usize,
    free: Mutex<Vec<Place>>,
}

/// A piece, until dropped. Whoever drops it has seen to it that nothing uses the memory any more.
#[derive(Debug)]
pub struct Piece {
    device: Arc<Device>,
    kind: Kind,
    place: Place,
}

impl Pieces {
    /// Pieces of `bytes` bytes each. None is allocated yet.
    pub const fn new(kind: Kind, bytes: usize) -> Self {
        Self { kind, bytes, free: Mutex::new(Vec::new()) }
    }

    /// Where a piece is that nobody has. What is in it is whatever was there before.
    fn take(&self) -> Result<Place> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = free.pop() {
            return Ok(place);
        }
        let first = allocate(self.kind, PIECES * self.bytes)?;
        free.extend((1..PIECES).map(|piece| first.behind(piece * self.bytes)));
        Ok(first)
    }

    fn give_back(&self, place: Place) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(place);
    }
}

impl Place {
    fn behind(self, bytes: usize) -> Self {
        Self { address: self.address + bytes as u64, pointer: self.pointer.wrapping_add(bytes) }
    }
}

/// Allocates `bytes` bytes for ever. The device's context is current.
fn allocate(kind: Kind, bytes: usize) -> Result<Place> {
    let (mut address, mut pointer) = (0, std::ptr::null_mut());
    match kind {
        // SAFETY: the context is current.
        Kind::Device => check("cuMemAlloc of control words", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?,
        Kind::Pinned => {
            let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
            // SAFETY: the context is current.
            check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut pointer, bytes, flags) })?;
            // SAFETY: the pointer is that of a mapped allocation.
            check("cuMemHostGetDevicePointer", unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, pointer, 0) })?;
        }
    }
    Ok(Place { address, pointer: pointer.cast() })
}

impl Piece {
    /// Takes a piece of `device`'s.
    pub fn take(device: &Arc<Device>, kind: Kind) -> Result<Self> {
        let _entered = device.enter()?;
        Ok(Self { device: device.clone(), kind, place: device.pieces(kind).take()? })
    }

    /// Where it is, for kernels.
    pub fn address(&self) -> u64 {
        self.place.address
    }

    /// Where it is for this process's processor; null in memory of the device.
    pub fn pointer(&self) -> *mut u8 {
        self.place.pointer
    }

    /// Copies `values` to its start, and waits for that. It is memory of the device.
    pub fn write<T: Copy>(&self, values: &[T]) -> Result<()> {
        let bytes = size_of_val(values);
        assert!(bytes <= self.device.pieces(self.kind).bytes, "{bytes} bytes do not fit into a piece");
        let _entered = self.device.enter()?;
        // SAFETY: the piece is that large.
        check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(self.address(), values.as_ptr().cast(), bytes) })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.device.pieces(self.kind).give_back(self.place);
    }
}
