//! Notices: how a rank tells its peers at once that it will take part in no further operation, and how all of them begin
//! anew together.
//!
//! Each rank has a *page* of words, apart from its slots, that all ranks can read and write. They are looked at on slow
//! paths only: before an operation, and while a wait lasts long.
//!
//! # Telling
//!
//! A rank's history is cut into *epochs*, which [`Stages`] end on all ranks alike. In each epoch a rank has one notice at
//! most. Whichever of its threads claims it first writes it into the rank's own page, and then stores the epoch's number
//! into a word of every page, its own among them, that nobody else writes ([`Notices::tell`]). A reader finds these words
//! in its own page, one line of memory ([`Notices::told`]), and reads the notice in the sender's page.
//!
//! The epoch's number is stored with release and loaded with acquire, so a reader that finds it finds the whole notice. It
//! only grows: a thread that tells late in an epoch leaves what another of its rank has told in the next.
//! Nothing is put back when an epoch ends: words of an earlier one mean nothing. So nothing is lost if a rank tells
//! something while others begin anew. All ranks take it as said in the epoch that it was said in.
//!
//! No step waits for another thread or allocates: a signal's handler may tell too. (A thread that is held up between its
//! claim and its last word for as long as a whole reset takes may be heard in the next epoch by some: an epoch that fails
//! once more is no harm.)
//!
//! # Beginning anew
//!
//! 1. A rank that has stopped [arrives](Stages::arrive) at stage 1, and waits until all have. Nobody stores into another's
//!    slots from then on.
//! 2. It fills its own slots anew, arrives at stage 2, and waits until all have. Nobody's slots are filled over from then
//!    on. The next epoch begins.
//!
//! Stages are stored with release and loaded with acquire: what a rank did before one is done for whoever has seen it.
//!
//! Whoever aborts ends the waits for that, too ([`cancellation`](crate::cancellation)).
//!
//! # Having built
//!
//! Before all that, while the ranks construct what they share, each says once in its page what it has made of that
//! ([`Built`](crate::construction::Built)). If they verify it after that, they decide together how that ends
//! ([`Outcome`](crate::construction::Outcome)).

use crate::geometry::MAX_WORLD_SIZE;
use crate::rank_set::RankSet;

/// Words of a notice.
pub const NOTICE_WORDS: usize = 256;
/// Words of a page.
pub const PAGE_WORDS: usize = CANCELLATION_NOTICE + NOTICE_WORDS;
/// Words that say where the word of a process is, by which its peers hear that it ends: see [`life`](crate::life).
pub const LIFE_WORDS: usize = 5;

/// Where no call was refused: no number of a call.
const NONE_REFUSED: u32 = u32::MAX;

// Of the word that says whether a rank has gone.
const GONE: u32 = 1;
const UNMAPPED: u32 = 2;
const LET_GO: u32 = 4;

// Words of a page. Each line of 64 bytes has the writers of one kind, but for DECIDED, which is written once.
const TOLD: usize = 0;
const CLAIM: usize = MAX_WORLD_SIZE;
pub(crate) const DECIDED: usize = CLAIM + 1;
pub(crate) const CANCELLATIONS: usize = CLAIM + 2;
const REFUSED: usize = 2 * MAX_WORLD_SIZE;
const STAGE: usize = REFUSED + 1;
const LEFT: usize = REFUSED + 2;
pub(crate) const BUILT: usize = REFUSED + 3;
pub(crate) const DIGEST: usize = REFUSED + 4;
const NO_RESET: usize = REFUSED + 6;
const WAITING: usize = REFUSED + 7;
const LIFE: usize = REFUSED + 8;
const NOTICE: usize = 3 * MAX_WORLD_SIZE;
pub(crate) const CANCELLATION_NOTICE: usize = NOTICE + NOTICE_WORDS;
const _: () = assert!(LIFE + LIFE_WORDS <= NOTICE);

/// The pages of a group. Pages begin as zeros, but for the word that [`initialise`] writes.
pub trait StatusWords {
    /// Loads `word` of the page of `rank`, with acquire.
    fn load(&self, rank: usize, word: usize) -> u32;
    /// Stores, with release.
    fn store(&self, rank: usize, word: usize, value: u32);
    /// Stores `new`, with release, if the word is `current`. Whether it did.
    fn replace(&self, rank: usize, word: usize, current: u32, new: u32) -> bool;
}

/// Writes what is not 0 in a page at first. Before any peer has it.
pub fn initialise<W: StatusWords>(words: &W, rank: usize) {
    words.store(rank, REFUSED, NONE_REFUSED);
}

/// What ranks tell each other in one epoch, as `rank` of `world_size` sees it.
#[derive(Clone, Copy, Debug)]
pub struct Notices<'a, W> {
    /// The pages.
    pub words: &'a W,
    /// This rank.
    pub rank: usize,
    /// Ranks in the group.
    pub world_size: usize,
    /// Epochs that have ended.
    pub epoch: u32,
}

impl<W: StatusWords> Notices<'_, W> {
    /// What says "in this epoch".
    fn now(&self) -> u32 {
        self.epoch.wrapping_add(1)
    }

    /// Tells every rank `notice`, of at most [`NOTICE_WORDS`]. Whether this was the rank's first in this epoch: a second
    /// is told to nobody.
    pub fn tell(&self, notice: &[u32]) -> bool {
        let claimed = self.words.load(self.rank, CLAIM);
        if !self.is_earlier(claimed) || !self.words.replace(self.rank, CLAIM, claimed, self.now()) {
            return false;
        }
        for (at, word) in notice.iter().take(NOTICE_WORDS).enumerate() {
            self.words.store(self.rank, NOTICE + at, *word);
        }
        (0..self.world_size).for_each(|rank| self.say_that_it_has_told(rank, claimed));
        true
    }

    /// Whether a word is of an earlier epoch.
    fn is_earlier(&self, word: u32) -> bool {
        word.wrapping_sub(self.now()) > u32::MAX / 2
    }

    /// In the page of `rank`, which says `told` if no other thread of this one has told something meanwhile. If one has, in a
    /// later epoch, that stays.
    fn say_that_it_has_told(&self, rank: usize, mut told: u32) {
        let word = TOLD + self.rank;
        // Nobody else writes it, but a peer may write anything, and a page may be missing: not for ever.
        for _ in 0..3 {
            if self.words.replace(rank, word, told, self.now()) {
                return;
            }
            told = self.words.load(rank, word);
            if !self.is_earlier(told) {
                return;
            }
        }
    }

    /// The ranks that have told something in this epoch, this one among them.
    #[inline]
    pub fn told(&self) -> RankSet {
        let now = self.now();
        let has_told = |rank: usize| u16::from(self.words.load(self.rank, TOLD + rank) == now) << rank;
        RankSet((0..self.world_size).fold(0, |told, rank| told | has_told(rank)))
    }

    /// The notice of a rank that has told.
    pub fn read(&self, rank: usize) -> [u32; NOTICE_WORDS] {
        std::array::from_fn(|at| self.words.load(rank, NOTICE + at))
    }

    /// Lets peers know that this rank has gone for good, in order. Unlike a notice, that holds in all epochs, and can be said
    /// beside one.
    pub fn leave(&self) {
        self.words.store(self.rank, LEFT, GONE);
    }

    /// Likewise, of a rank that may have gone because its process ends.
    pub fn let_go(&self) {
        self.words.store(self.rank, LEFT, GONE | LET_GO);
    }

    /// Lets peers know that this rank, which has gone, has none of their memory mapped any more.
    pub fn unmap(&self) {
        let let_go = self.words.load(self.rank, LEFT) & LET_GO;
        self.words.store(self.rank, LEFT, UNMAPPED | let_go);
    }

    /// Lets peers know that this rank can take part in no reset, in any epoch.
    pub fn rule_out_reset(&self, why: NoReset) {
        self.words.store(self.rank, NO_RESET, why as u32);
    }

    /// Whether no rank has said that it lacks pages. Known once all have constructed.
    pub fn all_have_all_pages(&self) -> bool {
        (0..self.world_size).all(|rank| self.no_reset(rank) != Some(NoReset::PagesMissing))
    }

    /// Why one of the ranks can take part in no reset, if one cannot.
    pub fn reset_ruled_out(&self) -> Option<NoReset> {
        (0..self.world_size).find_map(|rank| self.no_reset(rank))
    }

    /// Why `rank` can take part in no reset, if it has said so.
    fn no_reset(&self, rank: usize) -> Option<NoReset> {
        match self.words.load(rank, NO_RESET) {
            0 => None,
            word if word == NoReset::HalfReset as u32 => Some(NoReset::HalfReset),
            _ => Some(NoReset::PagesMissing),
        }
    }

    /// Of `ranks`, those that may still have peers' memory mapped, if they live.
    pub fn mapping(&self, ranks: RankSet) -> RankSet {
        ranks.filter(|rank| self.words.load(rank, LEFT) & UNMAPPED == 0)
    }

    /// Of `ranks`, those that have gone.
    pub fn left(&self, ranks: RankSet) -> RankSet {
        ranks.filter(|rank| self.words.load(rank, LEFT) != 0)
    }

    /// Of `ranks`, those that have gone in order.
    pub fn left_in_order(&self, ranks: RankSet) -> RankSet {
        ranks.filter(|rank| matches!(self.words.load(rank, LEFT), GONE | UNMAPPED))
    }

    /// Lets peers know where the word of this rank's process is, before they have the page.
    pub fn say_where_life_is(&self, life: [u32; LIFE_WORDS]) {
        (LIFE..).zip(life).for_each(|(at, word)| self.words.store(self.rank, at, word));
    }

    /// Where the word of the process of `rank` is.
    pub fn where_life_is(&self, rank: usize) -> [u32; LIFE_WORDS] {
        std::array::from_fn(|at| self.words.load(rank, LIFE + at))
    }

    /// Lets peers know that this rank waits in its operation `number`; 0 for none.
    pub fn wait_in(&self, number: u32) {
        if self.words.load(self.rank, WAITING) != number {
            self.words.store(self.rank, WAITING, number);
        }
    }

    /// The ranks that do not say that they wait in their operation `number`.
    pub fn not_waiting_in(&self, number: u32) -> RankSet {
        (0..self.world_size).filter(|rank| self.words.load(*rank, WAITING) != number).collect()
    }

    /// Lets peers know that this rank has refused its call `number`, for which they may wait. Of several calls in a row the
    /// first counts: it is the one that they wait for.
    pub fn refuse(&self, number: u32) {
        self.words.replace(self.rank, REFUSED, NONE_REFUSED, number);
    }

    /// To be called when this rank begins an operation. What it has refused before is of no concern then: peers find
    /// another header than theirs.
    #[inline]
    pub fn serve(&self) {
        if self.words.load(self.rank, REFUSED) != NONE_REFUSED {
            self.words.store(self.rank, REFUSED, NONE_REFUSED);
        }
    }

    /// Whether `rank` has refused its call `number`, and begun no operation since.
    pub fn has_refused(&self, rank: usize, number: u32) -> bool {
        self.words.load(rank, REFUSED) == number
    }
}

/// Why a rank can take part in no reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReset {
    /// It does not have all pages.
    PagesMissing = 1,
    /// One has failed half-way.
    HalfReset = 2,
}

/// Where a rank is on its way to the next epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It works, or has failed.
    None = 0,
    /// It has stopped, and stores nothing into its peers' slots.
    Stopped = 1,
    /// Its own slots are filled anew.
    Filled = 2,
}

/// Stages of a group's ranks on their way from one epoch to the next.
#[derive(Clone, Copy, Debug)]
pub struct Stages<'a, W>(pub Notices<'a, W>);

impl<W: StatusWords> Stages<'_, W> {
    /// Counted over all epochs.
    fn count(&self, stage: Stage) -> u32 {
        self.0.epoch.wrapping_mul(Stage::Filled as u32).wrapping_add(stage as u32)
    }

    /// This rank is at `stage`.
    pub fn arrive(&self, stage: Stage) {
        self.0.words.store(self.0.rank, STAGE, self.count(stage));
    }

    /// The ranks that have not come to `stage`.
    pub fn missing(&self, stage: Stage) -> RankSet {
        let ahead = |rank| self.0.words.load(rank, STAGE).wrapping_sub(self.count(stage));
        (0..self.0.world_size).filter(|rank| ahead(*rank) > u32::MAX / 2).collect()
    }
}
