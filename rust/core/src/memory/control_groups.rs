//! What the control groups (cgroups, of a container) of this process allow: less than the machine has. A limit of any
//! group above counts as well. Both versions of control groups are read; a machine may mix them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::limits::lacks_descriptors;

/// Version 1 says by a number near 2^63 that there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// Where the kernel says it.
#[derive(Clone, Debug)]
pub struct ControlGroups {
    /// Names this process's groups.
    pub own: PathBuf,
    /// Where all groups are mounted.
    pub root: PathBuf,
}

impl Default for ControlGroups {
    fn default() -> Self {
        Self { own: "/proc/self/cgroup".into(), root: "/sys/fs/cgroup".into() }
    }
}

/// A group's limit of memory, in bytes.
#[derive(Clone, Debug)]
pub struct MemoryLimit {
    /// Bytes that all processes in it may take.
    pub bytes: u64,
    /// Bytes that they have taken, copies of files among them.
    pub used: u64,
    /// Where the kernel shows the group.
    pub folder: PathBuf,
    version: &'static Version,
}

impl MemoryLimit {
    /// Bytes that may still be taken: copies of files go when the memory is needed.
    pub fn left(&self) -> Result<u64, Unreadable> {
        let statistics = text_of(&self.folder.join("memory.stat"))?.unwrap_or_default();
        Ok(self.bytes.saturating_sub(self.used.saturating_sub(self.version.reclaimable(&statistics))))
    }
}

/// A file that cannot be read for want of descriptors.
#[derive(Debug)]
pub struct Unreadable(pub PathBuf, pub io::Error);

/// The text of a file; none where there is no such file, or nobody may read it.
pub fn text_of(path: &Path) -> Result<Option<String>, Unreadable> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if lacks_descriptors(&error) => Err(Unreadable(path.to_owned(), error)),
        Err(_) => Ok(None),
    }
}

impl ControlGroups {
    /// The limits of memory of this process's groups, and of those above them.
    pub fn memory_limits(&self) -> Result<Vec<MemoryLimit>, Unreadable> {
        let mut limits = vec![];
        for (folder, version) in self.folders("memory")? {
            let number = |name: &str| -> Result<Option<u64>, Unreadable> {
                Ok(text_of(&folder.join(name))?.and_then(|text| text.trim().parse().ok()))
            };
            let Some(bytes) = number(version.limit)?.filter(|bytes| *bytes < NO_LIMIT) else { continue };
            let Some(used) = number(version.used)? else { continue };
            limits.push(MemoryLimit { bytes, used, folder, version });
        }
        Ok(limits)
    }

    /// How many cores' time this process may use; `None` for no limit.
    pub fn cpu_quota(&self) -> Result<Option<f64>, Unreadable> {
        let mut least: Option<f64> = None;
        for (folder, version) in self.folders("cpu")? {
            let mut words = String::new();
            for file in version.cpu {
                words += &text_of(&folder.join(file))?.unwrap_or_default();
                words.push(' ');
            }
            // "max" and -1 are no limit.
            let numbers: Option<Vec<u64>> = words.split_whitespace().map(|word| word.parse().ok()).collect();
            if let Some([quota, period]) = numbers.as_deref() {
                let quota = *quota as f64 / *period as f64;
                if quota.is_finite() && quota > 0.0 {
                    least = Some(least.map_or(quota, |least| least.min(quota)));
                }
            }
        }
        Ok(least)
    }

    /// The folders of this process's groups for `controller`, and of those above them.
    fn folders(&self, controller: &str) -> Result<Vec<(PathBuf, &'static Version)>, Unreadable> {
        let mut folders = vec![];
        for line in text_of(&self.own)?.unwrap_or_default().lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let (version, homes) = if number == "0" && controllers.is_empty() {
                (&SECOND, [self.root.clone(), self.root.join("unified")])
            } else if controllers.split(',').any(|name| name == controller) {
                (&FIRST, [self.root.join(controllers), self.root.join(controller)])
            } else {
                continue;
            };
            for home in homes {
                // In a container the path may be one that only the host has. The home is the group's own then.
                let group = home.join(path.trim_start_matches('/'));
                let above = group.ancestors().take_while(|folder| folder.starts_with(&home));
                for folder in above.map(Path::to_path_buf) {
                    if !folders.iter().any(|(known, _)| *known == folder) {
                        folders.push((folder, version));
                    }
                }
            }
        }
        Ok(folders)
    }
}

/// What a version of control groups calls its files and figures.
#[derive(Debug)]
struct Version {
    limit: &'static str,
    used: &'static str,
    reclaimable: [&'static str; 3],
    /// Quota and period.
    cpu: &'static [&'static str],
}

const FIRST: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: ["total_active_file", "total_inactive_file", ""],
    cpu: &["cpu.cfs_quota_us", "cpu.cfs_period_us"],
};
const SECOND: Version = Version {
    limit: "memory.max",
    used: "memory.current",
    reclaimable: ["active_file", "inactive_file", "slab_reclaimable"],
    cpu: &["cpu.max"],
};

impl Version {
    fn reclaimable(&self, statistics: &str) -> u64 {
        let figures = statistics.lines().filter_map(|line| line.split_once(' '));
        let counted = figures.filter(|(name, _)| self.reclaimable.contains(name));
        counted.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).fold(0, u64::saturating_add)
    }
}
