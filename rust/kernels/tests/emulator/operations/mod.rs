//! The operations, each with its real plan and parameters, and a check of its results.

use std::rc::Rc;

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::plan::Device;
use lamport_rs_protocol::geometry::Geometry;

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::values::Random;
use crate::workspace::Member;

pub mod all_reduce;

pub use all_reduce::AllReduce;

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

    /// Makes its tensors on every rank. `prior` are the results of the operation before, by rank, for one whose input
    /// they are.
    fn prepare(&self, setting: &Setting, random: &mut Random, prior: Option<&[Rc<Memory>]>) -> Box<dyn Prepared>;

    /// Bytes of its regions, if it uses a slot.
    fn region_bytes(&self, setting: &Setting) -> Option<usize>;
}

/// An operation with its tensors.
pub trait Prepared {
    /// Puts it at the end of the rank's stream.
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member);

    /// Checks a rank's results.
    fn check(&self, rank: usize) -> Result<(), String>;

    /// All of a rank's results, which must be the same bits whatever the order of things.
    fn results(&self, rank: usize) -> Vec<u8>;

    /// Each rank's result that another operation may take for its input.
    fn outputs(&self) -> Option<Vec<Rc<Memory>>>;
}

/// A rank's tensors, by name, told to the machine when they are launched.
fn declare(machine: &mut Machine, rank: usize, tensors: &[(&str, &Memory, Kind)]) {
    for (name, memory, kind) in tensors {
        machine.add_memory(memory.address(), memory.len(), *kind, rank, name);
    }
}
