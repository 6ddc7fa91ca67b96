//! The operations, each with its real plan and parameters, and a check of its results.

use std::rc::Rc;

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::plan::Device;
use lamport_rs_protocol::geometry::Geometry;

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::values::Random;
use crate::workspace::Member;

mod all_reduce;
mod layer_norm;
mod minimax;
mod moe_finalize;
mod quant;
mod quantised;
mod rms_norm;
mod rms_norm_quant;
mod setup;

pub use all_reduce::AllReduce;
pub use layer_norm::AllReduceLayerNorm;
pub use minimax::Minimax;
pub use moe_finalize::MoeFinalize;
pub use quant::AllReduceQuant;
pub use rms_norm::AllReduceRmsNorm;
pub use rms_norm_quant::AllReduceRmsNormQuant;
pub use setup::{Fill, Skip, Verify};

/// Where an operation runs.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub geometry: Geometry,
    pub device: Device,
}

impl Setting {
    pub fn ranks(&self) -> std::ops::Range<usize> {
        0..self.geometry.world_size()
    }
}

/// An operation on a group, without its tensors.
pub trait Operation: std::fmt::Debug {
    /// The module that it runs.
    fn module(&self, setting: &Setting) -> ModuleKey;

    /// Makes its tensors on every rank. Results of the operation before, `prior`, are its input where they fit.
    fn prepare(&self, setting: &Setting, random: &mut Random, prior: Option<&dyn Prepared>) -> Box<dyn Prepared>;

    /// Bytes of its regions, if it uses a slot.
    fn region_bytes(&self, setting: &Setting) -> Option<usize>;

    /// By how much it moves the number of the next operation on.
    fn calls(&self, setting: &Setting) -> u32 {
        self.region_bytes(setting).is_some().into()
    }
}

/// An operation with its tensors.
pub trait Prepared {
    /// Puts it at the end of the rank's stream.
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member);

    /// Checks a rank's results.
    fn check(&self, rank: usize) -> Result<(), String>;

    /// Checks that the rank's results tell of a fault: they are NaN, all that can be.
    fn check_spoilt(&self, _rank: usize) -> Result<(), String> {
        Ok(())
    }

    /// All of a rank's results, which must be the same bits whatever the order of things.
    fn results(&self, rank: usize) -> Vec<u8>;

    /// Whether all ranks have the same results.
    fn is_alike_on_all_ranks(&self) -> bool {
        false
    }

    /// Each rank's result that an operation may take for its input.
    fn outputs(&self) -> Option<&[Rc<Memory>]> {
        None
    }

    /// And for its residual.
    fn residuals(&self) -> Option<&[Rc<Memory>]> {
        None
    }
}

/// Each rank's tensor that an operation reads, and what it held before.
struct Inputs {
    memory: Vec<Rc<Memory>>,
    /// Of those that are nobody's result.
    originals: Option<Vec<Vec<u8>>>,
}

impl Inputs {
    /// `prior`, if it has as many bytes; otherwise what `make` makes for each rank.
    fn new(setting: &Setting, bytes: usize, prior: Option<&[Rc<Memory>]>, mut make: impl FnMut() -> Vec<u8>) -> Self {
        if let Some(prior) = prior.filter(|prior| prior[0].len() == bytes) {
            return Self { memory: prior.to_vec(), originals: None };
        }
        let originals: Vec<_> = setting.ranks().map(|_| make()).collect();
        let memory = originals.iter().map(|original| Rc::new(Memory::of_bytes(original))).collect();
        Self { memory, originals: Some(originals) }
    }

    /// A rank's, as the operation found it.
    fn bytes(&self, rank: usize) -> Vec<u8> {
        self.originals.as_ref().map_or_else(|| self.memory[rank].bytes(), |originals| originals[rank].clone())
    }
}

/// Tells the machine of a rank's tensors. Those that it knows already, as results of the operation before, stay what
/// they are.
fn declare(machine: &mut Machine, rank: usize, tensors: &[(&str, &Memory, Kind)]) {
    for (name, memory, kind) in tensors {
        machine.add_memory(memory.address(), memory.len(), *kind, rank, name);
    }
}
