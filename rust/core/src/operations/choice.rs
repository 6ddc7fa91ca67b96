//! The choice between one-shot and two-shot, the same rule for every backend.

use lamport_rs_protocol::algorithm::Algorithm;

/// The algorithm that the caller asked for, or else the faster one, or else the one that fits into the group's slots at
/// once. If neither does, one of them runs as several operations: the faster one, if there is room for the smallest of
/// them. One-shot needs the least room.
pub(super) fn choose(
    asked: Option<Algorithm>,
    is_large: bool,
    fits: impl Fn(Algorithm) -> bool,
    has_room: impl Fn(Algorithm) -> bool,
) -> Algorithm {
    if let Some(algorithm) = asked {
        return algorithm;
    }
    let [faster, other] = match is_large {
        true => [Algorithm::TwoShot, Algorithm::OneShot],
        false => [Algorithm::OneShot, Algorithm::TwoShot],
    };
    let at_once = [faster, other].into_iter().find(|algorithm| fits(*algorithm));
    at_once.unwrap_or(if has_room(faster) { faster } else { Algorithm::OneShot })
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::algorithm::Algorithm::{OneShot, TwoShot};

    use super::*;

    /// One-shot needs 40 bytes and two-shot 20, of `room`, for all of it; for a part 4 and 8.
    fn chosen(asked: Option<Algorithm>, is_large: bool, room: usize) -> Algorithm {
        let needed = |algorithm| if algorithm == OneShot { [40, 4] } else { [20, 8] };
        choose(asked, is_large, |algorithm| room >= needed(algorithm)[0], |algorithm| room >= needed(algorithm)[1])
    }

    #[test]
    fn the_faster_one_is_taken_where_both_fit() {
        assert_eq!(chosen(None, false, 40), OneShot);
        assert_eq!(chosen(None, true, 40), TwoShot);
    }

    #[test]
    fn the_one_that_fits_is_taken_where_the_faster_one_does_not() {
        assert_eq!(chosen(None, false, 20), TwoShot);
    }

    #[test]
    fn what_the_caller_asks_for_is_taken() {
        assert_eq!(chosen(Some(TwoShot), false, 40), TwoShot);
        assert_eq!(chosen(Some(OneShot), true, 20), OneShot);
    }

    #[test]
    fn the_faster_one_is_taken_where_neither_fits() {
        assert_eq!(chosen(None, false, 10), OneShot);
        assert_eq!(chosen(None, true, 10), TwoShot);
    }

    #[test]
    fn one_shot_is_taken_where_two_shot_has_no_room_at_all() {
        assert_eq!(chosen(None, true, 7), OneShot);
        assert_eq!(chosen(None, true, 3), OneShot);
    }
}
