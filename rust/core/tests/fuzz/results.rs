//! What a call may have made of what peers did.

use half::bf16;
use lamport_rs_core::error::Error;
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::sentinel::SENTINEL;
use proptest::prelude::*;

use crate::calls::Called;
use crate::case::Case;
use crate::lies::Deed;

pub fn check(case: &Case, called: &Called) -> Result<(), TestCaseError> {
    match &called.outcome {
        Ok(()) => check_success(case, called),
        Err(error) => check_mismatch(case, error),
    }
}

/// What a header was found to be is not what was expected, and it was there.
fn check_mismatch(case: &Case, error: &Error) -> Result<(), TestCaseError> {
    // Notices may tell of any mismatch.
    let tells = |deed: &Deed| matches!(deed, Deed::Notice(..) | Deed::PageWord(..) | Deed::BlockWord(..));
    if let Error::Mismatch { own, theirs, .. } = error
        && !case.all_deeds().any(|(_, deed)| tells(deed))
    {
        prop_assert!(own.0 != theirs.0 && !theirs.0.contains(&SENTINEL), "no mismatch: {error:?}");
    }
    Ok(())
}

/// Every peer has said that it runs the same, and each number of a sum is one that the peers' words can make.
fn check_success(case: &Case, called: &Called) -> Result<(), TestCaseError> {
    // Whoever stores words anywhere can say and send anything.
    if case.all_deeds().any(|(_, deed)| matches!(deed, Deed::BlockWord(..))) {
        return Ok(());
    }
    let header = case.header();
    for peer in (0..case.ranks).filter(|peer| *peer != case.rank) {
        let mut deeds = case.all_deeds().filter(|(who, _)| *who == peer);
        let has_said =
            deeds.any(|(_, deed)| matches!(deed, Deed::Header(words) if words.is_none_or(|it| it == header)));
        prop_assert!(has_said, "rank {peer} has never said that it runs {header:x?}");
    }
    let Some([before, after]) = &called.sum else { return Ok(()) };
    if case.ranks > 2 {
        return Ok(());
    }
    let numbers = |bytes: &[u8]| bytes.chunks_exact(2).map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let [before, after]: [Vec<bf16>; 2] = [before, after].map(|bytes| numbers(bytes));
    for (at, (own, sum)) in before.into_iter().zip(after).enumerate() {
        let possible: Vec<_> = sent(case, at).flat_map(|sent| sums(case, own, sent)).collect();
        let is_it = |other: &bf16| *other == sum || other.is_nan() && sum.is_nan();
        prop_assert!(possible.iter().any(is_it), "element {at} is {sum}, but can be {possible:?} only");
    }
    Ok(())
}

/// What the peer has sent as element `at`.
fn sent(case: &Case, at: usize) -> impl Iterator<Item = bf16> {
    let word = move |deed: &Deed| if let Deed::Data(words) = deed { Some(words[at / 2 % 4]) } else { None };
    let words = case.all_deeds().filter_map(move |(_, deed)| word(deed)).filter(|word| *word != SENTINEL);
    words.map(move |word| bf16::from_bits((word >> (16 * (at % 2))) as u16))
}

/// Its sum with this rank's own; in two shots the peer may have summed itself.
fn sums(case: &Case, own: bf16, sent: bf16) -> impl Iterator<Item = bf16> + use<> {
    let sum = bf16::from_f32(own.to_f32() + sent.to_f32());
    [sum].into_iter().chain((case.call.algorithm == Algorithm::TwoShot).then_some(sent))
}
