//! What the embedded modules must be, whatever compiled them.

#[path = "../build/ptx.rs"]
mod ptx;

use std::ffi::CString;
use std::sync::OnceLock;

use lamport_rs_kernels::catalogue::MinimaxKernel;
use lamport_rs_kernels::image::Image;
use lamport_rs_kernels::variants::MINIMAX_VARIANTS;
use lamport_rs_kernels::{Dtype, ModuleKey, modules};

const HOPPER: (u32, u32) = (9, 0);
const AMPERE: (u32, u32) = (8, 0);
const BLACKWELL: (u32, u32) = (10, 0);

fn ptx(key: ModuleKey, compute_capability: (u32, u32)) -> String {
    let ptx = modules::ptx(key, compute_capability).unwrap_or_else(|| panic!("{} is missing", key.name()));
    ptx.into_string().expect("PTX is ASCII")
}

/// A module's PTX for an architecture.
struct Text {
    key: ModuleKey,
    architecture: u32,
    ptx: String,
}

/// Decompressed once for all tests of this process.
fn texts() -> &'static [Text] {
    static TEXTS: OnceLock<Vec<Text>> = OnceLock::new();
    TEXTS.get_or_init(|| {
        let of = |key| {
            [(AMPERE, 80), (HOPPER, 90)].map(|(capability, architecture)| Text {
                key,
                architecture,
                ptx: ptx(key, capability),
            })
        };
        ModuleKey::all().flat_map(of).collect()
    })
}

fn for_every_module(check: impl Fn(&str, &str, u32)) {
    for Text { key, architecture, ptx } in texts() {
        check(&format!("{} for {architecture}", key.name()), ptx, *architecture);
    }
}

#[test]
fn ptx_is_old_enough_for_supported_drivers() {
    for_every_module(|name, ptx, architecture| {
        let version = ptx.lines().find_map(|line| line.strip_prefix(".version ")).expect("PTX says its version");
        let (major, minor) = version.trim().split_once('.').expect("a version has two parts");
        let version: (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
        // On aarch64 there is no compiler for the oldest drivers.
        let newest = if cfg!(target_arch = "aarch64") { (8, 8) } else { (8, 2) };
        assert!(version <= newest, "{name} is of version {version:?}");
        assert!(ptx.contains(&format!(".target sm_{architecture}\n")), "{name} is for another target");
    });
}

#[test]
fn no_module_has_comments_or_variables_that_nothing_names() {
    for_every_module(|name, ptx, _| assert!(ptx == ptx::without_unused(ptx), "{name}"));

    let needed = ".global .align 4 .u32 table[2] = {1, 2};\n.entry k()\nmov.u64 %rd1, table;\n";
    let written = format!("// By a compiler\n.global .align 4 .u32 tab = 1;\n{needed}\t// begin\n");
    assert_eq!(ptx::without_unused(&written), needed);
}

#[test]
fn every_module_has_its_one_function() {
    for Text { key, ptx, .. } in texts() {
        let entry = format!(".entry {}(", key.function().to_str().unwrap());
        assert!(ptx.contains(&entry), "{} has no {entry}", key.name());
        assert_eq!(ptx.matches(".entry").count(), 1, "{}", key.name());
    }
}

#[test]
fn newer_devices_get_the_newest_ptx_and_older_ones_none() {
    let of = |capability| modules::ptx(ModuleKey::Fill, capability);
    assert_eq!(of((7, 5)), None);
    assert_eq!(of((8, 9)), of(AMPERE));
    assert_eq!(of((10, 0)), of(HOPPER));
    assert_eq!(of((12, 1)), of(HOPPER));
    assert_ne!(of(AMPERE), of(HOPPER));
}

/// The architecture that an ELF file of machine code is for. From Blackwell on it is elsewhere in the flags.
fn architecture(machine_code: &[u8]) -> u32 {
    const CUDA: u16 = 190;
    assert_eq!(machine_code[..4], *b"\x7fELF");
    assert_eq!(u16::from_le_bytes(machine_code[18..20].try_into().unwrap()), CUDA);
    let at = if machine_code[8] < 8 { 48 } else { 49 };
    machine_code[at].into()
}

#[test]
fn every_module_has_machine_code_for_hopper_and_for_blackwell() {
    for key in ModuleKey::all() {
        let section = format!("\0.text.{}\0", key.function().to_str().unwrap());
        for (capability, expected) in [(HOPPER, 90), (BLACKWELL, 100)] {
            let machine_code = modules::machine_code(key, capability).unwrap();
            assert_eq!(architecture(&machine_code), expected, "{}", key.name());
            let has_function = machine_code.windows(section.len()).any(|window| window == section.as_bytes());
            assert!(has_function, "{} has no {section:?}", key.name());
        }
    }
}

#[test]
fn machine_code_is_for_devices_of_its_major_and_from_its_minor_on() {
    let of = |capability| modules::machine_code(ModuleKey::Fill, capability);
    for none in [AMPERE, (8, 9), (11, 0), (12, 0), (12, 1)] {
        assert_eq!(of(none), None, "{none:?}");
    }
    assert_eq!(of((10, 3)), of(BLACKWELL));
    assert_ne!(of(HOPPER), of(BLACKWELL));
    assert!(!Image::MachineCode(103).runs_on(BLACKWELL));
}

#[test]
fn machine_code_is_made_of_the_newest_ptx_that_the_architecture_has() {
    assert_eq!(Image::MachineCode(90).source(), Some(Image::Ptx(90)));
    assert_eq!(Image::MachineCode(89).source(), Some(Image::Ptx(80)));
    assert_eq!(Image::Ptx(90).source(), None);
}

#[test]
fn there_is_no_module_for_a_weight_that_does_not_go_with_the_dtype() {
    let variant = MINIMAX_VARIANTS[0];
    let key = |dtype, weight| ModuleKey::MinimaxRms(MinimaxKernel { dtype, weight, variant });
    let found = |dtype, weight| modules::ptx(key(dtype, weight), HOPPER).is_some();
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
    for Text { key, architecture, ptx } in texts() {
        let name = key.name();
        if *architecture < 90 {
            assert!(!ptx.contains("griddepcontrol"), "{name}");
            continue;
        }
        // In one place, for whoever calls it first in a block calls it for all; and in the block that has no data.
        let speaks = usize::from(!matches!(key, ModuleKey::Fill | ModuleKey::Verify | ModuleKey::Skip));
        assert_eq!(ptx.matches("griddepcontrol.launch_dependents;").count(), 1 + speaks, "{name}");
        assert_eq!(lines_before_the_wait(ptx), Vec::<&str>::new(), "{name}");
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
    let fill: CString = modules::ptx(ModuleKey::Fill, HOPPER).unwrap();
    assert_eq!(fill.as_bytes_with_nul().last(), Some(&0));
    assert!(fill.as_bytes().ends_with(b"}\n") || fill.as_bytes().trim_ascii_end().ends_with(b"}"));
}

/// A block counts as one that has read the control words only once they have come: the barrier's count of threads is made
/// of them. The compiler must not have seen through it, and put a number in its place.
#[test]
fn barriers_after_the_control_words_wait_for_them() {
    for_every_module(|name, ptx, _| {
        let counts: Vec<&str> = ptx.lines().filter_map(barrier_count).collect();
        let is_reduction = name.contains("all_reduce");
        assert_eq!(!counts.is_empty(), is_reduction, "{name} has barriers that count: {counts:?}");
        let definitions: Vec<Definition> = ptx.lines().filter_map(Definition::of).collect();
        for count in counts {
            assert!(
                depends_on_control_words(count, &definitions),
                "{name}: {count} does not wait for the control words"
            );
        }
    });
}

#[test]
fn a_barrier_that_waits_for_no_control_words_would_be_found() {
    let waits = |count: &str| {
        let ptx = [
            "mov.u32 \t%r1, %ntid.x;",
            "{.reg .u32 fourth;",
            " ld.relaxed.gpu.global.v4.u32 {%r2, %r3, %r4, fourth}, [%rd1];}",
            "shr.u32 \t%r5, %r2, 31;",
            "add.s32 \t%r6, %r1, %r5;",
        ];
        let definitions: Vec<Definition> = ptx.into_iter().filter_map(Definition::of).collect();
        depends_on_control_words(count, &definitions)
    };
    assert!(waits("%r6") && !waits("%r1"));
    assert_eq!(barrier_count("\tbar.sync %r266, %r228;"), Some("%r228"));
    assert_eq!(barrier_count("\tbar.sync \t0;"), None);
}

/// The register that says for how many threads a barrier waits; none of those that wait for all of the block.
fn barrier_count(line: &str) -> Option<&str> {
    let operands = ["bar.sync ", "bar.arrive "].iter().find_map(|opcode| line.trim().strip_prefix(opcode))?;
    operands.split_once(',').map(|(_, count)| count.trim().trim_end_matches(';'))
}

/// An instruction: the registers that it writes, those that it reads, and whether it loads the control words.
struct Definition<'a> {
    writes: Vec<&'a str>,
    reads: Vec<&'a str>,
    loads_control_words: bool,
}

impl<'a> Definition<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let line = line.trim().trim_start_matches('{');
        let line = if line.starts_with('@') { line.split_once(' ')?.1.trim() } else { line };
        let (opcode, operands) = line.split_once(char::is_whitespace)?;
        let operands = operands.trim();
        let split = if operands.starts_with('{') { operands.find('}')? } else { operands.find(',')? };
        let (writes, reads) = operands.split_at(split);
        let loads_control_words = opcode.starts_with("ld.relaxed.gpu.global.v4");
        Some(Self { writes: registers(writes), reads: registers(reads), loads_control_words })
    }
}

fn registers(operands: &str) -> Vec<&str> {
    let is_register = |word: &&str| word.starts_with('%');
    operands.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '%').filter(is_register).collect()
}

fn depends_on_control_words(register: &str, definitions: &[Definition]) -> bool {
    let (mut seen, mut to_see) = (vec![], vec![register]);
    while let Some(register) = to_see.pop() {
        if seen.contains(&register) {
            continue;
        }
        seen.push(register);
        for definition in definitions.iter().filter(|definition| definition.writes.contains(&register)) {
            if definition.loads_control_words {
                return true;
            }
            to_see.extend(&definition.reads);
        }
    }
    false
}
