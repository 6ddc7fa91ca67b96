//! Ranks, each with a device of its own and an all-gather.

use std::sync::Arc;
use std::time::Duration;

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::error::Result;
use lamport_rs_core::rendezvous::AllGather;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use super::act_as;
use super::threads::{Meeting, Visitor};

/// More than any rank of a test is behind another.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// One rank of a group.
pub struct Rank {
    /// Its number, and that of its device.
    pub rank: usize,
    /// Ranks in the group.
    pub world_size: usize,
    transport: Box<dyn AllGather + Send>,
}

impl Rank {
    /// The calling thread is this rank from now on.
    pub fn new(rank: usize, world_size: usize, transport: impl AllGather + Send + 'static) -> Self {
        act_as(rank);
        Self { rank, world_size, transport: Box::new(transport) }
    }

    /// What [`Rank::create`] creates from: slots of 16 KiB, and a timeout that no operation is to see.
    pub fn settings(&self) -> Settings {
        Settings {
            rank: self.rank as i64,
            world_size: self.world_size as i64,
            comm_size: 16 << 10,
            timeout: LONGEST_WAIT.as_secs_f64(),
            two_shot_from: None,
        }
    }

    /// This rank's workspace. Collective.
    pub fn create(&mut self) -> Result<Arc<CudaWorkspace>> {
        self.create_with(&self.settings())
    }

    /// Likewise, whose operations wait for `timeout` seconds; 0 for ever.
    pub fn create_with_timeout(&mut self, timeout: f64) -> Result<Arc<CudaWorkspace>> {
        self.create_with(&Settings { timeout, ..self.settings() })
    }

    /// Likewise, from other settings.
    pub fn create_with(&mut self, settings: &Settings) -> Result<Arc<CudaWorkspace>> {
        CudaWorkspace::create(settings, Device::get(self.rank), self)
    }

    /// Waits for the other ranks.
    pub fn meet(&mut self) {
        self.all_gather(&[]).expect("all ranks meet");
    }
}

impl AllGather for Rank {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.transport.all_gather(message)
    }
}

/// Runs `run` as every rank of a group, each on a thread of its own, and returns their results in rank order.
pub fn on_ranks<R: Send>(world_size: usize, run: impl Fn(&mut Rank) -> R + Sync) -> Vec<R> {
    let meeting = Arc::new(Meeting::default());
    std::thread::scope(|scope| {
        let (run, meeting) = (&run, &meeting);
        let start =
            |rank| scope.spawn(move || run(&mut Rank::new(rank, world_size, Visitor::new(rank, world_size, meeting))));
        let threads: Vec<_> = (0..world_size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
