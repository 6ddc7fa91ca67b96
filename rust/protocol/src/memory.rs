//! What the protocol asks of the memory under it.

use crate::sentinel::Vector;

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

    /// Orders everything before it before every later store (a release fence).
    fn release(&self);

    /// Orders every earlier load before everything after it (an acquire fence).
    fn acquire(&self);
}
