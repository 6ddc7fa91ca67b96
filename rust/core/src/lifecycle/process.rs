//! Peers' processes, and whether they live.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::life::Life;
use crate::limits::Reason;
use crate::memory::handle::Handle;

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub number: u32,
    /// What tells that it has ended. An error if the kernel cannot say (before Linux 5.3), or there are no more
    /// descriptors: its word tells of a death then, or else the timeout of an operation.
    descriptor: std::result::Result<OwnedFd, Errno>,
    /// Its word, which says so earlier, also of a process that is killed; none if it has none that can be mapped.
    life: Option<Life>,
}

impl Process {
    /// The process of that number, which is alive: it takes part in the construction, and has said where its word is.
    /// Workspaces share it, as each takes a descriptor.
    pub fn of(number: u32, life: &Handle) -> Arc<Self> {
        static KNOWN: Mutex<Option<HashMap<u32, Weak<Process>>>> = Mutex::new(None);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        // Another may have had the number before.
        if let Some(process) = known.get(&number).and_then(Weak::upgrade).filter(|process| process.is_known_to_live()) {
            return process;
        }
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
        let descriptor = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let process = Arc::new(Self { number, descriptor, life: Life::open(life).ok() });
        known.retain(|_, process| process.strong_count() > 0);
        known.insert(number, Arc::downgrade(&process));
        process
    }

    /// Why nothing will tell that it has ended, if so.
    pub fn obstacle(&self) -> Option<Reason> {
        self.descriptor.as_ref().err().map(|error| Reason::from(*error))
    }

    /// Whether it says that it has ended, or is about to. Takes no system call.
    pub fn ends(&self) -> bool {
        self.life.as_ref().is_some_and(Life::ends)
    }

    fn is_known_to_live(&self) -> bool {
        self.descriptor.is_ok() && !self.ends() && ended(&[self]).is_empty()
    }
}

/// Calls `function` when this process ends in order, and when one does that was forked from it. Those that are registered
/// later are called earlier.
pub fn at_exit(function: extern "C" fn()) {
    unsafe extern "C" {
        fn atexit(function: extern "C" fn()) -> i32;
    }
    // SAFETY: whatever is a function of Rust may be called at any time.
    let _ = unsafe { atexit(function) };
}

/// The places of those of `processes` that have ended.
pub fn ended(processes: &[&Process]) -> Vec<usize> {
    let files: Vec<_> = processes
        .iter()
        .enumerate()
        .filter_map(|(at, process)| process.descriptor.as_ref().ok().map(|file| (at, file)))
        .collect();
    let mut asked: Vec<_> = files.iter().map(|(_, file)| PollFd::new(*file, PollFlags::IN)).collect();
    match poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(ready) if ready > 0 => {
            let has_ended = |file: &PollFd<'_>| file.revents().contains(PollFlags::IN);
            files.iter().zip(&asked).filter(|(_, file)| has_ended(file)).map(|((at, _), _)| *at).collect()
        }
        _ => vec![],
    }
}

#[cfg(test)]
impl Process {
    /// The process of that number, of which only the system tells.
    pub fn without_a_word(number: u32) -> Arc<Self> {
        Self::of(number, &super::life::handle_of(number, [0; 5]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u32) -> Arc<Process> {
        Process::without_a_word(number)
    }

    #[test]
    fn a_process_that_cannot_be_watched_says_why() {
        assert!(of(std::process::id()).obstacle().is_none());
        for number in [0, u32::MAX] {
            assert!(of(number).obstacle().is_some());
        }
        let out_of_descriptors = Process { number: 1, descriptor: Err(Errno::MFILE), life: None };
        assert!(out_of_descriptors.obstacle().unwrap().to_string().contains("ulimit -n"));
    }

    #[test]
    fn a_process_is_shared_while_it_lives() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = of(child.id());
        assert!(Arc::ptr_eq(&process, &of(child.id())));
        assert!(process.is_known_to_live());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_known_to_live());
        assert!(!Arc::ptr_eq(&process, &of(child.id())), "the number may be another process's now");
    }
}
