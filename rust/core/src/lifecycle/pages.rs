//! The pages of a group's [notices](lamport_rs_protocol::notices): a page of shared memory of each rank, whatever memory
//! its slots are in, and its process.

use std::iter;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lamport_rs_protocol::construction::{Built, Outcome};
use lamport_rs_protocol::notices::{self, NoReset, Notices, PAGE_WORDS};
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::Vector;

use super::ending::fault_of;
use super::life;
use super::process::{Process, ended};
use super::words::Words;
use crate::error::{Error, Result};
use crate::limits::Reason;
use crate::memory::handle::Handle;
use crate::memory::host::{self, Block, Mapping};

/// A rank that gives up says so, and then why: the others wait so long for that at most, and look so often.
const REASON_FOLLOWS: Duration = Duration::from_millis(50);
const LOOK_FOR_REASON: Duration = Duration::from_millis(1);
/// Bytes of a page.
pub const PAGE_BYTES: usize = PAGE_WORDS * size_of::<u32>();

/// A rank's own page, for as long as peers may map it.
#[derive(Debug)]
pub struct OwnPage(Block);

impl OwnPage {
    /// Allocates it.
    pub fn allocate() -> Result<Self> {
        let page = Self(Block::allocate(PAGE_BYTES, 0)?);
        notices::initialise(&page.words(), 0);
        page.words().notices().say_where_life_is(life::own_words());
        Ok(page)
    }

    /// As those of a group of this rank alone.
    fn words(&self) -> Words {
        Words::of_one(self.0.pointer())
    }

    /// Tells what this rank has made of a construction.
    pub(crate) fn tell(&self, built: Built) {
        built.tell(&self.words(), 0);
    }

    /// Tells that this rank, which constructs nothing after all, has none of its peers' memory mapped.
    pub(crate) fn unmap(&self) {
        self.words().notices().unmap();
    }

    /// What peers need to map it. They will find `mark` in it.
    pub fn export(&mut self, mark: Vector) -> Handle {
        self.0.export(mark)
    }
}

/// A peer's page, and its process.
#[derive(Debug)]
pub(crate) struct PeerPage {
    mapping: Mapping,
    /// None if it is this one.
    process: Option<Arc<Process>>,
}

impl PeerPage {
    /// Maps the page of an encoded handle that a peer exported with `mark`.
    pub fn open(handle: &[u8], mark: Vector) -> Result<Self> {
        let handle = Handle::decode(handle)
            .ok_or_else(|| Error::Argument("the handle of its status page cannot be read".into()))?;
        let mapping = host::open(&handle, mark, PAGE_BYTES)?;
        let is_other = handle.process != std::process::id();
        let process = is_other.then(|| {
            let words = Words::of_one(mapping.pointer());
            let life = words.notices().where_life_is(0);
            Process::of(handle.process, &life::handle_of(handle.process, life))
        });
        Ok(Self { mapping, process })
    }
}

/// The pages of all ranks.
#[derive(Debug)]
pub(crate) struct Pages {
    /// What they say.
    pub words: Words,
    /// By rank; none for this process.
    processes: Vec<Option<Arc<Process>>>,
    /// Keep `words` valid.
    _mappings: Vec<Arc<Mapping>>,
}

impl Pages {
    /// Of `rank`, whose page is `own`, and its peers in rank order, of whom some may have none.
    pub fn new(rank: usize, own: &OwnPage, peers: Vec<Option<PeerPage>>) -> Self {
        let mut pages: Vec<_> = peers
            .into_iter()
            .map(|peer| peer.map_or((None, None), |peer| (Some(Arc::new(peer.mapping)), peer.process)))
            .collect();
        pages[rank].0 = Some(own.0.mapping().clone());
        let (mappings, processes): (Vec<_>, _) = pages.into_iter().unzip();
        let pages = Self::over(mappings, processes);
        if !pages.are_complete() {
            pages.notices(rank).rule_out_reset(NoReset::PagesMissing);
        }
        pages
    }

    /// The pages of each rank of a group of threads.
    pub fn in_process(world_size: usize) -> Result<Vec<Self>> {
        let mappings =
            (0..world_size).map(|_| Ok(Some(OwnPage::allocate()?.0.into_mapping()))).collect::<Result<Vec<_>>>()?;
        let of_threads = |_| (0..world_size).map(|_| None).collect();
        Ok((0..world_size).map(|rank| Self::over(mappings.clone(), of_threads(rank))).collect())
    }

    fn over(mappings: Vec<Option<Arc<Mapping>>>, processes: Vec<Option<Arc<Process>>>) -> Self {
        let words = mappings.iter().map(|mapping| mapping.as_ref().map(|mapping| mapping.pointer().cast())).collect();
        Self { words: Words(words), processes, _mappings: mappings.into_iter().flatten().collect() }
    }

    /// Whether all ranks' pages are there.
    pub fn are_complete(&self) -> bool {
        self.words.0.iter().all(Option::is_some)
    }

    /// Why the ranks cannot begin anew together, if they cannot: each needs the pages of all. Known once all have
    /// constructed, and the same on all ranks that have all pages.
    pub fn reset_ruled_out(&self) -> Option<NoReset> {
        if self.are_complete() { self.notices(0).reset_ruled_out() } else { Some(NoReset::PagesMissing) }
    }

    /// Decides how the construction ends, unless a peer has. What holds for all ranks; `None` if they cannot tell each other.
    pub fn decide(&self, own: Outcome) -> Option<Outcome> {
        let all_have_all = self.are_complete() && self.notices(0).all_have_all_pages();
        all_have_all.then(|| own.decide(&self.words))
    }

    /// What `rank` and its peers tell before anything began anew.
    fn notices(&self, rank: usize) -> Notices<'_, Words> {
        Notices { words: &self.words, rank, world_size: self.words.world_size(), epoch: 0 }
    }

    /// Why a peer has given up, as `rank` was told before anything began anew.
    pub fn fault(&self, rank: usize) -> Option<Error> {
        let notices = self.notices(rank);
        fault_of(&notices, notices.told())
    }

    /// Tells that `rank`, this one, has given up the construction, and comes to no other round of it. Why, it says after that.
    pub fn give_up(&self, rank: usize) {
        Built::Gone.tell(&self.words, rank);
    }

    /// An error if peers have told `rank` so.
    pub fn given_up(&self, rank: usize) -> Option<Error> {
        let gone = Built::gone(&self.words, self.words.world_size());
        (!gone.is_empty()).then(|| self.reason_of(rank, gone))
    }

    /// Why peers that are `gone` gave up, as they tell `rank` about then.
    pub fn reason_of(&self, rank: usize, gone: RankSet) -> Error {
        let notices = self.notices(rank);
        let reason = || fault_of(&notices, notices.told().filter(|rank| gone.contains(rank)));
        let began = Instant::now();
        let error = iter::repeat_with(reason).find(|reason| {
            let is_over = reason.is_some() || began.elapsed() > REASON_FOLLOWS;
            if !is_over {
                thread::sleep(LOOK_FOR_REASON);
            }
            is_over
        });
        let unknown = || {
            Error::Agreement(format!(
                "{gone} gave up before all ranks had agreed, and raised why; construct again on every rank"
            ))
        };
        error.flatten().map_or_else(unknown, Error::before_there_is_a_workspace)
    }

    /// Why nothing will tell that a peer's process has ended, if that is so of any.
    pub fn unwatched(&self) -> Option<Reason> {
        self.processes.iter().flatten().find_map(|process| process.obstacle())
    }

    /// Of `ranks`, those whose processes have ended.
    pub fn ended(&self, ranks: RankSet) -> RankSet {
        let of_rank = |rank: usize| Some((rank, self.processes.get(rank)?.as_deref()?));
        let (ranks, processes): (Vec<_>, Vec<_>) = ranks.iter().filter_map(of_rank).unzip();
        ended(&processes).into_iter().map(|at| ranks[at]).collect()
    }

    /// Of `ranks`, those whose processes say that they have ended, or are about to. They may still store for a while. Takes
    /// no system call.
    pub fn ending(&self, ranks: RankSet) -> RankSet {
        ranks
            .filter(|rank| self.processes.get(rank).is_some_and(|process| process.as_ref().is_some_and(|it| it.ends())))
    }

    /// The number of a peer's process.
    pub fn process(&self, rank: usize) -> Option<u32> {
        self.processes.get(rank)?.as_ref().map(|process| process.number)
    }
}

#[cfg(test)]
impl Pages {
    /// Those of rank 0 of two, whose peer is the process of that number.
    pub fn beside(process: u32) -> Self {
        let page = || Some(OwnPage::allocate().unwrap().0.into_mapping());
        Self::over(vec![page(), page()], vec![None, Some(Process::without_a_word(process))])
    }
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::notices::StatusWords;

    use super::*;

    #[test]
    fn ranks_whose_process_has_ended_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let page = || Some(OwnPage::allocate().unwrap().0.into_mapping());
        let processes =
            vec![None, Some(Process::without_a_word(child.id())), Some(Process::without_a_word(std::process::id()))];
        let pages = Pages::over(vec![page(), page(), page()], processes);
        let all = RankSet(0b111);
        assert!(pages.ended(all).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(pages.ended(all), RankSet(0b10));
        assert_eq!(pages.process(1), Some(child.id()));
        assert!(pages.ended(RankSet(0b101)).is_empty());
    }

    #[test]
    fn words_of_a_page_that_is_not_there_are_0() {
        let pages = Pages::new(1, &OwnPage::allocate().unwrap(), vec![None, None]);
        assert!(!pages.are_complete());
        pages.words.store(0, 3, 7);
        assert!(!pages.words.replace(0, 3, 0, 7));
        assert_eq!(pages.words.load(0, 3), 0);
        pages.words.store(1, 3, 7);
        assert_eq!(pages.words.load(1, 3), 7);
    }
}
