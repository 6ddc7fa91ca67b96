//! One construction, what the peers of one rank lie in, and what must hold in the end.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_core::error::Result;
use lamport_rs_core::memory::cuda::CudaMemory;
use lamport_rs_core::memory::host::HostMemory;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::buffer::Buffer;
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::notices::{Stage, StatusWords};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::allocations;
use crate::calls::{Call, Called, calls};
use crate::devices::{Devices, is_good};
use crate::lies::{Deed, Lie, Proof, Told, deeds, lie, meddling, parts, proofs, told};
use crate::pages::Pages;
use crate::peers::{NONCE, Peers, Strangers};
use crate::results;
use crate::runner::{LONGEST, check_text};
use crate::standin::either::Either;

pub const COMM_SIZE: usize = 4096;
/// How long operations wait for peers. For their mappings a rank waits a second at least.
const TIMEOUT: Duration = Duration::from_millis(2);
/// Bytes of the largest allocation, and of the longest error: more than the fill of a block takes.
const LARGEST_ALLOCATION: usize = 128 << 10;
const LONGEST_TEXT: usize = 32 << 10;

/// What is constructed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Workspace,
    Buffer,
    DeviceWorkspace,
    DeviceBuffer,
}

impl Kind {
    pub fn is_on_device(self) -> bool {
        matches!(self, Self::DeviceWorkspace | Self::DeviceBuffer)
    }

    /// Whether the ranks prove to each other that stores arrive.
    pub fn is_verified(self) -> bool {
        self == Self::DeviceWorkspace
    }
}

/// What peers do again and again, from a thread of their own, while this rank's calls run.
#[derive(Clone, Debug)]
pub struct Meddling {
    deeds: Vec<(usize, Deed)>,
    /// Turns of a loop between two of them.
    pace: u32,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub kind: Kind,
    pub rank: usize,
    pub ranks: usize,
    /// Step, whose message ([`Case::rank_of`]) and lie.
    pub lies: Vec<(usize, usize, Lie)>,
    /// What each peer's page says of the construction.
    pub told: [Told; 4],
    /// What each peer stores for the verification.
    pub proofs: [Proof; 4],
    /// What this rank runs then.
    pub call: Call,
    /// What the peers do before.
    pub deeds: Vec<(usize, Deed)>,
    /// What they do meanwhile.
    pub meddling: Meddling,
}

/// Cases of the host, or of devices.
pub fn cases(on_devices: bool) -> impl Strategy<Value = Case> {
    let kinds = if on_devices { [Kind::DeviceWorkspace, Kind::DeviceBuffer] } else { [Kind::Workspace, Kind::Buffer] };
    let who = prop_oneof![1 => Just(0_usize), 9 => 1..4_usize];
    let lies = vec((prop_oneof![3 => Just(0_usize), 1 => Just(1)], who, lie(on_devices)), 0..4);
    let meddling = at_some_pace(meddling());
    (
        proptest::sample::select(kinds.to_vec()),
        2..=4_usize,
        0..4_usize,
        lies,
        told(),
        proofs(),
        calls(),
        deeds(),
        meddling,
    )
        .prop_map(|(kind, ranks, rank, lies, told, proofs, call, deeds, meddling)| Case {
            kind,
            rank: rank % ranks,
            ranks,
            lies,
            told,
            proofs,
            call,
            deeds,
            meddling,
        })
}

/// Cases of workspaces of peers that say what is true until they have them, and then take part as they like.
pub fn cases_of_calls(on_devices: bool) -> impl Strategy<Value = Case> {
    let kind = if on_devices { Kind::DeviceWorkspace } else { Kind::Workspace };
    let ranks = prop_oneof![2 => Just(2_usize), 1 => 3..=4_usize];
    let deeds = prop_oneof![1 => Just(vec![]), 1 => deeds()];
    (ranks, 0..4_usize, calls(), deeds, at_some_pace(parts())).prop_map(move |(ranks, rank, call, deeds, meddling)| {
        Case {
            kind,
            rank: rank % ranks,
            ranks,
            lies: vec![],
            told: [Told::Whole; 4],
            proofs: [Proof::Good; 4],
            call,
            deeds,
            meddling,
        }
    })
}

fn at_some_pace(deeds: impl Strategy<Value = Vec<(usize, Deed)>>) -> impl Strategy<Value = Meddling> {
    let pace = prop_oneof![1 => Just(0), 1 => 0..200_u32];
    (deeds, pace).prop_map(|(deeds, pace)| Meddling { deeds, pace })
}

/// What one rank has, in the end: kept, for its memory to stay.
enum Made {
    Workspace(Box<HostWorkspace>),
    Buffer(Buffer<HostMemory>),
    DeviceWorkspace(Arc<CudaWorkspace>),
    DeviceBuffer(Buffer<CudaMemory>),
}

impl Made {
    fn addresses(&self, ranks: usize) -> Vec<u64> {
        let of_table = |table: &[i64]| table[2 * ranks..3 * ranks].iter().map(|address| *address as u64).collect();
        match self {
            Self::Workspace(workspace) => of_table(workspace.table()),
            Self::Buffer(buffer) => buffer.addresses(),
            Self::DeviceWorkspace(workspace) => {
                let (address, length) = workspace.table();
                // SAFETY: the stand-in's device memory is this process's, and nothing runs on the device now.
                of_table(unsafe { std::slice::from_raw_parts(address as *const i64, length) })
            }
            Self::DeviceBuffer(buffer) => buffer.addresses(),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Workspace(workspace) => workspace.lifecycle().check(),
            Self::DeviceWorkspace(workspace) => workspace.check(),
            Self::Buffer(buffer) => buffer.check(),
            Self::DeviceBuffer(buffer) => buffer.check(),
        }
    }

    /// Runs a call, if there is a workspace.
    fn run(&self, call: Call) -> Option<Called> {
        match self {
            Self::Workspace(workspace) => Some(call.run(Either::Host(workspace))),
            Self::DeviceWorkspace(workspace) => Some(call.run(Either::Cuda(workspace))),
            Self::Buffer(_) | Self::DeviceBuffer(_) => None,
        }
    }

    fn reset(&self) -> Result<()> {
        match self {
            Self::Workspace(workspace) => workspace.reset(Some(TIMEOUT), &mut || false),
            Self::DeviceWorkspace(workspace) => workspace.reset(Some(TIMEOUT), &mut || false),
            Self::Buffer(_) | Self::DeviceBuffer(_) => Ok(()),
        }
    }
}

impl Case {
    /// The rank itself for 0, and else one of its peers.
    pub fn rank_of(&self, who: usize) -> usize {
        let distance = who.checked_sub(1).map_or(0, |peer| 1 + peer % (self.ranks - 1));
        (self.rank + distance) % self.ranks
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(self.ranks as i64, COMM_SIZE as i64).unwrap()
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        match self.kind {
            Kind::Workspace => self.geometry().used_bytes(),
            Kind::DeviceWorkspace => self.geometry().block_bytes(),
            Kind::Buffer | Kind::DeviceBuffer => COMM_SIZE,
        }
    }

    fn construct(&self, devices: &Devices, peers: &mut Peers<'_>) -> Result<Made> {
        let (rank, world_size, comm_size) = (self.rank as i64, self.ranks as i64, COMM_SIZE as i64);
        let timeout = TIMEOUT.as_secs_f64();
        let settings = Settings { rank, world_size, comm_size, timeout, two_shot_from: None };
        let device = devices.devices[self.rank].clone();
        match self.kind {
            Kind::Workspace => HostWorkspace::create(&settings, peers).map(Box::new).map(Made::Workspace),
            Kind::Buffer => Buffer::create(&HostMemory, rank, world_size, comm_size, timeout, peers).map(Made::Buffer),
            Kind::DeviceWorkspace => CudaWorkspace::create(&settings, Ok(device), peers).map(Made::DeviceWorkspace),
            Kind::DeviceBuffer => {
                let memory = CudaMemory::new(device);
                Buffer::create(&memory, rank, world_size, comm_size, timeout, peers).map(Made::DeviceBuffer)
            }
        }
    }

    pub fn check(&self, strangers: &Strangers, devices: &Devices) -> std::result::Result<(), TestCaseError> {
        let started = Instant::now();
        let mut peers = Peers::new(self, strangers, devices);
        let (outcome, largest) = allocations::largest_of(|| self.construct(devices, &mut peers));
        prop_assert!(largest <= LARGEST_ALLOCATION, "allocated {largest} bytes at once");
        self.check_outcome(&outcome, &peers)?;
        if let Ok(made) = &outcome {
            self.check_memory(made, &peers)?;
            let (checked, largest) = allocations::largest_of(|| self.use_beside_peers(made, &peers));
            checked?;
            prop_assert!(largest <= LARGEST_ALLOCATION, "allocated {largest} bytes at once");
        }
        peers.leave();
        drop(outcome);
        prop_assert!(started.elapsed() < LONGEST, "took {:?}", started.elapsed());
        prop_assert!(strangers.is_untouched(), "a stranger's file was written to");
        prop_assert_eq!(devices.standin.violations(), "");
        Ok(())
    }

    /// Whether the ranks may have what they construct.
    fn check_outcome(&self, outcome: &Result<Made>, peers: &Peers<'_>) -> std::result::Result<(), TestCaseError> {
        let is_any_gone = peers.ranks().any(|peer| self.told[peer] == Told::Gone);
        // As others that verify may take it.
        let may_be_gone = peers.ranks().any(|peer| matches!(self.told[peer], Told::Gone | Told::Decided(_)));
        let are_proofs_good = !self.kind.is_verified() || peers.ranks().all(|peer| is_good(self.proofs[peer], NONCE));
        match outcome {
            Err(error) => {
                prop_assert!(!self.lies.is_empty() || may_be_gone || !are_proofs_good, "the truth is refused: {error}");
                check_text(&error.to_string(), LONGEST_TEXT)
            }
            Ok(_) => {
                // A page that cannot be mapped tells nothing.
                prop_assert!(!self.lies.is_empty() || !is_any_gone, "a rank has given up");
                prop_assert!(are_proofs_good, "stores of a rank do not arrive");
                Ok(())
            }
        }
    }

    /// Every peer has a block of its own: one that a peer made, from its first word to its last. (Peers that lie together
    /// can exchange theirs.) Read as a file, where what is not there is an error and not a fault.
    fn check_memory(&self, made: &Made, peers: &Peers<'_>) -> std::result::Result<(), TestCaseError> {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut found = vec![];
        let addresses = made.addresses(self.ranks);
        for peer in peers.ranks() {
            let [mut first, mut last] = [[0; 4]; 2];
            let read = memory.read_exact_at(&mut first, addresses[peer]);
            let read = read.and(memory.read_exact_at(&mut last, addresses[peer] + self.bytes() as u64 - 4));
            prop_assert!(read.is_ok(), "the block of rank {peer} is not there: {read:?}");
            let word = u32::from_le_bytes(first);
            prop_assert!(first == last && peers.is_tag(word), "{first:x?} to {last:x?} in the block of rank {peer}");
            prop_assert!(!found.contains(&word), "the block of rank {peer} is another's too");
            found.push(word);
        }
        Ok(())
    }

    /// Whatever peers do beside a workspace, its calls end, with an error if need be.
    fn use_beside_peers(&self, made: &Made, peers: &Peers<'_>) -> std::result::Result<(), TestCaseError> {
        if self.deeds.is_empty() && self.meddling.deeds.is_empty() {
            return Ok(());
        }
        let (own, header, pages) = (made.addresses(self.ranks)[self.rank], self.header(), &peers.pages);
        let act = |deeds: &[(usize, Deed)]| {
            deeds.iter().for_each(|(who, deed)| self.act(self.rank_of(*who), deed, own, header, pages));
        };
        act(&self.deeds);
        let is_over = AtomicBool::new(self.meddling.deeds.is_empty());
        std::thread::scope(|scope| {
            // Also if a call panics.
            let _over = Over(&is_over);
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for deed in &self.meddling.deeds {
                        act(std::slice::from_ref(deed));
                        (0..self.meddling.pace).for_each(|_| std::hint::spin_loop());
                    }
                    std::thread::yield_now();
                }
            });
            self.use_it(made)
        })
    }

    fn use_it(&self, made: &Made) -> std::result::Result<(), TestCaseError> {
        let ended = |outcome: Result<()>| outcome.map_or_else(|error| check_text(&error.to_string(), LONGEST_TEXT), Ok);
        let run = || {
            let Some(called) = made.run(self.call) else { return Ok(()) };
            results::check(self, &called)?;
            ended(called.outcome)
        };
        ended(made.check())?;
        run()?;
        ended(made.check())?;
        ended(made.reset())?;
        run()?;
        ended(made.check())
    }

    /// What a peer does that has this rank's block at `own`.
    fn act(&self, peer: usize, deed: &Deed, own: u64, header: Header, pages: &Pages) {
        let store = |at: usize, word: u32| {
            let place = own as usize + at % self.bytes() / 4 * 4;
            // SAFETY: within the block, whose words others store too.
            unsafe { &*(place as *const AtomicU32) }.store(word, Ordering::Relaxed);
        };
        let store_vector =
            |at: usize, words: &[u32; 4]| words.iter().zip(0..).for_each(|(word, by)| store(at + 4 * by, *word));
        match deed {
            Deed::Notice(words) => pages.notify(peer, self.ranks, words),
            Deed::PageWord(is_own, at, word) => {
                pages.store(if *is_own { self.rank } else { peer }, *at, *word);
            }
            Deed::Stage(stage) => {
                let stages = pages.stages(peer, self.ranks);
                stages.arrive(
                    [Stage::Stopped, Stage::Filled, Stage::None, Stage::Stopped, Stage::Filled][*stage as usize],
                );
            }
            Deed::Header(words) => {
                store_vector(self.geometry().header_offset(0, peer), &words.unwrap_or(header));
            }
            Deed::Data(words) => {
                // Whatever is its region of the slot: this rank does not read its own.
                for at in (0..COMM_SIZE).step_by(16) {
                    store_vector(at, words);
                }
            }
            Deed::BlockWord(at, word) => store(4 * at, *word),
            // In the place of the header that this rank would send itself.
            Deed::Parking(word) => store(self.geometry().header_offset(0, self.rank), *word),
        }
    }

    /// Of this rank's first operation.
    pub fn header(&self) -> Header {
        self.call.header(self.kind.is_on_device())
    }

    /// What the peers do before and meanwhile.
    pub fn all_deeds(&self) -> impl Iterator<Item = (usize, &Deed)> {
        let deeds = self.deeds.iter().chain(&self.meddling.deeds);
        deeds.map(|(who, deed)| (self.rank_of(*who), deed))
    }
}

/// Says that it is over when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
