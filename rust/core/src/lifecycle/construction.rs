//! How a construction ends, as the ranks tell each other before there is a workspace.

use lamport_rs_protocol::construction::Outcome;
use lamport_rs_protocol::rank_set::RankSet;

use super::Lifecycle;
use crate::error::Error;

impl Lifecycle {
    /// This rank gives up the construction, and comes to no other round of it: others need not either. The reason follows at
    /// once.
    pub fn give_up_construction(&self) {
        self.pages.give_up(self.rank);
        self.decide(Outcome::Abandoned(self.rank));
    }

    /// An error if peers have done so.
    pub fn construction_given_up(&self) -> Option<Error> {
        self.pages.given_up(self.rank)
    }

    /// Decides how the construction ends, unless a peer has. What holds for all ranks; `None` if they cannot tell each other.
    pub fn decide(&self, own: Outcome) -> Option<Outcome> {
        self.pages.decide(own)
    }

    /// Why `peer` has given up the construction. Of a rank that is not there nobody knows.
    pub fn reason_of(&self, peer: usize) -> Error {
        let everybody = self.everybody();
        let gone = if everybody.iter().any(|rank| rank == peer) { RankSet(1 << peer) } else { everybody };
        self.pages.reason_of(self.rank, gone)
    }
}
