//! A group's shared-memory blocks, as the protocol sees them.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::memory::{LINE_BYTES, Line, SlotMemory};
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};

use crate::memory::vector_access::VectorAccess;

/// Where each rank's block is in this process.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    bases: [*mut u8; MAX_WORLD_SIZE],
    bytes: usize,
}

impl Blocks {
    /// The blocks at `bases`, one per rank.
    ///
    /// # Safety
    /// Each is aligned to 64, `bytes` long, and valid for as long as the result or anything made of it is used. Those
    /// bytes are accessed through [`VectorAccess`] and [`Blocks::word`] only, by whichever process.
    pub unsafe fn new(bases: &[NonNull<u8>], bytes: usize) -> Self {
        let mut all = [std::ptr::null_mut(); MAX_WORLD_SIZE];
        for (slot, base) in all.iter_mut().zip(bases) {
            *slot = base.as_ptr();
        }
        Self { bases: all, bytes }
    }

    /// The word at `offset` of `rank`'s block, of those that no slot or header has.
    #[inline(always)]
    pub fn word(&self, rank: usize, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(VECTOR_BYTES) && offset + VECTOR_BYTES <= self.bytes);
        // SAFETY: `Blocks::new` promises the block, and that all accesses to it are atomic.
        unsafe { &*self.bases[rank].wrapping_add(offset).cast::<AtomicU32>() }
    }

    /// The blocks with accesses of one kind.
    pub fn accessed<A: VectorAccess>(&self) -> HostSlots<A> {
        HostSlots { blocks: *self, access: PhantomData }
    }
}

/// [`Blocks`] under accesses of kind `A`.
pub struct HostSlots<A> {
    blocks: Blocks,
    access: PhantomData<A>,
}

impl<A> HostSlots<A> {
    #[inline(always)]
    fn pointer(&self, rank: usize, offset: usize) -> *mut u8 {
        debug_assert!(offset.is_multiple_of(VECTOR_BYTES) && offset + VECTOR_BYTES <= self.blocks.bytes);
        self.blocks.bases[rank].wrapping_add(offset)
    }
}

impl<A: VectorAccess> SlotMemory for HostSlots<A> {
    #[inline(always)]
    fn load(&self, rank: usize, offset: usize) -> Vector {
        // SAFETY: `Blocks::new` promises the block; the protocol stays within `Geometry::used_bytes` of it, in steps of
        // 16 from its start.
        unsafe { A::load(self.pointer(rank, offset)) }
    }

    #[inline(always)]
    fn store(&self, rank: usize, offset: usize, vector: Vector) {
        // SAFETY: as in `load`.
        unsafe { A::store(self.pointer(rank, offset), vector) }
    }

    #[inline(always)]
    fn load_line(&self, rank: usize, offset: usize) -> Line {
        debug_assert!(offset.is_multiple_of(LINE_BYTES));
        // SAFETY: as in `load`; the protocol's lines start at multiples of 64 of the block, which is aligned likewise.
        unsafe { A::load_line(self.pointer(rank, offset)) }
    }

    #[inline(always)]
    fn store_line(&self, rank: usize, offset: usize, line: Line) {
        debug_assert!(offset.is_multiple_of(LINE_BYTES));
        // SAFETY: as in `load_line`.
        unsafe { A::store_line(self.pointer(rank, offset), line) }
    }

    // On x86-64 neither fence is an instruction. They keep the compiler, and other processors, in order.
    #[inline(always)]
    fn release(&self) {
        fence(Ordering::Release);
    }

    #[inline(always)]
    fn acquire(&self) {
        fence(Ordering::Acquire);
    }
}
