//! ptxas: PTX to machine code.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::python;

/// Names the program, if it is not to be looked for.
pub const PROGRAM_VARIABLE: &str = "LAMPORT_RS_PTXAS";
/// Whose registers `tests/resources.txt` records. A driver runs the machine code of its own major release of CUDA,
/// whatever the minor one: the oldest supported driver, of 12.2, that of 12.9.
const RELEASE: &str = "release 12.9,";
const INSTALL: &str = "pip install nvidia-cuda-nvcc-cu12==12.9.86";

/// The program.
pub struct Assembler {
    path: PathBuf,
    version: String,
}

impl Assembler {
    /// The program that `LAMPORT_RS_PTXAS` names, or else the one installed beside the Python that the package is built
    /// for.
    pub fn find() -> Result<Self, String> {
        let path = match env::var_os(PROGRAM_VARIABLE).filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => python::package_folder("nvidia.cuda_nvcc").map_err(missing)?.join("bin/ptxas"),
        };
        let version = run(Command::new(&path).arg("--version")).map_err(missing)?;
        if !version.contains(RELEASE) {
            return Err(format!("{} is not of CUDA 12.9: use `{INSTALL}`\n{version}", path.display()));
        }
        Ok(Self { path, version })
    }

    /// What tells this program from others.
    pub fn identity(&self) -> &str {
        &self.version
    }

    /// Makes a file of machine code for an architecture, `sm_90` say. Returns the report on its resources.
    pub fn assemble(&self, ptx: &Path, machine_code: &Path, architecture: &str) -> Result<String, String> {
        let architecture = format!("-arch={architecture}");
        run(Command::new(&self.path).args(["-v", &architecture, "-o"]).args([machine_code, ptx]))
    }
}

/// What the program prints.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("running {command:?} failed: {error}"))?;
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(text) } else { Err(format!("{command:?} failed:\n{text}")) }
}

fn missing(why: String) -> String {
    format!(
        "ptxas, which assembles the CUDA kernels, was not found: {why}. \
         Install it with `{INSTALL}`, or set {PROGRAM_VARIABLE} to its path"
    )
}
