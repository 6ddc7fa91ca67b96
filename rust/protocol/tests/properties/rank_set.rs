//! How errors name ranks.

use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::rank_set::RankSet;
use proptest::prelude::*;

fn set_of(ranks: &[usize]) -> RankSet {
    let mut set = RankSet::default();
    ranks.iter().for_each(|&rank| set.insert(rank));
    set
}

#[test]
fn errors_name_ranks_as_a_sentence_does() {
    assert_eq!(set_of(&[]).to_string(), "no rank");
    assert_eq!(set_of(&[3]).to_string(), "rank 3");
    assert_eq!(set_of(&[15, 0]).to_string(), "ranks 0, 15");
    assert_eq!(set_of(&[4, 1, 2, 1]).to_string(), "ranks 1, 2, 4");
}

proptest! {
    #[test]
    fn a_set_holds_what_was_inserted_in_ascending_order(mut ranks in prop::collection::vec(0..MAX_WORLD_SIZE, 0..40)) {
        let set = set_of(&ranks);
        ranks.sort();
        ranks.dedup();
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), ranks.clone());
        prop_assert_eq!(set.is_empty(), ranks.is_empty());
    }
}
