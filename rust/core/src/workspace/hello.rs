//! What ranks tell each other first, and the mismatches that are errors.

use std::collections::HashMap;
use std::fmt;

use lamport_rs_kernels::plan;
use lamport_rs_protocol::sentinel::{Vector, scrub};

use crate::error::{Error, Result};
use crate::exchange::{Payload, Reader, Writer, enumerate};
use crate::memory::allowance::Limit;
use crate::memory::handle::Handle;

/// The package's version: ranks of different versions do not share memory.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// [`Hello::two_shot_from`] of a rank that asks for no size of its own.
pub const AS_MEASURED: u64 = u64::MAX;

// Bytes of each field of variable length, at most: with the others they fit into a message, whatever a peer sends.
const VERSION_BYTES: u8 = 32;
const HOST_BYTES: u8 = 64;
const BACKEND_BYTES: u8 = 16;
const DEVICE_BYTES: u8 = 140;
const HANDLE_BYTES: usize = 80;
const PAGE_BYTES: usize = 32;
/// Limits of control groups, the narrowest, that a rank tells.
const MOST_LIMITS: usize = 2;

/// One rank's introduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: String,
    /// The host and its boot, as [`host_identity`] tells.
    pub host: String,
    /// Name of the memory backend.
    pub backend: String,
    /// Ranks in the group.
    pub world_size: u64,
    /// Bytes per slot, or per buffer.
    pub comm_size: u64,
    /// Bytes from which tensors are summed in two shots.
    pub two_shot_from: u64,
    /// The device, in words.
    pub device: String,
    /// What will prove, by arriving as it is, that the sender's memory is mapped rightly.
    pub nonce: Vector,
    /// The backend's handle of the sender's block.
    pub handle: Vec<u8>,
    /// The handle of the sender's page of notices; empty where there is none.
    pub page: Vec<u8>,
    /// How the sender lays out its block.
    pub layout: u32,
    /// What the sender's launches depend on; none where there are no launches.
    pub plan: Option<Plan>,
    /// The narrowest limits of the sender's control groups that the ranks might exceed together.
    pub limits: Vec<Limit>,
}

/// What of a device the plans of launches depend on, as it travels. Kernels of a group wait for their peers' blocks, one by
/// one, so the grids have to be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan([u16; 5]);

impl Plan {
    /// Of `device`.
    pub fn of(device: plan::Device) -> Self {
        // All of it: what is added there has to be compared, too.
        let plan::Device {
            compute_capability: (major, minor),
            multiprocessors,
            threads_per_multiprocessor,
            blocks_per_multiprocessor,
        } = device;
        let numbers = [major, minor, multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor];
        Self(numbers.map(|number| u16::try_from(number).unwrap_or(u16::MAX)))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, multiprocessors, threads, blocks] = self.0;
        write!(f, "{multiprocessors} multiprocessors of sm_{major}{minor} for {threads} threads and {blocks} blocks")
    }
}

impl Payload for Hello {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.text(&self.version, VERSION_BYTES).text(&self.host, HOST_BYTES).text(&self.backend, BACKEND_BYTES);
        writer.u64(self.world_size).u64(self.comm_size).u64(self.two_shot_from).text(&self.device, DEVICE_BYTES);
        for word in self.nonce {
            writer.u32(word);
        }
        for (handle, most) in [(&self.handle, HANDLE_BYTES), (&self.page, PAGE_BYTES)] {
            assert!(handle.len() <= most, "a handle of {} bytes does not fit", handle.len());
            writer.u32(handle.len() as u32).bytes(handle);
        }
        writer.u32(self.layout);
        for number in self.plan.map_or([0; 5], |plan| plan.0) {
            writer.u16(number);
        }
        let limits = &self.limits[..self.limits.len().min(MOST_LIMITS)];
        writer.bytes(&[limits.len() as u8]);
        for limit in limits {
            writer.u64(limit.group).u64(limit.bytes).u64(limit.left);
        }
        writer.finish()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let hello = Self {
            version: reader.text(VERSION_BYTES)?,
            host: reader.text(HOST_BYTES)?,
            backend: reader.text(BACKEND_BYTES)?,
            world_size: reader.u64()?,
            comm_size: reader.u64()?,
            two_shot_from: reader.u64()?,
            device: reader.text(DEVICE_BYTES)?,
            nonce: [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?],
            handle: handle(&mut reader, HANDLE_BYTES)?,
            page: handle(&mut reader, PAGE_BYTES)?,
            layout: reader.u32()?,
            plan: plan(&mut reader)?,
            limits: limits(&mut reader)?,
        };
        reader.end()?;
        // A reader would wait for words that look like memory nobody has written to.
        (scrub(hello.nonce) == hello.nonce).then_some(hello)
    }
}

fn handle(reader: &mut Reader<'_>, most: usize) -> Option<Vec<u8>> {
    let length = usize::try_from(reader.u32()?).ok().filter(|length| *length <= most)?;
    reader.bytes(length).map(<[u8]>::to_vec)
}

fn plan(reader: &mut Reader<'_>) -> Option<Option<Plan>> {
    let numbers = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    Some((numbers != [0; 5]).then_some(Plan(numbers)))
}

fn limits(reader: &mut Reader<'_>) -> Option<Vec<Limit>> {
    let count = usize::from(*reader.bytes(1)?.first()?);
    if count > MOST_LIMITS {
        return None;
    }
    (0..count).map(|_| Some(Limit { group: reader.u64()?, bytes: reader.u64()?, left: reader.u64()? })).collect()
}

/// Whether the ranks agree on everything but what is each rank's own. All ranks check the same list, so all raise the same error.
/// `size_name` is what the caller knows [`Hello::comm_size`] by.
pub fn check_agreement(hellos: &[Hello], size_name: &str) -> Result<()> {
    let check = |name: &str, value: &dyn Fn(&Hello) -> String, advice: &str| {
        let values: Vec<String> = hellos.iter().map(value).collect();
        if values.iter().all(|value| *value == values[0]) {
            return Ok(());
        }
        let each = values.iter().enumerate().map(|(rank, value)| format!("rank {rank} has {value}"));
        Err(Error::Agreement(format!("the ranks differ in {name}: {}; {advice}", enumerate(each, ", "))))
    };
    let same_everywhere = "install the same version everywhere";
    check("version of lamport-rs", &|hello| hello.version.clone(), same_everywhere)?;
    check("layout of their memory", &|hello| hello.layout.to_string(), same_everywhere)?;
    check("host", &|hello| hello.host.clone(), "the ranks of a group must run on one host")?;
    check(
        "backend",
        &|hello| hello.backend.clone(),
        "pass the same backend and kind of device on every rank, and set LAMPORT_RS_CHECK alike",
    )?;
    check("world_size", &|hello| hello.world_size.to_string(), "pass the group's size on every rank")?;
    check_plans(hellos)?;
    let advice = format!(
        "pass the same {size_name} on every rank; threads that create over one group must do so in the same order on every \
         rank"
    );
    check(size_name, &|hello| hello.comm_size.to_string(), &advice)?;
    let two_shot_from = |hello: &Hello| match hello.two_shot_from {
        AS_MEASURED => "None".to_owned(),
        bytes => bytes.to_string(),
    };
    check("two_shot_from", &two_shot_from, "pass the same on every rank")
}

/// Whether the ranks' devices are alike in all that launches depend on: of a larger grid than a peer's, blocks would wait
/// for blocks that are not there.
fn check_plans(hellos: &[Hello]) -> Result<()> {
    if hellos.iter().all(|hello| hello.plan == hellos[0].plan) {
        return Ok(());
    }
    let each = hellos.iter().enumerate().map(|(rank, Hello { device, plan, .. })| {
        format!("rank {rank} has {device}: {}", plan.map_or_else(|| "none".to_owned(), |plan| plan.to_string()))
    });
    Err(Error::Agreement(format!(
        "the ranks differ in what their kernels can be launched on, and so cannot launch equal grids: {}; give every rank \
         of a group a GPU, or a partition of one, of the same kind",
        enumerate(each, ", ")
    )))
}

/// Whether every rank sent memory of its own. `identity` is what tells a handle's memory from another's. All ranks check
/// the same list, so all raise the same error.
pub fn check_distinct(hellos: &[Hello], identity: fn(&[u8]) -> &[u8]) -> Result<()> {
    check_owners(hellos.iter().map(|hello| identity(&hello.handle)))?;
    check_owners(hellos.iter().filter(|hello| !hello.page.is_empty()).map(|hello| Handle::file(&hello.page)))
}

fn check_owners<'a>(memories: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    let mut owners = HashMap::new();
    for (rank, memory) in memories.enumerate() {
        if let Some(owner) = owners.insert(memory, rank) {
            return Err(Error::Agreement(format!(
                "rank {owner} and rank {rank} sent handles of the same memory; each must send the handle of its own"
            )));
        }
    }
    Ok(())
}

/// What tells a boot of a host from all others.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The identity of the host's present boot: equal for all processes under one kernel, containers included. The host's
/// name where the kernel does not tell; containers on one host may have names of their own.
pub fn host_identity() -> Result<String> {
    match std::fs::read_to_string(BOOT) {
        Ok(boot) if !boot.trim().is_empty() => Ok(boot.trim().to_owned()),
        // That this process has no descriptor left must not make it one of another host.
        Err(error) if !is_hidden(&error) => Err(Error::system(format!("reading {BOOT}"), error)),
        _ => Ok(rustix::system::uname().nodename().to_string_lossy().into_owned()),
    }
}

/// Whether the kernel or a container does not show the file, to any process.
fn is_hidden(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied)
}

/// Random words, none of them the sentinel's.
pub fn nonce() -> Result<Vector> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::system("getrandom", error))?;
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(scrub([word(0), word(4), word(8), word(12)]))
}

#[cfg(test)]
mod tests {
    use lamport_rs_protocol::geometry::LAYOUT_VERSION;

    use super::*;
    use crate::exchange::MESSAGE_BYTES;

    fn hello() -> Hello {
        Hello {
            version: VERSION.into(),
            host: "here".into(),
            backend: "host".into(),
            world_size: 2,
            comm_size: 4096,
            two_shot_from: AS_MEASURED,
            device: "cpu".into(),
            nonce: [1, 2, 3, 4],
            handle: vec![5; 64],
            page: vec![6; 32],
            layout: LAYOUT_VERSION,
            plan: None,
            limits: vec![],
        }
    }

    fn device() -> plan::Device {
        plan::Device {
            compute_capability: (9, 0),
            multiprocessors: 132,
            threads_per_multiprocessor: 2048,
            blocks_per_multiprocessor: 32,
        }
    }

    const LIMIT: Limit = Limit { group: u64::MAX, bytes: 1 << 40, left: 7 };

    #[test]
    fn a_hello_survives_its_encoding() {
        assert_eq!(Hello::decode(&hello().encode()), Some(hello()));
        let other = Hello { plan: Some(Plan::of(device())), limits: vec![LIMIT, LIMIT], ..hello() };
        assert_eq!(Hello::decode(&other.encode()), Some(other));
    }

    #[test]
    fn a_hello_tells_the_first_limits_and_no_more_are_decoded() {
        let several = Hello { limits: vec![LIMIT; 5], ..hello() }.encode();
        assert_eq!(Hello::decode(&several).unwrap().limits, [LIMIT; MOST_LIMITS]);
        let mut more = Hello { limits: vec![LIMIT; MOST_LIMITS], ..hello() }.encode();
        let count = more.len() - MOST_LIMITS * 24 - 1;
        more[count] += 1;
        more.extend([0; 24]);
        assert_eq!(Hello::decode(&more), None);
    }

    #[test]
    fn ranks_whose_devices_launch_other_grids_are_refused_by_name() {
        let of = |name: &str, plan| Hello { device: name.into(), plan: Some(Plan::of(plan)), ..hello() };
        let alike = [of("cuda:0", device()), of("cuda:1", device())];
        assert!(check_agreement(&alike, "comm_size").is_ok());
        let others = [
            plan::Device { compute_capability: (9, 1), ..device() },
            plan::Device { compute_capability: (10, 0), ..device() },
            plan::Device { multiprocessors: 114, ..device() },
            plan::Device { threads_per_multiprocessor: 1536, ..device() },
            plan::Device { blocks_per_multiprocessor: 24, ..device() },
        ];
        for other in others {
            let error = check_agreement(&[alike[0].clone(), of("cuda:1", other)], "comm_size").unwrap_err().to_string();
            let first = "rank 0 has cuda:0: 132 multiprocessors of sm_90 for 2048 threads and 32 blocks";
            assert!(error.contains(first), "{error}");
            assert!(error.contains(&format!("rank 1 has cuda:1: {}", Plan::of(other))), "{error}");
        }
    }

    #[test]
    fn a_cut_hello_is_not_decoded() {
        let bytes = hello().encode();
        assert!((0..bytes.len()).all(|length| Hello::decode(&bytes[..length]).is_none()));
    }

    #[test]
    fn a_hello_with_bytes_behind_its_end_is_not_decoded() {
        assert_eq!(Hello::decode(&[hello().encode().as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn a_hello_whose_nonce_looks_like_empty_memory_is_not_decoded() {
        let sentinel = lamport_rs_protocol::sentinel::SENTINEL;
        assert_eq!(Hello::decode(&Hello { nonce: [1, 2, sentinel, 4], ..hello() }.encode()), None);
    }

    #[test]
    fn the_longest_hello_fits_into_a_message_and_longer_fields_are_not_decoded() {
        let long = |bytes| "x".repeat(bytes);
        let longest = Hello {
            version: long(VERSION_BYTES.into()),
            host: long(HOST_BYTES.into()),
            backend: long(BACKEND_BYTES.into()),
            device: long(DEVICE_BYTES.into()),
            handle: vec![5; HANDLE_BYTES],
            plan: Some(Plan::of(device())),
            limits: vec![LIMIT; MOST_LIMITS],
            ..hello()
        };
        assert!(longest.encode().len() <= MESSAGE_BYTES - 32);
        assert_eq!(Hello::decode(&longest.encode()), Some(longest.clone()));
        let with_device_of = |bytes: u8| {
            let before = 33 + 65 + 17 + 24;
            let mut message = longest.encode();
            message
                .splice(before..=before + usize::from(DEVICE_BYTES), [vec![bytes], vec![b'x'; bytes.into()]].concat());
            Hello::decode(&message)
        };
        assert_eq!(with_device_of(DEVICE_BYTES), Some(longest.clone()));
        assert_eq!(with_device_of(DEVICE_BYTES + 1), None);
    }

    #[test]
    fn texts_of_a_hello_cannot_write_to_a_terminal() {
        let decoded = Hello::decode(&Hello { device: "cpu\n\u{1b}[2J".into(), ..hello() }.encode()).unwrap();
        assert_eq!(decoded.device, r"cpu\n\u{1b}[2J");
    }

    #[test]
    fn ranks_that_send_the_same_memory_are_named() {
        let other = |handle| Hello { handle, page: vec![], ..hello() };
        let ranks = [other(vec![1, 7]), other(vec![2, 8]), other(vec![3, 7])];
        assert!(check_distinct(&ranks, |handle| handle).is_ok());
        let error = check_distinct(&ranks, |handle| &handle[1..]).unwrap_err().to_string();
        assert!(error.starts_with("rank 0 and rank 2 sent handles of the same memory"), "{error}");
        let other = |handle| Hello { handle, ..hello() };
        let error = check_distinct(&[other(vec![1]), other(vec![2])], |handle| handle).unwrap_err().to_string();
        assert!(error.starts_with("rank 0 and rank 1 sent handles of the same memory"), "{error}");
    }

    #[test]
    fn every_mismatch_names_the_field_and_what_each_rank_has() {
        let changed = [
            ("version of lamport-rs: rank 0 has", Hello { version: "9.9".into(), ..hello() }),
            ("layout of their memory: rank 0 has", Hello { layout: 1, ..hello() }),
            ("host: rank 0 has here, rank 1 has there", Hello { host: "there".into(), ..hello() }),
            ("backend: rank 0 has host, rank 1 has cuda", Hello { backend: "cuda".into(), ..hello() }),
            ("world_size: rank 0 has 2, rank 1 has 4", Hello { world_size: 4, ..hello() }),
            ("comm_size: rank 0 has 4096, rank 1 has 8192", Hello { comm_size: 8192, ..hello() }),
            ("two_shot_from: rank 0 has None, rank 1 has 64", Hello { two_shot_from: 64, ..hello() }),
        ];
        for (text, other) in changed {
            let error = check_agreement(&[hello(), other], "comm_size").unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let others = [hello(), Hello { handle: vec![], nonce: [9; 4], ..hello() }];
        assert!(check_agreement(&others, "comm_size").is_ok());
    }

    #[test]
    fn a_mismatch_in_size_is_told_by_the_callers_name_for_it() {
        let ranks = [hello(), Hello { comm_size: 8192, ..hello() }];
        let error = check_agreement(&ranks, "size").unwrap_err().to_string();
        assert!(error.contains("pass the same size on every rank; ") && !error.contains("comm_size"), "{error}");
    }
}
