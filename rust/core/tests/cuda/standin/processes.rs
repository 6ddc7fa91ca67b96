//! Ranks as processes: an ignored test that takes [`ProcessGroup::this_rank`] is one of them, and another test starts
//! the group.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};
use std::{fs, process, thread};

use lamport_rs_core::rendezvous::AllGather;

use super::child;
use super::group::{LONGEST_WAIT, Rank};

/// Environment variables of a rank's process.
const RANK: &str = "STANDIN_RANK";
const WORLD_SIZE: &str = "STANDIN_WORLD_SIZE";
const FOLDER: &str = "STANDIN_FOLDER";

/// The processes of a group, in rank order.
pub struct ProcessGroup {
    /// Each rank's.
    pub children: Vec<Child>,
    folder: PathBuf,
}

impl ProcessGroup {
    /// Starts the ignored test as every rank of a group.
    pub fn start(test: &str, world_size: usize) -> Self {
        let name = format!("{}.{}.{world_size}", test.replace("::", "."), process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let start = |rank: usize| {
            let folder = folder.to_str().expect("the target folder's name is text").to_owned();
            let variables = [(RANK, rank.to_string()), (WORLD_SIZE, world_size.to_string()), (FOLDER, folder)];
            child::start(test, &variables)
        };
        Self { children: (0..world_size).map(start).collect(), folder }
    }

    /// Waits until all have passed, but for those that were taken out of the list.
    pub fn finish(mut self) {
        self.children.drain(..).for_each(|child| drop(child::finish(child)));
    }

    /// The rank that this process is.
    pub fn this_rank() -> Rank {
        let [rank, world_size] = [RANK, WORLD_SIZE].map(|name| child::variable(name).parse().unwrap());
        Rank::new(rank, world_size, Files { folder: child::variable(FOLDER).into(), rank, world_size, step: 0 })
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// An all-gather by files of a folder.
struct Files {
    folder: PathBuf,
    rank: usize,
    world_size: usize,
    step: usize,
}

impl Files {
    fn of(&self, rank: usize) -> PathBuf {
        self.folder.join(format!("{}.{rank}", self.step))
    }
}

impl AllGather for Files {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        // Whole once it has its name.
        let unnamed = self.folder.join(format!("unnamed.{}", self.rank));
        fs::write(&unnamed, message)
            .and_then(|()| fs::rename(&unnamed, self.of(self.rank)))
            .map_err(|e| e.to_string())?;
        let began = Instant::now();
        let mut gathered = vec![];
        while gathered.len() < self.world_size {
            match fs::read(self.of(gathered.len())) {
                Ok(message) => gathered.push(message),
                Err(_) if began.elapsed() < LONGEST_WAIT => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(format!("rank {} did not come: {error}", gathered.len())),
            }
        }
        self.step += 1;
        Ok(gathered)
    }
}
