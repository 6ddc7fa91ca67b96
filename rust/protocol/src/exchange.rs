//! One operation of the protocol: push, clear, poll, rotate.
//!
//! Operation k uses slot k mod 3 on every rank. In it, a rank
//!
//! 1. **pushes** its [header](crate::header), and its contribution, scrubbed, into its own region of every peer's slot,
//!    so that no two ranks ever write the same word (but for the owner's clearing, below);
//! 2. **clears**, while its peers' data is on the way, what operation k-1 left in its own slot (k-1) mod 3;
//! 3. **polls** every peer's header, which must be its own, and then its own slot until every word of every peer has
//!    arrived;
//! 4. **rotates** to the next slot.
//!
//! # Why three slots are enough, and which orderings that takes
//!
//! Two ranks write word w of rank A's slot: its peer B pushes into it, and A clears it. The push of B's operation k+2
//! goes into slot (k+2) mod 3 = (k-1) mod 3, the slot that A clears in its operation k. It must come after that clear in
//! the order of the stores to w, or the data is lost. It does:
//!
//! - A clears w in operation k, then calls `release` at the start of operation k+1, then pushes (program order);
//! - B's polls of operation k+1 return only when they have seen A's push of k+1, and B calls `acquire` after them;
//! - so A's clear happens before everything B does in operation k+2, its push of w included.
//!
//! With two slots the push of operation k+1 would share w with the clear of operation k, and nothing orders those.
//!
//! A reader never takes an old word for a new one: between operation k-1, whose words it read, and operation k+2, which
//! reads the same words again, it cleared them itself, and a rank sees the words it wrote in order (coherence). A word
//! that is not the sentinel is therefore the pushed one, whole, and needs no further ordering: the data is its own flag.
//!
//! All this takes of operation k+1 is that B awaits a word of it from A: whatever else it does, and whatever size and
//! algorithm the operations before and after have.
//!
//! The block's first fill with the sentinel must be complete before any peer can reach the block. That is the
//! workspace's part: fill, synchronise, and only then exchange handles.

use std::ops::Range;
use std::time::Duration;

use crate::geometry::Geometry;
use crate::header::{Header, Headers};
use crate::memory::{LINE_BYTES, LINE_VECTORS, Line, SlotMemory};
use crate::rank_set::RankSet;
use crate::section::Section;
use crate::sentinel::{EMPTY, VECTOR_BYTES, Vector};
use crate::table::Control;

/// A rank in its group.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// The rank.
    pub rank: usize,
    /// The group's memory.
    pub geometry: Geometry,
}

impl Member {
    pub(crate) fn ranks(&self) -> Range<usize> {
        0..self.geometry.world_size()
    }

    /// The peers, each rank starting with its successor, so that not all push to rank 0 at once.
    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, world_size) = (self.rank, self.geometry.world_size());
        (1..world_size).map(move |distance| (rank + distance) % world_size)
    }
}

/// What an operation sends and what it does with what arrives. Vectors are numbered from 0 within a region.
pub trait Collective {
    /// The rank's own vector `at`, not yet scrubbed.
    fn contribution(&mut self, at: usize) -> Vector;

    /// `contribution` for a line of vectors from `at` on.
    #[inline(always)]
    fn contribution_line(&mut self, at: usize) -> Line {
        std::array::from_fn(|vector| self.contribution(at + vector))
    }

    /// Takes vector `at` of `rank`. Vectors come in ascending order, and for each the ranks, the own one among them:
    /// that order makes every rank's result the same bits.
    fn receive(&mut self, rank: usize, at: usize, vector: Vector);

    /// All ranks' vectors `at` have been received.
    fn complete(&mut self, at: usize);

    /// `receive` and `complete` for a line of vectors from `at` on: `lines` has one of each rank, in rank order.
    #[inline(always)]
    fn receive_line(&mut self, at: usize, lines: &[Line]) {
        for vector in 0..LINE_VECTORS {
            for (rank, line) in lines.iter().enumerate() {
                self.receive(rank, at + vector, line[vector]);
            }
            self.complete(at + vector);
        }
    }
}

/// What is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Data that a rank sends in any case.
    FirstHand,
    /// Data that a rank sends once it has heard of the others itself. To be awaited for longer, so that whoever waits
    /// for an absent rank itself is the first to give up, and names it.
    SecondHand,
}

impl Awaited {
    /// How long it is awaited in an operation that waits for `timeout`: second-hand data half as long again.
    pub fn limit(self, timeout: Duration) -> Duration {
        match self {
            Self::FirstHand => timeout,
            Self::SecondHand => timeout.saturating_add(timeout / 2),
        }
    }
}

/// How to wait for words that have not arrived.
pub trait Wait {
    /// Why waiting ended.
    type Error;

    /// Called between two looks at the same words. `missing` says of which ranks these words have not arrived, and looks
    /// at nothing behind them: peers that wait too have not pushed that. An error ends the operation and leaves the
    /// group unusable.
    fn pause(&mut self, awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Self::Error>;

    /// Called when words arrived after a pause.
    fn resume(&mut self);

    /// Called when words have been pushed. Behind every push there is such a call, or one of `pause`, before the
    /// operation ends: peers that [sleep](crate::parking) are woken in these.
    #[inline(always)]
    fn pushed(&mut self) {}

    /// The error of an operation whose header is not that of rank `peer`, which sent `found`.
    fn mismatch(&mut self, peer: usize, found: Header) -> Self::Error;
}

/// An operation's size, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Bytes per region, from [`Geometry::region_bytes`].
    pub region_bytes: usize,
    /// Vectors that are pushed, and later polled, together: small enough for the caches.
    pub chunk_vectors: usize,
    /// Chunks pushed before the first is polled: long enough that a peer's push has arrived by then.
    pub lead_chunks: usize,
    /// What all ranks must have in common; `None` in the further parts of a message whose first part said it.
    pub header: Option<Header>,
}

impl Extent {
    /// Chunks in `vectors` vectors.
    #[inline(always)]
    pub(crate) fn chunks(&self, vectors: usize) -> usize {
        vectors.div_ceil(self.chunk_vectors)
    }

    /// Chunk `index` of them.
    #[inline(always)]
    pub(crate) fn chunk(&self, vectors: usize, index: usize) -> Range<usize> {
        index * self.chunk_vectors..vectors.min((index + 1) * self.chunk_vectors)
    }
}

/// Runs one operation and rotates `control`.
///
/// On an error nothing is rotated, and the group's slots hold parts of the operation: no further one may run.
#[inline(always)]
pub fn exchange<M: SlotMemory, C: Collective, W: Wait>(
    member: Member,
    memory: &M,
    control: &mut Control,
    extent: Extent,
    collective: &mut C,
    wait: &mut W,
) -> Result<(), W::Error> {
    let section = Section::new(member, memory, control.slot, extent.region_bytes);
    let chunks = extent.chunks(section.vectors);
    let chunk = |index: usize| extent.chunk(section.vectors, index);

    // Orders the clears of the operation before this one ahead of this one's pushes: see the module's argument.
    memory.release();
    push_header(member, memory, control, extent);
    for index in 0..chunks.min(extent.lead_chunks) {
        section.push(chunk(index), collective);
    }
    wait.pushed();
    clear(member, memory, control);
    await_headers(member, memory, control, extent, wait)?;
    for index in 0..chunks {
        if index + extent.lead_chunks < chunks {
            section.push(chunk(index + extent.lead_chunks), collective);
            if index + extent.lead_chunks + 1 == chunks {
                wait.pushed();
            }
        }
        section.poll(chunk(index), collective, wait)?;
    }
    // Orders the polls of this operation ahead of the next one's pushes: see the module's argument.
    memory.acquire();
    *control = control.rotated(extent);
    Ok(())
}

#[inline(always)]
pub(crate) fn push_header<M: SlotMemory>(member: Member, memory: &M, control: &Control, extent: Extent) {
    if let Some(header) = extent.header {
        Headers::new(member, memory, control.slot).push(header);
    }
}

#[inline(always)]
pub(crate) fn await_headers<M: SlotMemory, W: Wait>(
    member: Member,
    memory: &M,
    control: &Control,
    extent: Extent,
    wait: &mut W,
) -> Result<(), W::Error> {
    extent.header.map_or(Ok(()), |header| Headers::new(member, memory, control.slot).await_equal(header, wait))
}

/// Puts the sentinel back over what the previous operation left: the peers' regions of its slot, and their headers. The
/// own region was never written.
#[inline(always)]
pub(crate) fn clear<M: SlotMemory>(member: Member, memory: &M, control: &Control) {
    if control.previous_has_header {
        Headers::new(member, memory, control.previous_slot()).clear();
    }
    let region_bytes = control.previous_region_bytes;
    for peer in member.peers() {
        let start = member.geometry.slot_offset(control.previous_slot()) + peer * region_bytes;
        let end = start + region_bytes;
        let lines_end = if start.is_multiple_of(LINE_BYTES) { end / LINE_BYTES * LINE_BYTES } else { start };
        for offset in (start..lines_end).step_by(LINE_BYTES) {
            memory.store_line(member.rank, offset, [EMPTY; LINE_VECTORS]);
        }
        for offset in (lines_end..end).step_by(VECTOR_BYTES) {
            memory.store(member.rank, offset, EMPTY);
        }
    }
}
