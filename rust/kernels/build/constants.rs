//! The header that carries the protocol's constants, and the layout of parameters, from Rust to CUDA.

use std::fmt::{Display, Write as _};
use std::mem::{offset_of, size_of};

use lamport_rs_protocol::geometry::{HEADER_BYTES, MAX_WORLD_SIZE, SLOTS};
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, VECTOR_WORDS};
use lamport_rs_protocol::table::{ARRIVAL_COUNTER, CLEAR_EXTENT, SLOT_INDEX};

use crate::parameters::{
    AllReduceParameters, AllReduceRmsNormParameters, AllReduceRmsNormQuantParameters, CONTROL_COPIES,
    CONTROL_COPY_BYTES, FillParameters, Group, MinimaxMatrix, MinimaxParameters, Report, RmsNorm, SKIPPED_IS_THERE,
    SkipParameters, TIME_UNIT_BITS, VerifyParameters,
};
use crate::sink::Sink;
use crate::variants::{FILL_THREADS, SPEAKING_BLOCKS, WARP_THREADS};

/// A macro `ASSERT_LAYOUT_OF_<name>(type)` that asserts that a CUDA struct has the size of a Rust struct and the named
/// fields at the same offsets.
macro_rules! layout {
    ($name:literal, $struct:ty, [$($field:ident),+]) => {{
        let mut text = format!(
            "#define ASSERT_LAYOUT_OF_{0}(...) \
             static_assert(sizeof(__VA_ARGS__) == {1}, \"{0} differs from the host's\")",
            $name,
            size_of::<$struct>()
        );
        $(write!(
            text,
            "; static_assert(FIELD_OFFSET(__VA_ARGS__, {0}) == {1}, \"{2}.{0} differs from the host's\")",
            stringify!($field),
            offset_of!($struct, $field),
            $name
        )
        .expect("a String can be written to");)+
        text.push('\n');
        text
    }};
}

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
    constant("REPORT_ENDED", &offset_of!(Report, ended));
    constant("REPORT_SKIPPED", &offset_of!(Report, skipped));
    constant("SKIPPED_IS_THERE", &SKIPPED_IS_THERE);
    constant("REPORT_OPERATION", &offset_of!(Report, operation));
    constant("REPORT_WAITING", &offset_of!(Report, waiting));
    constant("REPORT_PEERS", &offset_of!(Report, peers));
    constant("WARP_THREADS", &WARP_THREADS);
    constant("FILL_THREADS", &FILL_THREADS);
    constant("SPEAKING_BLOCKS", &SPEAKING_BLOCKS);
    for sink in Sink::IN_KERNEL {
        constant(&sink.name().to_uppercase(), &(sink as u32));
    }
    text.push_str("\n}  // namespace lamport\n");
    text
}

fn layouts() -> String {
    [
        layout!(
            "Group",
            Group,
            [
                own,
                comm_size,
                control_copies,
                rank,
                world_size,
                header,
                peers,
                counters,
                extents,
                report,
                first_hand_timeout,
                second_hand_timeout,
                is_checked
            ]
        ),
        layout!("AllReduce", AllReduceParameters, [group, input, output, bytes, region_bytes, vectors]),
        layout!(
            "AllReduceRmsNorm",
            AllReduceRmsNormParameters,
            [group, input, residual, output, residual_output, norm, region_bytes, tokens, row_vectors]
        ),
        layout!(
            "AllReduceRmsNormQuant",
            AllReduceRmsNormQuantParameters,
            [quantised, scales, format, row_scales, scale_row_stride, scale_stride]
        ),
        layout!("RmsNorm", RmsNorm, [weight, inverse_count, epsilon, weight_bias, has_float32_weight]),
        layout!("FillParameters", FillParameters, [begin, words]),
        layout!("VerifyParameters", VerifyParameters, [group, nonces, result]),
        layout!("SkipParameters", SkipParameters, [group]),
        layout!(
            "MinimaxMatrix",
            MinimaxMatrix,
            [input, weight, output, input_row_bytes, output_row_bytes, vectors, warps, inverse_count]
        ),
        layout!("MinimaxRms", MinimaxParameters<1>, [group, matrix, region_bytes, tokens, epsilon]),
        layout!("MinimaxRmsQk", MinimaxParameters<2>, [group, matrix, region_bytes, tokens, epsilon]),
    ]
    .concat()
}
