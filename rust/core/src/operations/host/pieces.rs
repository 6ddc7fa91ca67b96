//! Long messages as several operations of the protocol.
//!
//! The slots that one operation touches are then small enough to stay in the processors' own caches: a push goes into
//! lines that the reader has just cleared, and nothing of the exchange reaches main memory.

use lamport_rs_protocol::exchange::{Collective, Extent};
use lamport_rs_protocol::memory::{Line, SlotMemory};
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};

use crate::error::Result;
use crate::workspace::host::{HostWorkspace, Turn};

/// Bytes per rank of one operation of the protocol, more or less: whole chunks.
const PIECE_BYTES: usize = 256 << 10;
/// Chunks pushed ahead of the one that is polled.
const LEAD_CHUNKS: usize = 8;

/// Runs `collective` over a message of `region_bytes` per rank, in chunks of `chunk_vectors`.
#[inline(always)]
pub fn run<M: SlotMemory, C: Collective>(
    workspace: &HostWorkspace,
    turn: &mut Turn<'_>,
    memory: &M,
    region_bytes: usize,
    chunk_vectors: usize,
    collective: &mut C,
) -> Result<()> {
    let chunk_bytes = chunk_vectors * VECTOR_BYTES;
    let piece_bytes = (PIECE_BYTES / chunk_bytes).max(1) * chunk_bytes;
    for start in (0..region_bytes).step_by(piece_bytes) {
        let region_bytes = piece_bytes.min(region_bytes - start);
        let extent = Extent { region_bytes, chunk_vectors, lead_chunks: LEAD_CHUNKS };
        let mut piece = Piece { collective, first: start / VECTOR_BYTES };
        workspace.run(turn, memory, extent, &mut piece)?;
    }
    Ok(())
}

/// Part of a collective, from vector `first` on.
struct Piece<'a, C> {
    collective: &'a mut C,
    first: usize,
}

impl<C: Collective> Collective for Piece<'_, C> {
    #[inline(always)]
    fn contribution(&mut self, at: usize) -> Vector {
        self.collective.contribution(self.first + at)
    }

    #[inline(always)]
    fn contribution_line(&mut self, at: usize) -> Line {
        self.collective.contribution_line(self.first + at)
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.collective.receive(rank, self.first + at, vector);
    }

    #[inline(always)]
    fn complete(&mut self, at: usize) {
        self.collective.complete(self.first + at);
    }

    #[inline(always)]
    fn receive_line(&mut self, at: usize, lines: &[Line]) {
        self.collective.receive_line(self.first + at, lines);
    }
}
