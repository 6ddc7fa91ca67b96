//! A rendezvous through files of a folder.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use super::{Deadline, INTERVAL, MAX_MESSAGE, Member, Rendezvous, TransportError, name_ranks};
use crate::error::{Error, Result};

/// A rendezvous through files of a folder that all ranks see.
///
/// The folder must be writable by the group's user alone. What the last round wrote stays in it, a file of some hundred
/// bytes a rank: whoever made the folder deletes it once the ranks have met.
#[derive(Debug)]
pub struct FileRendezvous {
    member: Member,
    folder: PathBuf,
    timeout: Duration,
    /// All-gathers so far.
    step: usize,
}

impl FileRendezvous {
    /// Meets in `folder`, which is there, as `rank` of `world_size`. Each round waits up to `timeout` for the others.
    ///
    /// All ranks of a run pass the same `run_id`, and no other run in that folder has it, so that nobody reads what an
    /// earlier run has left. If one has it nevertheless, that is an error on the rank whose file is there.
    pub fn new(
        folder: impl Into<PathBuf>,
        run_id: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self> {
        Ok(Self { member: Member::new(run_id, rank, world_size)?, folder: folder.into(), timeout, step: 0 })
    }

    fn path(&self, step: usize, rank: usize) -> PathBuf {
        self.folder.join(format!("{}.{step}.{rank}", self.member.run_id))
    }

    fn round(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.member.check_message(message)?;
        self.publish(message)?;
        let deadline = Deadline::after(self.timeout);
        let mut gathered = vec![None; self.member.world_size];
        loop {
            for (rank, message) in gathered.iter_mut().enumerate().filter(|(_, message)| message.is_none()) {
                *message = read(&self.path(self.step, rank))?;
            }
            let is_missing = |rank: &usize| gathered[*rank].is_none();
            let missing: Vec<_> = (0..gathered.len()).filter(is_missing).collect();
            if missing.is_empty() {
                return Ok(gathered.into_iter().flatten().collect());
            }
            if deadline.left().is_none() {
                return Err(Error::rendezvous(format!(
                    "rank {} waited {:?} for {}, of which there is no file in {} for run {} and step {}",
                    self.member.rank,
                    self.timeout,
                    name_ranks(&missing),
                    self.folder.display(),
                    self.member.run_id,
                    self.step
                )));
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Writes this rank's file. It is whole once it has its name, and replaces no other.
    fn publish(&self, message: &[u8]) -> Result<()> {
        let path = self.path(self.step, self.member.rank);
        let unnamed = path.with_extension(format!("{}.{}", self.member.rank, std::process::id()));
        let write = || {
            let mut file = File::create_new(&unnamed)?;
            file.write_all(message)?;
            fs::hard_link(&unnamed, &path)
        };
        let written = write();
        let _ = fs::remove_file(&unnamed);
        written.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Error::rendezvous(format!(
                "{} is there already: another process is rank {}, or an earlier run had this run_id; give each run one of \
                 its own, or an empty folder",
                path.display(),
                self.member.rank
            )),
            _ => Error::rendezvous(format!("writing {} failed: {error}", path.display())),
        })
    }
}

/// What a rank has published; `None` if it has not yet.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |reason: &str| Error::rendezvous(format!("{}: {reason}", path.display()));
    // Whatever lies there: opening a pipe does not wait, and a link leads nowhere else.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error.to_string())),
    };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(failed("it is no file, so no rank has written it"));
    }
    let mut message = vec![];
    file.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut message).map_err(|error| failed(&error.to_string()))?;
    if message.len() > MAX_MESSAGE {
        return Err(failed(&format!("it has more than {MAX_MESSAGE} bytes, so no rank has written it")));
    }
    Ok(Some(message))
}

impl Rendezvous for FileRendezvous {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, TransportError> {
        let gathered = self.round(message)?;
        if let Some(last) = self.step.checked_sub(1) {
            // All ranks have come to this step, so all have read the last one.
            let _ = fs::remove_file(self.path(last, self.member.rank));
        }
        self.step += 1;
        Ok(gathered)
    }
}
