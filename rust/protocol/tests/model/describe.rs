//! What states and events of a system amount to, and how to put them in words.

use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::job::describe;
use crate::system::{Effect, Event, State, System, Transition};
use crate::weak_memory::{Commit, Entry, Location, Value};

impl System {
    /// Whether nothing is left but looks in vain, given the transitions from `state`: a deadlock.
    pub fn all_wait(&mut self, state: State, transitions: &[Transition]) -> bool {
        if transitions.iter().any(|transition| matches!(transition.event, Event::Commit(_))) {
            return false;
        }
        let stopped = (0..self.job.world_size).filter(|&rank| self.place(state, rank).stopped).count();
        stopped < self.job.world_size
            && (0..self.job.world_size).all(|rank| {
                let mut place = *self.place(state, rank);
                if place.stopped {
                    return true;
                }
                // Amid a look, not all commits are needed that will be at the next.
                let between_looks = place.parts.iter().all(Option::is_none);
                for part in 0..self.job.parts {
                    place.parts[part] = Some(self.seen(state, rank, place.awaits + part as Location));
                }
                between_looks && matches!(*self.step(rank, place), Effect::Again)
            })
    }

    /// Whether a store to another rank's block becomes visible in `state` ahead of one that its owner has pending there.
    pub fn overtakes(&self, state: State, event: Event) -> bool {
        let Event::Commit(Commit { rank, group, location }) = event else { return false };
        let committed = self.pending(state, rank).clone().commit(group, location);
        committed.into_iter().any(|Entry { location, .. }| {
            let (owner, _) = self.split(location);
            owner != rank && self.pending(state, owner).newest(location).is_some()
        })
    }

    /// The event that leads on from `state`.
    pub fn describe(&self, state: State, event: Event) -> String {
        match event {
            Event::Load { rank, location, value } => {
                let operation = self.operation(state, rank);
                format!("rank {rank} in operation {operation} loads {}", self.describe_part(location, value))
            }
            Event::Commit(Commit { rank, group, location }) => {
                let committed = self.pending(state, rank).clone().commit(group, location);
                let parts: Vec<String> =
                    committed.iter().map(|&Entry { location, value }| self.describe_part(location, value)).collect();
                let lost = if self.overtakes(state, event) { " AHEAD OF A STORE THAT OVERWRITES IT" } else { "" };
                format!("rank {rank}'s stores become visible{lost}: {}", parts.join("; "))
            }
        }
    }

    /// What each rank waits for in `state`.
    pub fn describe_waits(&self, state: State) -> Vec<String> {
        let describe = |rank: usize| {
            let operation = self.operation(state, rank);
            let first = self.place(state, rank).awaits;
            let parts: Vec<String> = (first..first + self.job.parts as Location)
                .map(|location| self.describe_part(location, self.seen(state, rank, location)))
                .collect();
            let pending: usize = self.pending(state, rank).groups().iter().map(Vec::len).sum();
            format!("rank {rank} in operation {operation}, {pending} stores pending, polls {}", parts.join("; "))
        };
        (0..self.job.world_size).map(describe).collect()
    }

    fn operation(&self, state: State, rank: usize) -> usize {
        self.points.get(self.place(state, rank).point).operation
    }

    /// A part of a vector and what is, or will be, there.
    fn describe_part(&self, location: Location, value: Value) -> String {
        let (owner, part) = self.split(location);
        let (vector, part) = (part / self.job.parts, part % self.job.parts);
        let (offset, comm_size) = (vector * VECTOR_BYTES, self.job.geometry().comm_size());
        let words = self.job.words(part);
        let found: Vec<String> = self.values.get(value.into())[words.clone()].iter().copied().map(describe).collect();
        let (slot, byte) = (offset / comm_size, offset % comm_size + words.start * 4);
        format!("rank {owner}'s slot {slot}, byte {byte}: {}", found.join(" "))
    }
}
