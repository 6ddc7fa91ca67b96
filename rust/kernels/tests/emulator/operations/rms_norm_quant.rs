//! The all-reduce with a residual, RMSNorm and a quantiser.

use std::cmp::Ordering;

use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape, QuantisedTensors};
use lamport_rs_kernels::sink::{Family, ScalePlaces};
use lamport_rs_kernels::{Dtype, ModuleKey, Sink};

use super::rms_norm::{AllReduceRmsNorm, EPSILON, Tensors as NormTensors, WEIGHT_BIAS};
use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Operation, Prepared, Setting, declare};
use crate::values::{Random, decode, elements, some_are_missing};
use crate::workspace::Member;

/// Of the quantiser that is given one.
pub(super) const SCALE: f32 = 0.0137;
/// The rows are some of a tensor: so many are in front of them.
const FIRST_ROW: usize = 5;

/// The norm's rows, quantised.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceRmsNormQuant {
    pub norm: AllReduceRmsNorm,
    pub sink: Sink,
    /// Whether the normalised rows are asked for too.
    pub has_output: bool,
}

struct Tensors {
    operation: AllReduceRmsNormQuant,
    plan: AllReduceRmsNormQuantPlan,
    norm: NormTensors,
    quantised: Vec<Memory>,
    scales: Vec<Memory>,
    /// The scale that is given.
    given: Vec<Memory>,
}

impl AllReduceRmsNormQuant {
    fn plan(&self, setting: &Setting) -> AllReduceRmsNormQuantPlan {
        let shape = AllReduceRmsNormQuantShape { norm: self.norm.shape(setting), sink: self.sink, is_normalised: true };
        shape.plan(setting.device).expect("the case has a plan")
    }

    /// Columns that share a scale.
    fn group(&self) -> usize {
        self.sink.columns_of_scale(self.norm.hidden)
    }

    /// Of the whole tensor.
    fn rows(&self) -> usize {
        FIRST_ROW + self.norm.tokens
    }

    fn places(&self) -> ScalePlaces {
        self.sink.scale_places(self.rows(), self.norm.hidden)
    }

    /// All of the scales: elements that are not those of a row are there in the last column too.
    fn scale_bytes(&self) -> usize {
        let (rows, elements) = (self.rows(), self.sink.scale_elements(self.norm.hidden));
        let [row, element] = self.sink.element_strides(rows, elements);
        let last = self.sink.scale_rows(rows).saturating_sub(1) * row + elements.saturating_sub(1) * element;
        if elements == 0 { 0 } else { (last + 1) * self.sink.format().scale.size() }
    }

    /// The scale of a group, counted over all rows.
    fn scale(&self, found: &[u8], group: usize) -> f32 {
        let row_groups = self.norm.hidden / self.group();
        let place = self.places().of(FIRST_ROW + group / row_groups, group % row_groups);
        match self.sink.format().scale {
            _ if self.sink == Sink::Fp8Static => SCALE,
            Dtype::Float32 => f32::from_ne_bytes(found[place..place + 4].try_into().expect("four bytes")),
            Dtype::Float8E4M3 => from_e4m3(found[place]),
            _ => from_ue8m0(found[place]),
        }
    }

    /// Rows that only the tensor of scales has.
    fn padding_rows(&self) -> usize {
        self.sink.scale_rows(self.rows()) - self.rows()
    }

    /// Scales that are always 0.
    fn check_padding(&self, found: &[u8]) -> Result<(), String> {
        let (hidden, places) = (self.norm.hidden, self.places());
        for row in (0..self.padding_rows()).map(|row| self.rows() + row) {
            if (0..self.sink.scales_of_row(hidden)).any(|index| found[places.of(row, index)] != 0) {
                return Err(format!("the scales of row {row}, which does not exist, are not 0"));
            }
        }
        for index in self.sink.scales_of_row(hidden)..self.sink.padded_scales_of_row(hidden) {
            for row in 0..self.norm.tokens {
                if found[places.of(FIRST_ROW + row, index)] != 0 {
                    return Err(format!("scale {index} of row {row} does not exist, but is not 0"));
                }
            }
        }
        Ok(())
    }
}

impl Operation for AllReduceRmsNormQuant {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let values = self.norm.tokens * self.norm.hidden;
        let of_ranks = |bytes: usize| setting.ranks().map(|_| Memory::filled(bytes, 0xa5)).collect();
        let (quantised, scales) =
            (of_ranks(values / self.sink.format().columns_per_code), of_ranks(self.scale_bytes()));
        let given = setting.ranks().map(|_| Memory::of_bytes(&SCALE.to_ne_bytes())).collect();
        let norm = self.norm.tensors(setting, random, None);
        Box::new(Tensors { operation: *self, plan: self.plan(setting), norm, quantised, scales, given })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        self.norm.region_bytes(setting)
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let format = self.operation.sink.format();
        let (quantised, scales, given) = (&self.quantised[rank], &self.scales[rank], &self.given[rank]);
        declare(machine, rank, &[("quantised", quantised, Kind::Output)]);
        if format.group_columns.is_some() {
            declare(machine, rank, &[("scales", scales, Kind::Output)]);
        }
        if format.is_given {
            declare(machine, rank, &[("scale", given, Kind::Weight)]);
        }
        let mut tensors = self.norm.declare(machine, rank);
        if !self.operation.has_output {
            tensors.output = 0;
        }
        let geometry = &self.norm.setting.geometry;
        let quantised = QuantisedTensors {
            quantised: quantised.address(),
            scales: scales.address(),
            given_scale: format.is_given.then(|| given.address()),
            places: self.operation.places(),
            first_row: FIRST_ROW,
            padding_rows: self.operation.padding_rows(),
        };
        let (plan, launch) = (&self.plan, &self.plan.launch);
        match format.family {
            Family::Float32Scales => {
                let parameters = plan.parameters(geometry, member.group, tensors, quantised, EPSILON, WEIGHT_BIAS);
                machine.launch(kernels, rank, launch, &parameters.expect("the case fits into its slots"));
            }
            Family::ByteScales => {
                let parameters =
                    plan.block_parameters(geometry, member.group, tensors, quantised, EPSILON, WEIGHT_BIAS);
                machine.launch(kernels, rank, launch, &parameters.expect("the case fits into its slots"));
            }
        }
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let AllReduceRmsNormQuant { norm, sink, has_output } = self.operation;
        self.norm.check_sum(rank)?;
        let expected = self.norm.normalised(rank);
        let (codes, found) = (self.quantised[rank].bytes(), self.scales[rank].bytes());
        let codes = codes_of(sink, &codes);
        self.operation.check_padding(&found)?;
        let exact = has_output.then(|| elements(norm.dtype, &self.norm.outputs[rank].bytes()));
        if has_output {
            self.norm.check_norm(rank)?;
        }
        let group = self.operation.group();
        for (index, codes) in codes.chunks_exact(group).enumerate() {
            let scale = self.operation.scale(&found, index);
            let columns = index * group..(index + 1) * group;
            if let Some(exact) = &exact {
                let values: Vec<f32> = exact[columns.clone()].iter().map(|&bits| decode(norm.dtype, bits)).collect();
                check_group(sink, scale, codes, &values).map_err(|text| format!("group {index}: {text}"))?;
            }
            for (&code, &expected) in codes.iter().zip(&expected[columns]) {
                if !scale.is_finite() || !expected.is_finite() {
                    continue;
                }
                if sink.format().columns_per_code == 2 {
                    // The codes are checked above; halves of a rounding are as far apart as four bits are.
                    continue;
                }
                let value = f64::from(from_e4m3(code)) * f64::from(scale);
                let limit = expected.clamp(-448.0 * f64::from(scale), 448.0 * f64::from(scale));
                let error = f64::from(scale) / 512.0 + limit.abs() / 14.0;
                if (value - limit).abs() > error {
                    return Err(format!("group {index}: {code:#x} times {scale} is {value}, not {expected}"));
                }
            }
        }
        Ok(())
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        let AllReduceRmsNormQuant { norm, sink, has_output } = self.operation;
        self.norm.check_sum_spoilt(rank)?;
        if has_output {
            self.norm.check_norm_spoilt(rank)?;
        }
        let found = self.scales[rank].bytes();
        let groups = norm.tokens * norm.hidden / self.operation.group();
        check_quantised_spoilt(sink, &self.quantised[rank].bytes(), groups, |group| self.operation.scale(&found, group))
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        [self.quantised[rank].bytes(), self.scales[rank].bytes(), self.norm.results(rank)].concat()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }
}

/// Checks that codes, and scales that are computed, of `groups` groups, are NaN.
pub(super) fn check_quantised_spoilt(
    sink: Sink,
    codes: &[u8],
    groups: usize,
    scale: impl Fn(usize) -> f32,
) -> Result<(), String> {
    let is_computed = sink.format().group_columns.is_some();
    if let Some(group) = (0..groups).find(|&group| is_computed && !scale(group).is_nan()) {
        return Err(format!("the scale of group {group} is a number after a fault"));
    }
    // Four bits have no NaN: there it is the scales that tell.
    let is_fp4 = sink.format().columns_per_code == 2;
    match codes.iter().position(|&code| !is_fp4 && !from_e4m3(code).is_nan()) {
        Some(index) => Err(format!("code {index} is a number after a fault")),
        None => Ok(()),
    }
}

/// By the definition of the operation.
pub(super) fn check_group(sink: Sink, scale: f32, codes: &[u8], values: &[f32]) -> Result<(), String> {
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

fn from_e4m3(code: u8) -> f32 {
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
