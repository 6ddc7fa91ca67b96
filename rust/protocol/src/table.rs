//! The pointer table and the control words: what a kernel is given.
//!
//! The layout is an ABI that the MiniMax kernels of vLLM and TensorRT-LLM read, so it does not change
//! within an [`ABI_VERSION`]:
//!
//! | entries | what |
//! | --- | --- |
//! | 0 … N-1 | 0 (reserved: IPC buffers) |
//! | N … 2N-1 | 0 (reserved: barriers) |
//! | 2N … 3N-1 | pointer to rank i's three slots, valid in this process |
//! | 3N | pointer to `int32[3]`: arrival counter, unused, slot index modulo 3 |
//! | 3N+1 | pointer to `int64[2]`: extent to clear (bytes), `comm_size` (bytes) |

use crate::exchange::Extent;
use crate::geometry::SLOTS;

/// Version of this ABI: of the table's entries, of the control words, and of what they mean. It changes with any of them.
pub const ABI_VERSION: u32 = 2;

/// Position of the arrival counter among the `int32` control words.
pub const ARRIVAL_COUNTER: usize = 0;
/// Position of the slot index among the `int32` control words.
pub const SLOT_INDEX: usize = 2;
/// Number of `int32` control words.
pub const COUNTERS: usize = 3;
/// Position of the extent to clear among the `int64` control words.
pub const CLEAR_EXTENT: usize = 0;
/// Position of `comm_size` among the `int64` control words.
pub const COMM_SIZE: usize = 1;
/// Number of `int64` control words.
pub const EXTENTS: usize = 2;

/// Entries of a group's table: `3 × world_size + 2`.
pub const fn table_len(world_size: usize) -> usize {
    3 * world_size + 2
}

/// The table of a group: `slots[i]` is where rank i's three slots are in this process, `counters` and `extents` where
/// the control words are.
pub fn table(slots: &[u64], counters: u64, extents: u64) -> Vec<i64> {
    let mut entries = vec![0_i64; 2 * slots.len()];
    entries.extend(slots.iter().map(|&pointer| pointer as i64));
    entries.extend([counters as i64, extents as i64]);
    entries
}

/// The control words' meaning: which slot comes next, and what the operation before left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Control {
    /// The slot of the next operation, below [`SLOTS`].
    pub slot: usize,
    /// Bytes per region that the previous operation used, in the slot before [`Control::slot`].
    pub previous_region_bytes: usize,
    /// Whether it had a header.
    pub previous_has_header: bool,
}

impl Control {
    /// The slot of the previous operation.
    #[inline(always)]
    pub fn previous_slot(&self) -> usize {
        (self.slot + SLOTS - 1) % SLOTS
    }

    /// What an operation of this package leaves as slot index: the slot, and [`SLOTS`] more, of which the remainder is the
    /// slot. A foreign kernel takes the remainder, and leaves a number below [`SLOTS`]. So it shows that it was there,
    /// whatever extent it leaves. Before the first operation it is 0.
    #[inline(always)]
    pub fn slot_index(&self) -> usize {
        if self.previous_region_bytes == 0 { self.slot } else { self.slot + SLOTS }
    }

    /// The control words after an operation of `extent`.
    #[inline(always)]
    pub fn rotated(&self, extent: Extent) -> Self {
        Self {
            slot: (self.slot + 1) % SLOTS,
            previous_region_bytes: extent.region_bytes,
            previous_has_header: extent.header.is_some(),
        }
    }
}
