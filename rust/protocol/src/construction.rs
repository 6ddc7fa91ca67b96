//! What ranks tell each other, in their pages of [notices](crate::notices), while they construct what they share.

use crate::notices::{BUILT, DECIDED, DIGEST, StatusWords};
use crate::rank_set::RankSet;

/// What a rank has made of a construction. It says so once, when it has mapped its peers' memory or cannot.
///
/// If all are whole, by messages of the same digest, the ranks need no other agreement. A rank that is whole reads every
/// page, and nobody takes back what it has told, but to give up. So either all such ranks find all alike, or none does, or
/// one has gone: whoever had found all alike before hears of that by its notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Built {
    /// It has all that it needs, and was brought messages of this digest.
    Whole(u64),
    /// The ranks have to agree in another way, to which it comes.
    Doubtful,
    /// It has given up, and comes to nothing more.
    Gone,
}

impl Built {
    // What the word says; 0 is nothing yet.
    const WHOLE: u32 = 1;
    const DOUBTFUL: u32 = 2;
    const GONE: u32 = 3;

    /// Tells it as `rank`. What the rank did before is done for whoever finds it.
    pub fn tell<W: StatusWords>(self, words: &W, rank: usize) {
        let state = match self {
            Self::Whole(digest) => {
                words.store(rank, DIGEST, digest as u32);
                words.store(rank, DIGEST + 1, (digest >> 32) as u32);
                Self::WHOLE
            }
            Self::Doubtful => Self::DOUBTFUL,
            Self::Gone => Self::GONE,
        };
        // Last, with release: whoever finds it finds the digest.
        words.store(rank, BUILT, state);
    }

    /// What `rank` has told, if it has.
    pub fn told<W: StatusWords>(words: &W, rank: usize) -> Option<Self> {
        match words.load(rank, BUILT) {
            0 => None,
            Self::WHOLE => {
                let digest = |at| u64::from(words.load(rank, DIGEST + at));
                Some(Self::Whole(digest(0) | digest(1) << 32))
            }
            Self::GONE => Some(Self::Gone),
            _ => Some(Self::Doubtful),
        }
    }

    /// The ranks that have given up.
    pub fn gone<W: StatusWords>(words: &W, world_size: usize) -> RankSet {
        (0..world_size).filter(|rank| Self::told(words, *rank) == Some(Self::Gone)).collect()
    }

    /// The ranks that have not told yet, if the others have told just this; `None` if one has told something else.
    pub fn missing<W: StatusWords>(self, words: &W, world_size: usize) -> Option<RankSet> {
        let mut missing = RankSet::default();
        for rank in 0..world_size {
            match Self::told(words, rank) {
                None => missing.insert(rank),
                Some(told) if told == self => {}
                Some(_) => return None,
            }
        }
        Some(missing)
    }
}

/// How the ranks end a construction that they verify last. Whoever comes to an end first decides for all of them, in a word
/// of rank 0's page; so each needs the pages of all.
///
/// Without that, a rank that gives up could not know whether others count on it in another round, nor they whether it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All have what they constructed. A rank that fails after that, or hears of it too late, has to tell the others in
    /// another way.
    Accepted,
    /// All come to another round, in which they tell each other why.
    Refused,
    /// This rank has given up. Nobody has anything, and there is no other round.
    Abandoned(usize),
}

impl Outcome {
    // What the word says; 0 is nothing yet, and what no version tells is of a rank that is not there.
    const ACCEPTED: u32 = 1;
    const REFUSED: u32 = 2;
    const ABANDONED: u32 = 3;

    /// Decides so, unless another rank has decided before. What holds for all.
    pub fn decide<W: StatusWords>(self, words: &W) -> Self {
        let word = match self {
            Self::Accepted => Self::ACCEPTED,
            Self::Refused => Self::REFUSED,
            Self::Abandoned(rank) => Self::ABANDONED + rank as u32,
        };
        if words.replace(0, DECIDED, 0, word) {
            return self;
        }
        match words.load(0, DECIDED) {
            Self::ACCEPTED => Self::Accepted,
            Self::REFUSED => Self::Refused,
            word => Self::Abandoned(word.wrapping_sub(Self::ABANDONED) as usize),
        }
    }
}
