//! What a rank says of its operation, ahead of the data: ranks that do different things notice before any data counts.
//!
//! A header is one vector. Its content is the caller's: a number of the operation and whatever all ranks must have in
//! common. It lies behind the slots, at a place that depends on the slot and the sender only, so that it is found whatever
//! size the peer's operation has. It is pushed, awaited and cleared like data, in the same operations, and the argument of
//! [`crate::exchange`] covers it as it is.
//!
//! Equality is transitive: if any two ranks of a group differ, every rank differs from at least one of them. So every rank
//! that awaits all headers raises the mismatch, and none waits for data that will not come.

use crate::exchange::{Awaited, Member, Wait};
use crate::memory::SlotMemory;
use crate::rank_set::RankSet;
use crate::sentinel::{EMPTY, SENTINEL, Vector, has_arrived};

/// Four words, none of them the sentinel: equal on all ranks that run the same operation.
pub type Header = Vector;

/// The headers of one slot.
pub(crate) struct Headers<'a, M> {
    member: Member,
    memory: &'a M,
    slot: usize,
}

impl<'a, M: SlotMemory> Headers<'a, M> {
    pub(crate) fn new(member: Member, memory: &'a M, slot: usize) -> Self {
        Self { member, memory, slot }
    }

    fn offset(&self, rank: usize) -> usize {
        self.member.geometry.header_offset(self.slot, rank)
    }

    fn load(&self, rank: usize) -> Vector {
        self.memory.load(self.member.rank, self.offset(rank))
    }

    /// Tells every peer.
    #[inline(always)]
    pub(crate) fn push(&self, own: Header) {
        debug_assert!(!own.contains(&SENTINEL), "a header with a sentinel would be waited for for ever");
        for peer in self.member.peers() {
            self.memory.store(peer, self.offset(self.member.rank), own);
        }
    }

    /// Puts the sentinel back.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        for peer in self.member.peers() {
            self.memory.store(self.member.rank, self.offset(peer), EMPTY);
        }
    }

    /// Awaits the header of every peer. An error if one of them is not `own`.
    #[inline(always)]
    pub(crate) fn await_equal<W: Wait>(&self, own: Header, wait: &mut W) -> Result<(), W::Error> {
        for peer in self.member.peers() {
            let found = self.load(peer);
            let found = if has_arrived(found) { found } else { self.wait_for(peer, own, wait)? };
            if found != own {
                return Err(wait.mismatch(peer, found));
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn wait_for<W: Wait>(&self, peer: usize, own: Header, wait: &mut W) -> Result<Vector, W::Error> {
        loop {
            if let Err(error) = wait.pause(Awaited::FirstHand, || self.missing()) {
                // A peer that differs says more than one that is missing. What it says is loaded once: it may change.
                let mut found = self.member.peers().map(|other| (other, self.load(other)));
                let other = found.find(|(_, found)| has_arrived(*found) && *found != own);
                return Err(other.map_or(error, |(other, found)| wait.mismatch(other, found)));
            }
            let found = self.load(peer);
            if has_arrived(found) {
                wait.resume();
                return Ok(found);
            }
        }
    }

    /// The ranks whose headers have not arrived.
    fn missing(&self) -> RankSet {
        let mut missing = RankSet::default();
        self.member.peers().filter(|&peer| !has_arrived(self.load(peer))).for_each(|peer| missing.insert(peer));
        missing
    }
}
