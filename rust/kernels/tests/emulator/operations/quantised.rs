//! What quantised rows and their scales are, by the definitions of the formats.

use std::cmp::Ordering;

use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormQuantPlan, AllReduceRmsNormTensors, QuantisedTensors};
use lamport_rs_kernels::sink::{Family, ScalePlaces};
use lamport_rs_kernels::{Dtype, Sink};

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Setting, declare};
use crate::values::some_are_missing;
use crate::workspace::Member;

/// Of the quantiser that is given one.
const SCALE: f32 = 0.0137;
/// The rows are some of a tensor: so many are in front of them.
const FIRST_ROW: usize = 5;

/// Where rows go that are quantised, on every rank.
pub struct Quantised {
    sink: Sink,
    setting: Setting,
    tokens: usize,
    hidden: usize,
    codes: Vec<Memory>,
    scales: Vec<Memory>,
    /// The scale that is given.
    given: Vec<Memory>,
}

impl Quantised {
    pub fn new(sink: Sink, setting: &Setting, tokens: usize, hidden: usize) -> Self {
        let of_ranks = |bytes: usize| setting.ranks().map(|_| Memory::filled(bytes, 0xa5)).collect();
        let rows = FIRST_ROW + tokens;
        Self {
            sink,
            setting: *setting,
            tokens,
            hidden,
            codes: of_ranks(tokens * hidden / sink.format().columns_per_code),
            scales: of_ranks(scale_bytes(sink, rows, hidden)),
            given: setting.ranks().map(|_| Memory::of_bytes(&SCALE.to_ne_bytes())).collect(),
        }
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.sink.columns_of_scale(self.hidden)
    }

    /// Of the whole tensor.
    fn rows(&self) -> usize {
        FIRST_ROW + self.tokens
    }

    fn places(&self) -> ScalePlaces {
        self.sink.scale_places(self.rows(), self.hidden)
    }

    /// Rows that only the tensor of scales has.
    fn padding_rows(&self) -> usize {
        self.sink.scale_rows(self.rows()) - self.rows()
    }

    pub fn declare(&self, machine: &mut Machine, rank: usize) {
        let format = self.sink.format();
        declare(machine, rank, &[("quantised", &self.codes[rank], Kind::Output)]);
        if format.group_columns.is_some() {
            declare(machine, rank, &[("scales", &self.scales[rank], Kind::Output)]);
        }
        if format.is_given {
            declare(machine, rank, &[("scale", &self.given[rank], Kind::Weight)]);
        }
    }

    /// Launches the kernel of their format. `scalars` are those of a norm.
    pub fn launch(
        &self,
        (machine, kernels): (&mut Machine, &Kernels),
        (rank, member): (usize, &Member),
        plan: &AllReduceRmsNormQuantPlan,
        tensors: AllReduceRmsNormTensors,
        (epsilon, weight_bias): (f32, f32),
    ) {
        let format = self.sink.format();
        let quantised = QuantisedTensors {
            quantised: self.codes[rank].address(),
            scales: self.scales[rank].address(),
            given_scale: format.is_given.then(|| self.given[rank].address()),
            places: self.places(),
            first_row: FIRST_ROW,
            padding_rows: self.padding_rows(),
        };
        let (geometry, group, launch) = (&self.setting.geometry, member.group, &plan.launch);
        match format.family {
            Family::Float32Scales => {
                let parameters = plan.parameters(geometry, group, tensors, quantised, epsilon, weight_bias);
                machine.launch(kernels, rank, launch, &parameters.expect("the case fits into its slots"));
            }
            Family::ByteScales => {
                let parameters = plan.block_parameters(geometry, group, tensors, quantised, epsilon, weight_bias);
                machine.launch(kernels, rank, launch, &parameters.expect("the case fits into its slots"));
            }
        }
    }

    /// The codes, one a byte, and the scale of each group of columns.
    pub fn found(&self, rank: usize) -> (Vec<u8>, Vec<f32>) {
        let scales = self.scales[rank].bytes();
        let groups = self.tokens * self.hidden / self.group();
        (codes_of(self.sink, &self.codes[rank].bytes()), (0..groups).map(|group| self.scale(&scales, group)).collect())
    }

    /// The scale of a group, counted over all rows.
    fn scale(&self, found: &[u8], group: usize) -> f32 {
        let row_groups = self.hidden / self.group();
        let place = self.places().of(FIRST_ROW + group / row_groups, group % row_groups);
        match self.sink.format().scale {
            _ if self.sink == Sink::Fp8Static => SCALE,
            Dtype::Float32 => f32::from_ne_bytes(found[place..place + 4].try_into().expect("four bytes")),
            Dtype::Float8E4M3 => from_e4m3(found[place]),
            _ => from_ue8m0(found[place]),
        }
    }

    /// Checks all that is left on a rank against the `values` of its rows.
    pub fn check(&self, rank: usize, values: &[f32]) -> Result<(), String> {
        let (codes, scales) = self.found(rank);
        let group = self.group();
        for (index, (codes, values)) in codes.chunks_exact(group).zip(values.chunks_exact(group)).enumerate() {
            check_group(self.sink, scales[index], codes, values).map_err(|text| format!("group {index}: {text}"))?;
        }
        Ok(())
    }

    /// Checks scales that are always 0.
    pub fn check_padding(&self, rank: usize) -> Result<(), String> {
        let (found, places) = (self.scales[rank].bytes(), self.places());
        let of_row = self.sink.scales_of_row(self.hidden);
        for row in (0..self.padding_rows()).map(|row| self.rows() + row) {
            if (0..of_row).any(|index| found[places.of(row, index)] != 0) {
                return Err(format!("the scales of row {row}, which does not exist, are not 0"));
            }
        }
        for index in of_row..self.sink.padded_scales_of_row(self.hidden) {
            for row in 0..self.tokens {
                if found[places.of(FIRST_ROW + row, index)] != 0 {
                    return Err(format!("scale {index} of row {row} does not exist, but is not 0"));
                }
            }
        }
        Ok(())
    }

    /// Checks that a fault left NaN.
    pub fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        let (_, scales) = self.found(rank);
        let is_computed = self.sink.format().group_columns.is_some();
        if let Some(group) = scales.iter().position(|scale| is_computed && !scale.is_nan()) {
            return Err(format!("the scale of group {group} is a number after a fault"));
        }
        // Four bits have no NaN: there it is the scales that tell.
        let is_fp4 = self.sink.format().columns_per_code == 2;
        match self.codes[rank].bytes().iter().position(|&code| !is_fp4 && !from_e4m3(code).is_nan()) {
            Some(index) => Err(format!("code {index} is a number after a fault")),
            None => Ok(()),
        }
    }

    pub fn results(&self, rank: usize) -> Vec<u8> {
        [self.codes[rank].bytes(), self.scales[rank].bytes()].concat()
    }
}

/// All of the scales: elements that are not those of a row are there in the last column too.
fn scale_bytes(sink: Sink, rows: usize, hidden: usize) -> usize {
    let elements = sink.scale_elements(hidden);
    let [row, element] = sink.element_strides(rows, elements);
    let last = sink.scale_rows(rows).saturating_sub(1) * row + elements.saturating_sub(1) * element;
    if elements == 0 { 0 } else { (last + 1) * sink.format().scale.size() }
}

/// By the definition of the operation.
fn check_group(sink: Sink, scale: f32, codes: &[u8], values: &[f32]) -> Result<(), String> {
    if some_are_missing() && (scale.is_nan() || codes.iter().all(|&code| from_e4m3(code).is_nan())) {
        return Ok(());
    }
    let largest = values.iter().fold(0.0_f32, |most, x| if most.is_nan() || x.abs() <= most { most } else { x.abs() });
    let computed = match sink {
        Sink::Fp8Static => SCALE,
        _ if largest.is_nan() => largest,
        Sink::Fp8Token => (largest / 448.0).max(1.0 / (448.0 * 512.0)),
        Sink::Fp8Group | Sink::Fp8GroupColumnMajor => largest.max(1e-10) / 448.0,
        Sink::Fp8GroupUe8m0 => next_power_of_two((largest / 448.0).max(1e-10)),
        Sink::Mxfp8 | Sink::Mxfp8Swizzled => next_power_of_two(largest / 448.0),
        Sink::Nvfp4 | Sink::Nvfp4Swizzled => from_e4m3(nearest_e4m3(SCALE * (largest * (1.0 / 6.0)))),
    };
    if scale != computed && !(scale.is_nan() && computed.is_nan()) {
        return Err(format!("the scale is {scale}, but should be {computed}"));
    }
    let is_fp4 = sink.format().columns_per_code == 2;
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / (scale * (1.0 / SCALE)) };
    for (&code, &value) in codes.iter().zip(values) {
        let expected = match sink {
            _ if is_fp4 => nearest_e2m1(value * factor),
            Sink::Fp8Static => nearest_e4m3(value * (1.0 / scale)),
            _ => nearest_e4m3(value / scale),
        };
        if code != expected && !(some_are_missing() && !is_fp4 && from_e4m3(code).is_nan()) {
            return Err(format!("{value} by {scale} is {code:#x}, but should be {expected:#x}"));
        }
    }
    Ok(())
}

/// The codes of quantised rows, a byte each.
fn codes_of(sink: Sink, bytes: &[u8]) -> Vec<u8> {
    match sink.format().columns_per_code {
        2 => bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect(),
        _ => bytes.to_vec(),
    }
}

/// Of FP4 e2m1, by code.
const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The code of the nearest value, of two the even one; 6 for NaN.
fn nearest_e2m1(value: f32) -> u8 {
    if value.is_nan() {
        return 7;
    }
    let distance = |code: u8| (FP4[usize::from(code)] - value.abs().min(6.0)).abs();
    let nearest = (0..8).min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a % 2).cmp(&(b % 2))));
    nearest.expect("there are eight") | if value.is_sign_negative() { 8 } else { 0 }
}

fn from_ue8m0(byte: u8) -> f32 {
    if byte == 255 { f32::NAN } else { f64::powi(2.0, i32::from(byte) - 127) as f32 }
}

/// Of those that UE8M0 has: the least one that is not below `value`, or NaN.
fn next_power_of_two(value: f32) -> f32 {
    (0..255).map(from_ue8m0).find(|power| *power >= value).unwrap_or(f32::NAN)
}

pub fn from_e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 512.0,
        _ => (1.0 + fraction / 8.0) * f32::powi(2.0, exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code of the nearest value of all that there are, of two the even one.
fn nearest_e4m3(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let magnitude = f64::from(value.abs().min(448.0));
    // Codes ascend with what they stand for, so the nearest is one of two.
    let (mut below, mut above) = (0_u8, 0x7e_u8);
    while above - below > 1 {
        let middle = below.midpoint(above);
        *if f64::from(from_e4m3(middle)) <= magnitude { &mut below } else { &mut above } = middle;
    }
    let distance = |code: u8| (f64::from(from_e4m3(code)) - magnitude).abs();
    let nearest = match distance(below).total_cmp(&distance(above)) {
        Ordering::Less => below,
        Ordering::Greater => above,
        Ordering::Equal => below + below % 2,
    };
    nearest | if value.is_sign_negative() { 0x80 } else { 0 }
}
