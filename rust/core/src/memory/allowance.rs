//! How much memory there is for the ranks of a group: of the machine's, and within the limits of control groups
//! (containers). The kernel hands out what it does not have, and ends a process once it is written.
//!
//! All ranks are on one host, and write their blocks at the same time. So what counts is the sum: of all ranks for the
//! machine, and for a control group of those in it, as the ranks tell each other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use lamport_rs_protocol::rank_set::RankSet;

use crate::error::{Error, Result};
use crate::limits::Reason;
use crate::memory::control_groups::{ControlGroups, Unreadable, text_of};

/// What a control group allows a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What tells the control group from others of this boot, wherever it is mounted.
    pub group: u64,
    /// Bytes that all processes in it may take.
    pub bytes: u64,
    /// Bytes of it that are left.
    pub left: u64,
}

/// What every rank of a group is to take.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Ranks.
    pub ranks: usize,
    /// Bytes of each.
    pub bytes: usize,
    /// The argument that says so.
    pub size_name: &'static str,
}

impl Wanted {
    fn by(&self, ranks: usize) -> u64 {
        (self.bytes as u64).saturating_mul(ranks as u64)
    }

    fn in_words(&self, ranks: usize) -> String {
        match ranks {
            1 => format!("{} bytes of shared memory", self.bytes),
            _ => {
                format!("{} bytes of shared memory on each of {ranks} ranks, {} together,", self.bytes, self.by(ranks))
            }
        }
    }
}

/// Where the kernel says it.
#[derive(Clone, Debug)]
pub struct Places {
    meminfo: PathBuf,
    groups: ControlGroups,
}

impl Default for Places {
    fn default() -> Self {
        Self { meminfo: "/proc/meminfo".into(), groups: ControlGroups::default() }
    }
}

fn unreadable(Unreadable(path, error): Unreadable) -> Error {
    Error::system(format!("reading {}", path.display()), error)
}

impl Places {
    /// Refuses what the machine cannot hold, of all ranks. None of them has written anything yet.
    pub fn check_machine(&self, wanted: &Wanted) -> Result<()> {
        let all = wanted.by(wanted.ranks);
        let memory = rustix::system::sysinfo();
        // Half of what is free is available, whatever the kernel keeps for itself. The rest it takes longer to say.
        if all <= (memory.freeram as u64).saturating_mul(memory.mem_unit.into()) / 2 {
            return Ok(());
        }
        let text = text_of(&self.meminfo).map_err(unreadable)?.unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kibibytes = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        match kibibytes.map(|kibibytes| kibibytes.saturating_mul(1024)) {
            Some(available) if all > available => Err(Error::system(
                format!("allocating {}", wanted.in_words(wanted.ranks)),
                Reason::from(format!(
                    "the machine has {available} bytes available; pass a smaller {}",
                    wanted.size_name
                )),
            )),
            _ => Ok(()),
        }
    }

    /// The limits of this process's control groups that the group's ranks might exceed together, narrowest first.
    pub fn limits(&self, wanted: &Wanted) -> Result<Vec<Limit>> {
        let all = wanted.by(wanted.ranks);
        let mut limits = vec![];
        for limit in self.groups.memory_limits().map_err(unreadable)? {
            // What is left takes longer to find out.
            if limit.bytes.saturating_sub(limit.used) >= all {
                continue;
            }
            let left = limit.left().map_err(unreadable)?;
            let Ok(metadata) = fs::metadata(&limit.folder) else { continue };
            if left < all {
                limits.push(Limit { group: metadata.ino(), bytes: limit.bytes, left });
            }
        }
        limits.sort_by_key(|limit| limit.left);
        Ok(limits)
    }
}

/// Refuses what control groups do not allow the ranks in them together, of which each gives its limits. All ranks check
/// the same, so all raise the same error.
pub fn check_groups(ranks: &[&[Limit]], wanted: &Wanted) -> Result<()> {
    let mut groups: BTreeMap<u64, (RankSet, Limit)> = BTreeMap::new();
    for (rank, limits) in ranks.iter().enumerate() {
        for limit in *limits {
            let (members, narrowest) = groups.entry(limit.group).or_insert((RankSet::default(), *limit));
            members.insert(rank);
            if limit.left < narrowest.left {
                *narrowest = *limit;
            }
        }
    }
    for (members, Limit { bytes, left, .. }) in groups.into_values() {
        let count = members.iter().count();
        if wanted.by(count) > left {
            return Err(Error::Agreement(format!(
                "allocating {} failed: the control group (container) of {members} may have {bytes} bytes, of \
                 which {left} are left; pass a smaller {}, or raise its limit (docker run --memory)",
                wanted.in_words(count),
                wanted.size_name
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as the kernel has them, in a folder of their own.
    struct MadeUp(PathBuf);

    impl MadeUp {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("lamport-rs-allowance-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn places(&self) -> Places {
            let groups = ControlGroups { own: self.0.join("own"), root: self.0.join("cgroup") };
            Places { meminfo: self.0.join("meminfo"), groups }
        }

        /// Limits and what is left of them, for 4 ranks of 100 bytes.
        fn limits(&self) -> Vec<(u64, u64)> {
            self.places().limits(&WANTED).unwrap().iter().map(|limit| (limit.bytes, limit.left)).collect()
        }
    }

    impl Drop for MadeUp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const WANTED: Wanted = Wanted { ranks: 4, bytes: 100, size_name: "comm_size" };

    #[test]
    fn the_machine_has_to_hold_the_blocks_of_all_ranks() {
        let quarter = 1 << 50;
        let wanted = Wanted { ranks: 4, bytes: quarter, size_name: "comm_size" };
        let meminfo = |kibibytes: u64| format!("MemTotal:  1 kB\nMemAvailable:   {kibibytes} kB\nBuffers: 2 kB\n");
        let enough = MadeUp::new("enough", &[("meminfo", &meminfo(4 << 40))]);
        assert!(enough.places().check_machine(&wanted).is_ok());
        let too_little = MadeUp::new("too-little", &[("meminfo", &meminfo((4 << 40) - 1))]);
        let text = too_little.places().check_machine(&wanted).unwrap_err().to_string();
        assert!(
            text.contains(&format!("{quarter} bytes of shared memory on each of 4 ranks, {} together", 4_u64 << 50)),
            "{text}"
        );
        assert!(text.contains(&format!("the machine has {} bytes available", (4_u64 << 50) - 1024)), "{text}");
        // Whoever does not say what there is refuses nothing.
        assert!(MadeUp::new("silent", &[]).places().check_machine(&wanted).is_ok());
        assert!(too_little.places().check_machine(&WANTED).is_ok(), "that much is free");
    }

    #[test]
    fn limits_of_the_first_version_are_found_on_all_levels() {
        let files = [
            ("own", "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n"),
            ("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cgroup/memory/memory.usage_in_bytes", "5\n"),
            ("cgroup/memory/a/memory.limit_in_bytes", "1000\n"),
            ("cgroup/memory/a/memory.usage_in_bytes", "900\n"),
            ("cgroup/memory/a/memory.stat", "active_file 1000\ntotal_inactive_file 20\ntotal_active_file 30\n"),
            ("cgroup/memory/a/b/memory.limit_in_bytes", "400\n"),
            ("cgroup/memory/a/b/memory.usage_in_bytes", "10\n"),
        ];
        assert_eq!(MadeUp::new("first", &files).limits(), [(1000, 150), (400, 390)]);
    }

    #[test]
    fn limits_of_the_second_version_are_found_on_all_levels() {
        let files = [
            ("own", "0::/a/b\n"),
            ("cgroup/a/memory.max", "700\n"),
            ("cgroup/a/memory.current", "500\n"),
            ("cgroup/a/memory.stat", "anon 400\ninactive_file 40\nactive_file 30\nslab_reclaimable 20\nslab 25\n"),
            ("cgroup/a/b/memory.max", "max\n"),
            ("cgroup/a/b/memory.current", "500\n"),
        ];
        assert_eq!(MadeUp::new("second", &files).limits(), [(700, 290)]);
        let both = [
            ("own", "4:memory:/\n0::/\n"),
            ("cgroup/memory/memory.limit_in_bytes", "300\n"),
            ("cgroup/memory/memory.usage_in_bytes", "0\n"),
            ("cgroup/unified/memory.max", "200\n"),
            ("cgroup/unified/memory.current", "0\n"),
        ];
        assert_eq!(MadeUp::new("both", &both).limits(), [(200, 200), (300, 300)]);
    }

    #[test]
    fn a_container_that_knows_its_path_on_the_host_only_has_the_limit_of_its_home() {
        let files = [("own", "0::/docker/f00\n"), ("cgroup/memory.max", "399\n"), ("cgroup/memory.current", "0\n")];
        assert_eq!(MadeUp::new("container", &files).limits(), [(399, 399)]);
    }

    #[test]
    fn limits_that_hold_all_ranks_are_none() {
        let reclaimable = [
            ("own", "0::/\n"),
            ("cgroup/memory.max", "500\n"),
            ("cgroup/memory.current", "500\n"),
            ("cgroup/memory.stat", "inactive_file 400\n"),
        ];
        assert_eq!(MadeUp::new("reclaimable", &reclaimable).limits(), []);
        for text in ["", "0::\n", "nonsense\n", "1:memory\n"] {
            assert_eq!(MadeUp::new("none", &[("own", text)]).limits(), []);
        }
    }

    #[test]
    fn a_control_group_has_to_hold_the_ranks_that_are_in_it() {
        let limit = |group, left| Limit { group, bytes: 1000, left };
        // Two of them in one, and one in another.
        let fits: [&[Limit]; 4] = [&[limit(1, 200)], &[limit(1, 200)], &[limit(2, 100)], &[]];
        assert!(check_groups(&fits, &WANTED).is_ok());
        let ranks: [&[Limit]; 4] = [&[limit(1, 201)], &[limit(1, 199), limit(3, 300)], &[limit(2, 100)], &[]];
        let text = check_groups(&ranks, &WANTED).unwrap_err().to_string();
        assert!(text.contains("100 bytes of shared memory on each of 2 ranks, 200 together"), "{text}");
        assert!(text.contains("of ranks 0, 1 may have 1000 bytes, of which 199 are left"), "{text}");
        // In one above.
        let ranks: [&[Limit]; 4] =
            [&[limit(9, 399)], &[limit(1, 100), limit(9, 399)], &[limit(9, 399)], &[limit(9, 399)]];
        let text = check_groups(&ranks, &WANTED).unwrap_err().to_string();
        assert!(text.contains("400 together") && text.contains("of ranks 0, 1, 2, 3 may have"), "{text}");
        let huge = Wanted { bytes: usize::MAX, ..WANTED };
        assert!(check_groups(&ranks, &huge).is_err());
    }
}
