//! The ways to reduce a tensor, and how much room each takes.
//!
//! | algorithm | what travels | best for |
//! | --- | --- | --- |
//! | one-shot | every rank pushes all of its tensor to every peer, and each sums for itself | small tensors: one way |
//! | two-shot | every rank sums one shard and pushes the sums to every peer | large ones: each byte travels twice |
//!
//! Two-shot keeps the protocol's regions: region r carries what rank r pushed, first its contributions to the reader's
//! shard, then the sums of its own shard. Shards are padded to one size, so that each rank still awaits words of every
//! peer, and the argument for three slots holds as it is: see [`crate::two_shot`].

use crate::sentinel::VECTOR_BYTES;

/// A way to reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Every rank sums all of the tensor.
    OneShot,
    /// Every rank sums one shard of it.
    TwoShot,
}

impl Algorithm {
    /// Both, simplest first.
    pub const ALL: [Self; 2] = [Self::OneShot, Self::TwoShot];

    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneShot => "one_shot",
            Self::TwoShot => "two_shot",
        }
    }

    /// The algorithm of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Units that one rank sums, of `units`: vectors, or rows where rows stay whole.
    pub const fn share(self, units: usize, world_size: usize) -> usize {
        match self {
            Self::OneShot => units,
            Self::TwoShot => units.div_ceil(world_size),
        }
    }

    /// Bytes of a rank's region for an operation on `units` units of `unit_bytes` bytes.
    pub const fn message_bytes(self, units: usize, unit_bytes: usize, world_size: usize) -> usize {
        let share = self.share(units, world_size).saturating_mul(unit_bytes);
        match self {
            Self::OneShot => share,
            // Contributions and sums.
            Self::TwoShot => share.saturating_mul(2),
        }
    }

    /// Likewise for a tensor of `bytes` bytes that may be cut anywhere: its units are vectors.
    pub const fn tensor_message_bytes(self, bytes: usize, world_size: usize) -> usize {
        self.message_bytes(bytes.div_ceil(VECTOR_BYTES), VECTOR_BYTES, world_size)
    }
}
