//! One operation in two shots of one rank, its peers' contributions and sums being there already, or not all.

use lamport_rs_protocol::exchange::{Awaited, Extent, Member};
use lamport_rs_protocol::geometry::{Geometry, MAX_WORLD_SIZE, MIN_WORLD_SIZE, SLOTS};
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{EMPTY, SENTINEL, VECTOR_BYTES, Vector, scrub};
use lamport_rs_protocol::table::Control;
use lamport_rs_protocol::two_shot::{ShardedCollective, exchange_two_shot};
use proptest::prelude::*;

use crate::operation::{Memory, Told, WithoutWaiting};

const MAX_SHARD: usize = 9;

/// In every vector one word is the sentinel.
fn contribution(shard: usize, rank: usize, at: usize) -> Vector {
    vector(1 + shard, rank, at)
}

fn sum(shard: usize, at: usize) -> Vector {
    vector(0, shard, at)
}

fn vector(kind: usize, rank: usize, at: usize) -> Vector {
    std::array::from_fn(
        |word| {
            if word == at % 4 { SENTINEL } else { (kind << 24 | rank << 16 | at << 4 | word) as u32 + 1 }
        },
    )
}

#[derive(Default)]
struct Recorder {
    rank: usize,
    received: Vec<(usize, usize, Vector)>,
    completed: Vec<usize>,
    sums: Vec<(usize, usize, Vector)>,
}

impl ShardedCollective for Recorder {
    fn contribution(&mut self, shard: usize, at: usize) -> Vector {
        contribution(shard, self.rank, at)
    }

    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.received.push((rank, at, vector));
    }

    fn complete(&mut self, at: usize) -> Vector {
        self.completed.push(at);
        sum(self.rank, at)
    }

    fn receive_sum(&mut self, shard: usize, at: usize, sum: Vector) {
        self.sums.push((shard, at, sum));
    }
}

#[derive(Clone, Debug)]
struct Case {
    member: Member,
    control: Control,
    shard: usize,
    extent: Extent,
}

fn cases() -> impl Strategy<Value = Case> {
    let world = (MIN_WORLD_SIZE..=MAX_WORLD_SIZE).prop_flat_map(|world_size| (Just(world_size), 0..world_size));
    (world, 0..SLOTS, 1..=MAX_SHARD, 1_usize..10, 0_usize..4).prop_map(
        |((world_size, rank), slot, shard, chunk_vectors, lead_chunks)| {
            let comm_size = world_size * 2 * MAX_SHARD * VECTOR_BYTES;
            let geometry = Geometry::new(world_size as i64, comm_size as i64).expect("a shape within the limits");
            Case {
                member: Member { rank, geometry },
                control: Control { slot, ..Control::default() },
                shard,
                extent: Extent { region_bytes: 2 * shard * VECTOR_BYTES, chunk_vectors, lead_chunks, header: None },
            }
        },
    )
}

impl Case {
    fn ranks(&self) -> std::ops::Range<usize> {
        0..self.member.geometry.world_size()
    }

    fn peers(&self) -> impl Iterator<Item = usize> {
        let rank = self.member.rank;
        self.ranks().filter(move |&peer| peer != rank)
    }

    /// Of a contribution; the sum of the same vector is a shard further on.
    fn offset(&self, rank: usize, at: usize) -> usize {
        let slot = self.member.geometry.slot_offset(self.control.slot);
        slot + rank * self.extent.region_bytes + at * VECTOR_BYTES
    }

    fn arrived(&self) -> Memory {
        let (memory, rank) = (Memory::new(self.member.geometry, EMPTY), self.member.rank);
        for (peer, at) in self.peers().flat_map(|peer| (0..self.shard).map(move |at| (peer, at))) {
            memory.set(rank, self.offset(peer, at), scrub(contribution(rank, peer, at)));
            memory.set(rank, self.offset(peer, self.shard + at), scrub(sum(peer, at)));
        }
        memory
    }

    fn run(&self, memory: &Memory) -> (Result<(), (Awaited, RankSet)>, Control, Recorder) {
        let mut control = self.control;
        let mut recorder = Recorder { rank: self.member.rank, ..Recorder::default() };
        let outcome =
            exchange_two_shot(self.member, memory, &mut control, self.extent, &mut recorder, &mut WithoutWaiting);
        (outcome, control, recorder)
    }
}

proptest! {
    #[test]
    fn the_wait_is_told_when_the_last_sum_has_been_pushed(case in cases()) {
        let (memory, mut control) = (case.arrived(), case.control);
        let mut recorder = Recorder { rank: case.member.rank, ..Recorder::default() };
        let mut told = Told::new(&memory, case.member.rank);
        let outcome = exchange_two_shot(case.member, &memory, &mut control, case.extent, &mut recorder, &mut told);
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(told.pushes, told.pushed());
    }

    #[test]
    fn a_rank_gets_all_contributions_to_its_shard_in_rank_order_and_all_sums_of_the_others(case in cases()) {
        let (outcome, control, mut recorder) = case.run(&case.arrived());
        let rank = case.member.rank;
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(control, case.control.rotated(case.extent));
        prop_assert_eq!(recorder.completed, (0..case.shard).collect::<Vec<_>>());
        let in_order: Vec<_> = (0..case.shard)
            .flat_map(|at| case.ranks().map(move |source| (source, at, scrub(contribution(rank, source, at)))))
            .collect();
        prop_assert_eq!(recorder.received, in_order);
        recorder.sums.sort();
        let sums = case.peers().flat_map(|shard| (0..case.shard).map(move |at| (shard, at, scrub(sum(shard, at)))));
        prop_assert_eq!(recorder.sums, sums.collect::<Vec<_>>());
    }

    #[test]
    fn pushes_fill_both_halves_of_the_own_region_of_every_peer_and_nothing_else(case in cases()) {
        let memory = case.arrived();
        case.run(&memory).0.unwrap();
        let rank = case.member.rank;
        let mut pushes = memory.stores.take();
        pushes.sort();
        let mut expected = Vec::new();
        for peer in case.peers() {
            let contributions = (0..case.shard).map(|at| (at, contribution(peer, rank, at)));
            let sums = (0..case.shard).map(|at| (case.shard + at, sum(rank, at)));
            expected.extend(contributions.chain(sums).map(|(at, sent)| (peer, case.offset(rank, at), scrub(sent))));
        }
        prop_assert_eq!(pushes, expected);
    }

    #[test]
    fn no_sum_travels_of_which_a_contribution_is_missing_and_its_rank_is_named(
        case in cases(),
        late in 0..MAX_WORLD_SIZE,
        at in 0..MAX_SHARD,
        word in 0_usize..4,
    ) {
        let (memory, rank) = (case.arrived(), case.member.rank);
        let (late, at) = (late % case.member.geometry.world_size(), at % case.shard);
        prop_assume!(late != rank);
        let mut torn = memory.load(rank, case.offset(late, at));
        torn[word] = SENTINEL;
        memory.set(rank, case.offset(late, at), torn);
        let (outcome, control, recorder) = case.run(&memory);
        let mut missing = RankSet::default();
        missing.insert(late);
        prop_assert_eq!(outcome, Err((Awaited::FirstHand, missing)));
        prop_assert_eq!(control, case.control);
        let first_missing = case.offset(rank, case.shard + at);
        let end = case.offset(rank, 2 * case.shard);
        let stores = memory.stores.take();
        prop_assert!(stores.iter().all(|(_, offset, _)| !(first_missing..end).contains(offset)), "{:?}", stores);
        prop_assert!(recorder.sums.is_empty());
    }

    /// Its rank may itself be waiting for an absent one, and is then to be the first to give up.
    #[test]
    fn a_missing_sum_is_awaited_as_what_its_rank_sends_once_it_has_heard_of_others(
        case in cases(),
        late in 0..MAX_WORLD_SIZE,
        at in 0..MAX_SHARD,
    ) {
        let (memory, rank) = (case.arrived(), case.member.rank);
        let (late, at) = (late % case.member.geometry.world_size(), at % case.shard);
        prop_assume!(late != rank);
        memory.set(rank, case.offset(late, case.shard + at), EMPTY);
        let mut missing = RankSet::default();
        missing.insert(late);
        prop_assert_eq!(case.run(&memory).0, Err((Awaited::SecondHand, missing)));
    }
}
