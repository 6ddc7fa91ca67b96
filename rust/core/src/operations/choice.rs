//! The choice between one-shot and two-shot, the same rule for every backend.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::GeometryError;

/// The algorithm that the caller asked for, or else the faster one, or else the one that fits into the group's slots.
/// `fits` gives the bytes of a region. Before the turn: an operation that does not fit changes nothing.
pub(super) fn choose(
    asked: Option<Algorithm>,
    is_large: bool,
    fits: impl Fn(Algorithm) -> Result<usize, GeometryError>,
) -> Result<Algorithm, GeometryError> {
    let fits = |algorithm: Algorithm| fits(algorithm).map(|_| algorithm);
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
