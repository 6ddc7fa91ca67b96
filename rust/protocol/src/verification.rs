//! Verification by transfer: before a group is used, every rank pushes a number to every peer, and waits for theirs.
//!
//! That a driver maps a peer's memory, and says that peers can access each other, does not prove that stores arrive.
//! This does, for every ordered pair, with the accesses that the operations use.

use crate::exchange::{Member, Wait};
use crate::memory::SlotMemory;
use crate::rank_set::RankSet;
use crate::sentinel::{EMPTY, Vector, has_arrived, scrub};

/// Exchanges `nonces` (what each rank sends, the own one included) and returns the ranks that sent something else.
///
/// The own cells hold the sentinel before and after.
pub fn verify<M: SlotMemory, W: Wait>(
    member: Member,
    memory: &M,
    nonces: &[Vector],
    wait: &mut W,
) -> Result<RankSet, W::Error> {
    let Member { rank, geometry } = member;
    let cell = |sender: usize| geometry.verification_offset(sender);
    let missing = || {
        let mut missing = RankSet::default();
        member
            .peers()
            .filter(|&peer| !has_arrived(memory.load(rank, cell(peer))))
            .for_each(|peer| missing.insert(peer));
        missing
    };
    for peer in member.peers() {
        memory.store(peer, cell(rank), scrub(nonces[rank]));
    }
    while !missing().is_empty() {
        wait.pause(missing)?;
    }
    wait.resume();
    let mut wrong = RankSet::default();
    for peer in member.peers() {
        if memory.load(rank, cell(peer)) != scrub(nonces[peer]) {
            wrong.insert(peer);
        }
        memory.store(rank, cell(peer), EMPTY);
    }
    Ok(wrong)
}
