//! Ranks as processes.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, process, thread};

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::exchange::AllGather;
use lamport_rs_core::tensor::Dtype;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::operations::sums;
use crate::standin::either::{Either, on_host};
use crate::standin::{Standin, child};

const COMM_SIZE: usize = 4096;
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Environment variables of a rank's process.
const RANK: &str = "STANDIN_RANK";
const WORLD_SIZE: &str = "STANDIN_WORLD_SIZE";
const FOLDER: &str = "STANDIN_FOLDER";

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

#[test]
#[ignore = "a rank of ranks_may_be_processes"]
fn rank() {
    let [rank, world_size] = [RANK, WORLD_SIZE].map(|name| child::variable(name).parse().unwrap());
    let mut transport = Files { folder: child::variable(FOLDER).into(), rank, world_size, step: 0 };
    let _standin = Standin::take();
    let settings = Settings {
        rank: rank as i64,
        world_size: world_size as i64,
        comm_size: COMM_SIZE as i64,
        timeout: LONGEST_WAIT.as_secs_f64(),
        two_shot_from: None,
    };
    let workspace = CudaWorkspace::create(&settings, Device::get(rank), &mut transport).unwrap();
    let found = sums(Dtype::Float32)(rank, Either::Cuda(&workspace));
    let expected = on_host(world_size, COMM_SIZE, sums(Dtype::Float32));
    assert!(found == expected[rank]);
    // Nobody's memory goes while another rank's kernel runs.
    transport.all_gather(&[]).unwrap();
}

#[test]
fn ranks_may_be_processes() {
    for world_size in [2, 4] {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("ranks.{}.{world_size}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let start = |rank: usize| {
            let folder = folder.to_str().unwrap().to_owned();
            let variables = [(RANK, rank.to_string()), (WORLD_SIZE, world_size.to_string()), (FOLDER, folder)];
            child::start("processes::rank", &variables)
        };
        let ranks: Vec<_> = (0..world_size).map(start).collect();
        ranks.into_iter().for_each(|rank| drop(child::finish(rank)));
        fs::remove_dir_all(&folder).unwrap();
    }
}
