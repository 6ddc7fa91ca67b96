//! Agreement over the ranks' pages of notices that all have what they construct: microseconds, where a round of the
//! transport takes hundreds.

use std::hint::spin_loop;
use std::thread;
use std::time::{Duration, Instant};

use lamport_rs_protocol::notices::Built;
use lamport_rs_protocol::rank_set::RankSet;

use super::{Rendezvous, Transcript};
use crate::error::{Error, Result};
use crate::lifecycle::pages::Pages;

/// How long to spin before sleeping between looks.
const SPIN: Duration = Duration::from_micros(100);
const SLEEP: Duration = Duration::from_micros(20);
/// Between two looks for what may end the wait.
const CHECK: Duration = Duration::from_millis(10);

/// Tells what this rank has made of the construction, and waits for what the others have. True: all have all of it, and
/// were brought the same messages. False: the ranks need another round; all come to that, if they live. An error if some
/// did not tell within the limit, or this rank was interrupted.
pub fn are_built(
    pages: &Pages,
    rank: usize,
    brought: &Result<Transcript>,
    rendezvous: &mut Rendezvous<'_>,
) -> Result<bool> {
    let own = match brought {
        Ok(transcript) if pages.are_complete() => Built::Whole(transcript.digest()),
        _ => Built::Doubtful,
    };
    own.tell(&pages.words, rank);
    if own == Built::Doubtful {
        return Ok(false);
    }
    let began = Instant::now();
    let (mut checked, mut limit) = (began, None);
    loop {
        let mut missing = RankSet::default();
        for peer in 0..pages.words.world_size() {
            match Built::told(&pages.words, peer) {
                Some(told) if told == own => {}
                Some(_) => return Ok(false),
                None => missing.insert(peer),
            }
        }
        if missing.is_empty() {
            return Ok(true);
        }
        let now = Instant::now();
        if now - checked >= CHECK {
            checked = now;
            // Whoever has ended before it told is missed by all.
            if !pages.ended(missing).is_empty() {
                return Ok(false);
            }
            if rendezvous.is_interrupted() {
                return Err(Error::Agreement("interrupted while waiting for the peers to map this rank's memory".into()));
            }
            let limit = limit.get_or_insert_with(|| rendezvous.limit());
            if limit.is_some_and(|limit| now - began >= limit) {
                return Err(Error::Agreement(format!(
                    "waited {:.1} s for {missing} to map the memory of all ranks",
                    (now - began).as_secs_f64()
                )));
            }
        }
        if now - began < SPIN { spin_loop() } else { thread::sleep(SLEEP) }
    }
}
