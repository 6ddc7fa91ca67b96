//! The control words, where the table points to: foreign kernels may use them too.

use std::cell::UnsafeCell;

use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::table::{self, Control};

use super::{HostWorkspace, Running};
use crate::error::{Error, Result};

/// The words, which the operation that runs accesses alone.
#[derive(Debug)]
pub(super) struct ControlWords {
    counters: UnsafeCell<[i32; table::COUNTERS]>,
    extents: UnsafeCell<[i64; table::EXTENTS]>,
}

impl ControlWords {
    /// As they are at first.
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            counters: UnsafeCell::new([0; table::COUNTERS]),
            extents: UnsafeCell::new([0, geometry.comm_size() as i64]),
        }
    }

    /// The table of a group with slots at these addresses.
    pub(super) fn table(&self, slots: &[u64]) -> Vec<i64> {
        table::table(slots, self.counters.get() as u64, self.extents.get() as u64)
    }
}

impl HostWorkspace {
    /// What the operation before left, if the control words still say so: another kernel may have used the table.
    pub(super) fn read_control(&self, running: &Running<'_>) -> Result<Control> {
        // SAFETY: one operation runs at a time, and only it accesses the control words.
        let (counters, extents) = unsafe { (*self.control.counters.get(), *self.control.extents.get()) };
        let found = (counters[table::SLOT_INDEX], extents[table::CLEAR_EXTENT]);
        let expected = self.control_words(running.state.control);
        if found == expected {
            return Ok(running.state.control);
        }
        let error = Error::ForeignControl { found, expected };
        // The peers have run an operation, or a part of one, that this rank will not.
        self.lifecycle().fail(&error);
        Err(error)
    }

    pub(super) fn write_control(&self, running: &mut Running<'_>, control: Control) {
        running.state.control = control;
        self.write_control_words(control);
    }

    pub(super) fn write_control_words(&self, control: Control) {
        // SAFETY: as in `read_control`.
        let (counters, extents) = unsafe { (&mut *self.control.counters.get(), &mut *self.control.extents.get()) };
        (counters[table::SLOT_INDEX], extents[table::CLEAR_EXTENT]) = self.control_words(control);
    }

    /// Slot index and extent to clear.
    fn control_words(&self, control: Control) -> (i32, i64) {
        (control.slot_index() as i32, (control.previous_region_bytes * self.member.geometry.world_size()) as i64)
    }
}
