//! Finds files of Python packages: NVIDIA publishes its compilers there, each in a small package of its own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Names the interpreter, as for PyO3.
pub const INTERPRETER_VARIABLE: &str = "PYO3_PYTHON";
/// Names the virtual environment, as its activation script does.
pub const ENVIRONMENT_VARIABLE: &str = "VIRTUAL_ENV";

/// The folder of Python package `package`, of the first interpreter there is of: the one named, the environment's,
/// `python3`. On failure, says which interpreter was asked.
pub fn package_folder(package: &str) -> Result<PathBuf, String> {
    let interpreter = interpreter();
    // `nvidia` is a namespace package, so that `__path__` is all there is to go by.
    let program = format!("import {package}; print(list({package}.__path__)[0])");
    let output = Command::new(&interpreter)
        .args(["-c", &program])
        .output()
        .map_err(|error| format!("running {} failed: {error}", interpreter.display()))?;
    if !output.status.success() {
        return Err(format!("{} has no package {package}", interpreter.display()));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn interpreter() -> PathBuf {
    if let Some(python) = env::var_os(INTERPRETER_VARIABLE).filter(|value| !value.is_empty()) {
        return PathBuf::from(python);
    }
    match env::var_os(ENVIRONMENT_VARIABLE).filter(|value| !value.is_empty()) {
        Some(environment) => PathBuf::from(environment).join("bin/python"),
        None => PathBuf::from("python3"),
    }
}
