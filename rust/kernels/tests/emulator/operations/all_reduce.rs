//! The all-reduce.

use std::rc::Rc;

use lamport_rs_kernels::plan::all_reduce::{AllReducePlan, AllReduceShape};
use lamport_rs_kernels::{Dtype, ModuleKey};
use lamport_rs_protocol::algorithm::Algorithm;

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_bits, sum, tensor};
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
    /// As the test left them, by rank; none where they are results of the operation before.
    originals: Vec<Option<Vec<u8>>>,
    inputs: Vec<Rc<Memory>>,
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

    fn prepare(&self, setting: &Setting, random: &mut Random, prior: Option<&[Rc<Memory>]>) -> Box<dyn Prepared> {
        let bytes = self.elements * self.dtype.size();
        let mut inputs = Vec::new();
        let mut originals = Vec::new();
        for rank in setting.ranks() {
            match prior {
                Some(prior) if prior[rank].len() == bytes && !self.in_place => {
                    inputs.push(prior[rank].clone());
                    originals.push(None);
                }
                _ => {
                    let original = tensor(random, self.dtype, self.elements, Values::Any);
                    inputs.push(Rc::new(Memory::of_bytes(&original)));
                    originals.push(Some(original));
                }
            }
        }
        let outputs = match self.in_place {
            true => inputs.clone(),
            false => inputs.iter().map(|_| Rc::new(Memory::filled(bytes, 0xa5))).collect(),
        };
        let (setting, dtype) = (*setting, self.dtype);
        Box::new(Tensors { setting, dtype, plan: self.plan(&setting), originals, inputs, outputs })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        let AllReduceShape { bytes, world_size, .. } = self.shape(setting);
        let message = self.algorithm.tensor_message_bytes(bytes, world_size);
        Some(setting.geometry.region_bytes(message).expect("the case fits into its slots"))
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let (input, output) = (&self.inputs[rank], &self.outputs[rank]);
        declare(machine, rank, &[("output", output, Kind::Output), ("input", input, Kind::Input)]);
        let addresses = (input.address(), output.address());
        let parameters = self.plan.parameters(&self.setting.geometry, member.group, addresses.0, addresses.1);
        machine.launch(kernels, rank, &self.plan.launch, &parameters.expect("the case fits into its slots"));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let input = |rank: usize| self.originals[rank].clone().unwrap_or_else(|| self.inputs[rank].bytes());
        let inputs: Vec<_> = self.setting.ranks().map(input).collect();
        check_bits("the sum", self.dtype, &self.outputs[rank].bytes(), &sum(self.dtype, &inputs, None))
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        self.outputs[rank].bytes()
    }

    fn outputs(&self) -> Option<Vec<Rc<Memory>>> {
        Some(self.outputs.clone())
    }
}
