//! What the assembler makes of every module: no local memory, as many registers as `resources.txt` says, and no more
//! barriers than are used. The machine code that is embedded is that.
//!
//! The assembler is the build's. With `LAMPORT_RS_WRITE_RESOURCES=1` it writes `resources.txt` anew, for the change to be
//! seen beside that of the kernels.

#[path = "../build/ptxas.rs"]
#[allow(dead_code)]
mod ptxas;
#[path = "../build/python.rs"]
#[allow(dead_code)]
mod python;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use lamport_rs_kernels::{ModuleKey, modules};
use ptxas::Assembler;

/// Local memory that a kernel may use on devices before Hopper, which the published figures do not cover.
const AMPERE_STACK_BYTES: u32 = 8;

const WRITE_VARIABLE: &str = "LAMPORT_RS_WRITE_RESOURCES";
/// Barriers of a block: that of all its threads, and the service warp's. A multiprocessor has some for each block that it
/// could hold: a block that takes all sixteen (because a barrier's number is computed, say) takes other blocks' room.
const BARRIERS: u32 = 2;

/// What `ptxas -v` says of a kernel.
#[derive(Debug)]
struct Resources {
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    shared_bytes: u32,
    barriers: u32,
}

#[test]
fn kernels_use_no_local_memory_the_recorded_registers_and_few_barriers() {
    let assembler = Assembler::find().expect("the build has found it");
    let folder = env::temp_dir().join(format!("lamport-rs-resources-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let jobs: Vec<_> = ModuleKey::all().flat_map(|key| [(key, (8, 0)), (key, (9, 0))]).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut rows = Vec::new();
        while let Some(&(key, capability)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            rows.push((key, capability, assemble(&assembler, &folder, key, capability)));
        }
        rows
    };
    let mut rows: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread assembles")).collect()
    });
    fs::remove_dir_all(&folder).expect("the temporary folder is writable");
    rows.sort_by_key(|(key, capability, _)| (key.name(), *capability));

    let mut table = format!("{:<48} {:>5} {:>9} {:>6} {:>6}\n", "module", "sm", "registers", "limit", "shared");
    for (key, capability, resources) in &rows {
        let Resources { registers, shared_bytes, .. } = resources;
        let limit = key.bounds().map_or("-".to_owned(), |bounds| bounds.max_registers().to_string());
        let architecture = 10 * capability.0 + capability.1;
        writeln!(table, "{:<48} {architecture:>5} {registers:>9} {limit:>6} {shared_bytes:>6}", key.name()).unwrap();
    }
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resources.txt");
    if env::var_os(WRITE_VARIABLE).is_some_and(|value| value == "1") {
        fs::write(&recorded, &table).expect("the table can be written");
    }
    let expected = fs::read_to_string(&recorded).expect("the table is there");
    let changed: Vec<_> = table.lines().filter(|line| !expected.lines().any(|each| each == *line)).collect();
    let (lines, expected_lines) = (table.lines().count(), expected.lines().count());
    assert!(
        changed.is_empty() && lines == expected_lines,
        "these differ from {}, which has {expected_lines} lines for {lines}; if that is meant, run this with \
         {WRITE_VARIABLE}=1:\n{}",
        recorded.display(),
        changed.join("\n")
    );
    let most_barriers = rows.iter().map(|(_, _, resources)| resources.barriers).max();
    assert_eq!(most_barriers, Some(BARRIERS), "the report says how many, and some kernel has a service warp");
    for (key, capability, resources) in &rows {
        let what = format!("{} for {capability:?}: {resources:?}", key.name());
        // The speaking block's prologue costs some kernels for Ampere two registers more than their launch leaves.
        let allowed = if *capability == (8, 0) { AMPERE_STACK_BYTES } else { 0 };
        assert!(resources.stack_bytes <= allowed && resources.spill_bytes <= allowed, "{what}");
        assert!(resources.barriers <= BARRIERS, "{what}");
    }
}

fn assemble(assembler: &Assembler, folder: &Path, key: ModuleKey, capability: (u32, u32)) -> Resources {
    let architecture = format!("sm_{}{}", capability.0, capability.1);
    let source = folder.join(format!("{}.{architecture}.ptx", key.name()));
    let ptx = modules::ptx(key, capability).expect("the catalogue's modules exist");
    fs::write(&source, ptx.as_bytes()).expect("the temporary folder is writable");
    let made = source.with_extension("cubin");
    let report = assembler.assemble(&source, &made, &architecture).expect("every kernel assembles");
    if let Some(embedded) = modules::machine_code(key, capability) {
        assert_eq!(embedded, fs::read(made).expect("it was made"), "{} for {architecture}", key.name());
    }
    Resources {
        registers: number_before(&report, " registers").expect("every kernel has registers"),
        stack_bytes: number_before(&report, " bytes stack frame").expect("the report has a line on the stack"),
        spill_bytes: number_before(&report, " bytes spill stores").expect("the report has a line on spills"),
        shared_bytes: number_before(&report, " bytes smem").unwrap_or(0),
        barriers: number_before(&report, " barriers").unwrap_or(0),
    }
}

fn number_before(report: &str, what: &str) -> Option<u32> {
    let before = &report[..report.find(what)?];
    before.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}
