//! Finds files of Python packages: NVIDIA publishes its compilers there, each in a small package of its own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The folder of Python package `package` in the first interpreter of: `PYO3_PYTHON`, the one of `VIRTUAL_ENV`,
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
    if let Some(python) = env::var_os("PYO3_PYTHON").filter(|value| !value.is_empty()) {
        return PathBuf::from(python);
    }
    match env::var_os("VIRTUAL_ENV").filter(|value| !value.is_empty()) {
        Some(environment) => PathBuf::from(environment).join("bin/python"),
        None => PathBuf::from("python3"),
    }
}
