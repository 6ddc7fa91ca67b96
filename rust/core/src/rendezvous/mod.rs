//! The rendezvous of a group's ranks: they meet over whatever transport the caller has, bring each other their handles,
//! and agree. Every step that can fail on one rank ends in an agreement, so that all ranks raise the same error and none
//! is left waiting. What a rank makes of the others' messages is such a step, since a transport may bring it other
//! messages than the others.
//!
//! Messages are plain bytes of one fixed size, never pickles. Whatever carries them only has to bring every rank's
//! message to every rank, in rank order.
//!
//! | module | concept |
//! | --- | --- |
//! | `message` | the bytes of a message |
//! | `transcript` | whether the ranks were brought the same messages |
//! | [`hello`] | what ranks tell each other first |
//! | `matching` | the mismatches between introductions that are errors |
//! | `identity` | what tells a host from another, and a construction from another |
//! | [`construct`] | allocate, meet, map, agree |
//! | `built` | agreeing over shared memory, without a round |
//! | [`phases`] | where the time of a construction goes |

mod built;
pub mod construct;
pub mod hello;
mod identity;
mod matching;
mod message;
pub mod phases;
mod transcript;

pub use message::{FORMAT, MESSAGE_BYTES, Payload};
pub use transcript::Transcript;

use message::{Body, Message, Unreadable};

use crate::error::{Error, Result};
use crate::panics::caught;
use crate::text::enumerate;

/// What carries the messages: an all-gather of bytes.
pub trait AllGather {
    /// Returns the messages of all ranks in rank order, this rank's among them.
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String>;

    /// Whether to give up what this rank waits for between two steps (a signal has come).
    fn is_interrupted(&mut self) -> bool {
        false
    }
}

/// Why a round did not succeed.
#[derive(Debug)]
pub enum Verdict {
    /// All ranks know it.
    Common(Error),
    /// What this rank was brought; the others may have been brought something else, and go on.
    Own(Error),
    /// The transport failed; it may have served the others, who go on.
    Unserved(Error),
}

impl From<Verdict> for Error {
    fn from(verdict: Verdict) -> Self {
        let (Verdict::Common(error) | Verdict::Own(error) | Verdict::Unserved(error)) = verdict;
        error
    }
}

/// Why a rank's message is no success of that rank.
struct Failure {
    reason: String,
    /// Whether all ranks go on to no other round: the sender says so, or knows nothing of another round.
    is_common: bool,
}

/// What rank `rank` sent in `step`, if it did not fail.
fn payload_of(bytes: &[u8], rank: usize, step: u32) -> std::result::Result<Vec<u8>, Failure> {
    let doubtful = |reason| Failure { reason, is_common: false };
    let message = Message::decode(bytes)
        .map_err(|Unreadable { reason, is_of_another_version }| Failure { reason, is_common: is_of_another_version })?;
    match message.body {
        Body::Failure(reason) => Err(Failure { reason, is_common: true }),
        _ if message.rank != rank as i64 => {
            Err(doubtful(format!("it is rank {rank} of the group, but was told rank={}", message.rank)))
        }
        _ if message.step != step => {
            Err(doubtful(format!("it is at step {} of the rendezvous, not {step}", message.step)))
        }
        Body::Payload(bytes) => Ok(bytes),
    }
}

/// One rank's end of the rendezvous.
pub struct Rendezvous<'a> {
    transport: &'a mut dyn AllGather,
    rank: i64,
    world_size: i64,
    step: u32,
    /// How many messages the first step brought; every step must bring as many.
    ranks: Option<usize>,
    /// All that was brought so far.
    transcript: Transcript,
    /// Whether this rank's own messages came back as they were sent.
    unchanged: bool,
}

impl<'a> Rendezvous<'a> {
    /// Starts a rendezvous as `rank` of `world_size`; `agree` checks the one against what the transport brings,
    /// `check_size` the other.
    pub fn new(transport: &'a mut dyn AllGather, rank: i64, world_size: i64) -> Self {
        Self { transport, rank, world_size, step: 0, ranks: None, transcript: Transcript::default(), unchanged: true }
    }

    /// Whether to give up what this rank waits for.
    pub fn is_interrupted(&mut self) -> bool {
        self.transport.is_interrupted()
    }

    /// Takes part only to say why this rank cannot go on: the error that every rank gets.
    pub fn refuse(&mut self, error: Error) -> Error {
        self.agree::<()>(Err(error.clone())).err().unwrap_or(error)
    }

    /// Sends what this rank did, and returns what every rank did, in rank order, if all succeeded. Another round follows
    /// then.
    ///
    /// If any rank failed, every rank gets the same error, which names the ranks and their reasons. A message that cannot
    /// be read here may have been changed on its way to this rank only: the others are told in the round that they go on
    /// to.
    pub fn agree<P: Payload>(&mut self, local: Result<P>) -> Result<Vec<P>> {
        self.conclude(local).map_err(|verdict| self.settle(verdict))
    }

    /// The error that `verdict` comes to where the others go on to another round if they can.
    pub fn settle(&mut self, verdict: Verdict) -> Error {
        match verdict {
            Verdict::Common(error) | Verdict::Unserved(error) => error,
            Verdict::Own(error) => self.refuse(error),
        }
    }

    /// Likewise, in a round that is the last if all succeeded.
    pub fn conclude<P: Payload>(&mut self, local: Result<P>) -> std::result::Result<Vec<P>, Verdict> {
        let step = self.step;
        self.step += 1;
        let body = match &local {
            Ok(payload) => caught(|| Ok(payload.encode())).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let body = body.map_or_else(Body::Failure, Body::Payload);
        let has_failed = matches!(body, Body::Failure(_));
        let message = Message { rank: self.rank, step, body }.encode();
        let gathered = match self.transport.all_gather(&message).and_then(|gathered| self.count(gathered)) {
            Ok(gathered) => gathered,
            // This rank's own failure says more than that it could not tell the others.
            Err(reason) => return Err(Verdict::Unserved(local.err().unwrap_or(Error::Transport(reason)))),
        };
        self.transcript.add(&gathered);
        self.unchanged &= usize::try_from(self.rank).is_ok_and(|rank| gathered.get(rank) == Some(&message));
        let (mut payloads, mut failures) = (vec![], vec![]);
        for (rank, bytes) in gathered.iter().enumerate() {
            match payload_of(bytes, rank, step) {
                Ok(payload) => payloads.push(payload),
                Err(failure) => failures.push((rank, failure)),
            }
        }
        if !failures.is_empty() {
            let is_common = has_failed || failures.iter().any(|(_, failure)| failure.is_common);
            let failures: Vec<_> = failures.into_iter().map(|(rank, failure)| (rank, failure.reason)).collect();
            let own = local.err().map(|error| error.to_string());
            let error = Error::Agreement(describe(&failures, gathered.len(), own));
            return Err(if is_common { Verdict::Common(error) } else { Verdict::Own(error) });
        }
        // A transport that loses this rank's message must not turn its failure into success.
        local.map_err(Verdict::Common)?;
        let decode = |(rank, bytes): (usize, Vec<u8>)| {
            let unreadable = || Error::Agreement(format!("rank {rank} sent a payload that cannot be read"));
            P::decode(&bytes).ok_or_else(unreadable).map_err(Verdict::Own)
        };
        payloads.into_iter().enumerate().map(decode).collect()
    }

    /// `gathered`, if it is as many messages as the first step brought. That the first brought enough is for
    /// `check_size` to say.
    fn count(&mut self, gathered: Vec<Vec<u8>>) -> std::result::Result<Vec<Vec<u8>>, String> {
        let (found, expected) = (gathered.len(), *self.ranks.get_or_insert(gathered.len()));
        if found != expected {
            return Err(format!("the all-gather brought {found} messages, after {expected} the first time"));
        }
        Ok(gathered)
    }

    /// What was brought so far, for the other ranks to compare with what they were brought ([`Transcript::check`]); an
    /// error, for the next agreement, if this rank's own messages did not come back as they were sent.
    pub fn transcript(&self) -> Result<Transcript> {
        if self.unchanged {
            return Ok(self.transcript);
        }
        Err(Error::Agreement(
            "the all-gather changed the message of this rank; it must bring every rank's bytes as they were sent"
                .into(),
        ))
    }

    /// Checks that `ranks`, as many as the transport brought, are as many as this rank was told. To be called once the
    /// ranks know that all were told the same, so that all come to the same verdict here too.
    pub fn check_size(&self, ranks: usize) -> Result<()> {
        if ranks as i64 == self.world_size {
            return Ok(());
        }
        Err(Error::Agreement(format!(
            "world_size is {}, but the group has {ranks} ranks; pass the group whose size is world_size",
            self.world_size
        )))
    }
}

/// The failures, in one text: each once, without the ranks if all have the same. That is `own` then, of which messages may
/// have had no room for all.
fn describe(failures: &[(usize, String)], ranks: usize, own: Option<String>) -> String {
    let mut reasons: Vec<(&str, Vec<usize>)> = vec![];
    for (rank, reason) in failures {
        match reasons.iter_mut().find(|(other, _)| other == reason) {
            Some((_, ranks)) => ranks.push(*rank),
            None => reasons.push((reason, vec![*rank])),
        }
    }
    if let (Some(own), [(_, who)]) = (own, reasons.as_slice())
        && who.len() == ranks
    {
        return own;
    }
    let told = |(reason, who): &(&str, Vec<usize>)| match who.as_slice() {
        who if who.len() == ranks => (*reason).to_owned(),
        [rank] => format!("rank {rank}: {reason}"),
        who => format!("ranks {}: {reason}", enumerate(who.iter().map(ToString::to_string), ", ")),
    };
    enumerate(reasons.iter().map(told), "; ")
}

#[cfg(test)]
mod tests;
