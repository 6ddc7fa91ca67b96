//! Runs chains of operations, and checks all that they leave.

use std::env;
use std::ops::Range;
use std::time::Duration;

use lamport_rs_kernels::plan::Device;
use lamport_rs_protocol::exchange::Extent;
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::table::Control;

use crate::machine::{Fault, Kernels, Limits, Machine};
use crate::operations::{Operation, Prepared, Setting};
use crate::values::Random;
use crate::workspace::{HEADER, Workspace};

/// Says which seeds to run: how many, or which of them (`17..18`).
const SEEDS_VARIABLE: &str = "LAMPORT_RS_EMULATOR_SEEDS";

/// The seeds to run: those of the variable, or as many as `usual`.
pub fn seeds(usual: u64) -> Range<u64> {
    let Ok(text) = env::var(SEEDS_VARIABLE) else { return 0..usual };
    let number =
        |text: &str| text.parse().unwrap_or_else(|_| panic!("{SEEDS_VARIABLE}={text} is not a number or a range"));
    match text.split_once("..") {
        Some((begin, end)) => number(begin)..number(end),
        None => 0..number(&text),
    }
}

/// Operations that follow each other on one workspace.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    pub world_size: usize,
    pub device: Device,
    /// Whether the ranks compare what they run.
    pub is_checked: bool,
    /// Blocks of a rank that run at once.
    pub resident_blocks: u32,
    pub operations: Vec<Box<dyn Operation>>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Hang(String),
    Misuse(String),
    WrongResult(String),
    WrongControl(String),
    NotCleared(String),
    WrongFault(String),
}

impl Case {
    pub fn setting(&self) -> Setting {
        let world_size = self.world_size as i64;
        let wide = Geometry::new(world_size, 1 << 40).expect("a group of this size");
        let setting = |geometry| Setting { geometry, device: self.device };
        let wide = setting(wide);
        let region = self.operations.iter().filter_map(|operation| operation.region_bytes(&wide)).max().unwrap_or(16);
        // A little more than is needed: what lies behind the regions must stay as it is.
        setting(Geometry::new(world_size, region as i64 * world_size + 48).expect("slots for the case"))
    }

    /// Prepares every operation. The tensors do not depend on the seed.
    pub fn prepare(&self) -> Vec<Box<dyn Prepared>> {
        let setting = self.setting();
        let mut random = Random(self.operations.len() as u64 * 1000 + self.world_size as u64);
        let mut prepared: Vec<Box<dyn Prepared>> = Vec::new();
        for operation in &self.operations {
            let prior = prepared.last().map(|prior| &**prior);
            let next = operation.prepare(&setting, &mut random, prior);
            prepared.push(next);
        }
        prepared
    }

    pub fn limits(&self, tick: Duration) -> Limits {
        let Device { multiprocessors, threads_per_multiprocessor, .. } = self.device;
        let resident_threads = multiprocessors * threads_per_multiprocessor;
        Limits { resident_blocks: self.resident_blocks, resident_threads, tick: tick.as_nanos() as u64 }
    }

    /// Runs the case. Returns every result of every rank.
    pub fn run(&self, kernels: &Kernels, seed: u64) -> Result<Vec<Vec<u8>>, Failure> {
        let setting = self.setting();
        let workspace = Workspace::new(setting.geometry, self.is_checked, None);
        let prepared = self.prepare();
        let mut machine = Machine::new(self.world_size, seed, self.limits(Duration::ZERO));
        workspace.declare(&mut machine);
        for rank in setting.ranks() {
            for operation in &prepared {
                operation.launch(&mut machine, kernels, rank, &workspace.members[rank]);
            }
        }
        machine.run().map_err(|fault| match fault {
            Fault::Hang(message) => {
                let reports: Vec<_> = setting.ranks().map(|rank| workspace.report_words(rank)).collect();
                Failure::Hang(format!("{message}\nreports: {reports:x?}"))
            }
            Fault::Misuse(message) => Failure::Misuse(message),
        })?;

        let mut results = Vec::new();
        for (index, operation) in prepared.iter().enumerate() {
            for rank in setting.ranks() {
                let place = |text| Failure::WrongResult(format!("operation {index}, rank {rank}: {text}"));
                operation.check(rank).map_err(place)?;
                results.push(operation.results(rank));
            }
            let of_ranks = &results[results.len() - self.world_size..];
            if operation.is_alike_on_all_ranks() && of_ranks.iter().any(|of_rank| *of_rank != of_ranks[0]) {
                return Err(Failure::WrongResult(format!("operation {index}: ranks have different bits")));
            }
        }
        let control = self.control(&setting);
        let calls = self.operations.iter().map(|operation| operation.calls(&setting)).sum();
        workspace.check_control(&control, calls).map_err(Failure::WrongControl)?;
        workspace.check_cleared(&control).map_err(Failure::NotCleared)?;
        Ok(results)
    }

    /// Runs the case with every seed, and compares their results. Panics with the first failure.
    pub fn check(&self, kernels: &Kernels, seeds: Range<u64>) {
        let mut first: Option<Vec<Vec<u8>>> = None;
        for seed in seeds {
            let results =
                self.run(kernels, seed).unwrap_or_else(|failure| panic!("{}, seed {seed}: {failure:#?}", self.name));
            let first = first.get_or_insert_with(|| results.clone());
            assert_eq!(first, &results, "{}, seed {seed}: other bits than with the first seed", self.name);
        }
    }

    fn control(&self, setting: &Setting) -> Control {
        let regions = self.operations.iter().filter_map(|operation| operation.region_bytes(setting));
        let extent = |region_bytes| Extent { region_bytes, chunk_vectors: 1, lead_chunks: 1, header: Some(HEADER) };
        regions.fold(Control::default(), |control, region| control.rotated(extent(region)))
    }
}
