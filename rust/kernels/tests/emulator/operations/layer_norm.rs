//! The all-reduce with a residual and layer norm.

use std::rc::Rc;

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::AllReduceLayerNormParameters;
use lamport_rs_kernels::plan::one_shot_rows::{OneShotRows, OneShotRowsShape};
use lamport_rs_kernels::plan::rms_norm::AllReduceRmsNormPlan;

use super::rms_norm::{AllReduceRmsNorm, EPSILON, Tensors as NormTensors};
use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_near_sums, tensor};
use crate::workspace::Member;

/// As with RMSNorm.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceLayerNorm {
    pub norm: AllReduceRmsNorm,
    pub has_bias: bool,
}

struct Tensors {
    operation: AllReduceLayerNorm,
    plan: AllReduceRmsNormPlan,
    norm: NormTensors,
    biases: Vec<Memory>,
}

impl AllReduceLayerNorm {
    fn plan(&self, setting: &Setting) -> AllReduceRmsNormPlan {
        let shape = OneShotRowsShape { norm: self.norm.shape(setting), operation: OneShotRows::LayerNorm };
        shape.plan(setting.device).expect("the case has a plan")
    }
}

impl Operation for AllReduceLayerNorm {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let AllReduceRmsNorm { weight, hidden, .. } = self.norm;
        let bias = tensor(random, weight, hidden, hidden, Values::Finite);
        let biases = setting.ranks().map(|_| Memory::of_bytes(&bias)).collect();
        // Not results of another dtype, whose bits may be numbers that have no square.
        let norm = self.norm.tensors(setting, random, None);
        Box::new(Tensors { operation: *self, plan: self.plan(setting), norm, biases })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        self.norm.region_bytes(setting)
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let tensors = self.norm.declare(machine, rank);
        declare(machine, rank, &[("bias", &self.biases[rank], Kind::Input)]);
        let bias = if self.operation.has_bias { self.biases[rank].address() } else { 0 };
        let geometry = &self.norm.setting.geometry;
        let base = self.plan.parameters(geometry, member.group, tensors, EPSILON, 0.0);
        let base = base.expect("the case fits into its slots");
        machine.launch(kernels, rank, &self.plan.launch, &AllReduceLayerNormParameters { base, bias });
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        self.norm.check_sum(rank)?;
        let bias = self.operation.has_bias.then(|| self.biases[rank].bytes());
        let (expected, terms) = self.norm.layer_normalised(rank, bias.as_deref());
        let (dtype, found) = (self.operation.norm.dtype, self.norm.outputs[rank].bytes());
        check_near_sums("the layer norm", dtype, &found, &expected, &terms)
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        self.norm.check_sum_spoilt(rank)?;
        self.norm.check_norm_spoilt(rank)
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        self.norm.results(rank)
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }

    fn outputs(&self) -> Option<&[Rc<Memory>]> {
        self.norm.outputs()
    }

    fn residuals(&self) -> Option<&[Rc<Memory>]> {
        self.norm.residuals()
    }
}
