//! Ranks as threads, each with a device of its own.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::error::Result;
use lamport_rs_core::exchange::AllGather;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use super::act_as;

/// More than any rank of a test is behind another.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Where the ranks' messages meet.
#[derive(Default)]
struct Meeting {
    state: Mutex<Round>,
    changed: Condvar,
}

#[derive(Default)]
struct Round {
    number: usize,
    messages: Vec<Option<Vec<u8>>>,
    /// Of the round before.
    gathered: Vec<Vec<u8>>,
    /// A rank that panicked will not come.
    is_over: bool,
}

/// One rank of a group.
pub struct Rank {
    /// Its number, and that of its device.
    pub rank: usize,
    /// Ranks in the group.
    pub world_size: usize,
    meeting: Arc<Meeting>,
}

impl Rank {
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
    pub fn create(&mut self) -> Result<CudaWorkspace> {
        self.create_with(&self.settings())
    }

    /// Likewise, from other settings.
    pub fn create_with(&mut self, settings: &Settings) -> Result<CudaWorkspace> {
        CudaWorkspace::create(settings, Device::get(self.rank), self)
    }

    /// Waits for the other ranks.
    pub fn meet(&mut self) {
        self.all_gather(&[]).expect("all ranks meet");
    }
}

impl AllGather for Rank {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        let Meeting { state, changed } = &*self.meeting;
        let mut round = state.lock().unwrap();
        let number = round.number;
        round.messages.resize(self.world_size, None);
        round.messages[self.rank] = Some(message.to_vec());
        if round.messages.iter().all(Option::is_some) {
            round.gathered = std::mem::take(&mut round.messages).into_iter().flatten().collect();
            round.number += 1;
            changed.notify_all();
        }
        let (round, _) =
            changed.wait_timeout_while(round, LONGEST_WAIT, |round| round.number == number && !round.is_over).unwrap();
        if round.number == number {
            let why = if round.is_over { "panicked".to_owned() } else { format!("did not come for {LONGEST_WAIT:?}") };
            return Err(format!("a rank {why}"));
        }
        Ok(round.gathered.clone())
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.meeting.state.lock().unwrap().is_over = true;
            self.meeting.changed.notify_all();
        }
    }
}

/// Runs `run` as every rank of a group, each on a thread of its own, and returns their results in rank order.
pub fn on_ranks<R: Send>(world_size: usize, run: impl Fn(&mut Rank) -> R + Sync) -> Vec<R> {
    let meeting = Arc::new(Meeting::default());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size)
            .map(|rank| {
                let mut rank = Rank { rank, world_size, meeting: meeting.clone() };
                let run = &run;
                scope.spawn(move || {
                    act_as(rank.rank);
                    run(&mut rank)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
