//! Sleeping and waking: how a rank that waits says so, and why no peer that pushes can miss it.
//!
//! Each rank has a *parking word* in its own block. It is [`AWAKE`], or the set of the ranks that the rank awaits while
//! it sleeps. Whoever has pushed takes itself out of its peers' sets. Whoever empties a set writes [`AWAKE`] and wakes
//! its owner: a rank needs the data of all that it awaits before it can go on, so one wake-up is enough.
//!
//! # Why no wake-up is lost
//!
//! A pusher stores its data and then looks at the parking word. A sleeper stores the parking word and then looks at the
//! data. Between store and look both have a full fence, and one of the two fences is the first. If it is the pusher's,
//! the sleeper sees the data, and does not sleep for it. If it is the sleeper's, the pusher sees the announcement, and
//! takes itself out. So a rank falls asleep for a peer only if that peer will still look.
//!
//! A peer may take itself out after an earlier push than the awaited one. Then it is no longer in the set when it
//! pushes what is awaited. That does no harm: when the others have emptied the set, the sleeper looks, and announces
//! itself anew for whom it still misses. Without data of all of them it could not have gone on either.
//!
//! The words order nothing but sleep. The data is its own flag for a rank that has slept as for one that has not.

use crate::exchange::Member;
use crate::rank_set::RankSet;
use crate::sentinel::SENTINEL;

/// The bit of a parking word whose owner does not sleep. The rest of such a word is the waker's to choose. Blocks are
/// filled with the word that has this bit only.
pub const AWAKE: u32 = SENTINEL;

/// The parking words of a group, and the fence. All accesses may be relaxed.
pub trait ParkingWords {
    /// The word of `rank`.
    fn load(&self, rank: usize) -> u32;

    /// Exchanges the word of `rank`, which is the caller's. Not a plain store: all changes of a word are
    /// read-modify-writes, whose order the model checker knows.
    fn swap(&self, rank: usize, word: u32) -> u32;

    /// Stores `new` in the word of `rank` if it is `current`, else returns what it is.
    fn compare_exchange(&self, rank: usize, current: u32, new: u32) -> Result<(), u32>;

    /// Orders all stores of the caller before it ahead of all loads behind it.
    fn fence(&self);
}

/// A rank on its way to sleep.
#[derive(Debug, Default)]
pub struct Sleeper {
    announced: Option<RankSet>,
}

impl Sleeper {
    /// To be called when `rank` has looked in vain and still misses the data of `missing`. Announces its sleep, and
    /// returns nothing: the rank has to look again. If that has been in vain too, returns the word of `rank`. It may
    /// sleep for as long as the word stays the same.
    pub fn prepare<W: ParkingWords>(&mut self, words: &W, rank: usize, missing: RankSet) -> Option<u32> {
        if self.announced == Some(missing) {
            // Whatever ends the sleep, the next one is announced anew.
            self.announced = None;
            return Some(words.load(rank)).filter(|word| word & AWAKE == 0);
        }
        // Also where data of some has come meanwhile: these may not have seen the announcement, and would never take
        // themselves out.
        self.announced = Some(missing);
        words.swap(rank, u32::from(missing.0));
        words.fence();
        None
    }

    /// Takes the announcement back: what `rank` waited for has come.
    pub fn withdraw<W: ParkingWords>(&mut self, words: &W, rank: usize) {
        self.announced = None;
        words.swap(rank, AWAKE);
    }
}

/// To be called when `member` has pushed, before it waits or leaves the operation. Calls `wake` for each peer that now
/// awaits nobody; the rest of its word is then that of `awake()`.
#[inline(always)]
pub fn wake_peers<W: ParkingWords>(member: Member, words: &W, awake: impl Fn() -> u32, wake: impl Fn(usize)) {
    words.fence();
    for peer in member.ranks().filter(|&peer| peer != member.rank) {
        let word = words.load(peer);
        if word & AWAKE == 0 && take_out(member.rank, words, peer, word, &awake) {
            wake(peer);
        }
    }
}

/// Takes `rank` out of the set of `peer`. Whether that has emptied it.
#[cold]
#[inline(never)]
fn take_out<W: ParkingWords>(rank: usize, words: &W, peer: usize, word: u32, awake: &impl Fn() -> u32) -> bool {
    let mut current = word;
    while current & AWAKE == 0 && current >> rank & 1 != 0 {
        let others = current & !(1 << rank);
        let new = if others == 0 { AWAKE | awake() } else { others };
        match words.compare_exchange(peer, current, new) {
            Ok(()) => return others == 0,
            Err(found) => current = found,
        }
    }
    false
}
