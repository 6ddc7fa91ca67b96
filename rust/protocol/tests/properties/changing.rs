//! Words that change between any two looks at them, as peers may change them: what was looked at is what is taken.

use std::cell::Cell;

use lamport_rs_protocol::exchange::{Awaited, Collective, Extent, Member, Wait, exchange};
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::{EMPTY, SENTINEL, VECTOR_BYTES, Vector};
use lamport_rs_protocol::table::Control;
use lamport_rs_protocol::two_shot::{ShardedCollective, exchange_two_shot};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const OWN: Header = [7, 1, 2, 3];
const OTHER: Header = [7, 1, 2, 4];
const PAYLOAD: Vector = [5; 4];

/// Each load gives the next of these vectors, wherever it looks.
struct Changing {
    vectors: Vec<Vector>,
    looks: Cell<usize>,
}

impl SlotMemory for Changing {
    fn load(&self, _rank: usize, _offset: usize) -> Vector {
        let look = self.looks.replace(self.looks.get() + 1);
        self.vectors[look % self.vectors.len()]
    }

    fn store(&self, _rank: usize, _offset: usize, _vector: Vector) {}

    fn release(&self) {}

    fn acquire(&self) {}
}

/// Notes what was taken.
#[derive(Default)]
struct Taken(Vec<Vector>);

impl Collective for Taken {
    fn contribution(&mut self, _at: usize) -> Vector {
        PAYLOAD
    }

    fn receive(&mut self, _rank: usize, _at: usize, vector: Vector) {
        self.0.push(vector);
    }

    fn complete(&mut self, _at: usize) {}
}

impl ShardedCollective for Taken {
    fn contribution(&mut self, _shard: usize, _at: usize) -> Vector {
        PAYLOAD
    }

    fn receive(&mut self, _rank: usize, _at: usize, vector: Vector) {
        self.0.push(vector);
    }

    fn complete(&mut self, _at: usize) -> Vector {
        PAYLOAD
    }

    fn receive_sum(&mut self, _shard: usize, _at: usize, sum: Vector) {
        self.0.push(sum);
    }
}

/// Pauses so often.
struct Patient(usize);

impl Wait for Patient {
    /// The header that differs, if one does.
    type Error = Option<Header>;

    fn pause(&mut self, _awaited: Awaited, missing: impl FnOnce() -> RankSet) -> Result<(), Option<Header>> {
        missing();
        self.0 = self.0.checked_sub(1).ok_or(None)?;
        Ok(())
    }

    fn resume(&mut self) {}

    fn mismatch(&mut self, _peer: usize, found: Header) -> Option<Header> {
        Some(found)
    }
}

fn vectors() -> impl Strategy<Value = Vec<Vector>> {
    // Of headers, and of data that is there, is not, and is there in part.
    let vector = select(vec![OWN, OWN, OWN, OTHER, EMPTY, PAYLOAD, [SENTINEL, 1, 2, 3], [7, 1, 2, SENTINEL]]);
    vec(vector, 1..40)
}

proptest! {
    #[test]
    fn what_is_taken_was_there_when_it_was_looked_at(
        sent in vectors(),
        (world_size, rank) in (2..=4_usize).prop_flat_map(|world_size| (Just(world_size), 0..world_size)),
        region_vectors in 1..10_usize,
        pauses in 0..20_usize,
        has_header in any::<bool>(),
        in_two_shots in any::<bool>(),
    ) {
        let region_bytes = 2 * region_vectors * VECTOR_BYTES;
        let geometry = Geometry::new(world_size as i64, (world_size * region_bytes) as i64).unwrap();
        let member = Member { rank, geometry };
        let header = has_header.then_some(OWN);
        let extent = Extent { region_bytes, chunk_vectors: 4, lead_chunks: 1, header };
        let memory = Changing { vectors: sent.clone(), looks: Cell::new(0) };
        let (mut control, mut taken) = (Control::default(), Taken::default());
        let run = if in_two_shots { exchange_two_shot } else { exchange };
        let outcome = run(member, &memory, &mut control, extent, &mut taken, &mut Patient(pauses));
        prop_assert!(!taken.0.iter().flatten().any(|word| *word == SENTINEL), "taken: {:x?}", taken.0);
        match outcome {
            Err(Some(found)) => prop_assert!(found != OWN && !found.contains(&SENTINEL), "no mismatch: {:x?}", found),
            Err(None) => {}
            Ok(()) => prop_assert!(header.is_none_or(|own| sent.contains(&own)), "nobody has said that"),
        }
    }
}
