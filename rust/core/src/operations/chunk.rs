//! Tensors that are longer than the slots, as several operations on a device: where they are cut.
//!
//! Each chunk is an operation of the protocol. Sums are of elements and norms of rows, so results have the same bits
//! however a tensor is cut.

use std::ops::Range;

use lamport_rs_kernels::plan::MAX_BYTES;
use lamport_rs_kernels::plan::minimax::MAX_TOKENS;
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

/// What one launch does, of bytes or rows.
pub(super) type Chunk = Range<usize>;

/// Bytes of a sum that one launch takes at most, even if the slots have room for more: what a rank sends and gets then
/// stays in a device's cache until it is read and cleared. Of 4 to 64 MiB the best on H100, with two ranks and with four.
const MOST_SUM_BYTES: usize = 16 << 20;

/// Chunks of a tensor begin at multiples of so many bytes, if there is room for as many: two lines of a device's caches.
const ALIGNMENT: usize = 256;

/// The bytes of a tensor that one sum can take. An error if the slots have no room for a vector.
pub(super) fn most_bytes(algorithm: Algorithm, geometry: &Geometry) -> Result<usize, GeometryError> {
    let vectors = most_units(algorithm, geometry, VECTOR_BYTES)?;
    let bytes = vectors.saturating_mul(VECTOR_BYTES).min(MOST_SUM_BYTES);
    Ok(if bytes < ALIGNMENT { bytes } else { bytes / ALIGNMENT * ALIGNMENT })
}

/// The rows of `row_bytes` bytes that one sum with a norm can take. An error if the slots have no room for one.
pub(super) fn most_rows(algorithm: Algorithm, geometry: &Geometry, row_bytes: usize) -> Result<usize, GeometryError> {
    let rows = most_units(algorithm, geometry, row_bytes)?;
    // A row of more bytes than that has no plan, and its error says why.
    Ok(rows.min((MAX_BYTES / row_bytes.max(1)).max(1)))
}

/// The rows of each of `matrices` matrices that one MiniMax norm can take. An error if the slots have no room for one.
pub(super) fn most_tokens(matrices: usize, geometry: &Geometry) -> Result<usize, GeometryError> {
    let token = matrices * size_of::<f32>();
    geometry.region_bytes(token)?;
    Ok((geometry.largest_region_bytes() / token).min(MAX_TOKENS as usize))
}

/// The units of `unit` bytes, vectors or rows, of which a region has room for the message. An error if there is none.
fn most_units(algorithm: Algorithm, geometry: &Geometry, unit: usize) -> Result<usize, GeometryError> {
    let world_size = geometry.world_size();
    let smallest = algorithm.message_bytes(1, unit, world_size);
    geometry.region_bytes(smallest)?;
    let shares = geometry.largest_region_bytes().checked_div(smallest).unwrap_or(usize::MAX);
    Ok(match algorithm {
        Algorithm::OneShot => shares,
        Algorithm::TwoShot => shares.saturating_mul(world_size),
    })
}

/// All chunks, in order.
pub(super) fn all(units: usize, most: usize) -> impl Iterator<Item = Chunk> + Clone + use<> {
    (0..units).step_by(most).map(move |start| start..units.min(start.saturating_add(most)))
}

/// The chunks of rows for sums with a norm. Two shots need a row for every rank: what is left and has fewer is cut once
/// more, for one shot.
pub(super) fn rows(
    rows: usize,
    algorithm: Algorithm,
    geometry: &Geometry,
    row_bytes: usize,
) -> Result<impl Iterator<Item = Chunk> + Clone + use<>, GeometryError> {
    let most = most_rows(algorithm, geometry, row_bytes)?;
    let left = rows % most;
    let is_cut_again = algorithm == Algorithm::TwoShot && left < geometry.world_size();
    let last = if is_cut_again { rows - left } else { rows };
    let most_left = if is_cut_again { most_rows(Algorithm::OneShot, geometry, row_bytes)? } else { most };
    let all_left = all(rows - last, most_left).map(move |chunk| last + chunk.start..last + chunk.end);
    Ok(all(last, most).chain(all_left))
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::algorithm::Algorithm::{OneShot, TwoShot};

    use super::*;

    /// The chunks lie side by side from 0 to `units`.
    fn check_cover(chunks: &[Chunk], units: usize) {
        let ends = || [0].into_iter().chain(chunks.iter().map(|chunk| chunk.end));
        assert!(chunks.iter().zip(ends()).all(|(chunk, end)| chunk.start == end && !chunk.is_empty()), "{chunks:?}");
        assert_eq!(ends().next_back(), Some(units), "{chunks:?}");
    }

    #[test]
    fn chunks_cover_all() {
        for (units, most) in [(0, 3), (1, 1), (7, 3), (9, 3), (3, usize::MAX), (10, 9)] {
            let chunks: Vec<Chunk> = all(units, most).collect();
            check_cover(&chunks, units);
            assert!(chunks.iter().all(|chunk| chunk.len() <= most));
        }
    }

    #[test]
    fn every_chunk_of_rows_has_room_for_its_algorithm() {
        const ROW: usize = 48;
        for world_size in 1..=16 {
            for room in 1..=9 {
                let geometry = Geometry::new(world_size as i64, (world_size * room * ROW) as i64).unwrap();
                for (algorithm, tokens) in Algorithm::ALL.into_iter().flat_map(|each| (0..100).map(move |n| (each, n)))
                {
                    let Ok(chunks) = rows(tokens, algorithm, &geometry, ROW) else {
                        assert!(algorithm == TwoShot && room == 1, "{world_size} ranks, {room} rows");
                        continue;
                    };
                    let chunks: Vec<Chunk> = chunks.collect();
                    check_cover(&chunks, tokens);
                    for chunk in chunks {
                        let algorithm = if chunk.len() < world_size { OneShot } else { algorithm };
                        let message = algorithm.message_bytes(chunk.len(), ROW, world_size);
                        assert!(geometry.region_bytes(message).is_ok(), "{world_size} ranks, {room} rows, {chunk:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_chunk_fits_and_one_unit_more_does_not() {
        for world_size in 1..=16 {
            for comm_size in [4096, 65536 + 16, 5 << 20] {
                let geometry = Geometry::new(world_size, comm_size).unwrap();
                let fits = |message: usize| geometry.region_bytes(message).is_ok();
                for algorithm in Algorithm::ALL {
                    let bytes = most_bytes(algorithm, &geometry).unwrap();
                    let message = |bytes| algorithm.tensor_message_bytes(bytes, world_size as usize);
                    assert!(fits(message(bytes)));
                    assert!(!fits(message(bytes + world_size as usize * ALIGNMENT)), "{world_size} {comm_size}");
                    let rows = most_rows(algorithm, &geometry, 48).unwrap();
                    let message = |rows| algorithm.message_bytes(rows, 48, world_size as usize);
                    assert!(fits(message(rows)));
                    assert!(!fits(message(rows + 1)));
                }
                for matrices in 1..=2 {
                    let tokens = most_tokens(matrices, &geometry).unwrap();
                    assert!(fits(tokens * matrices * 4));
                    assert!(!fits((tokens + 1) * matrices * 4));
                }
            }
        }
    }

    #[test]
    fn what_has_no_room_is_named_with_the_room_it_needs() {
        let geometry = Geometry::new(4, 128).unwrap();
        let needed = |outcome: Result<usize, GeometryError>| match outcome {
            Err(GeometryError::MessageTooLarge { needed, .. }) => Some(needed),
            _ => None,
        };
        assert_eq!(needed(most_rows(OneShot, &geometry, 48)), Some(4 * 48));
        assert_eq!(needed(most_rows(TwoShot, &geometry, 32)), Some(4 * 64));
        assert_eq!(needed(most_bytes(TwoShot, &Geometry::new(4, 64).unwrap())), Some(4 * 32));
        assert_eq!(most_bytes(OneShot, &geometry), Ok(32));
    }

    #[test]
    fn no_chunk_has_more_than_the_kernels_count() {
        let geometry = Geometry::new(2, 1 << 40).unwrap();
        assert_eq!(most_bytes(OneShot, &geometry), Ok(MOST_SUM_BYTES));
        assert_eq!(most_rows(TwoShot, &geometry, 1 << 20), Ok(1 << 10));
        assert_eq!(most_tokens(1, &geometry), Ok(MAX_TOKENS as usize));
    }
}
