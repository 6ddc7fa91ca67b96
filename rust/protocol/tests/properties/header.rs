//! Headers of one operation of one rank, its peers' being there already, or not all, or others.

use std::ops::Range;

use lamport_rs_protocol::exchange::{Awaited, Collective, Extent, Member, Wait, exchange};
use lamport_rs_protocol::geometry::{Geometry, MAX_WORLD_SIZE, MIN_WORLD_SIZE, SLOTS};
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{EMPTY, SENTINEL, VECTOR_BYTES, Vector};
use lamport_rs_protocol::table::Control;
use proptest::prelude::*;

use crate::operation::Memory;

const OWN: Header = [7, 1, 2, 3];
const OTHER: Header = [7, 1, 2, 4];
const PAYLOAD: Vector = [5; 4];

/// Notes whether any data was taken.
#[derive(Default)]
struct Taken(bool);

impl Collective for Taken {
    fn contribution(&mut self, _at: usize) -> Vector {
        PAYLOAD
    }

    fn receive(&mut self, _rank: usize, _at: usize, _vector: Vector) {
        self.0 = true;
    }

    fn complete(&mut self, _at: usize) {}
}

#[derive(Debug, PartialEq)]
enum Ended {
    GaveUp(RankSet),
    Mismatch(usize, Header),
}

struct WithoutWaiting;

impl Wait for WithoutWaiting {
    type Error = Ended;

    fn pause(&mut self, _awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Ended> {
        Err(Ended::GaveUp(missing()))
    }

    fn resume(&mut self) {}

    fn mismatch(&mut self, peer: usize, found: Header) -> Ended {
        Ended::Mismatch(peer, found)
    }
}

#[derive(Clone, Debug)]
struct Case {
    member: Member,
    control: Control,
}

const VECTORS: usize = 3;

fn cases() -> impl Strategy<Value = Case> {
    let world = (MIN_WORLD_SIZE..=MAX_WORLD_SIZE).prop_flat_map(|world_size| (Just(world_size), 0..world_size));
    (world, 0..SLOTS, any::<bool>()).prop_map(|((world_size, rank), slot, previous_has_header)| {
        let geometry = Geometry::new(world_size as i64, (world_size * VECTORS * VECTOR_BYTES) as i64).unwrap();
        let control = Control { slot, previous_region_bytes: 0, previous_has_header };
        Case { member: Member { rank, geometry }, control }
    })
}

impl Case {
    fn peers(&self) -> impl Iterator<Item = usize> {
        let rank = self.member.rank;
        (0..self.member.geometry.world_size()).filter(move |&peer| peer != rank)
    }

    /// A memory in which all data has arrived, and from each peer the header that `header` gives.
    fn memory(&self, header: impl Fn(usize) -> Vector) -> Memory {
        let geometry = self.member.geometry;
        let memory = Memory::new(geometry, EMPTY);
        for peer in self.peers() {
            memory.set(self.member.rank, geometry.header_offset(self.control.slot, peer), header(peer));
            for at in 0..VECTORS {
                let offset = geometry.slot_offset(self.control.slot) + (peer * VECTORS + at) * VECTOR_BYTES;
                memory.set(self.member.rank, offset, PAYLOAD);
            }
        }
        memory
    }

    /// How the operation ended, and whether any data was taken.
    fn run(&self, memory: &Memory) -> (Result<(), Ended>, bool) {
        let (mut control, mut taken) = (self.control, Taken::default());
        let extent =
            Extent { region_bytes: VECTORS * VECTOR_BYTES, chunk_vectors: 2, lead_chunks: 1, header: Some(OWN) };
        let outcome = exchange(self.member, memory, &mut control, extent, &mut taken, &mut WithoutWaiting);
        assert_eq!(control.previous_has_header, if outcome.is_ok() { true } else { self.control.previous_has_header });
        (outcome, taken.0)
    }
}

proptest! {
    #[test]
    fn every_peer_is_told_first_of_all_and_what_was_told_before_is_cleared(case in cases()) {
        let memory = case.memory(|_| OWN);
        prop_assert_eq!(case.run(&memory), (Ok(()), true));
        let Member { rank, geometry } = case.member;
        let stores = memory.stores.take();
        let world_size = geometry.world_size();
        let is_header = |offset: usize| offset >= geometry.header_offset(0, 0);
        let told: Vec<_> = stores[..world_size - 1].to_vec();
        let own = geometry.header_offset(case.control.slot, rank);
        let mut to: Vec<usize> = told.iter().map(|&(to, ..)| to).collect();
        to.sort();
        prop_assert_eq!(to, case.peers().collect::<Vec<_>>());
        prop_assert!(told.iter().all(|&(_, offset, vector)| (offset, vector) == (own, OWN)), "{:?}", told);
        let cleared: Vec<_> = stores[world_size - 1..].iter().filter(|&&(_, offset, _)| is_header(offset)).collect();
        let previous = case.control.previous_slot();
        let expected = if case.control.previous_has_header { world_size - 1 } else { 0 };
        prop_assert_eq!(cleared.len(), expected);
        for &&(to, offset, vector) in &cleared {
            let cells: Vec<usize> = case.peers().map(|peer| geometry.header_offset(previous, peer)).collect();
            prop_assert!(to == rank && cells.contains(&offset) && vector == EMPTY);
        }
    }

    #[test]
    fn a_header_that_differs_in_any_word_is_a_mismatch_of_its_rank_and_no_data_is_taken(
        case in cases(),
        other in 0..MAX_WORLD_SIZE,
        word in 0_usize..4,
    ) {
        let other = other % case.member.geometry.world_size();
        prop_assume!(other != case.member.rank);
        let mut different = OWN;
        different[word] ^= 0x100;
        let memory = case.memory(|peer| if peer == other { different } else { OWN });
        prop_assert_eq!(case.run(&memory), (Err(Ended::Mismatch(other, different)), false));
    }

    #[test]
    fn a_header_of_which_a_word_is_missing_is_awaited_and_its_rank_is_named(
        case in cases(),
        late in 0..MAX_WORLD_SIZE,
        word in 0_usize..4,
    ) {
        let late = late % case.member.geometry.world_size();
        prop_assume!(late != case.member.rank);
        let mut torn = OWN;
        torn[word] = SENTINEL;
        let mut missing = RankSet::default();
        missing.insert(late);
        let memory = case.memory(|peer| if peer == late { torn } else { OWN });
        prop_assert_eq!(case.run(&memory), (Err(Ended::GaveUp(missing)), false));
    }

    #[test]
    fn a_rank_that_differs_is_named_rather_than_one_that_is_missing(case in cases(), ranks in any::<[usize; 2]>()) {
        let [other, late] = ranks.map(|rank| rank % case.member.geometry.world_size());
        prop_assume!(other != case.member.rank && late != case.member.rank && other != late);
        let header = |peer| if peer == other { OTHER } else if peer == late { EMPTY } else { OWN };
        prop_assert_eq!(case.run(&case.memory(header)), (Err(Ended::Mismatch(other, OTHER)), false));
    }
}

/// Which bytes of a block headers take, whatever the operation: they must not move with its size.
#[test]
fn headers_lie_behind_the_slots_by_slot_and_rank() {
    let geometry = Geometry::new(3, 48).unwrap();
    let ranges: Vec<Range<usize>> = (0..SLOTS)
        .flat_map(|slot| (0..3).map(move |rank| (slot, rank)))
        .map(|(slot, rank)| {
            let start = geometry.header_offset(slot, rank);
            start..start + VECTOR_BYTES
        })
        .collect();
    assert_eq!(ranges[0].start, 3 * 48);
    assert!(ranges.windows(2).all(|pair| pair[1].start - pair[0].start == 64));
}
