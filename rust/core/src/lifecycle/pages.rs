//! The pages of a group's [notices](lamport_rs_protocol::notices): a page of shared memory of each rank, whatever memory
//! its slots are in, and whether the ranks' processes live.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lamport_rs_protocol::notices::{self, PAGE_WORDS, StatusWords};
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::Vector;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, Result};
use crate::memory::handle::Handle;
use crate::memory::host::{self, Block, Mapping};

/// Bytes of a page.
const PAGE_BYTES: usize = PAGE_WORDS * size_of::<u32>();

/// A rank's own page, before the peers have it.
#[derive(Debug)]
pub struct OwnPage(Block);

impl OwnPage {
    /// Allocates it.
    pub fn allocate() -> Result<Self> {
        let page = Self(Block::allocate(PAGE_BYTES, 0)?);
        notices::initialise(&Words(vec![page.0.pointer().cast()]), 0);
        Ok(page)
    }

    /// What peers need to map it. They will find `mark` in it.
    pub fn export(&mut self, mark: Vector) -> Handle {
        self.0.export(mark)
    }
}

/// A peer's page, and its process.
#[derive(Debug)]
pub struct PeerPage {
    mapping: Mapping,
    process: Process,
}

impl PeerPage {
    /// Maps the page of an encoded handle that a peer exported with `mark`.
    pub fn open(handle: &[u8], mark: Vector) -> Result<Self> {
        let handle = Handle::decode(handle)
            .ok_or_else(|| Error::Argument("the handle of its page of notices cannot be read".into()))?;
        Ok(Self { mapping: host::open(&handle, mark, PAGE_BYTES)?, process: Process::of(handle.process) })
    }
}

/// A peer's process.
#[derive(Debug)]
struct Process {
    number: u32,
    /// What tells that it has ended. None if the kernel cannot say (before Linux 5.3), or there are no more descriptors:
    /// a death is then noticed by the time that an operation takes.
    descriptor: Option<OwnedFd>,
}

impl Process {
    /// The process of that number, which is alive: it takes part in the construction.
    fn of(number: u32) -> Self {
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
        Self { number, descriptor: pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) }
    }
}

/// The pages of all ranks.
#[derive(Debug)]
pub struct Pages {
    /// What they say.
    pub words: Words,
    /// By rank; none for this rank, and where ranks are threads of one process.
    processes: Vec<Option<Process>>,
    /// Keep `words` valid.
    _mappings: Vec<Arc<Mapping>>,
}

impl Pages {
    /// Of `own` and its peers', which are in rank order with none at this rank's own place.
    pub fn new(own: OwnPage, peers: Vec<Option<PeerPage>>) -> Self {
        let mut own = Some(own.0.into_mapping());
        let (mut mappings, mut processes) = (vec![], vec![]);
        for peer in peers {
            let (mapping, process) = match peer {
                Some(PeerPage { mapping, process }) => (mapping, Some(process)),
                None => (own.take().expect("one place is this rank's"), None),
            };
            mappings.push(Arc::new(mapping));
            processes.push(process);
        }
        Self::over(mappings, processes)
    }

    /// The pages of each rank of a group of threads.
    pub fn in_process(world_size: usize) -> Result<Vec<Self>> {
        let mappings =
            (0..world_size).map(|_| Ok(Arc::new(OwnPage::allocate()?.0.into_mapping()))).collect::<Result<Vec<_>>>()?;
        let of_threads = |_| (0..world_size).map(|_| None).collect();
        Ok((0..world_size).map(|rank| Self::over(mappings.clone(), of_threads(rank))).collect())
    }

    fn over(mappings: Vec<Arc<Mapping>>, processes: Vec<Option<Process>>) -> Self {
        let words = mappings.iter().map(|mapping| mapping.pointer().cast()).collect();
        Self { words: Words(words), processes, _mappings: mappings }
    }

    /// Of `ranks`, those whose processes have ended.
    pub fn ended(&self, ranks: RankSet) -> RankSet {
        let alive = |rank: &usize| self.processes.get(*rank)?.as_ref()?.descriptor.as_ref().map(|file| (*rank, file));
        let asked: Vec<_> = ranks.iter().filter_map(|rank| alive(&rank)).collect();
        let mut files: Vec<_> = asked.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)).collect();
        let mut ended = RankSet::default();
        if poll(&mut files, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0) {
            for ((rank, _), file) in asked.iter().zip(&files) {
                if file.revents().contains(PollFlags::IN) {
                    ended.insert(*rank);
                }
            }
        }
        ended
    }

    /// The number of a peer's process.
    pub fn process(&self, rank: usize) -> Option<u32> {
        self.processes.get(rank)?.as_ref().map(|process| process.number)
    }
}

/// The words of pages, each of which is at least [`PAGE_WORDS`] long and valid for as long as this is used.
#[derive(Debug)]
pub struct Words(Vec<NonNull<AtomicU32>>);

// SAFETY: the words are accessed as atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn word(&self, rank: usize, word: usize) -> &AtomicU32 {
        assert!(word < PAGE_WORDS);
        // SAFETY: within the page, which is mapped, and aligned as pages are; all accesses are atomic.
        unsafe { self.0[rank].add(word).as_ref() }
    }
}

impl StatusWords for Words {
    #[inline]
    fn load(&self, rank: usize, word: usize) -> u32 {
        self.word(rank, word).load(Ordering::Acquire)
    }

    fn store(&self, rank: usize, word: usize, value: u32) {
        self.word(rank, word).store(value, Ordering::Release);
    }

    fn replace(&self, rank: usize, word: usize, current: u32, new: u32) -> bool {
        self.word(rank, word).compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_is_noticed_and_one_that_lives_is_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let block = || Arc::new(OwnPage::allocate().unwrap().0.into_mapping());
        let processes = vec![None, Some(Process::of(child.id())), Some(Process::of(std::process::id()))];
        let pages = Pages::over(vec![block(), block(), block()], processes);
        let all = RankSet(0b111);
        assert!(pages.ended(all).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(pages.ended(all), RankSet(0b10));
        assert!(pages.ended(RankSet(0b101)).is_empty());
    }
}
