//! What the protocol asks of the memory under it.

use crate::sentinel::{VECTOR_BYTES, Vector};

/// Vectors in a [`Line`].
pub const LINE_VECTORS: usize = 4;

/// Bytes in a [`Line`]: what processors move between their caches.
pub const LINE_BYTES: usize = LINE_VECTORS * VECTOR_BYTES;

/// Consecutive vectors, the first at a multiple of [`LINE_BYTES`].
pub type Line = [Vector; LINE_VECTORS];

/// The blocks of all ranks, as one rank sees them.
///
/// Offsets are bytes from a block's start and multiples of 16. An implementation guarantees, and the protocol relies on:
///
/// 1. **Words are whole.** A load returns, for each of the four words, a value that some store put there. The four
///    words of one access are independent of each other and happen in no order.
/// 2. **Coherence.** All ranks agree on one order of the stores to a word, and a rank never sees it go backwards.
/// 3. **Fences.** If a load after which [`acquire`](Self::acquire) follows sees a store before which
///    [`release`](Self::release) was called, then everything before that `release` happens before everything after
///    that `acquire`.
///
/// These are C++ `memory_order_relaxed` accesses with release and acquire fences; on a GPU, `relaxed.sys` accesses with
/// kernel boundaries in the fences' place.
pub trait SlotMemory {
    /// Loads the vector at `offset` in `rank`'s block.
    fn load(&self, rank: usize, offset: usize) -> Vector;

    /// Stores `vector` at `offset` in `rank`'s block.
    fn store(&self, rank: usize, offset: usize, vector: Vector);

    /// Loads the line at `offset`, as loading its vectors in any order does.
    #[inline(always)]
    fn load_line(&self, rank: usize, offset: usize) -> Line {
        std::array::from_fn(|vector| self.load(rank, offset + vector * VECTOR_BYTES))
    }

    /// Stores `line` at `offset`, as storing its vectors in any order does.
    #[inline(always)]
    fn store_line(&self, rank: usize, offset: usize, line: Line) {
        for (index, vector) in line.into_iter().enumerate() {
            self.store(rank, offset + index * VECTOR_BYTES, vector);
        }
    }

    /// Orders everything before it before every later store (a release fence).
    fn release(&self);

    /// Orders every earlier load before everything after it (an acquire fence).
    fn acquire(&self);
}
