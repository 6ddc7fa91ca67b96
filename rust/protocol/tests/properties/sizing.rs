//! How large a slot must be for a job.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{
    ALLOCATION_GRANULARITY, Geometry, GeometryError, all_reduce_comm_size, minimax_comm_size,
};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;
use proptest::prelude::*;

use crate::geometry::world_sizes;

const MIB: usize = 1 << 20;

/// Whether `comm_size` holds `message` bytes per rank, and one allocation block less does not.
fn is_smallest_for(comm_size: usize, world_size: usize, message: usize) -> bool {
    let holds = |comm_size: usize| {
        Geometry::new(world_size as i64, comm_size as i64).is_ok_and(|geometry| geometry.region_bytes(message).is_ok())
    };
    comm_size.is_multiple_of(ALLOCATION_GRANULARITY) && holds(comm_size) && !holds(comm_size - ALLOCATION_GRANULARITY)
}

proptest! {
    #[test]
    fn an_all_reduce_workspace_is_the_smallest_that_holds_the_message_of_each_algorithm(
        world_size in world_sizes(),
        max_bytes in prop_oneof![1_usize..100, 1_usize..100_000_000],
    ) {
        let comm_size = all_reduce_comm_size(max_bytes as i64, world_size as i64).unwrap();
        let holds = |comm_size: usize| {
            let geometry = Geometry::new(world_size as i64, comm_size as i64);
            let messages = Algorithm::ALL.map(|algorithm| algorithm.tensor_message_bytes(max_bytes, world_size));
            geometry.is_ok_and(|geometry| messages.into_iter().all(|message| geometry.region_bytes(message).is_ok()))
        };
        prop_assert!(holds(comm_size), "{}", comm_size);
        prop_assert!(!holds(comm_size - VECTOR_BYTES), "{}", comm_size);
    }

    /// Q and K are whole vectors each: four tokens share one.
    #[test]
    fn a_fused_minimax_workspace_is_the_smallest_that_holds_the_tokens(
        world_size in world_sizes(),
        max_tokens in 1_usize..10_000_000,
    ) {
        let comm_size = minimax_comm_size(max_tokens as i64, world_size as i64, true).unwrap();
        prop_assert!(is_smallest_for(comm_size, world_size, max_tokens.div_ceil(4) * 2 * 16), "{}", comm_size);
    }

    #[test]
    fn minimax_sizes_follow_the_published_formulas(world_size in world_sizes(), max_tokens in 1_usize..10_000_000) {
        let rounded = |bytes: usize| bytes.div_ceil(2 * MIB) * 2 * MIB;
        let size = |fused| minimax_comm_size(max_tokens as i64, world_size as i64, fused);
        // The published formula, with each rank's part in whole vectors, as regions are.
        prop_assert_eq!(size(false), Ok(rounded(world_size * (max_tokens * 4).next_multiple_of(16))));
        prop_assert_eq!(size(true), Ok(rounded(world_size * 2 * max_tokens.div_ceil(4) * 16)));
    }
}

#[test]
fn minimax_sizes_serve_the_tokens_they_were_asked_for() {
    // 4 bytes more than fit into whole allocation blocks if regions were not rounded to vectors.
    for (max_tokens, world_size) in [(174_762, 3), (104_857, 5), (16_384, 2)] {
        let comm_size = minimax_comm_size(max_tokens, world_size, false).unwrap();
        let geometry = Geometry::new(world_size, comm_size as i64).unwrap();
        assert!(geometry.region_bytes(max_tokens as usize * 4).is_ok(), "{max_tokens} tokens, {world_size} ranks");
    }
}

#[test]
fn minimax_sizes_round_up_to_whole_allocation_blocks() {
    let single = |max_tokens, world_size| minimax_comm_size(max_tokens, world_size, false);
    let fused = |max_tokens, world_size| minimax_comm_size(max_tokens, world_size, true);
    assert_eq!(single(1, 2), Ok(2 * MIB));
    assert_eq!(single(131_072, 8), Ok(4 * MIB));
    assert_eq!(single(131_073, 8), Ok(6 * MIB));
    assert_eq!(fused(1, 2), Ok(2 * MIB));
    assert_eq!(fused(16_384, 16), Ok(2 * MIB));
    assert_eq!(fused(65_536, 16), Ok(8 * MIB));
    assert_eq!(fused(65_537, 16), Ok(10 * MIB));
}

#[test]
fn jobs_without_tokens_or_bytes_are_refused_by_name() {
    for value in [0, -1, i64::MIN] {
        for fused in [false, true] {
            let refused = minimax_comm_size(value, 4, fused);
            assert_eq!(refused, Err(GeometryError::NotPositive { what: "max_tokens", value }));
        }
        assert_eq!(all_reduce_comm_size(value, 4), Err(GeometryError::NotPositive { what: "max_bytes", value }));
    }
}

#[test]
fn jobs_of_groups_that_cannot_be_are_refused() {
    for world_size in [-1, 0, 1, 17] {
        assert_eq!(minimax_comm_size(1, world_size, true), Err(GeometryError::WorldSize(world_size)));
        assert_eq!(all_reduce_comm_size(1, world_size), Err(GeometryError::WorldSize(world_size)));
    }
}

#[test]
fn jobs_beyond_the_address_space_are_refused() {
    for value in [i64::MAX, i64::MAX / 64, i64::MAX / 16] {
        assert_eq!(minimax_comm_size(value, 16, true), Err(GeometryError::TooLarge(value)));
        assert_eq!(minimax_comm_size(value, 16, false), Err(GeometryError::TooLarge(value)));
        assert_eq!(all_reduce_comm_size(value, 16), Err(GeometryError::TooLarge(value)));
    }
}
