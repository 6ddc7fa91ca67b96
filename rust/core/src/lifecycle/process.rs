//! Peers' processes, and whether they live.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub number: u32,
    /// What tells that it has ended. None if the kernel cannot say (before Linux 5.3), or there are no more descriptors:
    /// a death is then noticed by the time that an operation takes.
    descriptor: Option<OwnedFd>,
}

impl Process {
    /// The process of that number, which is alive: it takes part in the construction. Workspaces share it, as each takes
    /// a descriptor.
    pub fn of(number: u32) -> Arc<Self> {
        static KNOWN: Mutex<Option<HashMap<u32, Weak<Process>>>> = Mutex::new(None);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        // Another may have had the number before.
        if let Some(process) = known.get(&number).and_then(Weak::upgrade).filter(|process| process.is_known_to_live()) {
            return process;
        }
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
        let descriptor = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let process = Arc::new(Self { number, descriptor });
        known.retain(|_, process| process.strong_count() > 0);
        known.insert(number, Arc::downgrade(&process));
        process
    }

    fn is_known_to_live(&self) -> bool {
        self.descriptor.is_some() && first_ended(&[self]).is_none()
    }
}

/// The place of the first of `processes` that has ended.
pub fn first_ended(processes: &[&Process]) -> Option<usize> {
    let files: Vec<_> = processes
        .iter()
        .enumerate()
        .filter_map(|(at, process)| process.descriptor.as_ref().map(|file| (at, file)))
        .collect();
    let mut asked: Vec<_> = files.iter().map(|(_, file)| PollFd::new(*file, PollFlags::IN)).collect();
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).ok().filter(|ready| *ready > 0)?;
    let ended = asked.iter().position(|file| file.revents().contains(PollFlags::IN))?;
    Some(files[ended].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_shared_while_it_lives() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id());
        assert!(Arc::ptr_eq(&process, &Process::of(child.id())));
        assert!(process.is_known_to_live());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_known_to_live());
        assert!(!Arc::ptr_eq(&process, &Process::of(child.id())), "the number may be another process's now");
    }
}
