//! What kernels that wait are told of ranks that send nothing more.
//!
//! A kernel looks for data first, and then whether the ranks that it misses have ended: data may come in between, and its
//! rank end right after. So the host tells of a rank one look later than it has found out. Its looks are further apart
//! than the two of a kernel: by then the kernel has looked for data again, and found what had been sent.

use crate::rank_set::RankSet;

/// Whom the host of one rank knows to have ended. Whoever uses it holds one lock from the question who has ended to the
/// store of what is told, so that nothing that was found out before a reset is told after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endings {
    at_last_look: RankSet,
}

impl Endings {
    /// Notes who has ended by now, and returns of whom the kernels are to be told.
    pub fn look(&mut self, ended: RankSet) -> RankSet {
        std::mem::replace(&mut self.at_last_look, ended)
    }

    /// All ranks have begun anew: returns of whom the kernels are to be told.
    pub fn begin_epoch(&mut self) -> RankSet {
        *self = Self::default();
        RankSet::default()
    }
}
