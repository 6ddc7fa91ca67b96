//! The all-reduce with a residual, RMSNorm and a quantiser.

use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape};
use lamport_rs_kernels::{ModuleKey, Sink};

use super::quantised::{Quantised, from_e4m3};
use super::rms_norm::{AllReduceRmsNorm, EPSILON, Tensors as NormTensors, WEIGHT_BIAS};
use crate::machine::{Kernels, Machine};
use crate::operations::{Operation, Prepared, Setting};
use crate::values::{Random, decode, elements};
use crate::workspace::Member;

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
    quantised: Quantised,
}

impl AllReduceRmsNormQuant {
    fn plan(&self, setting: &Setting) -> AllReduceRmsNormQuantPlan {
        let shape = AllReduceRmsNormQuantShape { norm: self.norm.shape(setting), sink: self.sink, is_normalised: true };
        shape.plan(setting.device).expect("the case has a plan")
    }
}

impl Operation for AllReduceRmsNormQuant {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let quantised = Quantised::new(self.sink, setting, self.norm.tokens, self.norm.hidden);
        let norm = self.norm.tensors(setting, random, None);
        Box::new(Tensors { operation: *self, plan: self.plan(setting), norm, quantised })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        self.norm.region_bytes(setting)
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        self.quantised.declare(machine, rank);
        let mut tensors = self.norm.declare(machine, rank);
        if !self.operation.has_output {
            tensors.output = 0;
        }
        let scalars = (EPSILON, WEIGHT_BIAS);
        self.quantised.launch((machine, kernels), (rank, member), &self.plan, tensors, scalars);
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let AllReduceRmsNormQuant { norm, sink, has_output } = self.operation;
        self.norm.check_sum(rank)?;
        self.quantised.check_padding(rank)?;
        if has_output {
            self.norm.check_norm(rank)?;
            let found = elements(norm.dtype, &self.norm.outputs[rank].bytes());
            let exact: Vec<f32> = found.into_iter().map(|bits| decode(norm.dtype, bits)).collect();
            self.quantised.check(rank, &exact)?;
        }
        if sink.format().columns_per_code == 2 {
            // The codes are checked above; halves of a rounding are as far apart as four bits are.
            return Ok(());
        }
        let expected = self.norm.normalised(rank);
        let ((codes, scales), group) = (self.quantised.found(rank), self.quantised.group());
        for (index, codes) in codes.chunks_exact(group).enumerate() {
            let scale = scales[index];
            for (&code, &expected) in codes.iter().zip(&expected[index * group..]) {
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

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        self.norm.check_sum_spoilt(rank)?;
        if self.operation.has_output {
            self.norm.check_norm_spoilt(rank)?;
        }
        self.quantised.check_spoilt(rank)
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        [self.quantised.results(rank), self.norm.results(rank)].concat()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }
}
