//! Exhaustive breadth-first search of a system's states.

use crate::intern::Interner;
use crate::job::Job;
use crate::protocol::Protocol;
use crate::report::{Counterexample, Kind, Proof};
use crate::system::{Commits, Event, State, System, Transition};

/// More states than any of the proofs has. A broken protocol may have many more before its failure is found.
const MAX_STATES: usize = 8_000_000;

/// Explores all states of a group that runs `protocol`, and proves of them
///
/// - that no rank receives a vector that is not what its source sent in the operation at hand;
/// - that from every state every rank can complete one more operation, or notices that its peers do another: there is no
///   deadlock and no livelock.
pub fn search(job: Job, protocol: Protocol, commits: Commits) -> Result<Proof, Counterexample> {
    let mut graph = Graph::new(System::new(job, protocol, commits));
    graph.explore()?;
    graph.check_progress(job.world_size)?;
    Ok(Proof { states: graph.states.len(), transitions: graph.edges.len() })
}

struct Graph {
    system: System,
    states: Interner<State>,
    /// The state that each state was first reached from; the initial one from itself.
    parents: Vec<u32>,
    edges: Vec<(u32, u32)>,
    /// For each rank, one bit: whether some transition from the state completes an operation of it.
    completes: Vec<u8>,
}

impl Graph {
    fn new(system: System) -> Self {
        Self { system, states: Interner::default(), parents: vec![0], edges: Vec::new(), completes: vec![0] }
    }

    fn explore(&mut self) -> Result<(), Counterexample> {
        let initial = self.system.initial();
        self.states.number(initial);
        let mut transitions = Vec::new();
        let mut next = 0;
        while (next as usize) < self.states.len() {
            let state = *self.states.get(next);
            self.system.transitions(state, &mut transitions);
            if self.system.all_wait(state, &transitions) {
                return Err(self.stuck(next, "all ranks wait, and nothing that they wait for is pending:".into()));
            }
            // A rank that has rightly stopped needs no further operation.
            for rank in (0..self.system.job.world_size).filter(|&rank| self.system.place(state, rank).stopped) {
                self.completes[next as usize] |= 1 << rank;
            }
            for Transition { event, to, completed, wrong } in transitions.drain(..) {
                if let Some(wrong) = wrong {
                    let mut trace = self.trace(next);
                    trace.push(format!("{}, and {wrong}", self.system.describe(state, event)));
                    return Err(Counterexample { kind: if wrong.torn { Kind::Torn } else { Kind::Stale }, trace });
                }
                let number = self.states.number(to);
                if number as usize == self.parents.len() {
                    self.parents.push(next);
                    self.completes.push(0);
                }
                if let Some(rank) = completed {
                    self.completes[next as usize] |= 1 << rank;
                }
                if number != next {
                    self.edges.push((next, number));
                }
            }
            next += 1;
            assert!(self.states.len() <= MAX_STATES, "more than {MAX_STATES} states, and no failure in those visited");
        }
        Ok(())
    }

    fn check_progress(&mut self, world_size: usize) -> Result<(), Counterexample> {
        let predecessors = Predecessors::of(&self.edges, self.states.len());
        let stuck = (0..world_size).filter_map(|rank| Some((self.first_stuck(rank, &predecessors)?, rank)));
        let Some((state, rank)) = stuck.min() else { return Ok(()) };
        Err(self.stuck(state, format!("from here on, rank {rank} completes no operation:")))
    }

    fn stuck(&mut self, state: u32, why: String) -> Counterexample {
        let lost = self.way(state).iter().any(|&(from, event)| self.system.overtakes(from, event));
        let mut trace = self.trace(state);
        trace.push(why);
        trace.extend(self.system.describe_waits(*self.states.get(state)));
        Counterexample { kind: if lost { Kind::Lost } else { Kind::Stuck }, trace }
    }

    /// The first state found from which `rank` never completes another operation.
    fn first_stuck(&self, rank: usize, predecessors: &Predecessors) -> Option<u32> {
        let mut progresses: Vec<bool> = self.completes.iter().map(|ranks| ranks & (1 << rank) != 0).collect();
        let mut to_look_at: Vec<u32> =
            (0..self.states.len() as u32).filter(|&state| progresses[state as usize]).collect();
        while let Some(state) = to_look_at.pop() {
            for &predecessor in predecessors.of_state(state) {
                if !std::mem::replace(&mut progresses[predecessor as usize], true) {
                    to_look_at.push(predecessor);
                }
            }
        }
        progresses.iter().position(|&progresses| !progresses).map(|state| state as u32)
    }

    /// The shortest way to `state`: the states before it, each with what happens in it.
    fn way(&mut self, state: u32) -> Vec<(State, Event)> {
        let mut way = Vec::new();
        let mut transitions = Vec::new();
        let mut to = state;
        while to != 0 {
            let parent = self.parents[to as usize];
            let (from, target) = (*self.states.get(parent), *self.states.get(to));
            self.system.transitions(from, &mut transitions);
            let taken = transitions.iter().find(|transition| transition.to == target).expect("a recorded transition");
            way.push((from, taken.event));
            to = parent;
        }
        way.reverse();
        way
    }

    fn trace(&mut self, state: u32) -> Vec<String> {
        self.way(state).into_iter().map(|(from, event)| self.system.describe(from, event)).collect()
    }
}

/// The edges, by where they lead to.
struct Predecessors {
    starts: Vec<usize>,
    from: Vec<u32>,
}

impl Predecessors {
    fn of(edges: &[(u32, u32)], states: usize) -> Self {
        let mut starts = vec![0; states + 1];
        for &(_, to) in edges {
            starts[to as usize + 1] += 1;
        }
        for state in 0..states {
            starts[state + 1] += starts[state];
        }
        let mut free = starts.clone();
        let mut from = vec![0; edges.len()];
        for &(source, to) in edges {
            from[free[to as usize]] = source;
            free[to as usize] += 1;
        }
        Self { starts, from }
    }

    fn of_state(&self, state: u32) -> &[u32] {
        &self.from[self.starts[state as usize]..self.starts[state as usize + 1]]
    }
}
