//! The choice between one-shot and two-shot, the same rule for every backend.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::Geometry;

/// The algorithm that the caller asked for, or else the faster one, or else the one by which a tensor of `units` units of
/// `unit_bytes` bytes fits into the group's slots at once. If neither does, one of them runs as several operations: the
/// faster one, if there is room for the smallest of them. One-shot needs the least room.
pub(super) fn choose(
    asked: Option<Algorithm>,
    is_large: bool,
    geometry: &Geometry,
    units: usize,
    unit_bytes: usize,
) -> Algorithm {
    if let Some(algorithm) = asked {
        return algorithm;
    }
    let has_room = |algorithm: Algorithm, units| {
        algorithm.message_bytes(units, unit_bytes, geometry.world_size()) <= geometry.largest_region_bytes()
    };
    let [faster, other] = match is_large {
        true => [Algorithm::TwoShot, Algorithm::OneShot],
        false => [Algorithm::OneShot, Algorithm::TwoShot],
    };
    let at_once = [faster, other].into_iter().find(|algorithm| has_room(*algorithm, units));
    at_once.unwrap_or_else(|| if has_room(faster, 1) { faster } else { Algorithm::OneShot })
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::algorithm::Algorithm::{OneShot, TwoShot};

    use super::*;

    /// One-shot needs 32 vectors of a region and two-shot 8, of `room`, for all of it; for a part 1 and 2.
    fn chosen(asked: Option<Algorithm>, is_large: bool, room: i64) -> Algorithm {
        let geometry = Geometry::new(8, (8 * 16 * room).max(16)).unwrap();
        choose(asked, is_large, &geometry, 32, 16)
    }

    #[test]
    fn the_faster_one_is_taken_where_both_fit() {
        assert_eq!(chosen(None, false, 32), OneShot);
        assert_eq!(chosen(None, true, 32), TwoShot);
    }

    #[test]
    fn the_one_that_fits_is_taken_where_the_faster_one_does_not() {
        assert_eq!(chosen(None, false, 8), TwoShot);
    }

    #[test]
    fn what_the_caller_asks_for_is_taken() {
        assert_eq!(chosen(Some(TwoShot), false, 32), TwoShot);
        assert_eq!(chosen(Some(OneShot), true, 8), OneShot);
    }

    #[test]
    fn the_faster_one_is_taken_where_neither_fits() {
        assert_eq!(chosen(None, false, 7), OneShot);
        assert_eq!(chosen(None, true, 7), TwoShot);
    }

    #[test]
    fn one_shot_is_taken_where_two_shot_has_no_room_at_all() {
        assert_eq!(chosen(None, true, 1), OneShot);
        assert_eq!(chosen(None, true, 0), OneShot);
    }
}
