//! The all-reduce with a residual, RMSNorm and a quantiser.

use std::cmp::Ordering;

use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape, QuantisedTensors};
use lamport_rs_kernels::{ModuleKey, Sink};

use super::rms_norm::{AllReduceRmsNorm, EPSILON, Tensors as NormTensors, WEIGHT_BIAS};
use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Operation, Prepared, Setting, declare};
use crate::values::{Random, decode, elements};
use crate::workspace::Member;

/// Of the quantiser that is given one.
pub(super) const SCALE: f32 = 0.0137;

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

    /// In the memory of the scales: where that of a group is, counted over all rows.
    fn scale_place(&self, group: usize) -> usize {
        let [row_stride, stride] = self.sink.scale_strides(self.norm.tokens, self.norm.hidden);
        let row_groups = self.norm.hidden / self.group();
        group / row_groups * row_stride + group % row_groups * stride
    }
}

impl Operation for AllReduceRmsNormQuant {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let values = self.norm.tokens * self.norm.hidden;
        let scales = || match self.sink.scales_of_row(self.norm.hidden) {
            Some(count) => Memory::filled(4 * (self.scale_place(count * self.norm.tokens - 1) + 1), 0xa5),
            None => Memory::of_bytes(&SCALE.to_ne_bytes()),
        };
        let quantised = setting.ranks().map(|_| Memory::filled(values, 0xa5)).collect();
        let scales = setting.ranks().map(|_| scales()).collect();
        let norm = self.norm.tensors(setting, random, None);
        Box::new(Tensors { operation: *self, plan: self.plan(setting), norm, quantised, scales })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        self.norm.region_bytes(setting)
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let is_given = self.operation.sink == Sink::Fp8Static;
        let kind = if is_given { Kind::Weight } else { Kind::Output };
        declare(
            machine,
            rank,
            &[("quantised", &self.quantised[rank], Kind::Output), ("scales", &self.scales[rank], kind)],
        );
        let mut tensors = self.norm.declare(machine, rank);
        if !self.operation.has_output {
            tensors.output = 0;
        }
        let (quantised, scales) = (self.quantised[rank].address(), self.scales[rank].address());
        let geometry = &self.norm.setting.geometry;
        let scale_strides = self.operation.sink.scale_strides(self.operation.norm.tokens, self.operation.norm.hidden);
        let quantised = QuantisedTensors { quantised, scales, scale_strides };
        let parameters = self.plan.parameters(geometry, member.group, tensors, quantised, EPSILON, WEIGHT_BIAS);
        machine.launch(kernels, rank, &self.plan.launch, &parameters.expect("the case fits into its slots"));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let AllReduceRmsNormQuant { norm, sink, has_output } = self.operation;
        self.norm.check_sum(rank)?;
        let expected = self.norm.normalised(rank);
        let (codes, found) = (self.quantised[rank].bytes(), self.scales[rank].words());
        let exact = has_output.then(|| elements(norm.dtype, &self.norm.outputs[rank].bytes()));
        if has_output {
            self.norm.check_norm(rank)?;
        }
        let group = self.operation.group();
        for (index, codes) in codes.chunks_exact(group).enumerate() {
            let scale = f32::from_bits(found[self.operation.scale_place(index)]);
            let columns = index * group..(index + 1) * group;
            if let Some(exact) = &exact {
                let values: Vec<f32> = exact[columns.clone()].iter().map(|&bits| decode(norm.dtype, bits)).collect();
                check_group(sink, scale, codes, &values).map_err(|text| format!("group {index}: {text}"))?;
            }
            for (&code, &expected) in codes.iter().zip(&expected[columns]) {
                if !scale.is_finite() || !expected.is_finite() {
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

    fn results(&self, rank: usize) -> Vec<u8> {
        [self.quantised[rank].bytes(), self.scales[rank].bytes(), self.norm.results(rank)].concat()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }
}

/// By the definition of the operation.
pub(super) fn check_group(sink: Sink, scale: f32, codes: &[u8], values: &[f32]) -> Result<(), String> {
    let largest = values.iter().fold(0.0_f32, |most, x| if most.is_nan() || x.abs() <= most { most } else { x.abs() });
    let computed = match sink {
        Sink::Fp8Static => SCALE,
        _ if largest.is_nan() => largest,
        Sink::Fp8Token => (largest / 448.0).max(1.0 / (448.0 * 512.0)),
        Sink::Fp8Group | Sink::Fp8GroupColumnMajor => largest.max(1e-10) / 448.0,
    };
    if scale != computed && !(scale.is_nan() && computed.is_nan()) {
        return Err(format!("the scale is {scale}, but should be {computed}"));
    }
    for (&code, &value) in codes.iter().zip(values) {
        let expected = nearest_e4m3(if sink == Sink::Fp8Static { value * (1.0 / scale) } else { value / scale });
        if code != expected {
            return Err(format!("{value} by {scale} is {code:#x}, but should be {expected:#x}"));
        }
    }
    Ok(())
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
