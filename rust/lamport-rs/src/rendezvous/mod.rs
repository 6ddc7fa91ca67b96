//! How the ranks of a group meet: an all-gather of bytes, used while a communicator is created and not after.
//!
//! Engines that have one already implement [`Rendezvous`] over it. For others there are [`TcpRendezvous`] and
//! [`FileRendezvous`]. Neither knows who speaks: use an address and a folder that only the group's ranks can reach.

mod files;
mod frames;
mod tcp;

use std::time::{Duration, Instant};

use lamport_rs_core::rendezvous::AllGather;

pub use self::files::FileRendezvous;
pub use self::tcp::TcpRendezvous;
use crate::error::{Error, Result};

/// Most bytes of a message: ours have some hundred.
const MAX_MESSAGE: usize = 64 << 10;
/// Most ranks.
const MAX_RANKS: usize = lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
/// Most bytes of a run's id.
const MAX_RUN_ID: usize = 64;
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(1);

/// Why a message could not be passed on.
pub type TransportError = Box<dyn std::error::Error + Send + Sync>;

/// An all-gather of bytes between the ranks of a group.
///
/// What it brings is checked: garbled messages, and messages that differ between the ranks, are an error. Forged ones are
/// not found. Whoever carries the messages is trusted like a peer.
pub trait Rendezvous {
    /// Brings this rank's message to all ranks, and returns the messages of all, in rank order. All ranks call it as
    /// often. It must end: with an error, if a rank does not come.
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, TransportError>;
}

/// As the core takes it.
pub(crate) struct Transport<'a>(pub &'a mut dyn Rendezvous);

impl AllGather for Transport<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.0.all_gather(message).map_err(|error| error.to_string())
    }
}

/// Which rank of which group this is.
#[derive(Clone, Debug)]
struct Member {
    run_id: String,
    rank: usize,
    world_size: usize,
}

impl Member {
    fn new(run_id: &str, rank: usize, world_size: usize) -> Result<Self> {
        if world_size == 0 || world_size > MAX_RANKS || rank >= world_size {
            return Err(Error::argument(format!(
                "rank is {rank} of {world_size}, but must be below the number of ranks, which is 1 to {MAX_RANKS}"
            )));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if run_id.is_empty() || run_id.len() > MAX_RUN_ID || !run_id.bytes().all(is_plain) {
            return Err(Error::argument(format!(
                "run_id is {run_id:?}, but must be 1 to {MAX_RUN_ID} letters, digits, '-' and '_'"
            )));
        }
        Ok(Self { run_id: run_id.to_owned(), rank, world_size })
    }

    fn check_message(&self, message: &[u8]) -> Result<()> {
        if message.len() <= MAX_MESSAGE {
            return Ok(());
        }
        Err(Error::rendezvous(format!(
            "rank {}'s message has {} bytes, but may have {MAX_MESSAGE}",
            self.rank,
            message.len()
        )))
    }
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    began: Instant,
    timeout: Duration,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self { began: Instant::now(), timeout }
    }

    /// What is left; `None` if nothing is.
    fn left(&self) -> Option<Duration> {
        self.timeout.checked_sub(self.began.elapsed()).filter(|left| !left.is_zero())
    }
}

/// The ranks in words.
fn name_ranks(ranks: &[usize]) -> String {
    let names: Vec<_> = ranks.iter().map(usize::to_string).collect();
    match names.as_slice() {
        [one] => format!("rank {one}"),
        several => format!("ranks {}", several.join(", ")),
    }
}
