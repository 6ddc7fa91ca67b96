//! Long messages in segments: each is an operation of the protocol.
//!
//! The slots that one operation touches are then small enough to stay in the processors' own caches: a push goes into
//! lines that the reader has just cleared, and nothing of the exchange reaches main memory. And a message may be longer
//! than the slots.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::{Collective, Extent};
use lamport_rs_protocol::memory::{LINE_VECTORS, Line, SlotMemory};
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};
use lamport_rs_protocol::two_shot::ShardedCollective;

use crate::error::Result;
use crate::workspace::host::{HostWorkspace, Running};

/// Bytes per rank of one operation of the protocol, more or less: whole chunks.
const SEGMENT_BYTES: usize = 256 << 10;
/// Chunks pushed ahead of the one that is polled.
const LEAD_CHUNKS: usize = 8;

/// Runs `collective` over a message of `region_bytes` per rank, in chunks of `chunk_vectors`.
#[inline(always)]
pub fn exchange_segments<M: SlotMemory, C: Collective>(
    workspace: &HostWorkspace,
    running: &mut Running<'_>,
    memory: &M,
    region_bytes: usize,
    chunk_vectors: usize,
    collective: &mut C,
) -> Result<()> {
    for (first, bytes) in segments(workspace, region_bytes, chunk_vectors, 1) {
        let extent = extent(bytes, chunk_vectors, first, running);
        workspace.run(running, memory, extent, &mut Segment { collective, first })?;
    }
    Ok(())
}

/// Likewise in two shots: `region_bytes` is two shards, and each segment a part of every shard.
#[inline(always)]
pub fn exchange_segments_two_shot<M: SlotMemory, C: ShardedCollective>(
    workspace: &HostWorkspace,
    running: &mut Running<'_>,
    memory: &M,
    region_bytes: usize,
    chunk_vectors: usize,
    collective: &mut C,
) -> Result<()> {
    for (first, bytes) in segments(workspace, region_bytes, chunk_vectors, 2) {
        let extent = extent(bytes, chunk_vectors, first, running);
        workspace.run_two_shot(running, memory, extent, &mut Segment { collective, first })?;
    }
    Ok(())
}

/// The segments of a region of `parts` equal parts, of each of which a segment has as many vectors: the first of those
/// vectors, and the bytes of all.
#[inline(always)]
fn segments(
    workspace: &HostWorkspace,
    region_bytes: usize,
    chunk_vectors: usize,
    parts: usize,
) -> impl Iterator<Item = (usize, usize)> + use<> {
    let vectors = region_bytes / parts / VECTOR_BYTES;
    let most = whole_chunks(SEGMENT_BYTES / parts, chunk_vectors).min(room(workspace, parts));
    (0..vectors).step_by(most).map(move |first| (first, parts * most.min(vectors - first) * VECTOR_BYTES))
}

/// Of the segment from vector `first` on. The first says what the message is; the others follow from it.
#[inline(always)]
fn extent(region_bytes: usize, chunk_vectors: usize, first: usize, running: &Running<'_>) -> Extent {
    let header = (first == 0).then(|| running.header());
    Extent { region_bytes, chunk_vectors, lead_chunks: LEAD_CHUNKS, header }
}

/// Vectors of the whole chunks in `bytes`, of one at least.
fn whole_chunks(bytes: usize, chunk_vectors: usize) -> usize {
    (bytes / VECTOR_BYTES / chunk_vectors).max(1) * chunk_vectors
}

/// Checks that the slots have room for the smallest segment: a vector, or one of every shard.
pub fn check_room(workspace: &HostWorkspace, algorithm: Algorithm) -> Result<()> {
    let geometry = workspace.member().geometry;
    geometry.region_bytes(algorithm.message_bytes(1, VECTOR_BYTES, geometry.world_size()))?;
    Ok(())
}

/// Vectors of each of `parts` equal parts of a region for which the slots have room: whole lines, if it is a line.
fn room(workspace: &HostWorkspace, parts: usize) -> usize {
    let most = workspace.member().geometry.largest_region_bytes() / VECTOR_BYTES / parts;
    if most < LINE_VECTORS { most } else { most / LINE_VECTORS * LINE_VECTORS }
}

/// Part of a collective, from vector `first` on, or from that of every shard.
struct Segment<'a, C> {
    collective: &'a mut C,
    first: usize,
}

impl<C: Collective> Collective for Segment<'_, C> {
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

impl<C: ShardedCollective> ShardedCollective for Segment<'_, C> {
    #[inline(always)]
    fn contribution(&mut self, shard: usize, at: usize) -> Vector {
        self.collective.contribution(shard, self.first + at)
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.collective.receive(rank, self.first + at, vector);
    }

    #[inline(always)]
    fn complete(&mut self, at: usize) -> Vector {
        self.collective.complete(self.first + at)
    }

    #[inline(always)]
    fn receive_sum(&mut self, shard: usize, at: usize, sum: Vector) {
        self.collective.receive_sum(shard, self.first + at, sum);
    }
}
