//! The MiniMax normalisation of one matrix or two.

use std::rc::Rc;

use lamport_rs_kernels::plan::LaunchPlan;
use lamport_rs_kernels::plan::minimax::{MinimaxPlan, MinimaxShape, MinimaxTensors};
use lamport_rs_kernels::{Dtype, ModuleKey};

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Inputs, Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_nan, check_near, rms_norm, tensor};
use crate::workspace::Member;

const EPSILON: f32 = 1e-3;

/// Rows of `widths[0]` columns on each rank; with two matrices, of queries and keys side by side.
#[derive(Clone, Copy, Debug)]
pub struct Minimax<const MATRICES: usize> {
    pub dtype: Dtype,
    pub weight: Dtype,
    pub tokens: u32,
    pub widths: [u32; MATRICES],
    /// Of the plan's variants, if not its own choice.
    pub tokens_per_block: Option<u32>,
    /// Whether the results replace the rows.
    pub in_place: bool,
}

struct Tensors<const MATRICES: usize> {
    operation: Minimax<MATRICES>,
    setting: Setting,
    plan: MinimaxPlan<MATRICES>,
    inputs: Inputs,
    weights: [Vec<Memory>; MATRICES],
    outputs: Vec<[Rc<Memory>; MATRICES]>,
}

impl<const MATRICES: usize> Minimax<MATRICES> {
    fn plan(&self, setting: &Setting) -> MinimaxPlan<MATRICES> {
        let Self { dtype, weight, tokens, widths, tokens_per_block, .. } = *self;
        let shape = MinimaxShape { tokens, widths, dtype, weight, world_size: setting.geometry.world_size() as u32 };
        shape.plan(setting.device, tokens_per_block).expect("the case has a plan")
    }

    fn launch(&self, setting: &Setting) -> LaunchPlan {
        self.plan(setting).launch
    }

    /// Bytes from a row to the next: all matrices, and a vector that belongs to none.
    fn row_bytes(&self) -> usize {
        self.widths.iter().sum::<u32>() as usize * self.dtype.size() + 16
    }

    /// Bytes from a row's begin to matrix `index`.
    fn offset(&self, index: usize) -> usize {
        self.widths[..index].iter().sum::<u32>() as usize * self.dtype.size()
    }

    fn width_bytes(&self, index: usize) -> usize {
        self.widths[index] as usize * self.dtype.size()
    }
}

impl<const MATRICES: usize> Operation for Minimax<MATRICES> {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.launch(setting).module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let bytes = self.tokens as usize * self.row_bytes();
        let (row, all) = (self.row_bytes() / self.dtype.size(), bytes / self.dtype.size());
        let inputs = Inputs::new(setting, bytes, None, || tensor(random, self.dtype, row, all, Values::Any));
        let weights = std::array::from_fn(|index| {
            let width = self.widths[index] as usize;
            let mut weight = || tensor(random, self.weight, width, width, Values::Finite);
            setting.ranks().map(|_| Memory::of_bytes(&weight())).collect()
        });
        let output = |rank: usize| {
            std::array::from_fn(|index| match self.in_place {
                true => inputs.memory[rank].clone(),
                false => Rc::new(Memory::filled(self.tokens as usize * self.width_bytes(index), 0xa5)),
            })
        };
        let outputs = setting.ranks().map(output).collect();
        let (operation, setting, plan) = (*self, *setting, self.plan(setting));
        Box::new(Tensors { operation, setting, plan, inputs, weights, outputs })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        let message = self.tokens as usize * MATRICES * size_of::<f32>();
        Some(setting.geometry.region_bytes(message).expect("the case fits into its slots"))
    }
}

impl<const MATRICES: usize> Tensors<MATRICES> {
    /// A rank's rows of matrix `index`, out of packed rows.
    fn rows(&self, packed: &[u8], index: usize) -> Vec<u8> {
        let begin = self.operation.offset(index);
        let columns = begin..begin + self.operation.width_bytes(index);
        packed.chunks_exact(self.operation.row_bytes()).flat_map(|row| row[columns.clone()].to_vec()).collect()
    }

    fn found(&self, rank: usize, index: usize) -> Vec<u8> {
        let bytes = self.outputs[rank][index].bytes();
        if self.operation.in_place { self.rows(&bytes, index) } else { bytes }
    }
}

impl<const MATRICES: usize> Prepared for Tensors<MATRICES> {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let operation = &self.operation;
        let input = &self.inputs.memory[rank];
        let tensors = std::array::from_fn(|index| {
            let (weight, output) = (&self.weights[index][rank], &self.outputs[rank][index]);
            declare(machine, rank, &[("output", output, Kind::Output), ("weight", weight, Kind::Weight)]);
            let in_place = operation.in_place;
            let output_row_bytes = if in_place { operation.row_bytes() } else { operation.width_bytes(index) };
            let offset = operation.offset(index) as u64;
            MinimaxTensors {
                input: input.address() + offset,
                input_row_bytes: operation.row_bytes() as u32,
                weight: weight.address(),
                output: output.address() + if in_place { offset } else { 0 },
                output_row_bytes: output_row_bytes as u32,
            }
        });
        declare(machine, rank, &[("input", input, Kind::Input)]);
        let parameters = self.plan.parameters(&self.setting.geometry, member.group, tensors, EPSILON);
        machine.launch(kernels, rank, &self.plan.launch, &parameters.expect("the case fits into its slots"));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let Minimax { dtype, weight, widths, .. } = self.operation;
        for (index, width) in widths.into_iter().enumerate() {
            // The own rows first: those are normalised.
            let others = self.setting.ranks().filter(|&other| other != rank);
            let rows: Vec<_> =
                std::iter::once(rank).chain(others).map(|rank| self.rows(&self.inputs.bytes(rank), index)).collect();
            let rows: Vec<_> = rows.iter().map(Vec::as_slice).collect();
            let weights = self.weights[index][rank].bytes();
            let normalised = rms_norm(dtype, &rows, width as usize, (weight, &weights), EPSILON, 0.0);
            check_near(&format!("matrix {index}"), dtype, &self.found(rank, index), &normalised)?;
        }
        if self.operation.in_place {
            self.check_gaps(rank)?;
        }
        Ok(())
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        let check = |index| check_nan(&format!("matrix {index}"), self.operation.dtype, &self.found(rank, index));
        (0..MATRICES).try_for_each(check)
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        (0..MATRICES).flat_map(|index| self.found(rank, index)).collect()
    }
}

impl<const MATRICES: usize> Tensors<MATRICES> {
    /// Checks that what lies between the rows is as it was.
    fn check_gaps(&self, rank: usize) -> Result<(), String> {
        let (before, after) = (self.inputs.bytes(rank), self.inputs.memory[rank].bytes());
        let rows = before.chunks_exact(self.operation.row_bytes()).zip(after.chunks_exact(self.operation.row_bytes()));
        let gap = self.operation.offset(MATRICES);
        for (token, (before, after)) in rows.enumerate() {
            if before[gap..] != after[gap..] {
                return Err(format!("what lies behind row {token} was written"));
            }
        }
        Ok(())
    }
}
