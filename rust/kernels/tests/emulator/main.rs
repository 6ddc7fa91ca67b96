//! Runs the kernels without a GPU: see docs/appendix/emulator.md.

mod cases;
mod compile;
#[path = "../../build/constants.rs"]
mod constants;
mod defects;
mod disagreements;
mod faults;
mod litmus;
mod machine;
mod memory;
mod operations;
mod run;
mod values;
mod workspace;

// Where `build/constants.rs` looks for them.
use lamport_rs_kernels::{parameters, sink, variants};

use std::collections::{BTreeSet, HashSet};

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::variants::{PHASED_CAPACITIES, capacity};

use compile::Sources;
use faults::FaultCase;
use machine::Kernels;
use run::{Case, seeds};

fn check(cases: Vec<Case>, usual_seeds: u64) {
    let kernels = Kernels::new(Sources::of_kernels());
    for case in cases {
        case.check(&kernels, seeds(usual_seeds));
    }
}

#[test]
fn all_reduce() {
    check(cases::all_reduce(), 3);
}

#[test]
fn setup() {
    check(cases::setup(), 4);
}

#[test]
fn limited_residency() {
    check(cases::limited_residency(), 2);
}

#[test]
fn faults() {
    let kernels = Kernels::new(Sources::of_kernels());
    let panic = |name: &str, seed, text| panic!("{name}, seed {seed}: {text}");
    for seed in seeds(2) {
        for case in faults::cases() {
            let name = &case.case.name.clone();
            faults::check_absent_rank(&case, &kernels, seed).unwrap_or_else(|text| panic(name, seed, text));
            faults::check_late_rank(&case, &kernels, seed).unwrap_or_else(|text| panic(name, seed, text));
            faults::check_ended_rank(&case, &kernels, seed).unwrap_or_else(|text| panic(name, seed, text));
            faults::check_rank_that_ended_later(&case, &kernels, seed).unwrap_or_else(|text| panic(name, seed, text));
            if case.case.is_checked {
                faults::check_skipping_rank(&case, &kernels, seed).unwrap_or_else(|text| panic(name, seed, text));
            }
            faults::check_absent_rank_block_by_block(&case.block_by_block(), &kernels, seed)
                .unwrap_or_else(|text| panic(name, seed, text));
        }
        faults::check_absent_in_verification(&kernels, seed).unwrap_or_else(|text| panic("verify", seed, text));
    }
}

#[test]
fn disagreements() {
    let kernels = Kernels::new(Sources::of_kernels());
    for seed in seeds(2) {
        for disagreement in disagreements::disagreements() {
            let name = &disagreement.case.name;
            disagreements::check_disagreement(&disagreement, &kernels, seed)
                .unwrap_or_else(|text| panic!("{name}, seed {seed}: {text}"));
        }
    }
}

#[test]
fn foreign_kernels() {
    let kernels = Kernels::new(Sources::of_kernels());
    for seed in seeds(2) {
        for (index, FaultCase { case, .. }) in faults::cases().into_iter().enumerate() {
            let foreign = disagreements::Foreign::ALL[index % 3];
            // Before the first operation, and behind it.
            for operations in [0, 1] {
                disagreements::check_foreign(&case, (foreign, operations), &kernels, seed).unwrap_or_else(|text| {
                    panic!("{foreign:?} behind {operations} of {}, seed {seed}: {text}", case.name)
                });
            }
        }
    }
}

/// All cases of a family of kernels: minutes, together, which `make test` leaves to `make test-long`.
mod families {
    use super::{cases, check};

    #[test]
    fn rms_norm() {
        check(cases::rms_norm(), 2);
    }

    #[test]
    fn rms_norm_quant() {
        check(cases::rms_norm_quant(), 1);
    }

    #[test]
    fn quant() {
        check(cases::quant(), 1);
    }

    #[test]
    fn layer_norm() {
        check(cases::layer_norm(), 1);
    }

    #[test]
    fn moe_finalize() {
        check(cases::moe_finalize(), 1);
    }

    #[test]
    fn minimax() {
        check(cases::minimax(), 2);
    }

    #[test]
    fn mixtures() {
        check(cases::mixtures(), 3);
    }
}

#[test]
fn planted_defects_are_caught() {
    let sound = Kernels::new(Sources::of_kernels());
    for defect in defects::all() {
        let seed = defect.find();
        let run = defect.run(&sound, seed);
        assert_eq!(run, Ok(()), "{}, seed {seed}: the sources without the defect must pass", defect.name);
        println!("{}: caught with seed {seed}", defect.name);
    }
}

#[test]
fn a_message_is_missed_where_nothing_orders_it() {
    litmus::check_message(&Kernels::new(Sources::of_kernels()));
}

#[test]
fn a_seed_repeats_a_run() {
    litmus::check_repetition(&Kernels::new(Sources::of_kernels()));
}

#[test]
fn values_over_a_scale_are_the_quotients() {
    litmus::check_division(&Kernels::new(Sources::of_kernels()));
}

/// The cases that together run everything.
fn tables() -> impl Iterator<Item = Case> {
    let all = [
        cases::all_reduce(),
        cases::rms_norm(),
        cases::rms_norm_quant(),
        cases::quant(),
        cases::layer_norm(),
        cases::moe_finalize(),
        cases::minimax(),
        cases::setup(),
    ];
    all.into_iter().flatten()
}

#[test]
fn every_module_is_run() {
    let mut run = HashSet::new();
    for case in tables() {
        run.extend(case.operations.iter().map(|operation| operation.module(&case.setting())));
    }
    let missing: Vec<_> = ModuleKey::all().filter(|key| !run.contains(key)).map(ModuleKey::name).collect();
    assert!(missing.is_empty(), "no case runs {missing:#?}");
}

#[test]
fn every_kernel_runs_in_groups_of_every_size() {
    let mut run = HashSet::new();
    for case in tables() {
        let functions = case.operations.iter().map(|operation| operation.module(&case.setting()).function());
        run.extend(functions.map(|function| (function, case.world_size)));
    }
    // For two ranks there is no kernel that sums in phases.
    let exists = |key: ModuleKey, world_size| match key.function().to_bytes() {
        b"all_reduce_two_shot_phased" => PHASED_CAPACITIES.contains(&capacity(world_size)),
        _ => true,
    };
    let wanted = ModuleKey::all().flat_map(|key| (2..=8).map(move |world_size| (key, world_size)));
    let missing: BTreeSet<_> = wanted
        .filter(|&(key, world_size)| exists(key, world_size))
        .map(|(key, world_size)| (key.function(), world_size as usize))
        .filter(|pair| !run.contains(pair))
        .collect();
    assert!(missing.is_empty(), "no case runs {missing:?}");
}
