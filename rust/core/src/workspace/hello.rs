//! What ranks tell each other first, and the mismatches that are errors.

use lamport_rs_protocol::sentinel::Vector;

use crate::error::{Error, Result};
use crate::exchange::{Payload, Reader, Writer};

/// The package's version: ranks of different versions do not share memory.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// [`Hello::two_shot_from`] of a rank that asks for no size of its own.
pub const AS_MEASURED: u64 = u64::MAX;

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
}

impl Payload for Hello {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.text(&self.version).text(&self.host).text(&self.backend).u64(self.world_size).u64(self.comm_size);
        writer.u64(self.two_shot_from).text(&self.device);
        for word in self.nonce {
            writer.u32(word);
        }
        writer.u32(self.handle.len() as u32).bytes(&self.handle).finish()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        Some(Self {
            version: reader.text()?,
            host: reader.text()?,
            backend: reader.text()?,
            world_size: reader.u64()?,
            comm_size: reader.u64()?,
            two_shot_from: reader.u64()?,
            device: reader.text()?,
            nonce: [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?],
            handle: {
                let length = reader.u32()? as usize;
                reader.bytes(length)?.to_vec()
            },
        })
    }
}

/// Whether the ranks agree on everything but their handles. All ranks check the same list, so all raise the same error.
/// `size_name` is what the caller knows [`Hello::comm_size`] by.
pub fn check_agreement(hellos: &[Hello], size_name: &str) -> Result<()> {
    let check = |name: &str, value: &dyn Fn(&Hello) -> String, advice: &str| {
        let values: Vec<String> = hellos.iter().map(value).collect();
        if values.iter().all(|value| *value == values[0]) {
            return Ok(());
        }
        let each: Vec<String> =
            values.iter().enumerate().map(|(rank, value)| format!("rank {rank} has {value}")).collect();
        Err(Error::Agreement(format!("the ranks differ in {name}: {}; {advice}", each.join(", "))))
    };
    check("version of lamport-rs", &|hello| hello.version.clone(), "install the same version everywhere")?;
    check("host", &|hello| hello.host.clone(), "the ranks of a group must run on one host")?;
    check("backend", &|hello| hello.backend.clone(), "pass the same backend and kind of device on every rank")?;
    check("world_size", &|hello| hello.world_size.to_string(), "pass the group's size on every rank")?;
    let advice = format!("pass the same {size_name} on every rank");
    check(size_name, &|hello| hello.comm_size.to_string(), &advice)?;
    let two_shot_from = |hello: &Hello| match hello.two_shot_from {
        AS_MEASURED => "None".to_owned(),
        bytes => bytes.to_string(),
    };
    check("two_shot_from", &two_shot_from, "pass the same on every rank")
}

/// The host's name and the identity of its present boot: equal for all processes under one kernel, containers included.
pub fn host_identity() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.trim();
    // Containers on one host may have names of their own; the boot decides, the name is for people.
    if boot.is_empty() { name } else { boot.to_owned() }
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
    Ok(lamport_rs_protocol::sentinel::scrub([word(0), word(4), word(8), word(12)]))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
    }

    #[test]
    fn a_hello_survives_its_encoding() {
        assert_eq!(Hello::decode(&hello().encode()), Some(hello()));
    }

    #[test]
    fn a_cut_hello_is_not_decoded() {
        let bytes = hello().encode();
        assert!((0..bytes.len()).all(|length| Hello::decode(&bytes[..length]).is_none()));
    }

    #[test]
    fn every_mismatch_names_the_field_and_what_each_rank_has() {
        let changed = [
            ("version of lamport-rs: rank 0 has", Hello { version: "9.9".into(), ..hello() }),
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
        assert!(error.ends_with("pass the same size on every rank") && !error.contains("comm_size"), "{error}");
    }
}
