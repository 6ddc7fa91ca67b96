//! The table and the control words: an ABI, so its numbers are written out here a second time.

use lamport_rs_protocol::exchange::Extent;
use lamport_rs_protocol::geometry::{MAX_WORLD_SIZE, MIN_WORLD_SIZE, SLOTS};
use lamport_rs_protocol::table::{self, Control, table, table_len};
use proptest::prelude::*;

#[test]
fn kernels_find_each_control_word_where_they_look_for_it() {
    assert_eq!((table::ARRIVAL_COUNTER, table::SLOT_INDEX, table::COUNTERS), (0, 2, 3));
    assert_eq!((table::CLEAR_EXTENT, table::COMM_SIZE, table::EXTENTS), (0, 1, 2));
}

#[test]
fn another_layout_is_another_version_of_the_abi() {
    let words = (table::ARRIVAL_COUNTER, table::SLOT_INDEX, table::COUNTERS, table::CLEAR_EXTENT, table::COMM_SIZE);
    let layout = (SLOTS, words, table::EXTENTS, table(&[1, 2, 3], 4, 5));
    let first = (3, (0, 2, 3, 0, 1), 2, vec![0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
    assert_eq!((table::ABI_VERSION, layout), (2, first), "a layout that differs is a version of its own: see table.rs");
}

#[test]
fn the_table_of_two_ranks_is_laid_out_as_kernels_expect() {
    assert_eq!(table(&[0x1000, 0x2000], 0x3000, 0x4000), [0, 0, 0, 0, 0x1000, 0x2000, 0x3000, 0x4000]);
}

proptest! {
    #[test]
    fn the_table_holds_slots_after_reserved_zeros_and_control_words_last(
        slots in prop::collection::vec(any::<u64>(), MIN_WORLD_SIZE..=MAX_WORLD_SIZE),
        counters: u64,
        extents: u64,
    ) {
        let world_size = slots.len();
        let table = table(&slots, counters, extents);
        prop_assert_eq!(table.len(), 3 * world_size + 2);
        prop_assert_eq!(table.len(), table_len(world_size));
        prop_assert!(table[..2 * world_size].iter().all(|&reserved| reserved == 0));
        for (rank, &slot) in slots.iter().enumerate() {
            prop_assert_eq!(table[2 * world_size + rank] as u64, slot);
        }
        prop_assert_eq!(table[3 * world_size] as u64, counters);
        prop_assert_eq!(table[3 * world_size + 1] as u64, extents);
    }

    #[test]
    fn control_goes_through_the_slots_in_turn_and_remembers_one_operation(
        regions in prop::collection::vec((1_usize..1000).prop_map(|vectors| 16 * vectors), 1..40),
    ) {
        let mut control = Control::default();
        prop_assert_eq!(control.slot_index(), 0, "what the table holds at first");
        prop_assert_eq!(control.previous_region_bytes, 0, "nothing to clear before the first operation");
        for (operation, &region_bytes) in regions.iter().enumerate() {
            prop_assert_eq!(control.slot, operation % SLOTS);
            let header = operation.is_multiple_of(2).then_some([1; 4]);
            control = control.rotated(Extent { region_bytes, chunk_vectors: 1, lead_chunks: 1, header });
            prop_assert_eq!(control.previous_slot(), operation % SLOTS);
            prop_assert_eq!(control.slot_index(), 3 + (operation + 1) % SLOTS, "a foreign kernel leaves less");
            prop_assert_eq!(control.previous_region_bytes, region_bytes);
            prop_assert_eq!(control.previous_has_header, header.is_some());
        }
    }
}
