//! The system of all ranks and their memory: its states and the transitions between them.
//!
//! Transitions are loads of single parts of vectors, and commits of stores. What else a rank does (stores, fences, and
//! the end of an operation) belongs to the load before it: to others it shows by commits only, and a store that is
//! pending earlier can be committed later all the same.

use std::rc::Rc;

use lamport_rs_protocol::geometry::{HEADER_BYTES, SLOTS};
use lamport_rs_protocol::sentinel::{EMPTY, VECTOR_BYTES, VECTOR_WORDS, Vector};

use crate::intern::{Interner, Map};
use crate::job::{Headers, Job};
use crate::protocol::Protocol;
use crate::rank::{Action, Point, Program, Step};
use crate::report::Wrong;
use crate::weak_memory::{Commit, Entry, Location, Pending, Value, every_commit, needed_commits};

const MAX_RANKS: usize = 4;
const MAX_PARTS: usize = 4;

/// Which commits are transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// All, one by one.
    Every,
    /// Those that [`needed_commits`] names.
    Needed,
}

/// A state: per rank, the numbers of its place, of its block's content, and of its pending stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    places: [u32; MAX_RANKS],
    blocks: [u32; MAX_RANKS],
    pending: [u32; MAX_RANKS],
}

/// Where a rank is: ahead of the load of a vector, of which it has loaded some parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub point: u32,
    /// The vector's first part; of no account once the rank has stopped.
    pub awaits: Location,
    pub stopped: bool,
    pub parts: [Option<Value>; MAX_PARTS],
}

/// What happens between two states.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Load { rank: usize, location: Location, value: Value },
    Commit(Commit),
}

/// A transition.
pub struct Transition {
    pub event: Event,
    pub to: State,
    /// The rank that completed an operation by it.
    pub completed: Option<usize>,
    /// What it got wrong. `to` means nothing then.
    pub wrong: Option<Wrong>,
}

/// A [`Step`] in terms of the model's memory.
pub enum Effect {
    Again,
    /// `None` among the stores is a release fence.
    Moved {
        stores: Vec<Option<Entry>>,
        completed: bool,
        place: Place,
    },
    Stopped {
        stores: Vec<Option<Entry>>,
    },
    Wrong(Wrong),
}

/// A group of ranks that run a protocol.
pub struct System {
    pub job: Job,
    protocol: Protocol,
    commits: Commits,
    pub points: Interner<Point>,
    places: Interner<Place>,
    blocks: Interner<Vec<Value>>,
    pending_stores: Interner<Pending>,
    pub values: Interner<Vector>,
    effects: Map<(usize, u32, Vector), Rc<Effect>>,
}

impl System {
    pub fn new(job: Job, protocol: Protocol, commits: Commits) -> Self {
        assert!(job.world_size <= MAX_RANKS && job.parts <= MAX_PARTS);
        Self {
            job,
            protocol,
            commits,
            points: Interner::default(),
            places: Interner::default(),
            blocks: Interner::default(),
            pending_stores: Interner::default(),
            values: Interner::default(),
            effects: Map::default(),
        }
    }

    /// All ranks ahead of their first load; the blocks filled, or about to be if that is how the protocol is broken.
    pub fn initial(&mut self) -> State {
        let fills_late = self.protocol == Protocol::FillAfterExchange;
        let mut state = State::default();
        for rank in 0..self.job.world_size {
            let filled: Vec<Entry> = (0..self.parts_per_block())
                .map(|part| self.entry(rank, self.offset(part / self.job.parts), part % self.job.parts, EMPTY))
                .collect();
            let mut pending = Pending::default();
            let mut block: Vec<Value> = filled.iter().map(|entry| entry.value).collect();
            if fills_late {
                filled.into_iter().for_each(|entry| pending.store(entry));
                block = (0..self.parts_per_block()).map(|part| self.part([0; 4], part % self.job.parts)).collect();
            }
            let start = Program { job: self.job, protocol: self.protocol, rank }.start();
            let Effect::Moved { stores, place, .. } = self.effect(rank, start) else { panic!("no rank can start") };
            apply(&mut pending, &stores);
            state.places[rank] = self.places.number(place);
            state.blocks[rank] = self.blocks.number(block);
            state.pending[rank] = self.pending_stores.number(pending);
        }
        state
    }

    /// Puts all transitions from `state` into `transitions`.
    pub fn transitions(&mut self, state: State, transitions: &mut Vec<Transition>) {
        transitions.clear();
        let mut awaited = Vec::new();
        for rank in 0..self.job.world_size {
            let place = *self.place(state, rank);
            if place.stopped {
                continue;
            }
            for part in (0..self.job.parts).filter(|&part| place.parts[part].is_none()) {
                let location = place.awaits + part as Location;
                awaited.push(location);
                transitions.push(self.load(state, rank, place, location));
            }
        }
        let pending: Vec<&Pending> = (0..self.job.world_size).map(|rank| self.pending(state, rank)).collect();
        let commits = match self.commits {
            Commits::Every => every_commit(&pending),
            Commits::Needed => needed_commits(&pending, &awaited),
        };
        transitions.extend(commits.into_iter().map(|commit| Transition {
            event: Event::Commit(commit),
            to: self.commit(state, commit),
            completed: None,
            wrong: None,
        }));
    }

    fn load(&mut self, state: State, rank: usize, mut place: Place, location: Location) -> Transition {
        let value = self.seen(state, rank, location);
        place.parts[(location - place.awaits) as usize] = Some(value);
        let mut transition =
            Transition { event: Event::Load { rank, location, value }, to: state, completed: None, wrong: None };
        if place.parts[..self.job.parts].iter().all(Option::is_some) {
            match &*self.step(rank, place) {
                Effect::Again => place.parts = [None; MAX_PARTS],
                Effect::Wrong(wrong) => transition.wrong = Some(wrong.clone()),
                Effect::Stopped { stores } => {
                    place = Place { point: 0, awaits: 0, stopped: true, parts: [None; MAX_PARTS] };
                    let mut pending = self.pending(state, rank).clone();
                    apply(&mut pending, stores);
                    transition.to.pending[rank] = self.pending_stores.number(pending);
                }
                Effect::Moved { stores, completed, place: next } => {
                    place = *next;
                    transition.completed = completed.then_some(rank);
                    let mut pending = self.pending(state, rank).clone();
                    apply(&mut pending, stores);
                    transition.to.pending[rank] = self.pending_stores.number(pending);
                }
            }
        }
        transition.to.places[rank] = self.places.number(place);
        transition
    }

    /// What `rank` sees at `location` of its own block.
    pub fn seen(&self, state: State, rank: usize, location: Location) -> Value {
        let block = self.blocks.get(state.blocks[rank]);
        let own = self.pending(state, rank).newest(location);
        own.unwrap_or(block[location as usize % self.parts_per_block()])
    }

    fn commit(&mut self, state: State, Commit { rank, group, location }: Commit) -> State {
        let mut to = state;
        let mut pending = self.pending(state, rank).clone();
        for Entry { location, value } in pending.commit(group, location) {
            let (owner, part) = self.split(location);
            let mut block = self.blocks.get(to.blocks[owner]).clone();
            block[part] = value;
            to.blocks[owner] = self.blocks.number(block);
        }
        to.pending[rank] = self.pending_stores.number(pending);
        to
    }

    /// What the code does with the vector that has been loaded at `place`.
    pub fn step(&mut self, rank: usize, place: Place) -> Rc<Effect> {
        let mut vector = [0; VECTOR_WORDS];
        for part in 0..self.job.parts {
            let value = place.parts[part].expect("all parts are loaded");
            let words = self.job.words(part);
            vector[words.clone()].copy_from_slice(&self.values.get(value.into())[words]);
        }
        let key = (rank, place.point, vector);
        if let Some(effect) = self.effects.get(&key) {
            return effect.clone();
        }
        let program = Program { job: self.job, protocol: self.protocol, rank };
        let step = program.step(self.points.get(place.point), vector);
        let effect = Rc::new(self.effect(rank, step));
        self.effects.insert(key, effect.clone());
        effect
    }

    fn effect(&mut self, rank: usize, step: Step) -> Effect {
        match step {
            Step::Again => Effect::Again,
            Step::Wrong(wrong) => Effect::Wrong(wrong),
            Step::Stopped { actions } => Effect::Stopped { stores: self.stores(actions) },
            Step::Moved { actions, completed, point, awaits } => {
                let stores = self.stores(actions);
                let point = self.points.number(point);
                let awaits = self.location(rank, awaits, 0);
                let place = Place { point, awaits, stopped: false, parts: [None; MAX_PARTS] };
                Effect::Moved { stores, completed, place }
            }
        }
    }

    fn stores(&mut self, actions: Vec<Action>) -> Vec<Option<Entry>> {
        let mut stores = Vec::new();
        for action in actions {
            match action {
                Action::Release => stores.push(None),
                Action::Store { rank, offset, vector } => {
                    stores.extend((0..self.job.parts).map(|part| Some(self.entry(rank, offset, part, vector))));
                }
            }
        }
        stores
    }

    pub fn place(&self, state: State, rank: usize) -> &Place {
        self.places.get(state.places[rank])
    }

    pub fn pending(&self, state: State, rank: usize) -> &Pending {
        self.pending_stores.get(state.pending[rank])
    }

    /// The slots' vectors, and behind them the headers, if there are any.
    fn parts_per_block(&self) -> usize {
        let headers = if self.job.headers == Headers::None { 0 } else { SLOTS * self.job.world_size };
        (self.slot_vectors() + headers) * self.job.parts
    }

    fn slot_vectors(&self) -> usize {
        self.job.geometry().header_offset(0, 0) / VECTOR_BYTES
    }

    fn location(&self, owner: usize, offset: usize, part: usize) -> Location {
        let (slots, headers) = (self.slot_vectors(), self.job.geometry().header_offset(0, 0));
        let vector = if offset < headers { offset / VECTOR_BYTES } else { slots + (offset - headers) / HEADER_BYTES };
        let within = vector * self.job.parts + part;
        assert!(offset.is_multiple_of(VECTOR_BYTES) && within < self.parts_per_block(), "offset {offset}");
        (owner * self.parts_per_block() + within) as Location
    }

    /// Where vector `vector` of a block is: the inverse of [`System::location`].
    fn offset(&self, vector: usize) -> usize {
        let (slots, headers) = (self.slot_vectors(), self.job.geometry().header_offset(0, 0));
        if vector < slots { vector * VECTOR_BYTES } else { headers + (vector - slots) * HEADER_BYTES }
    }

    pub fn split(&self, location: Location) -> (usize, usize) {
        let per_block = self.parts_per_block();
        (location as usize / per_block, location as usize % per_block)
    }

    fn entry(&mut self, owner: usize, offset: usize, part: usize, vector: Vector) -> Entry {
        Entry { location: self.location(owner, offset, part), value: self.part(vector, part) }
    }

    /// The number of `vector`'s words of `part`.
    fn part(&mut self, vector: Vector, part: usize) -> Value {
        let words = self.job.words(part);
        let mut value = [0; VECTOR_WORDS];
        value[words.clone()].copy_from_slice(&vector[words]);
        self.values.number(value).try_into().expect("few values")
    }
}

fn apply(pending: &mut Pending, stores: &[Option<Entry>]) {
    for store in stores {
        match store {
            Some(entry) => pending.store(*entry),
            None => pending.release(),
        }
    }
}
