//! Pushing and polling: a part of the regions that an operation handles as one.

use std::ops::Range;

use crate::exchange::{Awaited, Collective, Member, Wait};
use crate::geometry::MAX_WORLD_SIZE;
use crate::memory::{LINE_BYTES, LINE_VECTORS, Line, SlotMemory};
use crate::rank_set::RankSet;
use crate::sentinel::{EMPTY, VECTOR_BYTES, Vector, has_arrived, line_has_arrived, scrub};

/// The part of every region of a slot that is pushed, and later polled, as one: all of it, or a half in two-shot.
pub(crate) struct Section<'a, M> {
    pub(crate) member: Member,
    pub(crate) memory: &'a M,
    /// Bytes from the block's start to the part in rank 0's region.
    start: usize,
    /// What lies between that and the next rank's.
    region_bytes: usize,
    pub(crate) vectors: usize,
    awaited: Awaited,
}

impl<'a, M: SlotMemory> Section<'a, M> {
    /// All of the regions.
    #[inline(always)]
    pub(crate) fn new(member: Member, memory: &'a M, slot: usize, region_bytes: usize) -> Self {
        let start = member.geometry.slot_offset(slot);
        let vectors = region_bytes / VECTOR_BYTES;
        Self { member, memory, start, region_bytes, vectors, awaited: Awaited::FirstHand }
    }

    /// The first half of it, and the second, which is pushed once the first has come.
    pub(crate) fn halves(self) -> [Self; 2] {
        let (vectors, awaited) = (self.vectors / 2, Awaited::SecondHand);
        let second = Self { start: self.start + vectors * VECTOR_BYTES, vectors, awaited, ..self };
        [Self { vectors, ..self }, second]
    }

    #[inline(always)]
    pub(crate) fn offset(&self, rank: usize, at: usize) -> usize {
        self.start + rank * self.region_bytes + at * VECTOR_BYTES
    }

    #[inline(always)]
    pub(crate) fn push(&self, chunk: Range<usize>, collective: &mut impl Collective) {
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
        self.await_one_of(at..at + 1, source, at, wait)
    }

    #[cold]
    #[inline(never)]
    fn wait_for_line<W: Wait>(&self, source: usize, start: usize, wait: &mut W) -> Result<Line, W::Error> {
        let mut line = [EMPTY; LINE_VECTORS];
        for (vector, at) in line.iter_mut().zip(start..) {
            *vector = self.await_one_of(start..start + LINE_VECTORS, source, at, wait)?;
        }
        Ok(line)
    }

    /// Vector `at` of `source`, one of `range`, which are polled together.
    #[inline(always)]
    fn await_one_of<W: Wait>(
        &self,
        range: Range<usize>,
        source: usize,
        at: usize,
        wait: &mut W,
    ) -> Result<Vector, W::Error> {
        let vector = self.memory.load(self.member.rank, self.offset(source, at));
        if has_arrived(vector) { Ok(vector) } else { self.wait_for_one_of(range, source, at, wait) }
    }

    #[cold]
    #[inline(never)]
    fn wait_for_one_of<W: Wait>(
        &self,
        range: Range<usize>,
        source: usize,
        at: usize,
        wait: &mut W,
    ) -> Result<Vector, W::Error> {
        loop {
            wait.pause(self.awaited, || self.missing(range.clone()))?;
            let vector = self.memory.load(self.member.rank, self.offset(source, at));
            if has_arrived(vector) {
                wait.resume();
                return Ok(vector);
            }
        }
    }

    /// The ranks of whose vectors `range` some word has not arrived.
    fn missing(&self, range: Range<usize>) -> RankSet {
        let mut missing = RankSet::default();
        for peer in self.member.peers() {
            let mut vectors = range.clone().map(|at| self.offset(peer, at));
            if vectors.any(|offset| !has_arrived(self.memory.load(self.member.rank, offset))) {
                missing.insert(peer);
            }
        }
        missing
    }
}
