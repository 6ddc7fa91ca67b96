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

/// Follows every path through a kernel up to its grid-dependency wait, and returns the lines that must not be on one:
/// accesses to what earlier kernels write, and the kernel's end.
fn lines_before_the_wait(ptx: &str) -> Vec<&str> {
    // Inputs, control words, slots and outputs. Weights (a plain `ld.global.v4`) may come earlier.
    const DEPENDENT: [&str; 9] =
        ["ld.global.L1", "ld.global.u16", "ld.relaxed", "st.relaxed", "atom.", "red.", "st.global", "ret;", "exit;"];
    let lines: Vec<&str> = ptx.lines().map(str::trim).collect();
    let line_of = |label: &str| lines.iter().position(|line| line.strip_suffix(':') == Some(label)).unwrap();
    let (mut found, mut seen) = (vec![], vec![false; lines.len()]);
    let mut paths = vec![lines.iter().position(|line| line.contains(".entry")).unwrap()];
    while let Some(mut at) = paths.pop() {
        while at < lines.len() && !std::mem::replace(&mut seen[at], true) {
            // A predicated instruction is `@%p1 …`.
            let instruction =
                lines[at].split_once("@%p").map_or(lines[at], |(_, rest)| rest.split_once(' ').unwrap().1);
            let is_conditional = lines[at].starts_with('@');
            if instruction.starts_with("griddepcontrol.wait;") {
                break;
            }
            if DEPENDENT.iter().any(|dependent| instruction.starts_with(dependent)) {
                found.push(lines[at]);
            }
            if instruction.starts_with("bra") {
                paths.push(line_of(instruction.split_whitespace().last().unwrap().trim_end_matches(';')));
                if !is_conditional {
                    break;
                }
            }
            at += 1;
        }
    }
    found
}

#[test]
fn every_kernel_waits_on_every_path_before_it_touches_what_prior_grids_write() {
    for key in ModuleKey::all() {
        let (name, hopper) = (key.name(), ptx(key, HOPPER));
        // In one place, for whoever calls it first in a block calls it for all; and in the block that has no data.
        let speaks = usize::from(!matches!(key, ModuleKey::Fill | ModuleKey::Verify));
        assert_eq!(hopper.matches("griddepcontrol.launch_dependents;").count(), 1 + speaks, "{name}");
        assert_eq!(lines_before_the_wait(&hopper), Vec::<&str>::new(), "{name}");
        assert!(!ptx(key, AMPERE).contains("griddepcontrol"), "{name}");
    }
}

#[test]
fn a_path_without_a_wait_would_be_found() {
    let fill = ptx(ModuleKey::Fill, HOPPER);
    assert!(!lines_before_the_wait(&fill.replace("griddepcontrol.wait;", "")).is_empty());
    let kernel = ".entry k()\n@%p1 bra $L;\ngriddepcontrol.wait;\nret;\n$L:\nret;";
    assert_eq!(lines_before_the_wait(kernel), ["ret;"]);
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
