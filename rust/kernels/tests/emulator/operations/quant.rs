//! The all-reduce with a quantiser.

use std::rc::Rc;

use lamport_rs_kernels::plan::rms_norm::{
    AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape, AllReduceRmsNormShape, AllReduceRmsNormTensors,
};
use lamport_rs_kernels::{Dtype, ModuleKey, Sink};
use lamport_rs_protocol::algorithm::Algorithm;

use super::quantised::Quantised;
use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Inputs, Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_bits, check_nan, decode, elements, sum, tensor};
use crate::workspace::Member;

/// The sum of `tokens` rows of `hidden` elements, quantised.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceQuant {
    pub algorithm: Algorithm,
    pub dtype: Dtype,
    pub tokens: usize,
    pub hidden: usize,
    pub sink: Sink,
    /// Whether the sum is asked for too.
    pub has_sum: bool,
    /// Whether it replaces the input.
    pub in_place: bool,
}

struct Tensors {
    operation: AllReduceQuant,
    setting: Setting,
    plan: AllReduceRmsNormQuantPlan,
    inputs: Inputs,
    sums: Vec<Rc<Memory>>,
    quantised: Quantised,
}

impl AllReduceQuant {
    fn plan(&self, setting: &Setting) -> AllReduceRmsNormQuantPlan {
        let Self { algorithm, dtype, tokens, hidden, sink, .. } = *self;
        let world_size = setting.geometry.world_size();
        let norm = AllReduceRmsNormShape { tokens, hidden, dtype, weight: dtype, world_size, algorithm };
        let shape = AllReduceRmsNormQuantShape { norm, sink, is_normalised: false };
        shape.plan(setting.device).expect("the case has a plan")
    }
}

impl Operation for AllReduceQuant {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let Self { dtype, tokens, hidden, sink, .. } = *self;
        let values = tokens * hidden;
        let make = || tensor(random, dtype, hidden, values, Values::Any);
        let inputs = Inputs::new(setting, values * dtype.size(), None, make);
        let sums = match self.in_place {
            true => inputs.memory.clone(),
            false => setting.ranks().map(|_| Rc::new(Memory::filled(values * dtype.size(), 0xa5))).collect(),
        };
        let quantised = Quantised::new(sink, setting, tokens, hidden);
        let (operation, setting) = (*self, *setting);
        Box::new(Tensors { operation, setting, plan: self.plan(&setting), inputs, sums, quantised })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        let row_bytes = self.hidden * self.dtype.size();
        let message = self.algorithm.message_bytes(self.tokens, row_bytes, setting.geometry.world_size());
        Some(setting.geometry.region_bytes(message).expect("the case fits into its slots"))
    }
}

impl Tensors {
    /// Whether the kernel has a place for the sum.
    fn stores_sum(&self) -> bool {
        self.operation.has_sum || !self.plan.is_held()
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let (input, sum) = (&self.inputs.memory[rank], &self.sums[rank]);
        self.quantised.declare(machine, rank);
        declare(machine, rank, &[("sum", sum, Kind::Output), ("input", input, Kind::Input)]);
        let tensors = AllReduceRmsNormTensors {
            input: input.address(),
            residual: None,
            weight: 0,
            output: 0,
            residual_output: if self.stores_sum() { sum.address() } else { 0 },
        };
        self.quantised.launch((machine, kernels), (rank, member), &self.plan, tensors, (0.0, 0.0));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let dtype = self.operation.dtype;
        let inputs: Vec<_> = self.setting.ranks().map(|rank| self.inputs.bytes(rank)).collect();
        let expected = sum(dtype, &inputs, None);
        if self.stores_sum() {
            check_bits("the sum", dtype, &self.sums[rank].bytes(), &expected)?;
        }
        self.quantised.check_padding(rank)?;
        let values: Vec<f32> = elements(dtype, &expected).into_iter().map(|bits| decode(dtype, bits)).collect();
        self.quantised.check(rank, &values)
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        if self.stores_sum() {
            check_nan("the sum", self.operation.dtype, &self.sums[rank].bytes())?;
        }
        self.quantised.check_spoilt(rank)
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        [self.quantised.results(rank), self.sums[rank].bytes()].concat()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        // Of an input in the sum's place, only if the sum is stored.
        self.stores_sum() || !self.operation.in_place
    }
}
