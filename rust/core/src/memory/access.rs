//! Why the kernel does not let this process open a file of a peer's: the rules of `ptrace(2)` for `/proc/<pid>/fd`, and
//! what to do about each.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::limits::{Reason, lacks_descriptors};

const PROC: &str = "/proc";
const PTRACE_SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

/// Why this process may not open what process `process` has open, or cannot see it.
pub fn why_denied(process: u32) -> Reason {
    explain(Path::new(PROC), process, || fs::read_to_string(PTRACE_SCOPE).ok())
}

/// Likewise, by what lies in `root`.
fn explain(root: &Path, process: u32, ptrace_scope: impl FnOnce() -> Option<String>) -> Reason {
    let file = root.join(process.to_string()).join("status");
    // Files there belong to root as long as the process is not dumpable.
    let read = || Ok((fs::read_to_string(&file)?, fs::metadata(&file)?.uid()));
    let (status, owner) = match read() {
        Ok(found) => found,
        Err(error) if lacks_descriptors(&error) => return error.into(),
        Err(_) => {
            return format!(
                "there is no process {process} to be seen here: it has ended, or the ranks are in different PID namespaces \
                 (share one: docker run --pid), or /proc hides other users' processes (hidepid)"
            )
            .into();
        }
    };
    let own = fs::read_to_string(root.join("self/status")).unwrap_or_default();
    let (own, peer) = (Credentials::of(&own), Credentials::of(&status));
    // In the kernel's order.
    if !peer.is_accessible_as(&own) {
        return format!(
            "process {process} runs as user {} and group {}, this one as user {} and group {}; run all ranks as one user",
            peer.shown(&peer.users),
            peer.shown(&peer.groups),
            own.shown(&own.users),
            own.shown(&own.groups)
        )
        .into();
    }
    if peer.users.get(EFFECTIVE).is_some_and(|user| *user != owner) {
        return format!(
            "process {process} is not dumpable, as the kernel makes a process that changes its user, so no other may look \
             into it; let every rank call prctl(PR_SET_DUMPABLE, 1) after the change (in Python: \
             ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)), or start the ranks as that user"
        )
        .into();
    }
    if peer.permitted & !own.effective != 0 {
        return format!(
            "process {process} has capabilities that this one has not ({:#x}); start all ranks with the same",
            peer.permitted & !own.effective
        )
        .into();
    }
    let scope = ptrace_scope().map_or_else(String::new, |scope| format!(", ptrace_scope {}", scope.trim()));
    format!(
        "a rule of the machine forbids it, though process {process} runs as the same user (a user namespace, AppArmor, \
         SELinux, Yama{scope}); run all ranks in one container, under one profile that allows them to trace each other"
    )
    .into()
}

/// Place of the effective number among the four of a user or a group: real, effective, saved, for files.
const EFFECTIVE: usize = 1;

/// What of `/proc/<pid>/status` the kernel's rules go by.
struct Credentials {
    users: Vec<u32>,
    groups: Vec<u32>,
    permitted: u64,
    effective: u64,
}

impl Credentials {
    fn of(status: &str) -> Self {
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let numbers = |name| line(name).split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let set = |name| u64::from_str_radix(line(name).trim(), 16).unwrap_or(0);
        Self { users: numbers("Uid:"), groups: numbers("Gid:"), permitted: set("CapPrm:"), effective: set("CapEff:") }
    }

    /// Whether a process with `caller`'s numbers for files may look into one with these.
    fn is_accessible_as(&self, caller: &Self) -> bool {
        let all_are = |own: &[u32], caller: &[u32]| own.iter().take(3).all(|number| Some(number) == caller.last());
        all_are(&self.users, &caller.users) && all_are(&self.groups, &caller.groups)
    }

    /// The real, effective and saved number, once if they are the same.
    fn shown(&self, numbers: &[u32]) -> String {
        let mut shown: Vec<_> = numbers.iter().take(3).map(u32::to_string).collect();
        shown.dedup();
        if shown.is_empty() { "?".to_owned() } else { shown.join("/") }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder like `/proc` with this process and process 7. Whoever runs the test owns what lies in it.
    struct MadeUp(PathBuf);

    impl MadeUp {
        fn new(name: &str, own: &str, peer: Option<&str>) -> Self {
            let root = std::env::temp_dir().join(format!("lamport-rs-access-{}-{name}", std::process::id()));
            for (process, status) in [("self", Some(own)), ("7", peer)] {
                if let Some(status) = status {
                    fs::create_dir_all(root.join(process)).unwrap();
                    fs::write(root.join(process).join("status"), status).unwrap();
                }
            }
            Self(root)
        }

        fn why_denied(&self) -> String {
            explain(&self.0, 7, || Some("1\n".into())).to_string()
        }
    }

    impl Drop for MadeUp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn status(user: u32, group: u32, permitted: u64, effective: u64) -> String {
        format!(
            "Name:\tpython\nUid:\t{user}\t{user}\t{user}\t{user}\nGid:\t{group}\t{group}\t{group}\t{group}\n\
             CapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}\n"
        )
    }

    #[test]
    fn each_rule_of_the_kernel_has_advice_of_its_own() {
        let here = rustix::process::geteuid().as_raw();
        let own = status(here, 5, 0, 0);
        let no_owner = here + 1;
        let cases = [
            ("gone", own.clone(), None, "there is no process 7 to be seen here"),
            ("user", own.clone(), Some(status(no_owner, 5, 0, 0)), "run all ranks as one user"),
            ("group", own.clone(), Some(status(here, 6, 0, 0)), "group 6, this one as user"),
            ("dumpable", status(no_owner, 5, 0, 0), Some(status(no_owner, 5, 0, 0)), "call prctl(PR_SET_DUMPABLE, 1)"),
            ("capabilities", own.clone(), Some(status(here, 5, 6, 0)), "capabilities that this one has not (0x6)"),
            ("module", own.clone(), Some(own), "a rule of the machine forbids it"),
        ];
        for (name, own, peer, expected) in cases {
            let text = MadeUp::new(name, &own, peer.as_deref()).why_denied();
            assert!(text.contains(expected), "{name}: {text}");
            assert!(text.len() < 320, "it has to fit into a message: {text}");
        }
    }

    #[test]
    fn what_a_process_was_counts_as_much_as_what_it_is() {
        let here = rustix::process::geteuid().as_raw();
        let was_another = format!("Uid:\t{here}\t{here}\t{}\t{here}\nGid:\t5\t5\t5\t5\n", here + 1);
        let text = MadeUp::new("saved", &status(here, 5, 0, 0), Some(&was_another)).why_denied();
        assert!(text.contains(&format!("runs as user {here}/{}", here + 1)), "{text}");
    }
}
