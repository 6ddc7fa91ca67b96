//! A set of ranks, as errors name them.

use std::fmt;

use crate::geometry::MAX_WORLD_SIZE;

/// A set of ranks, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RankSet(pub u16);

impl RankSet {
    /// Adds `rank`, which is below [`MAX_WORLD_SIZE`].
    pub fn insert(&mut self, rank: usize) {
        debug_assert!(rank < MAX_WORLD_SIZE);
        self.0 |= 1 << rank;
    }

    /// Whether `rank` is in the set.
    pub fn contains(self, rank: usize) -> bool {
        self.0 >> rank & 1 != 0
    }

    /// Whether no rank is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are not in `others`.
    pub fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Those of which `holds` is true.
    pub fn filter(self, mut holds: impl FnMut(usize) -> bool) -> Self {
        self.iter().filter(|rank| holds(*rank)).collect()
    }

    /// The ranks, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_WORLD_SIZE).filter(move |rank| self.0 & (1 << rank) != 0)
    }
}

impl FromIterator<usize> for RankSet {
    fn from_iter<T: IntoIterator<Item = usize>>(ranks: T) -> Self {
        let mut set = Self::default();
        ranks.into_iter().for_each(|rank| set.insert(rank));
        set
    }
}

impl fmt::Display for RankSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks: Vec<String> = self.iter().map(|rank| rank.to_string()).collect();
        match ranks.as_slice() {
            [] => write!(f, "no rank"),
            [one] => write!(f, "rank {one}"),
            several => write!(f, "ranks {}", several.join(", ")),
        }
    }
}
