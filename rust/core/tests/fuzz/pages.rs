//! Status pages as peers have them, who write what they like.

use std::sync::atomic::{AtomicU32, Ordering};

use lamport_rs_core::memory::handle::Handle;
use lamport_rs_core::memory::host::{self, Mapping};
use lamport_rs_protocol::construction::{Built, Outcome};
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::notices::{Notices, PAGE_WORDS, Stages, StatusWords};
use lamport_rs_protocol::sentinel::Vector;

use crate::lies::Told;

pub const PAGE_BYTES: usize = PAGE_WORDS * size_of::<u32>();
/// The word that says what a rank has made of a construction.
const BUILT: usize = 2 * MAX_WORLD_SIZE + 3;
/// The word by which a rank says that it has told something, and tells nothing else.
const CLAIM: usize = MAX_WORLD_SIZE;
/// The word of rank 0's page that says how all ranks end a construction.
const DECIDED: usize = MAX_WORLD_SIZE + 1;

/// The pages, each with its rank. A rank may have several, of which others have mapped one.
#[derive(Default)]
pub struct Pages(Vec<(usize, Mapping)>);

impl Pages {
    /// Adds a page, if the handle is one's.
    pub fn add(&mut self, rank: usize, handle: &[u8], mark: Vector) {
        let mapping = Handle::decode(handle).and_then(|handle| host::open(&handle, mark, PAGE_BYTES).ok());
        self.0.extend(mapping.map(|mapping| (rank, mapping)));
    }

    /// Tells what `rank` has made of a construction of which all were brought messages of this digest.
    pub fn tell(&self, rank: usize, told: Told, digest: u64) {
        match told {
            Told::Whole => Built::Whole(digest).tell(self, rank),
            Told::Other(digest) => Built::Whole(digest).tell(self, rank),
            Told::Decided(word) => {
                Outcome::Accepted.decide(self);
                assert!(self.0.is_empty() || self.load(0, DECIDED) != 0, "{DECIDED} is another word");
                self.store(0, DECIDED, word);
                Built::Whole(digest).tell(self, rank);
            }
            Told::Doubtful => Built::Doubtful.tell(self, rank),
            Told::Gone => Built::Gone.tell(self, rank),
            Told::Word(word) => {
                Built::Gone.tell(self, rank);
                assert_eq!(Built::told(self, rank), Some(Built::Gone));
                self.store(rank, BUILT, word);
                assert_eq!(Built::told(self, rank), Some(Built::Doubtful), "{BUILT} is another word");
            }
        }
    }

    /// Tells a notice of `rank`, whatever it has told before, and cancels what waits for the same reason.
    pub fn notify(&self, rank: usize, world_size: usize, words: &[u32]) {
        self.notices(rank, world_size).cancel(words);
        self.store(rank, CLAIM, 0);
        assert!(self.notices(rank, world_size).tell(words) || self.load(rank, CLAIM) == 0, "{CLAIM} is another word");
    }

    /// The notices of `rank`.
    pub fn notices(&self, rank: usize, world_size: usize) -> Notices<'_, Self> {
        Notices { words: self, rank, world_size, epoch: 0 }
    }

    /// Likewise, and what it arrives at.
    pub fn stages(&self, rank: usize, world_size: usize) -> Stages<'_, Self> {
        Stages(self.notices(rank, world_size))
    }

    fn of(&self, rank: usize, word: usize) -> impl Iterator<Item = &AtomicU32> {
        assert!(word < PAGE_WORDS);
        // SAFETY: within the page, whose words are accessed as atomics only.
        let find = move |mapping: &Mapping| unsafe { mapping.pointer().cast::<AtomicU32>().add(word).as_ref() };
        self.0.iter().filter(move |(of, _)| *of == rank).map(move |(_, mapping)| find(mapping))
    }
}

impl StatusWords for Pages {
    fn load(&self, rank: usize, word: usize) -> u32 {
        self.of(rank, word).next().map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        self.of(rank, word).for_each(|word| word.store(value, Ordering::Release));
    }

    fn replace(&self, rank: usize, word: usize, _current: u32, new: u32) -> bool {
        self.store(rank, word, new);
        true
    }
}
