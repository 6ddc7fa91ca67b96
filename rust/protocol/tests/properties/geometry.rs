//! Slots and regions, and messages that fit into them or not.

use std::ops::Range;

use lamport_rs_protocol::geometry::{
    ALLOCATION_GRANULARITY, Geometry, GeometryError, MAX_WORLD_SIZE, MIN_WORLD_SIZE, SLOTS,
};
use proptest::prelude::*;

const VECTOR_BYTES: usize = 16;

pub fn world_sizes() -> impl Strategy<Value = usize> {
    MIN_WORLD_SIZE..=MAX_WORLD_SIZE
}

/// From one vector to several allocation blocks.
fn comm_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..100, 1_usize..1_000_000].prop_map(|vectors| vectors * VECTOR_BYTES)
}

fn geometry(world_size: usize, comm_size: usize) -> Geometry {
    Geometry::new(world_size as i64, comm_size as i64).expect("a shape within the limits")
}

fn disjoint(ranges: &mut [Range<usize>]) -> bool {
    ranges.sort_by_key(|range| range.start);
    ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

proptest! {
    #[test]
    fn slots_and_headers_are_aligned_disjoint_and_inside_the_block(
        world_size in world_sizes(),
        comm_size in comm_sizes(),
    ) {
        let geometry = geometry(world_size, comm_size);
        let slots = (0..SLOTS).map(|slot| geometry.slot_offset(slot)).map(|start| start..start + comm_size);
        let headers = (0..SLOTS)
            .flat_map(|slot| (0..world_size).map(move |rank| geometry.header_offset(slot, rank)))
            .map(|start| start..start + VECTOR_BYTES);
        let mut ranges: Vec<Range<usize>> = slots.chain(headers).collect();
        prop_assert!(ranges.iter().all(|range| range.start % VECTOR_BYTES == 0));
        prop_assert!(ranges.iter().all(|range| range.end <= geometry.used_bytes()), "the initial fill covers it");
        prop_assert!(disjoint(&mut ranges));
        prop_assert!(geometry.used_bytes() <= geometry.block_bytes());
        prop_assert!(geometry.block_bytes() - geometry.used_bytes() < ALLOCATION_GRANULARITY);
        prop_assert_eq!(geometry.block_bytes() % ALLOCATION_GRANULARITY, 0);
    }

    #[test]
    fn regions_are_aligned_disjoint_and_inside_the_slot(
        world_size in world_sizes(),
        comm_size in comm_sizes(),
        share in 0.0..=1.0,
    ) {
        let geometry = geometry(world_size, comm_size);
        let message = (comm_size as f64 / world_size as f64 * share) as usize;
        if let Ok(region_bytes) = geometry.region_bytes(message) {
            prop_assert_eq!(region_bytes % VECTOR_BYTES, 0);
            prop_assert!((message..message + VECTOR_BYTES).contains(&region_bytes));
            // Regions lie side by side from the slot's start, so this is all there is to being disjoint and inside.
            prop_assert!(world_size * region_bytes <= comm_size);
        } else {
            prop_assert!(world_size * message.next_multiple_of(VECTOR_BYTES) > comm_size);
        }
    }

    #[test]
    fn a_message_that_is_too_large_is_told_the_smallest_size_that_would_do(
        world_size in world_sizes(),
        comm_size in comm_sizes(),
        excess in 1_usize..10_000_000,
    ) {
        let message = comm_size / world_size + excess;
        let refused = geometry(world_size, comm_size).region_bytes(message);
        if let Err(GeometryError::MessageTooLarge { needed, comm_size: found }) = refused {
            prop_assert_eq!(found, comm_size);
            prop_assert!(geometry(world_size, needed).region_bytes(message).is_ok());
            prop_assert!(geometry(world_size, needed - VECTOR_BYTES).region_bytes(message).is_err());
            let text = refused.unwrap_err().to_string();
            prop_assert!(text.contains(&format!("comm_size={needed} or more")), "{}", text);
        } else {
            prop_assert!(false, "{:?} for a message of {} bytes", refused, message);
        }
    }

    #[test]
    fn ranks_within_the_group_are_accepted_and_others_refused(world_size in world_sizes(), rank in -20_i64..40) {
        let checked = geometry(world_size, VECTOR_BYTES).check_rank(rank);
        if (0..world_size as i64).contains(&rank) {
            prop_assert_eq!(checked, Ok(rank as usize));
        } else {
            prop_assert_eq!(checked, Err(GeometryError::Rank { rank, world_size: world_size as i64 }));
        }
    }

    #[test]
    fn comm_sizes_that_are_not_whole_vectors_are_refused(
        world_size in world_sizes(),
        comm_size in prop_oneof![-100_i64..100, any::<i64>(), any::<i64>().prop_map(|size| size & !15)],
    ) {
        let refused = Geometry::new(world_size as i64, comm_size).err();
        if comm_size <= 0 || comm_size % 16 != 0 {
            prop_assert_eq!(refused, Some(GeometryError::CommSize(comm_size)));
        } else if comm_size > i64::MAX / 16 {
            prop_assert_eq!(refused, Some(GeometryError::TooLarge(comm_size)));
        } else {
            prop_assert_eq!(refused, None);
        }
    }
}

#[test]
fn groups_of_fewer_than_one_or_more_than_sixteen_ranks_are_refused() {
    for world_size in [i64::MIN, -2, -1, 0, 17, 1 << 32 | 4, i64::MAX] {
        assert_eq!(Geometry::new(world_size, 16), Err(GeometryError::WorldSize(world_size)));
    }
    for world_size in 1..=16 {
        assert!(Geometry::new(world_size, 16).is_ok(), "world size {world_size}");
    }
}

#[test]
fn comm_sizes_of_zero_negative_and_broken_vectors_are_refused() {
    for comm_size in [i64::MIN, -16, -1, 0, 1, 15, 17, 4096 + 8] {
        assert_eq!(Geometry::new(2, comm_size), Err(GeometryError::CommSize(comm_size)));
    }
}

#[test]
fn the_largest_shapes_overflow_nowhere() {
    let comm_size = i64::MAX / 16 / 16 * 16;
    let geometry = Geometry::new(16, comm_size).expect("the largest comm_size");
    assert!(geometry.block_bytes() > 3 * comm_size as usize);
    for message in [usize::MAX, usize::MAX - 15, usize::MAX / 16, usize::MAX / 16 + 1] {
        assert!(matches!(geometry.region_bytes(message), Err(GeometryError::MessageTooLarge { .. })), "{message}");
    }
}

#[test]
fn an_empty_message_has_an_empty_region() {
    assert_eq!(geometry(2, 32).region_bytes(0), Ok(0));
}

#[test]
fn errors_say_what_was_found_and_what_would_be_accepted() {
    let text = |error: GeometryError| error.to_string();
    assert_eq!(text(GeometryError::WorldSize(17)), "world_size is 17, but must be between 1 and 16");
    assert_eq!(
        text(GeometryError::Rank { rank: 4, world_size: 4 }),
        "rank is 4, but must be between 0 and 3 (world_size is 4)"
    );
    assert_eq!(text(GeometryError::CommSize(20)), "comm_size is 20 bytes, but must be a positive multiple of 16");
}
