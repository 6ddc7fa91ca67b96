//! One operation of the protocol in two shots: every rank sums one shard, and pushes the sums to all.
//!
//! A tensor is cut into one shard per rank, all of as many vectors; what reaches beyond its end is zeros, which travel.
//! A region has two halves. In an operation, a rank
//!
//! 1. **pushes** its header, and its contribution to each peer's shard into the first half of its region of that peer's slot;
//! 2. **clears** what the operation before left, as in [`exchange`](crate::exchange::exchange);
//! 3. **polls** the headers, and the contributions to its own shard, and pushes each sum, as soon as it has it, into the second half of
//!    its region of every peer's slot;
//! 4. **polls** the peers' sums;
//! 5. **rotates**.
//!
//! # Why three slots and the same two fences are enough
//!
//! The argument in [`crate::exchange`] asks one thing of operation k+1: that each rank awaits, from every peer, a word
//! that was pushed after the `release` at its start. Here each rank awaits two from every peer, a contribution and a sum.
//! The first alone would do, so it does not matter that a sum is pushed with no fence behind the polls it depends on.
//!
//! That is what the padding is for. If ranks without a shard were left out of the sums, two of them would know of each
//! other through the owner of a shard only: A clears in operation k and contributes in k+1; the owner polls, adds, and
//! pushes the sum; B polls the sum, and pushes in k+2 over the words that A cleared. Relaxed accesses do not make A's
//! clear happen before B's push: between its poll and its push the owner would need `acquire` and `release`, for each sum.
//! (The `loom` test shows both: data is lost without these fences, and is not with them.)

use crate::exchange::{Collective, Extent, Member, Wait, await_headers, clear, push_header};
use crate::memory::SlotMemory;
use crate::section::Section;
use crate::sentinel::{Vector, scrub};
use crate::table::Control;

/// What an operation in two shots sends, and what it does with what arrives. Shards are numbered by the rank that sums
/// them, vectors from 0 within a shard.
pub trait ShardedCollective {
    /// The rank's own vector `at` of `shard`, not yet scrubbed; zeros beyond the tensor's end.
    fn contribution(&mut self, shard: usize, at: usize) -> Vector;

    /// Takes vector `at` of `rank`'s contribution to the own shard, in the order of [`Collective::receive`].
    fn receive(&mut self, rank: usize, at: usize, vector: Vector);

    /// All ranks' vectors `at` of the own shard have been received. Returns their sum, not yet scrubbed.
    fn complete(&mut self, at: usize) -> Vector;

    /// Takes the sum of vector `at` of a peer's `shard`.
    fn receive_sum(&mut self, shard: usize, at: usize, sum: Vector);
}

/// Runs one operation and rotates `control`. `extent.region_bytes` covers both halves: twice a shard.
///
/// On an error nothing is rotated, no sum has been pushed of which a contribution is missing, and no further operation
/// may run.
#[inline(always)]
pub fn exchange_two_shot<M: SlotMemory, C: ShardedCollective, W: Wait>(
    member: Member,
    memory: &M,
    control: &mut Control,
    extent: Extent,
    collective: &mut C,
    wait: &mut W,
) -> Result<(), W::Error> {
    let [contributions, sums] = Section::new(member, memory, control.slot, extent.region_bytes).halves();
    let chunks = extent.chunks(contributions.vectors);
    let chunk = |index: usize| extent.chunk(contributions.vectors, index);
    let push = |index: usize, collective: &mut C| {
        for peer in member.peers() {
            contributions.push_to(peer, chunk(index), &mut Shard { number: peer, sums: &sums, collective });
        }
    };

    // The fences are those of `exchange`.
    memory.release();
    push_header(member, memory, control, extent);
    for index in 0..chunks.min(extent.lead_chunks) {
        push(index, collective);
    }
    wait.pushed();
    clear(member, memory, control);
    await_headers(member, memory, control, extent, wait)?;
    for index in 0..chunks {
        if index + extent.lead_chunks < chunks {
            push(index + extent.lead_chunks, collective);
        }
        contributions.poll(chunk(index), &mut Shard { number: member.rank, sums: &sums, collective }, wait)?;
    }
    wait.pushed();
    poll_sums(&sums, collective, wait)?;
    memory.acquire();
    *control = control.rotated(extent);
    Ok(())
}

#[inline(always)]
fn poll_sums<M: SlotMemory, C: ShardedCollective, W: Wait>(
    sums: &Section<'_, M>,
    collective: &mut C,
    wait: &mut W,
) -> Result<(), W::Error> {
    for shard in sums.member.peers() {
        for at in 0..sums.vectors {
            let sum = sums.await_vector(shard, at, wait)?;
            collective.receive_sum(shard, at, sum);
        }
    }
    Ok(())
}

/// The first shot for one shard, as a collective: what is contributed to it, and if it is the own one, its sums.
struct Shard<'a, M, C> {
    number: usize,
    sums: &'a Section<'a, M>,
    collective: &'a mut C,
}

impl<M: SlotMemory, C: ShardedCollective> Collective for Shard<'_, M, C> {
    #[inline(always)]
    fn contribution(&mut self, at: usize) -> Vector {
        self.collective.contribution(self.number, at)
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.collective.receive(rank, at, vector);
    }

    #[inline(always)]
    fn complete(&mut self, at: usize) {
        let sum = scrub(self.collective.complete(at));
        let Member { rank, .. } = self.sums.member;
        for peer in self.sums.member.peers() {
            self.sums.memory.store(peer, self.sums.offset(rank, at), sum);
        }
    }
}
