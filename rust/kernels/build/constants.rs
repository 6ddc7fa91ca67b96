//! The header that carries the protocol's constants, and the layout of parameters, from Rust to CUDA.

use std::fmt::{Display, Write as _};
use std::mem::offset_of;

use lamport_rs_protocol::geometry::{HEADER_BYTES, MAX_WORLD_SIZE, SLOTS};
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, VECTOR_WORDS};
use lamport_rs_protocol::table::{ARRIVAL_COUNTER, CLEAR_EXTENT, SLOT_INDEX};

use crate::parameters::{
    CONTROL_COPIES, CONTROL_COPY_BYTES, LAYOUTS, Layout, MARK_OFFSET, Report, SKIPPED_IS_THERE, TIME_UNIT_BITS,
};
use crate::sink::{Family, Sink};
use crate::variants::{FILL_THREADS, SPEAKING_BLOCKS, WARP_THREADS};

/// The text of `constants.cuh`.
pub fn header() -> String {
    format!("// Generated.\n#pragma once\n\n{}\n{}", constants(), layouts())
}

fn constants() -> String {
    let mut text = String::from("namespace lamport {\n\n");
    let mut constant = |name: &str, value: &dyn Display| {
        writeln!(text, "constexpr unsigned int {name} = {value}u;").expect("a String can be written to");
    };
    constant("SENTINEL", &SENTINEL);
    constant("VECTOR_WORDS", &VECTOR_WORDS);
    constant("VECTOR_BYTES", &VECTOR_BYTES);
    constant("SLOTS", &SLOTS);
    constant("HEADER_BYTES", &HEADER_BYTES);
    constant("MAX_WORLD_SIZE", &MAX_WORLD_SIZE);
    constant("ARRIVAL_COUNTER", &ARRIVAL_COUNTER);
    constant("SLOT_INDEX", &SLOT_INDEX);
    constant("CLEAR_EXTENT", &CLEAR_EXTENT);
    constant("CONTROL_COPIES", &CONTROL_COPIES);
    constant("TIME_UNIT_BITS", &TIME_UNIT_BITS);
    constant("CONTROL_COPY_BYTES", &CONTROL_COPY_BYTES);
    constant("MARK_OFFSET", &MARK_OFFSET);
    constant("REPORT_ENDED", &offset_of!(Report, ended));
    constant("REPORT_SKIPPED", &offset_of!(Report, skipped));
    constant("SKIPPED_IS_THERE", &SKIPPED_IS_THERE);
    constant("REPORT_OPERATION", &offset_of!(Report, operation));
    constant("REPORT_WAITING", &offset_of!(Report, waiting));
    constant("REPORT_PEERS", &offset_of!(Report, peers));
    constant("WARP_THREADS", &WARP_THREADS);
    constant("FILL_THREADS", &FILL_THREADS);
    constant("SPEAKING_BLOCKS", &SPEAKING_BLOCKS);
    let (words, bytes): (Vec<_>, Vec<_>) = Sink::ALL
        .into_iter()
        .filter(|sink| sink.format().in_kernel == *sink)
        .partition(|sink| sink.format().family == Family::Float32Scales);
    for sink in words {
        constant(&sink.name().to_uppercase(), &(sink as u32));
    }
    // A constant is a word in the PTX of every module, and an enumerator is not.
    for sink in bytes {
        writeln!(text, "enum : unsigned int {{ {} = {}u }};", sink.name().to_uppercase(), sink as u32)
            .expect("a String can be written to");
    }
    text.push_str("\n}  // namespace lamport\n");
    text
}

/// A macro `ASSERT_LAYOUT_OF_<name>(type)` for each struct, which asserts that a CUDA struct has its size, and its fields
/// at the same offsets.
fn layouts() -> String {
    let mut text = String::new();
    for Layout { name, bytes, fields } in LAYOUTS {
        write!(text, "#define ASSERT_LAYOUT_OF_{name}(...) ").expect("a String can be written to");
        let differs = format!("\"{name} differs from the host's\"");
        write!(text, "static_assert(sizeof(__VA_ARGS__) == {bytes}, {differs})").expect("a String can be written to");
        for (field, offset) in fields.iter().filter(|(field, _)| !["base", "reserved"].contains(field)) {
            let differs = format!("\"{name}.{field} differs from the host's\"");
            write!(text, "; static_assert(FIELD_OFFSET(__VA_ARGS__, {field}) == {offset}, {differs})")
                .expect("a String can be written to");
        }
        text.push('\n');
    }
    text
}
