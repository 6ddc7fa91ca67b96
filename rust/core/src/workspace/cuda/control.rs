//! The control words and the table of a workspace, in device memory.

use std::sync::Arc;

use cudarc::driver::sys;
use lamport_rs_kernels::group::ControlAddresses;
use lamport_rs_kernels::parameters::{CONTROL_COPIES, CONTROL_COPY_BYTES, MARK_OFFSET};
use lamport_rs_protocol::geometry::{Geometry, MAX_WORLD_SIZE};
use lamport_rs_protocol::table;

use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::error::Result;
use crate::memory::pool::{CONTROL_BYTES, Kind, PooledBuffer};

/// Where the control memory holds what, in bytes: the three counters, the two extents, the copies of what kernels read
/// first, the table.
const EXTENTS_OFFSET: usize = 16;
const COPIES_OFFSET: usize = CONTROL_COPY_BYTES;
/// Behind the copies lies the header of the operation in progress, in a line of its own.
const TABLE_OFFSET: usize = COPIES_OFFSET + (CONTROL_COPIES + 1) * CONTROL_COPY_BYTES;
const MARK: u32 = 1;
const _: () = assert!(TABLE_OFFSET + table::table_len(MAX_WORLD_SIZE) * size_of::<i64>() <= CONTROL_BYTES);

/// The memory of both.
#[derive(Debug)]
pub(super) struct ControlMemory(PooledBuffer);

impl ControlMemory {
    /// Takes it.
    pub(super) fn take(device: &Arc<Device>) -> Result<Self> {
        PooledBuffer::take(device, Kind::Device).map(Self)
    }

    /// Where kernels find the words. Theirs for faults is at `report`.
    pub(super) fn addresses(&self, report: u64) -> ControlAddresses {
        let counters = self.0.address();
        ControlAddresses {
            counters,
            extents: counters + EXTENTS_OFFSET as u64,
            copies: counters + COPIES_OFFSET as u64,
            report,
        }
    }

    /// Where the table is.
    pub(super) fn table(&self) -> u64 {
        self.0.address() + TABLE_OFFSET as u64
    }

    /// Bytes that are used of it, in a group of `world_size`.
    pub(super) fn bytes(world_size: usize) -> usize {
        TABLE_OFFSET + size_of::<i64>() * table::table_len(world_size)
    }

    /// Writes both as they are at first, for slots at these addresses.
    pub(super) fn write(&self, geometry: &Geometry, slots: &[u64]) -> Result<()> {
        let ControlAddresses { counters, extents, .. } = self.addresses(0);
        let mut words = vec![0_i64; TABLE_OFFSET / size_of::<i64>()];
        words[EXTENTS_OFFSET / size_of::<i64>() + table::COMM_SIZE] = geometry.comm_size() as i64;
        words.extend(table::table(slots, counters, extents));
        self.0.write(&words)
    }

    /// Leaves the mark of a failed workspace, in `stream`'s order: operations that follow send nothing, and their outputs are
    /// NaN.
    ///
    /// # Safety
    /// The device's context is current, and `stream` is one of its streams.
    pub(super) unsafe fn mark_failed(&self, stream: sys::CUstream) -> Result<()> {
        let first = self.addresses(0).copies + MARK_OFFSET as u64;
        // SAFETY: one word of each copy, in this memory; the caller's promise.
        let marked = unsafe { sys::cuMemsetD2D32Async(first, CONTROL_COPY_BYTES, MARK, 1, CONTROL_COPIES, stream) };
        check("cuMemsetD2D32Async", marked)
    }

    /// Nobody is to get it after this.
    pub(super) fn abandon(&mut self) {
        self.0.abandon();
    }
}
