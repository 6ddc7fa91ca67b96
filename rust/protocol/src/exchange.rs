//! One operation of the protocol: push, clear, poll, rotate.
//!
//! Operation k uses slot k mod 3 on every rank. In it, a rank
//!
//! 1. **pushes** its contribution, scrubbed, into its own region of every peer's slot, so that no two ranks ever write
//!    the same word (but for the owner's clearing, below);
//! 2. **clears**, while its peers' data is on the way, what operation k-1 left in its own slot (k-1) mod 3;
//! 3. **polls** its own slot until every word of every peer has arrived;
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

use crate::geometry::{Geometry, MAX_WORLD_SIZE};
use crate::memory::{LINE_BYTES, LINE_VECTORS, Line, SlotMemory};
use crate::rank_set::RankSet;
use crate::sentinel::{EMPTY, VECTOR_BYTES, Vector, has_arrived, line_has_arrived, scrub};
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

/// How to wait for words that have not arrived.
pub trait Wait {
    /// Why waiting ended.
    type Error;

    /// Called between two looks at the same words. `missing` says which ranks' data is not complete; it looks at all
    /// that is polled with them, so it is for the error's text. An error ends the operation and leaves the group unusable.
    fn pause(&mut self, missing: impl FnOnce() -> RankSet) -> Result<(), Self::Error>;

    /// Called when words arrived after a pause.
    fn resume(&mut self);
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
    for index in 0..chunks.min(extent.lead_chunks) {
        section.push(chunk(index), collective);
    }
    clear(member, memory, control);
    for index in 0..chunks {
        if index + extent.lead_chunks < chunks {
            section.push(chunk(index + extent.lead_chunks), collective);
        }
        section.poll(chunk(index), collective, wait)?;
    }
    // Orders the polls of this operation ahead of the next one's pushes: see the module's argument.
    memory.acquire();
    *control = control.rotated(extent.region_bytes);
    Ok(())
}

/// Puts the sentinel back over what the previous operation left: the peers' regions of its slot. The own region was
/// never written.
#[inline(always)]
pub(crate) fn clear<M: SlotMemory>(member: Member, memory: &M, control: &Control) {
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

/// The part of every region of a slot that is pushed, and later polled, as one: all of it, or a half in two-shot.
pub(crate) struct Section<'a, M> {
    pub(crate) member: Member,
    pub(crate) memory: &'a M,
    /// Bytes from the block's start to the part in rank 0's region.
    start: usize,
    /// What lies between that and the next rank's.
    region_bytes: usize,
    pub(crate) vectors: usize,
}

impl<'a, M: SlotMemory> Section<'a, M> {
    /// All of the regions.
    #[inline(always)]
    pub(crate) fn new(member: Member, memory: &'a M, slot: usize, region_bytes: usize) -> Self {
        let start = member.geometry.slot_offset(slot);
        Self { member, memory, start, region_bytes, vectors: region_bytes / VECTOR_BYTES }
    }

    /// The first and the second half of it.
    pub(crate) fn halves(self) -> [Self; 2] {
        let vectors = self.vectors / 2;
        let second = Self { start: self.start + vectors * VECTOR_BYTES, vectors, ..self };
        [Self { vectors, ..self }, second]
    }

    #[inline(always)]
    pub(crate) fn offset(&self, rank: usize, at: usize) -> usize {
        self.start + rank * self.region_bytes + at * VECTOR_BYTES
    }

    #[inline(always)]
    fn push(&self, chunk: Range<usize>, collective: &mut impl Collective) {
        for peer in self.member.peers() {
            self.push_to(peer, chunk.clone(), collective);
        }
    }

    #[inline(always)]
    pub(crate) fn push_to(&self, peer: usize, chunk: Range<usize>, collective: &mut impl Collective) {
        let rank = self.member.rank;
        let lines = self.lines(&chunk);
        for at in lines.clone().step_by(LINE_VECTORS) {
            let line = collective.contribution_line(at).map(scrub);
            self.memory.store_line(peer, self.offset(rank, at), line);
        }
        for at in lines.end..chunk.end {
            self.memory.store(peer, self.offset(rank, at), scrub(collective.contribution(at)));
        }
    }

    /// The part of `chunk` that is whole lines: from its start, if that is a line's in the regions of all ranks.
    #[inline(always)]
    fn lines(&self, chunk: &Range<usize>) -> Range<usize> {
        let aligned = (self.offset(0, chunk.start) | self.region_bytes).is_multiple_of(LINE_BYTES);
        chunk.start..chunk.start + if aligned { chunk.len() / LINE_VECTORS * LINE_VECTORS } else { 0 }
    }

    #[inline(always)]
    pub(crate) fn poll<C: Collective, W: Wait>(
        &self,
        chunk: Range<usize>,
        collective: &mut C,
        wait: &mut W,
    ) -> Result<(), W::Error> {
        let Member { rank, .. } = self.member;
        let lines = self.lines(&chunk);
        if self.member.geometry.world_size() == 2 {
            self.poll_lines::<2, C, W>(lines.clone(), collective, wait)?;
        } else {
            self.poll_lines::<MAX_WORLD_SIZE, C, W>(lines.clone(), collective, wait)?;
        }
        for at in lines.end..chunk.end {
            for source in self.member.ranks() {
                if source == rank {
                    let own = scrub(collective.contribution(at));
                    collective.receive(source, at, own);
                    continue;
                }
                let vector = self.await_vector(source, at, wait)?;
                collective.receive(source, at, vector);
            }
            collective.complete(at);
        }
        Ok(())
    }

    /// Like `poll`, for whole lines of at most `RANKS` ranks. A line of each rank is kept until all have arrived, so that
    /// the collective still gets vector after vector; those of two ranks stay in registers.
    #[inline(always)]
    fn poll_lines<const RANKS: usize, C: Collective, W: Wait>(
        &self,
        lines: Range<usize>,
        collective: &mut C,
        wait: &mut W,
    ) -> Result<(), W::Error> {
        let ranks = if RANKS == 2 { 2 } else { self.member.geometry.world_size() };
        let mut arrived = [[EMPTY; LINE_VECTORS]; RANKS];
        for at in lines.step_by(LINE_VECTORS) {
            for (source, line) in arrived[..ranks].iter_mut().enumerate() {
                *line = if source == self.member.rank {
                    collective.contribution_line(at).map(scrub)
                } else {
                    let loaded = self.memory.load_line(self.member.rank, self.offset(source, at));
                    if line_has_arrived(loaded) { loaded } else { self.wait_for_line(source, at, wait)? }
                };
            }
            collective.receive_line(at, &arrived[..ranks]);
        }
        Ok(())
    }

    /// Vector `at` of `source`, once it has arrived.
    #[inline(always)]
    pub(crate) fn await_vector<W: Wait>(&self, source: usize, at: usize, wait: &mut W) -> Result<Vector, W::Error> {
        let vector = self.memory.load(self.member.rank, self.offset(source, at));
        if has_arrived(vector) { Ok(vector) } else { self.wait_for(source, at, wait) }
    }

    #[cold]
    #[inline(never)]
    fn wait_for_line<W: Wait>(&self, source: usize, at: usize, wait: &mut W) -> Result<Line, W::Error> {
        let mut line = [EMPTY; LINE_VECTORS];
        for (vector, at) in line.iter_mut().zip(at..) {
            *vector = self.await_vector(source, at, wait)?;
        }
        Ok(line)
    }

    #[cold]
    #[inline(never)]
    fn wait_for<W: Wait>(&self, source: usize, at: usize, wait: &mut W) -> Result<Vector, W::Error> {
        loop {
            wait.pause(|| self.missing())?;
            let vector = self.memory.load(self.member.rank, self.offset(source, at));
            if has_arrived(vector) {
                wait.resume();
                return Ok(vector);
            }
        }
    }

    /// The ranks of whose data some word has not arrived.
    fn missing(&self) -> RankSet {
        let mut missing = RankSet::default();
        for peer in self.member.peers() {
            let mut vectors = (0..self.vectors).map(|at| self.offset(peer, at));
            if vectors.any(|offset| !has_arrived(self.memory.load(self.member.rank, offset))) {
                missing.insert(peer);
            }
        }
        missing
    }
}
