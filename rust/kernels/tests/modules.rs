//! What the embedded PTX must be, whatever compiled it.

use std::ffi::CString;

use lamport_rs_kernels::catalogue::MinimaxKernel;
use lamport_rs_kernels::variants::MINIMAX_VARIANTS;
use lamport_rs_kernels::{Dtype, ModuleKey, module};

const HOPPER: (u32, u32) = (9, 0);
const AMPERE: (u32, u32) = (8, 0);

fn ptx(key: ModuleKey, compute_capability: (u32, u32)) -> String {
    let ptx = module(key, compute_capability).unwrap_or_else(|| panic!("{} is missing", key.name()));
    ptx.into_string().expect("PTX is ASCII")
}

fn for_every_module(check: impl Fn(&str, &str, u32)) {
    for key in ModuleKey::all() {
        for (compute_capability, architecture) in [(AMPERE, 80), (HOPPER, 90)] {
            check(&format!("{} for {architecture}", key.name()), &ptx(key, compute_capability), architecture);
        }
    }
}

#[test]
fn ptx_is_old_enough_for_supported_drivers() {
    for_every_module(|name, ptx, architecture| {
        let version = ptx.lines().find_map(|line| line.strip_prefix(".version ")).expect("PTX says its version");
        let (major, minor) = version.trim().split_once('.').expect("a version has two parts");
        let version: (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
        assert!(version <= (8, 2), "{name} is of version {version:?}");
        assert!(ptx.contains(&format!(".target sm_{architecture}\n")), "{name} is for another target");
    });
}

#[test]
fn every_module_has_its_one_function() {
    for key in ModuleKey::all() {
        let ptx = ptx(key, HOPPER);
        let entry = format!(".entry {}(", key.function().to_str().unwrap());
        assert!(ptx.contains(&entry), "{} has no {entry}", key.name());
        assert_eq!(ptx.matches(".entry").count(), 1, "{}", key.name());
    }
}

#[test]
fn newer_devices_get_the_newest_ptx_and_older_ones_none() {
    let of = |capability| module(ModuleKey::Fill, capability);
    assert_eq!(of((7, 5)), None);
    assert_eq!(of((8, 9)), of(AMPERE));
    assert_eq!(of((10, 0)), of(HOPPER));
    assert_eq!(of((12, 1)), of(HOPPER));
    assert_ne!(of(AMPERE), of(HOPPER));
}

#[test]
fn there_is_no_module_for_a_weight_that_does_not_go_with_the_dtype() {
    let variant = MINIMAX_VARIANTS[0];
    let key = |dtype, weight| ModuleKey::MinimaxRms(MinimaxKernel { dtype, weight, variant });
    let found = |dtype, weight| module(key(dtype, weight), HOPPER).is_some();
    assert!(found(Dtype::BFloat16, Dtype::BFloat16));
    assert!(found(Dtype::BFloat16, Dtype::Float32));
    assert!(!found(Dtype::BFloat16, Dtype::Float16));
    assert!(!found(Dtype::Float32, Dtype::BFloat16));
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = ModuleKey::all().map(ModuleKey::name).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// The numbers of the lines that begin with one of `instructions`.
fn lines_of(ptx: &str, instructions: &[&str]) -> Vec<usize> {
    let is_one = |line: &str| instructions.iter().any(|instruction| line.trim_start().starts_with(instruction));
    ptx.lines().enumerate().filter(|(_, line)| is_one(line)).map(|(number, _)| number).collect()
}

#[test]
fn every_kernel_waits_for_prior_grids_before_it_touches_what_they_write() {
    for key in ModuleKey::all() {
        let (name, ptx) = (key.name(), ptx(key, HOPPER));
        let waits = lines_of(&ptx, &["griddepcontrol.wait;"]);
        assert_eq!(waits.len(), 1, "{name}");
        assert_eq!(lines_of(&ptx, &["griddepcontrol.launch_dependents;"]).len(), 1, "{name}");
        // Inputs, control words, slots and outputs. Weights (a plain `ld.global.v4`) may come earlier.
        let dependent = ["ld.global.L1", "ld.relaxed", "st.relaxed", "atom.", "red.", "st.global"];
        let first = lines_of(&ptx, &dependent)[0];
        assert!(waits[0] < first, "{name} has line {first} before its wait");
        // An end before the wait would be a path without one.
        assert!(waits[0] < lines_of(&ptx, &["ret;", "exit;"])[0], "{name} may end before its wait");
    }
    for key in ModuleKey::all() {
        assert!(!ptx(key, AMPERE).contains("griddepcontrol"), "{}", key.name());
    }
}

#[test]
fn inputs_are_never_read_through_the_read_only_cache() {
    for_every_module(|name, ptx, _| assert!(!ptx.contains(".nc."), "{name}"));
}

#[test]
fn slots_are_accessed_relaxed_at_system_scope_only() {
    for_every_module(|name, ptx, _| {
        assert!(!ptx.contains("volatile"), "{name}");
        assert!(ptx.contains("st.relaxed.sys.global"), "{name}");
    });
}

#[test]
fn no_parameter_is_copied_to_local_memory() {
    for_every_module(|name, ptx, _| assert!(!ptx.contains(".local"), "{name}"));
}

#[test]
fn ptx_ends_in_one_nul() {
    let fill: CString = module(ModuleKey::Fill, HOPPER).unwrap();
    assert_eq!(fill.as_bytes_with_nul().last(), Some(&0));
    assert!(fill.as_bytes().ends_with(b"}\n") || fill.as_bytes().trim_ascii_end().ends_with(b"}"));
}
