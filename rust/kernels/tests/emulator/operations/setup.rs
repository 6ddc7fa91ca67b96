//! What a workspace runs beside operations: before any of them fill and verify, and in the place of one skip.

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::{FillParameters, SkipParameters, VerifyParameters};
use lamport_rs_kernels::plan::{self, Device};
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::sentinel::SENTINEL;

use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Operation, Prepared, Setting, declare};
use crate::values::Random;
use crate::workspace::Member;

/// Fills `words` words, from word `first` of an aligned vector on.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    pub first: usize,
    pub words: usize,
}

struct Filled {
    fill: Fill,
    device: Device,
    memory: Vec<Memory>,
}

const GUARD: u32 = 0x0bad_cafe;

impl Operation for Fill {
    fn module(&self, _: &Setting) -> ModuleKey {
        ModuleKey::Fill
    }

    fn prepare(&self, setting: &Setting, _: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let words = || std::iter::repeat_n(GUARD, self.first + self.words + 8);
        let memory = setting.ranks().map(|_| Memory::of_words(words())).collect();
        Box::new(Filled { fill: *self, device: setting.device, memory })
    }

    fn region_bytes(&self, _: &Setting) -> Option<usize> {
        None
    }
}

impl Prepared for Filled {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, _: &Member) {
        declare(machine, rank, &[("memory to fill", &self.memory[rank], Kind::System)]);
        let words = self.fill.words as u64;
        let parameters = FillParameters { begin: self.memory[rank].address() + 4 * self.fill.first as u64, words };
        machine.launch(kernels, rank, &plan::fill(words, self.device), &parameters);
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let to_fill = self.fill.first..self.fill.first + self.fill.words;
        for (index, word) in self.memory[rank].words().into_iter().enumerate() {
            let expected = if to_fill.contains(&index) { SENTINEL } else { GUARD };
            if word != expected {
                return Err(format!("word {index} is {word:#010x}, but should be {expected:#010x}"));
            }
        }
        Ok(())
    }

    fn results(&self, _: usize) -> Vec<u8> {
        Vec::new()
    }
}

/// Verifies the mappings. Rank `liar`, if there is one, pushes another vector than the others expect of it.
#[derive(Clone, Copy, Debug)]
pub struct Verify {
    pub liar: Option<usize>,
}

struct Verification {
    verify: Verify,
    device: Device,
    results: Vec<Memory>,
}

impl Operation for Verify {
    fn module(&self, _: &Setting) -> ModuleKey {
        ModuleKey::Verify
    }

    fn prepare(&self, setting: &Setting, _: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let results = setting.ranks().map(|_| Memory::filled(4, 0xff)).collect();
        Box::new(Verification { verify: *self, device: setting.device, results })
    }

    fn region_bytes(&self, _: &Setting) -> Option<usize> {
        None
    }
}

impl Prepared for Verification {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        declare(machine, rank, &[("result", &self.results[rank], Kind::System)]);
        let mut nonces: [_; MAX_WORLD_SIZE] = std::array::from_fn(|rank| [1, 2, 3, rank as u32 + 4]);
        if self.verify.liar == Some(rank) {
            nonces[rank][2] ^= 1;
        }
        let parameters =
            VerifyParameters { group: member.group, result: self.results[rank].address(), reserved: 0, nonces };
        machine.launch(kernels, rank, &plan::verify(self.device), &parameters);
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let expected = self.verify.liar.map_or(0, |liar| {
            let all_but = |rank: usize| ((1 << self.results.len()) - 1) & !(1 << rank);
            // The liar itself is sent what is right, and accepts it; the others refuse.
            let wrong = if liar == rank { 0 } else { 1 << liar };
            wrong | (all_but(rank) & all_but(liar)) << MAX_WORLD_SIZE
        });
        let found = self.results[rank].words()[0];
        (found == expected).then_some(()).ok_or_else(|| format!("found {found:#b} to be wrong, not {expected:#b}"))
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        self.results[rank].bytes()
    }
}

/// Counts `calls` calls that send nothing.
#[derive(Clone, Copy, Debug)]
pub struct Skip {
    pub calls: u32,
}

struct Skipped {
    skip: Skip,
    device: Device,
}

impl Operation for Skip {
    fn module(&self, _: &Setting) -> ModuleKey {
        ModuleKey::Skip
    }

    fn prepare(&self, setting: &Setting, _: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        Box::new(Skipped { skip: *self, device: setting.device })
    }

    fn region_bytes(&self, _: &Setting) -> Option<usize> {
        None
    }

    fn calls(&self, _: &Setting) -> u32 {
        self.calls
    }
}

impl Prepared for Skipped {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let parameters = SkipParameters { group: member.group.with_header([self.skip.calls, 0, 0, 0]) };
        machine.launch(kernels, rank, &plan::skip(self.device), &parameters);
    }

    /// What it leaves are control words and the report, which are the workspace's.
    fn check(&self, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn results(&self, _: usize) -> Vec<u8> {
        Vec::new()
    }
}
