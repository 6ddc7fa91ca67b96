//! Agreement over the ranks' status pages that all have what they construct. It takes microseconds, where a round of
//! the transport takes hundreds.

use std::hint::spin_loop;
use std::thread;
use std::time::{Duration, Instant};

use lamport_rs_protocol::construction::Built;
use lamport_rs_protocol::rank_set::RankSet;

use super::{Rendezvous, Transcript};
use crate::error::{Error, Result};
use crate::interrupts::INTERRUPT_INTERVAL;
use crate::lifecycle::pages::Pages;

/// Ranks map within microseconds of each other: a rank spins for so long before it sleeps between two looks.
const SPIN: Duration = Duration::from_micros(100);
const SLEEP: Duration = Duration::from_micros(20);
/// Ranks have so long to map in any case: an operation may have less.
const LEAST: Duration = Duration::from_secs(1);

/// Tells what `rank` has made of the construction, of which it was `brought` this, and waits for what the others have.
///
/// True: all have all of it, and were brought the same messages. False: some do not, and all ranks come to another round. A
/// rank whose peers could end unnoticed does not wait here, and neither do the others then. An error if peers have ended,
/// given up, or do not tell in time, or if this rank was interrupted: there is no other round then. But if others go to one
/// while this rank is interrupted, it comes too, and says so in what it was `brought`. (One that goes there in the very
/// microseconds in which this rank gives up hears of that in the transport only.)
pub fn are_built(
    pages: &Pages,
    rank: usize,
    brought: &mut Result<Transcript>,
    timeout: Option<Duration>,
    rendezvous: &mut Rendezvous<'_>,
) -> Result<bool> {
    let own = match brought {
        Ok(transcript) if pages.are_complete() && pages.unwatched().is_none() => Built::Whole(transcript.digest()),
        _ => Built::Doubtful,
    };
    own.tell(&pages.words, rank);
    if own == Built::Doubtful {
        return not_yet(pages, rank);
    }
    let missing = || own.missing(&pages.words, pages.words.world_size());
    let began = Instant::now();
    let mut asked = began;
    loop {
        // Before it looks: a rank that is stopped between the two looks once more.
        let now = Instant::now();
        let Some(waited_for) = missing() else { return not_yet(pages, rank) };
        if waited_for.is_empty() {
            // Whatever else is told by now: it may be of what came after, a clean-up for example.
            return Ok(true);
        }
        if now - asked >= INTERRUPT_INTERVAL {
            asked = now;
            not_yet(pages, rank)?;
            check_ended(pages, waited_for, missing)?;
            if rendezvous.is_interrupted() {
                let error = Error::Agreement(format!("interrupted while waiting for {waited_for} to map all memory"));
                // A signal's handler takes its time.
                if missing().is_some() {
                    return Err(error);
                }
                *brought = Err(error);
                return not_yet(pages, rank);
            }
            // The others may have told meanwhile.
            let waited_for = missing().unwrap_or_default();
            if timeout.is_some_and(|timeout| now - began >= timeout.max(LEAST)) && !waited_for.is_empty() {
                let waited = (now - began).as_secs_f64();
                return Err(Error::Agreement(format!(
                    "waited {waited:.1} s for {waited_for} to map all memory; they are hung, or need longer"
                )));
            }
        }
        if now - began < SPIN { spin_loop() } else { thread::sleep(SLEEP) }
    }
}

/// False: the ranks have not agreed yet. An error if one has given up, and so comes to no other round.
fn not_yet(pages: &Pages, rank: usize) -> Result<bool> {
    pages.given_up(rank).or_else(|| pages.fault(rank).map(Error::before_there_is_a_workspace)).map_or(Ok(false), Err)
}

/// An error if some of the ranks that are `waited_for` will never tell. A rank may tell and end between two looks: so it
/// counts what is missing after it was found to have ended.
fn check_ended(pages: &Pages, waited_for: RankSet, missing: impl Fn() -> Option<RankSet>) -> Result<()> {
    let ended = pages.ended(waited_for);
    let silent = missing().map_or(RankSet::default(), |missing| missing.filter(|rank| ended.contains(rank)));
    if silent.is_empty() {
        return Ok(());
    }
    Err(Error::Agreement(format!("the process of {silent} ended before it had mapped all memory")))
}
