//! Tests of this binary in processes of their own: a process initialises the driver, and opens its devices, once.

use std::process::{Child, Command, Stdio};

/// Starts an ignored test with environment variables.
pub fn start(test: &str, variables: &[(&str, String)]) -> Child {
    let this = std::env::current_exe().expect("the test binary knows itself");
    Command::new(this)
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test binary can be started")
}

/// What the test printed, if it passed; it is an error if there is no such test.
pub fn finish(child: Child) -> String {
    let output = child.wait_with_output().expect("a child can be waited for");
    let [text, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}\n{errors}", output.status);
    text
}

/// A variable that the process was started with.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: another test starts this one"))
}
