//! States and events of a system in words, for counterexamples.

use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::job::describe;
use crate::system::{Event, State, System};
use crate::weak_memory::{Commit, Entry, Location, Value};

impl System {
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
                format!("rank {rank}'s stores become visible: {}", parts.join("; "))
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
