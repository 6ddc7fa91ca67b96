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

/// Whether slots of `comm_size` bytes hold what `algorithm` sends of a tensor of `bytes` bytes.
fn holds(comm_size: usize, world_size: usize, algorithm: Algorithm, bytes: usize) -> bool {
    Geometry::new(world_size as i64, comm_size as i64)
        .is_ok_and(|geometry| geometry.region_bytes(algorithm.tensor_message_bytes(bytes, world_size)).is_ok())
}

/// The largest region that two shots of whole rows need, of up to `bytes` bytes in rows of any width.
fn largest_rows(bytes: usize, world_size: usize) -> usize {
    let vectors = bytes / VECTOR_BYTES;
    let region = |rows: usize| Algorithm::TwoShot.message_bytes(rows, vectors / rows * VECTOR_BYTES, world_size);
    (world_size..=vectors).map(region).max().unwrap_or(0)
}

/// From one byte to many vectors.
fn tensor_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..1000, 1_usize..100_000_000]
}

proptest! {
    #[test]
    fn an_all_reduce_workspace_is_the_smallest_that_holds_the_tensor_with_any_algorithm(
        world_size in world_sizes(),
        max_bytes in tensor_sizes(),
    ) {
        let comm_size = all_reduce_comm_size(max_bytes as i64, world_size as i64).unwrap();
        // Three rows are the most wasteful that two ranks can have, but for what is lost to whole vectors.
        let rows = if world_size == 2 { 4 * (max_bytes / VECTOR_BYTES / 3) * VECTOR_BYTES } else { 0 };
        let all_hold = |comm_size| {
            let region = Geometry::new(world_size as i64, comm_size as i64).unwrap().region_bytes(rows);
            region.is_ok() && Algorithm::ALL.iter().all(|&each| holds(comm_size, world_size, each, max_bytes))
        };
        prop_assert!(all_hold(comm_size), "{} does not do", comm_size);
        if max_bytes >= 20 * VECTOR_BYTES {
            prop_assert!(!all_hold(comm_size - VECTOR_BYTES), "less than {} does", comm_size);
        }
    }

    #[test]
    fn an_all_reduce_workspace_holds_rows_of_any_width_in_any_algorithm(
        world_size in world_sizes(),
        (max_bytes, row_vectors) in tensor_sizes().prop_flat_map(|most| (Just(most), 1..=most / VECTOR_BYTES + 1)),
        share in 0.0..=1.0,
    ) {
        let comm_size = all_reduce_comm_size(max_bytes as i64, world_size as i64).unwrap();
        let geometry = Geometry::new(world_size as i64, comm_size as i64).unwrap();
        let most_rows = max_bytes / (row_vectors * VECTOR_BYTES);
        for rows in [most_rows, (most_rows as f64 * share) as usize] {
            let possible = |algorithm: &Algorithm| *algorithm == Algorithm::OneShot || rows >= world_size;
            for algorithm in Algorithm::ALL.into_iter().filter(possible) {
                let message = algorithm.message_bytes(rows, row_vectors * VECTOR_BYTES, world_size);
                let found = geometry.region_bytes(message);
                prop_assert!(found.is_ok(), "{:?}: {} rows of {}", algorithm, rows, row_vectors);
            }
        }
    }

    #[test]
    fn an_all_reduce_workspace_holds_smaller_tensors_too(
        world_size in world_sizes(),
        (max_bytes, bytes) in tensor_sizes().prop_flat_map(|most| (Just(most), 1..=most)),
    ) {
        let comm_size = all_reduce_comm_size(max_bytes as i64, world_size as i64).unwrap();
        for algorithm in Algorithm::ALL {
            prop_assert!(holds(comm_size, world_size, algorithm, bytes), "{:?} of {} bytes", algorithm, bytes);
        }
    }

    #[test]
    fn one_shot_takes_a_tensor_per_rank_and_two_shot_about_two(world_size in world_sizes(), bytes in tensor_sizes()) {
        let slot = |algorithm: Algorithm| world_size * algorithm.tensor_message_bytes(bytes, world_size);
        let tensor = bytes.next_multiple_of(VECTOR_BYTES);
        prop_assert_eq!(slot(Algorithm::OneShot), world_size * tensor);
        let uneven = slot(Algorithm::TwoShot).checked_sub(2 * tensor);
        prop_assert!(uneven.is_some_and(|extra| extra <= 2 * (world_size - 1) * VECTOR_BYTES), "{:?}", uneven);
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
fn an_all_reduce_workspace_holds_every_size_up_to_the_maximum() {
    for world_size in 2..=16 {
        for max_bytes in 1..=500 {
            let comm_size = all_reduce_comm_size(max_bytes, world_size).unwrap();
            for (bytes, algorithm) in
                (1..=max_bytes as usize).flat_map(|bytes| Algorithm::ALL.map(|each| (bytes, each)))
            {
                assert!(holds(comm_size, world_size as usize, algorithm, bytes), "{algorithm:?} of {bytes} bytes");
            }
        }
    }
}

#[test]
fn all_reduce_sizes_are_those_of_one_shot_but_for_tiny_tensors() {
    for (max_bytes, world_size, expected) in
        [(1, 3, 96), (1, 4, 128), (32, 4, 128), (33, 4, 192), (1 << 20, 3, 3 << 20), (1 << 20, 8, 8 << 20)]
    {
        assert_eq!(all_reduce_comm_size(max_bytes, world_size), Ok(expected), "{max_bytes} bytes, {world_size} ranks");
    }
}

#[test]
fn two_ranks_have_room_for_three_rows_in_two_shots() {
    // One and five rows of a vector, six vectors in three rows, then 4/3 of the tensor but for what is no whole row.
    for (max_bytes, expected) in
        [(1, 64), (17, 64), (33, 128), (80, 192), (96, 256), (3 << 20, 8 << 20), (1 << 20, 2796160)]
    {
        assert_eq!(all_reduce_comm_size(max_bytes, 2), Ok(expected), "{max_bytes} bytes");
    }
}

#[test]
fn an_all_reduce_workspace_is_the_smallest_that_holds_sums_and_rows_of_any_width() {
    for world_size in 2..=16 {
        for bytes in (1..=300 * VECTOR_BYTES).step_by(5) {
            let tensors = Algorithm::ALL.map(|algorithm| algorithm.tensor_message_bytes(bytes, world_size));
            let region = tensors.into_iter().max().max(Some(largest_rows(bytes, world_size))).unwrap();
            let found = all_reduce_comm_size(bytes as i64, world_size as i64);
            assert_eq!(found, Ok(world_size * region), "{bytes} bytes, {world_size} ranks");
        }
    }
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
    for world_size in [-1, 0, 17] {
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
