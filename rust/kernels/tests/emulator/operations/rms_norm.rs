//! The all-reduce with a residual and RMSNorm.

use std::rc::Rc;

use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormPlan, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use lamport_rs_kernels::{Dtype, ModuleKey};
use lamport_rs_protocol::algorithm::Algorithm;

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Inputs, Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_bits, check_nan, check_near, layer_norm, rms_norm, sum, tensor};
use crate::workspace::Member;

pub(super) const EPSILON: f32 = 1e-3;
pub(super) const WEIGHT_BIAS: f32 = 0.5;

/// `tokens` rows of `hidden` elements.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceRmsNorm {
    pub algorithm: Algorithm,
    pub dtype: Dtype,
    pub weight: Dtype,
    pub tokens: usize,
    pub hidden: usize,
    /// Without one nothing is added to the sum.
    pub has_residual: bool,
    /// Whether the results replace input and residual.
    pub in_place: bool,
}

pub(super) struct Tensors {
    operation: AllReduceRmsNorm,
    pub(super) setting: Setting,
    plan: AllReduceRmsNormPlan,
    pub(super) inputs: Inputs,
    residuals: Inputs,
    weights: Vec<Memory>,
    pub(super) outputs: Vec<Rc<Memory>>,
    residual_outputs: Vec<Rc<Memory>>,
}

impl AllReduceRmsNorm {
    pub(super) fn shape(&self, setting: &Setting) -> AllReduceRmsNormShape {
        let Self { algorithm, dtype, weight, tokens, hidden, .. } = *self;
        AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size: setting.geometry.world_size(), algorithm }
    }

    fn plan(&self, setting: &Setting) -> AllReduceRmsNormPlan {
        self.shape(setting).plan(setting.device).expect("the case has a plan")
    }
}

impl AllReduceRmsNorm {
    pub(super) fn tensors(&self, setting: &Setting, random: &mut Random, prior: Option<&dyn Prepared>) -> Tensors {
        let Self { dtype, tokens, hidden, in_place, .. } = *self;
        let (count, bytes) = (tokens * hidden, tokens * hidden * dtype.size());
        let prior = prior.filter(|_| !in_place);
        let values = |random: &mut Random| tensor(random, dtype, hidden, count, Values::Any);
        let inputs = Inputs::new(setting, bytes, prior.and_then(Prepared::outputs), || values(random));
        // The same on every rank.
        let residual = values(random);
        let residuals = Inputs::new(setting, bytes, prior.and_then(Prepared::residuals), || residual.clone());
        let weight = tensor(random, self.weight, hidden, hidden, Values::Finite);
        let weights = setting.ranks().map(|_| Memory::of_bytes(&weight)).collect();
        let results = |inputs: &Inputs| match in_place {
            true => inputs.memory.clone(),
            false => setting.ranks().map(|_| Rc::new(Memory::filled(bytes, 0xa5))).collect(),
        };
        let (outputs, residual_outputs) = (results(&inputs), results(&residuals));
        let plan = self.plan(setting);
        let (operation, setting) = (*self, *setting);
        Tensors { operation, setting, plan, inputs, residuals, weights, outputs, residual_outputs }
    }
}

impl Operation for AllReduceRmsNorm {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, prior: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        Box::new(self.tensors(setting, random, prior))
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        let AllReduceRmsNormShape { tokens, world_size, .. } = self.shape(setting);
        let message = self.algorithm.message_bytes(tokens, self.hidden * self.dtype.size(), world_size);
        Some(setting.geometry.region_bytes(message).expect("the case fits into its slots"))
    }
}

impl Tensors {
    /// Tells the machine of a rank's tensors.
    pub(super) fn declare(&self, machine: &mut Machine, rank: usize) -> AllReduceRmsNormTensors {
        let (input, residual) = (&*self.inputs.memory[rank], &*self.residuals.memory[rank]);
        let (output, residual_output) = (&*self.outputs[rank], &*self.residual_outputs[rank]);
        declare(
            machine,
            rank,
            &[
                ("output", output, Kind::Output),
                ("residual output", residual_output, Kind::Output),
                ("input", input, Kind::Input),
                ("residual", residual, if self.operation.has_residual { Kind::Input } else { Kind::Output }),
                ("weight", &self.weights[rank], Kind::Input),
            ],
        );
        AllReduceRmsNormTensors {
            input: input.address(),
            residual: self.operation.has_residual.then(|| residual.address()),
            weight: self.weights[rank].address(),
            output: output.address(),
            residual_output: residual_output.address(),
        }
    }

    /// A rank's sum, whose residual output must have its bits.
    fn sum(&self, rank: usize) -> Vec<u8> {
        let AllReduceRmsNorm { dtype, has_residual, .. } = self.operation;
        let inputs: Vec<_> = self.setting.ranks().map(|rank| self.inputs.bytes(rank)).collect();
        let residual = has_residual.then(|| self.residuals.bytes(rank));
        sum(dtype, &inputs, residual.as_deref())
    }

    pub(super) fn check_sum(&self, rank: usize) -> Result<(), String> {
        let found = self.residual_outputs[rank].bytes();
        check_bits("the residual's sum", self.operation.dtype, &found, &self.sum(rank))
    }

    pub(super) fn check_sum_spoilt(&self, rank: usize) -> Result<(), String> {
        check_nan("the residual's sum", self.operation.dtype, &self.residual_outputs[rank].bytes())
    }

    pub(super) fn check_norm_spoilt(&self, rank: usize) -> Result<(), String> {
        check_nan("the norm", self.operation.dtype, &self.outputs[rank].bytes())
    }

    pub(super) fn normalised(&self, rank: usize) -> Vec<f64> {
        let AllReduceRmsNorm { dtype, weight, hidden, .. } = self.operation;
        let weights = self.weights[rank].bytes();
        rms_norm(dtype, &[&self.sum(rank)], hidden, (weight, &weights), EPSILON, WEIGHT_BIAS)
    }

    /// The layer norm of the sum, whose biases are of the weights' dtype, and its terms.
    pub(super) fn layer_normalised(&self, rank: usize, bias: Option<&[u8]>) -> (Vec<f64>, Vec<f64>) {
        let AllReduceRmsNorm { dtype, weight, hidden, .. } = self.operation;
        layer_norm(dtype, &self.sum(rank), hidden, (weight, &self.weights[rank].bytes(), bias), EPSILON)
    }

    pub(super) fn check_norm(&self, rank: usize) -> Result<(), String> {
        check_near("the norm", self.operation.dtype, &self.outputs[rank].bytes(), &self.normalised(rank))
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let tensors = self.declare(machine, rank);
        let parameters = self.plan.parameters(&self.setting.geometry, member.group, tensors, EPSILON, WEIGHT_BIAS);
        machine.launch(kernels, rank, &self.plan.launch, &parameters.expect("the case fits into its slots"));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        self.check_sum(rank)?;
        self.check_norm(rank)
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        self.check_sum_spoilt(rank)?;
        self.check_norm_spoilt(rank)
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        [self.outputs[rank].bytes(), self.residual_outputs[rank].bytes()].concat()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }

    fn outputs(&self) -> Option<&[Rc<Memory>]> {
        Some(&self.outputs)
    }

    fn residuals(&self) -> Option<&[Rc<Memory>]> {
        Some(&self.residual_outputs)
    }
}
