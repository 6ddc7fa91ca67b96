//! One operation of one rank, its peers' data being there already, or not at all.

use std::cell::RefCell;
use std::ops::Range;

use lamport_rs_protocol::exchange::{Awaited, Collective, Extent, Member, Wait, exchange};
use lamport_rs_protocol::geometry::{Geometry, MAX_WORLD_SIZE, MIN_WORLD_SIZE, SLOTS};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::memory::{LINE_VECTORS, SlotMemory};
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{EMPTY, SENTINEL, VECTOR_BYTES, Vector, scrub};
use lamport_rs_protocol::table::Control;
use proptest::prelude::*;

/// All blocks, by vector, and the stores in the order in which they came.
pub struct Memory {
    pub blocks: RefCell<Vec<Vec<Vector>>>,
    pub stores: RefCell<Vec<(usize, usize, Vector)>>,
}

impl Memory {
    pub fn new(geometry: Geometry, content: Vector) -> Self {
        let block = vec![content; geometry.used_bytes() / VECTOR_BYTES];
        Self { blocks: RefCell::new(vec![block; geometry.world_size()]), stores: RefCell::default() }
    }

    pub fn set(&self, rank: usize, offset: usize, vector: Vector) {
        self.blocks.borrow_mut()[rank][offset / VECTOR_BYTES] = vector;
    }
}

impl SlotMemory for Memory {
    fn load(&self, rank: usize, offset: usize) -> Vector {
        self.blocks.borrow()[rank][offset / VECTOR_BYTES]
    }

    fn store(&self, rank: usize, offset: usize, vector: Vector) {
        self.stores.borrow_mut().push((rank, offset, vector));
        self.set(rank, offset, vector);
    }

    fn release(&self) {}

    fn acquire(&self) {}
}

/// In every vector one word is the sentinel.
fn contribution(rank: usize, at: usize) -> Vector {
    std::array::from_fn(|word| if word == at % 4 { SENTINEL } else { (rank << 16 | at << 4 | word) as u32 + 1 })
}

#[derive(Default)]
struct Recorder {
    rank: usize,
    received: Vec<(usize, usize, Vector)>,
    completed: Vec<usize>,
}

impl Collective for Recorder {
    fn contribution(&mut self, at: usize) -> Vector {
        contribution(self.rank, at)
    }

    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.received.push((rank, at, vector));
    }

    fn complete(&mut self, at: usize) {
        self.completed.push(at);
    }
}

/// Gives up at the first pause.
pub struct WithoutWaiting;

impl Wait for WithoutWaiting {
    type Error = (Awaited, RankSet);

    fn pause(&mut self, awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Self::Error> {
        Err((awaited, missing()))
    }

    fn resume(&mut self) {}

    fn mismatch(&mut self, peer: usize, found: Header) -> Self::Error {
        panic!("no headers here: {found:?} of rank {peer}")
    }
}

/// Counts what has been pushed each time that it is told of pushes.
pub struct Told<'a> {
    pub memory: &'a Memory,
    pub rank: usize,
    pub pushes: usize,
}

impl<'a> Told<'a> {
    pub fn new(memory: &'a Memory, rank: usize) -> Self {
        Self { memory, rank, pushes: 0 }
    }

    pub fn pushed(&self) -> usize {
        self.memory.stores.borrow().iter().filter(|&&(to, ..)| to != self.rank).count()
    }
}

impl Wait for Told<'_> {
    type Error = ();

    fn pause(&mut self, _awaited: Awaited, _missing: impl FnOnce() -> RankSet) -> Result<(), ()> {
        Err(())
    }

    fn resume(&mut self) {}

    fn pushed(&mut self) {
        self.pushes = Told::pushed(self);
    }

    fn mismatch(&mut self, peer: usize, found: Header) {
        panic!("no headers here: {found:?} of rank {peer}")
    }
}

#[derive(Clone, Debug)]
struct Case {
    member: Member,
    control: Control,
    extent: Extent,
}

fn cases() -> impl Strategy<Value = Case> {
    let world = (MIN_WORLD_SIZE..=MAX_WORLD_SIZE).prop_flat_map(|world_size| (Just(world_size), 0..world_size));
    (world, 0..SLOTS, 0_usize..10, 1_usize..10, 1_usize..5, 0_usize..4).prop_map(
        |((world_size, rank), slot, previous, vectors, chunk_vectors, lead_chunks)| {
            let comm_size = world_size * 10 * VECTOR_BYTES;
            let geometry = Geometry::new(world_size as i64, comm_size as i64).expect("a shape within the limits");
            Case {
                member: Member { rank, geometry },
                control: Control { slot, previous_region_bytes: previous * VECTOR_BYTES, previous_has_header: false },
                extent: Extent { region_bytes: vectors * VECTOR_BYTES, chunk_vectors, lead_chunks, header: None },
            }
        },
    )
}

impl Case {
    fn vectors(&self) -> usize {
        self.extent.region_bytes / VECTOR_BYTES
    }

    fn peers(&self) -> impl Iterator<Item = usize> {
        let rank = self.member.rank;
        (0..self.member.geometry.world_size()).filter(move |&peer| peer != rank)
    }

    fn offset(&self, rank: usize, at: usize) -> usize {
        let slot = self.member.geometry.slot_offset(self.control.slot);
        slot + rank * self.extent.region_bytes + at * VECTOR_BYTES
    }

    /// A group's memory in which everything has arrived from all peers.
    fn arrived(&self) -> Memory {
        let memory = Memory::new(self.member.geometry, EMPTY);
        for peer in self.peers() {
            (0..self.vectors())
                .for_each(|at| memory.set(self.member.rank, self.offset(peer, at), scrub(contribution(peer, at))));
        }
        memory
    }

    fn run(&self, memory: &Memory) -> (Result<(), (Awaited, RankSet)>, Control, Recorder) {
        let mut control = self.control;
        let mut recorder = Recorder { rank: self.member.rank, ..Recorder::default() };
        let outcome = exchange(self.member, memory, &mut control, self.extent, &mut recorder, &mut WithoutWaiting);
        (outcome, control, recorder)
    }
}

proptest! {
    #[test]
    fn vectors_come_from_every_rank_in_ascending_order_the_own_one_scrubbed_like_the_others(case in cases()) {
        let (outcome, control, recorder) = case.run(&case.arrived());
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(control, case.control.rotated(case.extent));
        prop_assert_eq!(recorder.completed, (0..case.vectors()).collect::<Vec<_>>());
        let ranks = 0..case.member.geometry.world_size();
        let in_order: Vec<_> = (0..case.vectors())
            .flat_map(|at| ranks.clone().map(move |rank| (rank, at)))
            .map(|(rank, at)| (rank, at, scrub(contribution(rank, at))))
            .collect();
        prop_assert_eq!(recorder.received, in_order);
    }

    #[test]
    fn pushes_fill_the_own_region_of_every_peer_and_nothing_else(case in cases()) {
        let memory = case.arrived();
        case.run(&memory).0.unwrap();
        let rank = case.member.rank;
        let mut pushes = memory.stores.take();
        pushes.retain(|&(to, ..)| to != rank);
        pushes.sort();
        let to_all = case.peers().flat_map(|peer| {
            (0..case.vectors()).map(|at| (peer, case.offset(rank, at), scrub(contribution(rank, at)))).collect::<Vec<_>>()
        });
        prop_assert_eq!(pushes, to_all.collect::<Vec<_>>());
    }

    #[test]
    fn the_wait_is_told_when_the_last_word_has_been_pushed(case in cases()) {
        let (memory, mut control) = (case.arrived(), case.control);
        let mut recorder = Recorder { rank: case.member.rank, ..Recorder::default() };
        let mut told = Told::new(&memory, case.member.rank);
        prop_assert_eq!(exchange(case.member, &memory, &mut control, case.extent, &mut recorder, &mut told), Ok(()));
        prop_assert_eq!(told.pushes, told.pushed());
    }

    /// Filled with something else, the block shows what was cleared.
    #[test]
    fn clearing_covers_what_the_peers_left_in_the_previous_slot_and_nothing_else(case in cases()) {
        let memory = Memory::new(case.member.geometry, [1; 4]);
        case.run(&memory).0.unwrap();
        let Control { previous_region_bytes, .. } = case.control;
        let previous = case.member.geometry.slot_offset(case.control.previous_slot());
        let left = case.peers().map(|peer| previous + peer * previous_region_bytes);
        let left: Vec<Range<usize>> = left.map(|start| start..start + previous_region_bytes).collect();
        for (index, &vector) in memory.blocks.borrow()[case.member.rank].iter().enumerate() {
            let cleared = left.iter().any(|region| region.contains(&(index * VECTOR_BYTES)));
            prop_assert_eq!(vector, if cleared { EMPTY } else { [1; 4] }, "vector {} of the block", index);
        }
    }

    /// Peers that wait for the same rank have pushed what is awaited, but not all of a long message.
    #[test]
    fn a_rank_that_gives_up_names_whose_data_it_waits_for_and_not_whose_comes_later_and_does_not_rotate(
        case in cases(),
        at in 0_usize..10,
        awaited in prop::collection::vec((0..MAX_WORLD_SIZE, 0_usize..4), 1..4),
        later in prop::collection::vec((0..MAX_WORLD_SIZE, 0_usize..10, 0_usize..4), 0..4),
    ) {
        let memory = case.arrived();
        let at = at % case.vectors();
        let leave_out = |peer: usize, at: usize, word: usize| {
            let peer = peer % case.member.geometry.world_size();
            if peer != case.member.rank && at < case.vectors() {
                let mut vector = memory.load(case.member.rank, case.offset(peer, at));
                vector[word] = SENTINEL;
                memory.set(case.member.rank, case.offset(peer, at), vector);
                return Some(peer);
            }
            None
        };
        let mut expected = RankSet::default();
        awaited.into_iter().filter_map(|(peer, word)| leave_out(peer, at, word)).for_each(|peer| expected.insert(peer));
        prop_assume!(!expected.is_empty());
        for (peer, distance, word) in later {
            // Vectors of one line are awaited together.
            leave_out(peer, at + LINE_VECTORS + distance, word);
        }
        let (outcome, control, _) = case.run(&memory);
        prop_assert_eq!(outcome, Err((Awaited::FirstHand, expected)));
        prop_assert_eq!(control, case.control);
    }
}
