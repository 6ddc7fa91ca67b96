//! The choice between one-shot and two-shot, the same rule for every backend.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::GeometryError;

/// The algorithm that the caller asked for, or else the faster one, or else the one that fits into the group's slots; with
/// the bytes of a region, which `region_bytes` gives. Before the turn: an operation that does not fit changes nothing.
pub(super) fn choose(
    asked: Option<Algorithm>,
    is_large: bool,
    region_bytes: impl Fn(Algorithm) -> Result<usize, GeometryError>,
) -> Result<(Algorithm, usize), GeometryError> {
    let fits = |algorithm: Algorithm| Ok((algorithm, region_bytes(algorithm)?));
    if let Some(algorithm) = asked {
        return fits(algorithm);
    }
    let [faster, other] = match is_large {
        true => [Algorithm::TwoShot, Algorithm::OneShot],
        false => [Algorithm::OneShot, Algorithm::TwoShot],
    };
    fits(faster).or_else(|first| fits(other).map_err(|second| smaller(first, second)))
}

/// Of two complaints that a message is too large, the one that asks for less.
fn smaller(first: GeometryError, second: GeometryError) -> GeometryError {
    let needed = |error: &GeometryError| match error {
        GeometryError::MessageTooLarge { needed, .. } => *needed,
        _ => usize::MAX,
    };
    if needed(&second) < needed(&first) { second } else { first }
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::algorithm::Algorithm::{OneShot, TwoShot};

    use super::*;

    /// One-shot needs 40 bytes and two-shot 20, of `room`.
    fn chosen(asked: Option<Algorithm>, is_large: bool, room: usize) -> Result<(Algorithm, usize), usize> {
        let region_bytes = |algorithm: Algorithm| {
            let needed = if algorithm == OneShot { 40 } else { 20 };
            let too_large = GeometryError::MessageTooLarge { needed, comm_size: room };
            if needed <= room { Ok(needed) } else { Err(too_large) }
        };
        choose(asked, is_large, region_bytes).map_err(|error| match error {
            GeometryError::MessageTooLarge { needed, .. } => needed,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn the_faster_one_is_taken_where_both_fit() {
        assert_eq!(chosen(None, false, 40), Ok((OneShot, 40)));
        assert_eq!(chosen(None, true, 40), Ok((TwoShot, 20)));
    }

    #[test]
    fn the_one_that_fits_is_taken_where_the_faster_one_does_not() {
        assert_eq!(chosen(None, false, 20), Ok((TwoShot, 20)));
    }

    #[test]
    fn what_the_caller_asks_for_is_taken_or_refused() {
        assert_eq!(chosen(Some(TwoShot), false, 40), Ok((TwoShot, 20)));
        assert_eq!(chosen(Some(OneShot), true, 40), Ok((OneShot, 40)));
        assert_eq!(chosen(Some(OneShot), true, 20), Err(40));
    }

    #[test]
    fn where_neither_fits_the_smaller_need_is_named() {
        assert_eq!(chosen(None, false, 10), Err(20));
        assert_eq!(chosen(None, true, 10), Err(20));
    }
}
