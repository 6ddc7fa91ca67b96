//! What ranks tell each other first.

use std::fmt;

use lamport_rs_kernels::plan;
use lamport_rs_protocol::sentinel::{Vector, scrub};

use super::Payload;
use crate::memory::allowance::Limit;
use crate::wire::{Reader, Writer};

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
    /// The host and its boot, as `host_identity` tells.
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
    /// The handle of the sender's status page.
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

#[cfg(test)]
pub(super) mod tests {
    use lamport_rs_protocol::geometry::LAYOUT_VERSION;

    use super::*;
    use crate::rendezvous::message::MESSAGE_BYTES;

    pub fn hello() -> Hello {
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

    pub fn device() -> plan::Device {
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
}
