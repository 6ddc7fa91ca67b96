//! Slots, regions, limits, and how large a slot must be for a given job.
//!
//! ```text
//! block of one rank   | slot 0 | slot 1 | slot 2 | headers |     each slot is comm_size bytes
//! slot, N ranks       | region 0 | region 1 | … | region N-1 | unused |
//! ```
//!
//! Region r holds what rank r pushed. Its size is the operation's, not the workspace's: regions lie side by side from
//! the slot's start, so that what an operation used is one extent, `world_size × region_bytes`. A rank's own region
//! stays empty: it keeps its contribution in registers.

use thiserror::Error;

use crate::algorithm::Algorithm;
use crate::sentinel::VECTOR_BYTES;

/// The version of a block's layout, as above: raised when anything in a block moves. Ranks of different layouts share no
/// memory, whatever their packages' versions say.
pub const LAYOUT_VERSION: u32 = 3;
/// Slots per rank. The argument for three is in [`crate::exchange`].
pub const SLOTS: usize = 3;
/// The smallest group there is something to exchange in.
pub const MIN_WORLD_SIZE: usize = 1;
/// The largest group: one NVLink domain of today's hosts.
pub const MAX_WORLD_SIZE: usize = 16;
/// Device allocations are handed out, and exported, in blocks of this many bytes (2 MiB).
pub const ALLOCATION_GRANULARITY: usize = 2 << 20;
/// Tokens that share one vector of the fused Q+K layout.
const TOKENS_PER_VECTOR: usize = 4;
const FLOAT_BYTES: usize = 4;
/// Bytes from one header to the next: a line, so that peers do not take it away from each other.
pub const HEADER_BYTES: usize = 64;
/// Rows that [`two_shot_rows_bytes`] looks at.
const MOST_ROWS: usize = 20;

/// Why a shape is no geometry. Each says what would be one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GeometryError {
    /// A group that is too small or too large.
    #[error("world_size is {0}, but must be between {MIN_WORLD_SIZE} and {MAX_WORLD_SIZE}")]
    WorldSize(i64),
    /// A rank outside its group.
    #[error("rank is {rank}, but must be between 0 and {} (world_size is {world_size})", world_size - 1)]
    Rank {
        /// The rank asked for.
        rank: i64,
        /// The group's size.
        world_size: i64,
    },
    /// A slot that cannot be divided into vectors.
    #[error("comm_size is {0} bytes, but must be a positive multiple of {VECTOR_BYTES}")]
    CommSize(i64),
    /// A slot so large that three of them exceed the address space.
    #[error("comm_size is {0} bytes, which is more than this machine can address")]
    TooLarge(i64),
    /// A job without tokens or bytes.
    #[error("{what} is {value}, but must be positive")]
    NotPositive {
        /// The argument's name.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// A message that does not fit into a slot.
    #[error(
        "the operation needs {needed} bytes per slot, but comm_size is {comm_size}; \
         create the workspace with comm_size={needed} or more"
    )]
    MessageTooLarge {
        /// Bytes per slot that would do.
        needed: usize,
        /// Bytes per slot that there are.
        comm_size: usize,
    },
}

/// The shape of one group's memory: the same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    world_size: usize,
    comm_size: usize,
}

impl Geometry {
    /// Checks `world_size` (ranks) and `comm_size` (bytes per slot).
    pub fn new(world_size: i64, comm_size: i64) -> Result<Self, GeometryError> {
        let world_size = check_world_size(world_size)?;
        if comm_size <= 0 || comm_size % VECTOR_BYTES as i64 != 0 {
            return Err(GeometryError::CommSize(comm_size));
        }
        // A quarter of the address space for the three slots leaves every sum below free of overflow.
        if comm_size > i64::MAX / 16 {
            return Err(GeometryError::TooLarge(comm_size));
        }
        Ok(Self { world_size, comm_size: comm_size as usize })
    }

    /// Checks that `rank` belongs to the group.
    pub fn check_rank(&self, rank: i64) -> Result<usize, GeometryError> {
        let world_size = self.world_size as i64;
        if (0..world_size).contains(&rank) { Ok(rank as usize) } else { Err(GeometryError::Rank { rank, world_size }) }
    }

    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Bytes per slot.
    pub fn comm_size(&self) -> usize {
        self.comm_size
    }

    /// Bytes of a region that carries `message_bytes`: rounded up to whole vectors. An error if the group's regions do
    /// not fit into a slot.
    pub fn region_bytes(&self, message_bytes: usize) -> Result<usize, GeometryError> {
        let comm_size = self.comm_size;
        let too_large = |needed| GeometryError::MessageTooLarge { needed, comm_size };
        let region = message_bytes.checked_next_multiple_of(VECTOR_BYTES).ok_or(too_large(usize::MAX))?;
        let needed = region.checked_mul(self.world_size).ok_or(too_large(usize::MAX))?;
        if needed <= comm_size { Ok(region) } else { Err(too_large(needed)) }
    }

    /// Bytes of the largest region of which a slot has room for one of every rank: whole vectors, perhaps none.
    pub fn largest_region_bytes(&self) -> usize {
        self.comm_size / self.world_size / VECTOR_BYTES * VECTOR_BYTES
    }

    /// Bytes from the block's start to slot `slot`.
    #[inline(always)]
    pub fn slot_offset(&self, slot: usize) -> usize {
        slot * self.comm_size
    }

    /// Bytes from the block's start to the header of rank `rank` in slot `slot`. On GPUs the cells of slots 0
    /// and 1 also hold what verifies the mappings, before the first operation.
    #[inline(always)]
    pub fn header_offset(&self, slot: usize, rank: usize) -> usize {
        SLOTS * self.comm_size + (slot * self.world_size + rank) * HEADER_BYTES
    }

    /// Bytes that carry the protocol's words: the slots and the headers. All are filled with the sentinel before any peer
    /// can reach them.
    pub fn used_bytes(&self) -> usize {
        self.header_offset(SLOTS, 0)
    }

    /// Bytes to allocate per rank: [`Geometry::used_bytes`], rounded up to 2 MiB, so that no stranger's allocation
    /// shares a block with ours and is exported with it.
    pub fn block_bytes(&self) -> usize {
        self.used_bytes().next_multiple_of(ALLOCATION_GRANULARITY)
    }
}

/// Checks a group's size on its own.
pub fn check_world_size(world_size: i64) -> Result<usize, GeometryError> {
    if (MIN_WORLD_SIZE as i64..=MAX_WORLD_SIZE as i64).contains(&world_size) {
        Ok(world_size as usize)
    } else {
        Err(GeometryError::WorldSize(world_size))
    }
}

/// Bytes per slot for the MiniMax operations: the ranks exchange one float32 sum of squares per token and matrix.
///
/// One matrix needs `world_size × max_tokens × 4` bytes, fused Q+K `world_size × 2 × ceil(max_tokens / 4) × 16`; the
/// result is rounded up to 2 MiB (formula of vLLM's `lamport_workspace`).
pub fn minimax_comm_size(max_tokens: i64, world_size: i64, fused_qk: bool) -> Result<usize, GeometryError> {
    let ranks = check_world_size(world_size)?;
    let tokens = check_positive("max_tokens", max_tokens)?;
    let per_rank = if fused_qk {
        tokens.div_ceil(TOKENS_PER_VECTOR).checked_mul(2 * VECTOR_BYTES)
    } else {
        // Regions are whole vectors, which only sizes just below a multiple of 2 MiB notice.
        tokens.checked_mul(FLOAT_BYTES).and_then(|bytes| bytes.checked_next_multiple_of(VECTOR_BYTES))
    };
    round_up_slot(per_rank, ranks, max_tokens)
}

/// Bytes per slot for a reduction of up to `max_bytes` bytes with any algorithm, be it a sum or, whatever the width of
/// the rows, a sum with a norm: the smallest number that does. For three ranks and more it is one-shot's `world_size`
/// regions of whole vectors, for all but the smallest tensors; two ranks need up to a third more, for rows in two
/// shots.
pub fn all_reduce_comm_size(max_bytes: i64, world_size: i64) -> Result<usize, GeometryError> {
    let ranks = check_world_size(world_size)?;
    let bytes = check_positive("max_bytes", max_bytes)?;
    let tensors = Algorithm::ALL.map(|algorithm| algorithm.tensor_message_bytes(bytes, ranks));
    let region = tensors.into_iter().max().max(Some(two_shot_rows_bytes(bytes, ranks)));
    check_slot(region.and_then(|region| region.checked_mul(ranks)), max_bytes)
}

/// Bytes of the largest region that two shots of whole rows need, if the rows have `bytes` bytes at most, or less than
/// one shot needs.
///
/// Of some rows a rank sums `q`, their number by that of the ranks, rounded up. The fewest rows with that `q` may be the
/// widest: `ranks (q - 1) + 1` of them, or `ranks` if `q` is 1. The region is at most `2q / rows` of the tensor then. For
/// three ranks and more that is no more than all of it, which one shot needs. For two it is `2q / (2q - 1)`: most for
/// three rows, 4/3. As rows are whole vectors, three rows may leave up to two vectors out, and more rows may then need
/// more. But from 20 vectors on three rows need at least `4 (20 - 2) / 3 = 6/5 × 20`, and five rows or more need no more
/// than that. So 20 rows are enough to look at.
fn two_shot_rows_bytes(bytes: usize, ranks: usize) -> usize {
    let vectors = bytes / VECTOR_BYTES;
    let region = |rows| Algorithm::TwoShot.message_bytes(rows, vectors / rows * VECTOR_BYTES, ranks);
    (ranks..=MOST_ROWS).map(region).max().unwrap_or(0)
}

/// The most bytes per slot with which a rank's block takes `memory_bytes` bytes at most; 0 or less if there are none.
pub fn comm_size_within(memory_bytes: i64, world_size: i64) -> Result<i64, GeometryError> {
    let headers = SLOTS * check_world_size(world_size)? * HEADER_BYTES;
    let block_bytes = memory_bytes - memory_bytes % ALLOCATION_GRANULARITY as i64;
    let slot_bytes = (block_bytes - headers as i64) / SLOTS as i64;
    Ok(slot_bytes - slot_bytes % VECTOR_BYTES as i64)
}

fn check_positive(what: &'static str, value: i64) -> Result<usize, GeometryError> {
    if value > 0 { Ok(value as usize) } else { Err(GeometryError::NotPositive { what, value }) }
}

fn round_up_slot(per_rank: Option<usize>, ranks: usize, asked: i64) -> Result<usize, GeometryError> {
    let slot = per_rank.and_then(|bytes| bytes.checked_mul(ranks));
    check_slot(slot.and_then(|bytes| bytes.checked_next_multiple_of(ALLOCATION_GRANULARITY)), asked)
}

fn check_slot(bytes: Option<usize>, asked: i64) -> Result<usize, GeometryError> {
    bytes.filter(|&bytes| bytes as u64 <= (i64::MAX / 16) as u64).ok_or(GeometryError::TooLarge(asked))
}
