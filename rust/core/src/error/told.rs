//! Errors that ranks tell each other: each sees them from its own side.

use super::Error;
use super::words::{GONE, NO_LONGER};
use crate::operations::description::Operation;

impl Error {
    /// What went wrong, without what to do about it.
    pub fn reason(&self) -> String {
        let text = self.to_string();
        [NO_LONGER, GONE]
            .into_iter()
            .find_map(|advice| text.strip_suffix(advice))
            .unwrap_or(&text)
            .trim_end()
            .trim_end_matches('.')
            .to_owned()
    }

    /// What a rank has told that has ended, where there is no workspace yet to give advice on.
    pub fn before_there_is_a_workspace(self) -> Self {
        match self {
            Self::Aborted { rank, reason, .. } => Self::Agreement(format!("rank {rank}: {reason}")),
            error => error,
        }
    }

    /// A mismatch that another rank has found, as `rank` sees it, which runs `own`.
    pub fn seen_by(self, rank: usize, own: Operation) -> Self {
        match self {
            Self::WithoutReset(error) => error.seen_by(rank, own).without_reset(),
            Self::Mismatch { rank: sender, own: theirs, .. } if sender != rank && theirs != own => {
                Self::Mismatch { rank, own, peer: sender, theirs }
            }
            Self::Mismatch { rank: sender, peer, theirs, .. } if sender != rank && peer != rank => {
                Self::Mismatch { rank, own, peer, theirs }
            }
            Self::PeerRefused { rank: sender, operation, peer } if sender != rank && peer == rank => {
                Self::Mismatch { rank, own, peer: sender, theirs: operation }
            }
            Self::PeerRefused { rank: sender, peer, .. } if sender != rank => {
                Self::PeerRefused { rank, operation: own, peer }
            }
            error => error,
        }
    }

    /// Likewise, where `rank` is in no operation.
    pub fn seen_between_operations_by(self, rank: usize) -> Self {
        match self {
            Self::WithoutReset(error) => error.seen_between_operations_by(rank).without_reset(),
            Self::Mismatch { rank: sender, own, peer, theirs } if peer == rank => {
                Self::Mismatch { rank, own: theirs, peer: sender, theirs: own }
            }
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_that_another_has_found_is_told_from_the_own_side() {
        let [one, other] = [1, 2].map(|number| Operation([number, 0, 0, 0]));
        let found = Error::Mismatch { rank: 0, own: one, peer: 1, theirs: other };
        let cases = [(0, one, 1, other), (1, other, 0, one), (2, one, 1, other), (3, other, 0, one)];
        for (rank, own, peer, theirs) in cases {
            let expected = Error::Mismatch { rank, own, peer, theirs };
            assert_eq!(format!("{:?}", found.clone().seen_by(rank, own)), format!("{expected:?}"));
            let without_reset = found.clone().without_reset();
            assert!(matches!(without_reset, Error::WithoutReset(_)));
            let expected = expected.without_reset();
            assert_eq!(format!("{:?}", without_reset.seen_by(rank, own)), format!("{expected:?}"));
        }
        let seen = |rank| format!("{:?}", found.clone().seen_between_operations_by(rank));
        assert_eq!(seen(0), format!("{found:?}"));
        assert_eq!(seen(1), format!("{:?}", Error::Mismatch { rank: 1, own: other, peer: 0, theirs: one }));
        assert_eq!(seen(2), format!("{found:?}"));
        let refused = |rank| Error::PeerRefused { rank, operation: one, peer: 1 };
        let expected = Error::Mismatch { rank: 1, own: other, peer: 0, theirs: one };
        assert_eq!(format!("{:?}", refused(0).seen_by(1, other)), format!("{expected:?}"));
        assert_eq!(format!("{:?}", refused(0).seen_by(2, one)), format!("{:?}", refused(2)));
    }
}
