//! The all-reduce.

use std::rc::Rc;

use lamport_rs_kernels::plan::all_reduce::{AllReducePlan, AllReduceShape};
use lamport_rs_kernels::{Dtype, ModuleKey};
use lamport_rs_protocol::algorithm::Algorithm;

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Inputs, Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_bits, check_nan, sum, tensor};
use crate::workspace::Member;

/// A sum of `elements` elements.
#[derive(Clone, Copy, Debug)]
pub struct AllReduce {
    pub algorithm: Algorithm,
    pub dtype: Dtype,
    pub elements: usize,
    /// Whether the sum replaces the input.
    pub in_place: bool,
}

struct Tensors {
    setting: Setting,
    dtype: Dtype,
    plan: AllReducePlan,
    inputs: Inputs,
    outputs: Vec<Rc<Memory>>,
}

impl AllReduce {
    fn shape(&self, setting: &Setting) -> AllReduceShape {
        let Self { algorithm, dtype, elements, .. } = *self;
        let world_size = setting.geometry.world_size();
        AllReduceShape { bytes: elements * dtype.size(), dtype, world_size, algorithm }
    }

    fn plan(&self, setting: &Setting) -> AllReducePlan {
        self.shape(setting).plan(setting.device).expect("the case has a plan")
    }
}

impl Operation for AllReduce {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, prior: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let bytes = self.elements * self.dtype.size();
        let prior = prior.filter(|_| !self.in_place).and_then(Prepared::outputs);
        let inputs = Inputs::new(setting, bytes, prior, || tensor(random, self.dtype, 32, self.elements, Values::Any));
        let outputs = match self.in_place {
            true => inputs.memory.clone(),
            false => setting.ranks().map(|_| Rc::new(Memory::filled(bytes, 0xa5))).collect(),
        };
        let (setting, dtype) = (*setting, self.dtype);
        Box::new(Tensors { setting, dtype, plan: self.plan(&setting), inputs, outputs })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        let AllReduceShape { bytes, world_size, .. } = self.shape(setting);
        let message = self.algorithm.tensor_message_bytes(bytes, world_size);
        Some(setting.geometry.region_bytes(message).expect("the case fits into its slots"))
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let (input, output) = (&self.inputs.memory[rank], &self.outputs[rank]);
        declare(machine, rank, &[("output", output, Kind::Output), ("input", input, Kind::Input)]);
        let addresses = (input.address(), output.address());
        let parameters = self.plan.parameters(&self.setting.geometry, member.group, addresses.0, addresses.1);
        machine.launch(kernels, rank, &self.plan.launch, &parameters.expect("the case fits into its slots"));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let inputs: Vec<_> = self.setting.ranks().map(|rank| self.inputs.bytes(rank)).collect();
        check_bits("the sum", self.dtype, &self.outputs[rank].bytes(), &sum(self.dtype, &inputs, None))
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        check_nan("the sum", self.dtype, &self.outputs[rank].bytes())
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        self.outputs[rank].bytes()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }

    fn outputs(&self) -> Option<&[Rc<Memory>]> {
        Some(&self.outputs)
    }
}
