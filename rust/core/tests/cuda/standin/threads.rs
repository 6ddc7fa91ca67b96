//! The all-gather of ranks that are threads.

use std::sync::{Arc, Condvar, Mutex};

use lamport_rs_core::rendezvous::AllGather;

use super::group::LONGEST_WAIT;

/// Where the ranks' messages meet.
#[derive(Default)]
pub struct Meeting {
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

/// One rank's end of it.
pub struct Visitor {
    rank: usize,
    world_size: usize,
    meeting: Arc<Meeting>,
}

impl Visitor {
    pub fn new(rank: usize, world_size: usize, meeting: &Arc<Meeting>) -> Self {
        Self { rank, world_size, meeting: meeting.clone() }
    }
}

impl AllGather for Visitor {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
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

impl Drop for Visitor {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.meeting.state.lock().unwrap().is_over = true;
            self.meeting.changed.notify_all();
        }
    }
}
