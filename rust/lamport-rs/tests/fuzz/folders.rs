//! What may lie where a rank looks for a peer's file, or is to write its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lamport_rs::FileRendezvous;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{
    EXCHANGES, LARGEST_ALLOCATION, LONG_TIMEOUT, LONGEST, MAX_MESSAGE, TIMEOUT, allocations, exchange, is_truth,
    length, message,
};

const RUN: &str = "run";
/// What is in a file of somebody else's.
const SECRET: &[u8] = b"a stranger's";

/// A folder of this process's own, with a stranger's file.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("lamport-rs-fuzz-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), SECRET).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone, Debug)]
enum Thing {
    Nothing,
    File(Vec<u8>),
    /// A file that says to be so long.
    Sparse(u64),
    Folder,
    Fifo,
    Socket,
    /// A link to a stranger's file, to nothing, or to itself.
    Link(&'static str),
    /// The honest rank's file, cut.
    Cut(usize),
}

#[derive(Clone, Debug)]
pub struct Case {
    rank: usize,
    ranks: usize,
    /// Bytes of messages.
    length: usize,
    /// Exchange, rank and what is in the place of its file: of a peer's, or of that which this rank is to write.
    things: Vec<(usize, usize, Thing)>,
}

pub fn cases() -> impl Strategy<Value = Case> {
    let sizes = select(vec![0, 1, 512, MAX_MESSAGE as u64, MAX_MESSAGE as u64 + 1, 1 << 20, 1 << 40]);
    let thing = prop_oneof![
        1 => Just(Thing::Nothing),
        3 => vec(any::<u8>(), 0..600).prop_map(Thing::File),
        2 => sizes.prop_map(Thing::Sparse),
        1 => Just(Thing::Folder),
        1 => Just(Thing::Fifo),
        1 => Just(Thing::Socket),
        3 => select(vec!["../secret", "nowhere", "run.0.0", "run.0.1", "run.1.0", "/dev/zero"]).prop_map(Thing::Link),
        1 => (0..600_usize).prop_map(Thing::Cut),
    ];
    let things = prop_oneof![1 => Just(vec![]), 4 => vec((0..EXCHANGES, 0..3_usize, thing), 1..3)];
    (2..4_usize, 0..3_usize, length(), things).prop_map(|(ranks, rank, length, things)| {
        let things = things.into_iter().map(|(exchange, of, thing)| (exchange, of % ranks, thing)).collect();
        Case { rank: rank % ranks, ranks, length, things }
    })
}

impl Thing {
    fn put(&self, path: &Path, honest: &[u8]) {
        let _ = fs::remove_file(path);
        let make = |kind| mknodat(CWD, path, kind, Mode::RWXU, 0).unwrap();
        match self {
            Self::Nothing => {}
            Self::File(content) => fs::write(path, content).unwrap(),
            Self::Sparse(length) => {
                // No file system here has longer ones than some.
                let _ = fs::File::create(path).unwrap().set_len(*length);
            }
            Self::Folder => drop(fs::create_dir(path)),
            Self::Fifo => make(FileType::Fifo),
            Self::Socket => make(FileType::Socket),
            Self::Link(target) => symlink(target, path).unwrap(),
            Self::Cut(length) => fs::write(path, &honest[..honest.len().min(*length)]).unwrap(),
        }
    }
}

impl Case {
    pub fn check(&self, Folder(around): &Folder) -> Result<(), TestCaseError> {
        let folder = around.join("meeting");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        let path = |exchange: usize, rank: usize| folder.join(format!("{RUN}.{exchange}.{rank}"));
        for exchange in 0..EXCHANGES {
            for rank in (0..self.ranks).filter(|rank| *rank != self.rank) {
                fs::write(path(exchange, rank), message(exchange, rank, self.length)).unwrap();
            }
        }
        for (exchange, rank, thing) in &self.things {
            // One thing after another may come to one place.
            let _ = fs::remove_dir(path(*exchange, *rank));
            thing.put(&path(*exchange, *rank), &message(*exchange, *rank, self.length));
        }
        // In the place of this rank's file nothing may be, and in a peer's a file.
        let is_wrong = |exchange: usize, rank: usize| {
            path(exchange, rank).symlink_metadata().is_ok_and(|found| rank == self.rank || !found.is_file())
        };
        let last = (0..EXCHANGES).find(|exchange| (0..self.ranks).any(|rank| is_wrong(*exchange, rank)));
        let began = Instant::now();
        let timeout = if self.things.is_empty() { LONG_TIMEOUT } else { TIMEOUT };
        let mut rendezvous = FileRendezvous::new(&folder, RUN, self.rank, self.ranks, timeout).unwrap();
        let (outcome, largest) =
            allocations::largest_of(|| exchange(&mut rendezvous, (self.rank, self.ranks), self.length));
        let (all, error) = outcome?;
        prop_assert!(self.things.is_empty() || began.elapsed() < LONGEST, "took {:?}", began.elapsed());
        prop_assert!(largest <= LARGEST_ALLOCATION, "allocated {largest} bytes at once");
        prop_assert!(
            !self.things.is_empty() || is_truth(&all, self.ranks, self.length),
            "the truth is refused: {error:?}"
        );
        let is_secret = all.iter().flatten().any(|message| message == SECRET);
        prop_assert!(!is_secret, "a stranger's file was read");
        prop_assert_eq!(fs::read(around.join("secret")).unwrap(), SECRET);
        for (exchange, gathered) in all.iter().enumerate() {
            prop_assert_eq!(&gathered[self.rank], &message(exchange, self.rank, self.length));
        }
        prop_assert!(last.is_none_or(|last| all.len() <= last), "what no rank has written was read, or replaced");
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = names.filter(|name| name.split('.').count() > 3).collect();
        prop_assert!(left.is_empty(), "files without their names are left: {left:?}");
        Ok(())
    }
}
