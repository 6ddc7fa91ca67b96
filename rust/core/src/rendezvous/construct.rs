//! The order of construction: allocate → exchange handles → map the peers → agree.
//!
//! The fill comes before the last agreement: a peer that starts early must never have its data overwritten by a late fill.
//! Memory of the host is filled after the exchange of handles, in which the ranks also agree that it is there for all.

use std::fmt::Debug;

use lamport_rs_kernels::plan;
use lamport_rs_protocol::geometry::LAYOUT_VERSION;
use lamport_rs_protocol::sentinel::Vector;

use super::hello::{AS_MEASURED, Hello, Plan, VERSION};
use super::identity::{host_identity, nonce};
use super::phases::Phases;
use super::{Rendezvous, Transcript, matching};
use crate::error::{Error, Result};
use crate::lifecycle::pages::{OwnPage, Pages, PeerPage};
use crate::memory::allowance::{self, Limit, Places, Wanted};
use crate::panics::caught;

/// A kind of memory that crosses processes.
pub trait Backend {
    /// Its name in the API.
    const NAME: &'static str;
    /// Whether ranks must see each other's processes. Otherwise those that do not go without notices.
    const NEEDS_PAGES: bool = true;
    /// A block that this rank owns.
    type Block: Debug;
    /// A mapping of a peer's block.
    type Peer: Debug;

    /// Its name, and what else of it all ranks must have in common.
    fn name(&self) -> String {
        Self::NAME.to_owned()
    }
    /// The device, in words.
    fn device(&self) -> String;
    /// What of the device the plans of launches depend on, where there are any: ranks have to launch equal grids.
    fn plan(&self) -> Option<plan::Device> {
        None
    }
    /// How many bytes of the host's memory a block of `bytes` bytes takes.
    fn host_bytes(_bytes: usize) -> usize {
        0
    }
    /// Allocates `bytes` bytes. Where memory is taken for good by that, it begins to write `word` over all of them.
    fn allocate(&self, bytes: usize, word: u32) -> Result<Self::Block>;
    /// Waits until the block is full of the word.
    fn await_fill(&self, _block: &Self::Block) -> Result<()> {
        Ok(())
    }
    /// Writes the word over a block that `allocate` does not fill. To write memory of the host is to take it: all ranks
    /// know by then that it is there. No peer stores before the agreement that follows.
    fn fill(&self, _block: &Self::Block, _word: u32) -> Result<()> {
        Ok(())
    }
    /// What a peer needs to map `block`. Where a processor can look into a block that it maps, the owner leaves `nonce`
    /// for it to find; elsewhere the workspace proves its mappings by a transfer of its own.
    fn export(&self, block: &mut Self::Block, nonce: Vector) -> Result<Vec<u8>>;
    /// What tells the memory of a handle from another's: no two ranks may send the same. A claim, for `open` to check.
    fn identity(handle: &[u8]) -> &[u8] {
        handle
    }
    /// Maps the block that a peer exported with `nonce`, if it is one of `bytes` bytes, as `allocate` makes them. The
    /// handle is a claim of the peer's: nothing of what it names may be changed before it is known to be such a block.
    fn open(&self, handle: &[u8], nonce: Vector, bytes: usize) -> Result<Self::Peer>;
    /// Called when all peers have mapped `block`.
    fn all_have_mapped(&self, _block: &mut Self::Block) {}
    /// Where `block` is, for this process's processor or device.
    fn own_address(block: &Self::Block) -> u64;
    /// Where `peer` is, likewise.
    fn peer_address(peer: &Self::Peer) -> u64;
}

/// The blocks of all ranks, as this rank has them.
#[derive(Debug)]
pub struct Group<B: Backend> {
    /// The peers', in rank order; `None` at this rank's own place. Dropped first: what is mapped goes before what is owned.
    pub peers: Vec<Option<B::Peer>>,
    /// This rank's own.
    pub own: B::Block,
    /// Each rank's random vector.
    pub nonces: Vec<Vector>,
    /// The ranks' pages of notices, if they were asked for.
    pub pages: Option<Pages>,
}

impl<B: Backend> Group<B> {
    /// Where each rank's block is in this process, in rank order.
    pub fn addresses(&self) -> Vec<u64> {
        let own = B::own_address(&self.own);
        self.peers.iter().map(|peer| peer.as_ref().map_or(own, B::peer_address)).collect()
    }
}

/// What to allocate: bytes and the word to fill them with, and the size that all ranks must agree on.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// This rank.
    pub rank: usize,
    /// Ranks in the group.
    pub world_size: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// What fills it.
    pub word: u32,
    /// The size in the caller's terms.
    pub comm_size: usize,
    /// What the caller's argument for it is called.
    pub size_name: &'static str,
    /// What the caller asked for; all ranks must agree on it too.
    pub two_shot_from: Option<i64>,
    /// Whether operations are to run on it: each rank has a page of notices then, and launches grids that must be equal.
    pub has_operations: bool,
}

/// Allocates, exchanges and maps. `request` is an error where this rank's arguments were wrong: the others hear of it.
///
/// That is two rounds of the rendezvous, which take a good part of the time: hence no third.
pub fn construct<B: Backend>(
    backend: &B,
    rendezvous: &mut Rendezvous<'_>,
    request: Result<Request>,
    phases: &mut Phases,
) -> Result<Group<B>> {
    // What fails, a panic too, is told in the agreement that follows: the peers wait there. What was made until then lives
    // as long, since they may be using it.
    let allocated = caught(|| {
        let request = request?;
        let limits = check_memory::<B>(&request)?;
        let mut block = backend.allocate(request.bytes, request.word)?;
        phases.end("allocate");
        let mut page = if request.has_operations { Some(OwnPage::allocate()?) } else { None };
        phases.end("allocate page");
        let nonce = nonce()?;
        let hello = Hello {
            version: VERSION.to_owned(),
            host: host_identity()?,
            backend: backend.name(),
            world_size: request.world_size as u64,
            comm_size: request.comm_size as u64,
            two_shot_from: request.two_shot_from.map_or(AS_MEASURED, |bytes| bytes as u64),
            device: backend.device(),
            nonce,
            handle: backend.export(&mut block, nonce)?,
            page: page.as_mut().map(|page| page.export(nonce).encode()).unwrap_or_default(),
            layout: LAYOUT_VERSION,
            plan: backend.plan().filter(|_| request.has_operations).map(Plan::of),
            limits,
        };
        phases.end("export");
        // Memory of a device is full before any peer can hear of the block.
        backend.await_fill(&block)?;
        phases.end("await fill");
        Ok((request, block, page, hello))
    });
    let (own, hello) = match allocated {
        Ok((request, block, page, hello)) => (Ok((request, block, page)), Ok(hello)),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    let hellos = rendezvous.agree(hello)?;
    phases.end("exchange handles");
    let (request, mut own, page) = own?;
    matching::check_agreement(&hellos, request.size_name)?;
    rendezvous.check_size(hellos.len())?;
    matching::check_distinct(&hellos, B::identity)?;
    let limits: Vec<_> = hellos.iter().map(|hello| hello.limits.as_slice()).collect();
    allowance::check_groups(&limits, &wanted::<B>(&request))?;
    let mapped = caught(|| {
        let brought = rendezvous.transcript()?;
        backend.fill(&own, request.word)?;
        phases.end("fill");
        let peers = map_peers(backend, &request, &own, &hellos)?;
        phases.end("map");
        Ok((peers, if page.is_some() { map_pages::<B>(request.rank, &hellos)? } else { vec![] }, brought))
    });
    let (peers, pages, brought) = match mapped {
        Ok((peers, pages, brought)) => (peers, pages, Ok(brought)),
        Err(error) => (vec![], vec![], Err(error)),
    };
    phases.end("map pages");
    Transcript::check(&rendezvous.agree(brought)?)?;
    phases.end("agree");
    backend.all_have_mapped(&mut own);
    let nonces = hellos.iter().map(|hello| hello.nonce).collect();
    Ok(Group { own, peers, nonces, pages: page.map(|own| Pages::new(request.rank, own, pages)) })
}

/// What all ranks take of the host's memory.
fn wanted<B: Backend>(request: &Request) -> Wanted {
    Wanted { ranks: request.world_size, bytes: B::host_bytes(request.bytes), size_name: request.size_name }
}

/// Refuses what the machine cannot hold, and returns the limits of this rank's control groups, for all ranks to check.
fn check_memory<B: Backend>(request: &Request) -> Result<Vec<Limit>> {
    let wanted = wanted::<B>(request);
    if wanted.bytes == 0 {
        return Ok(vec![]);
    }
    let places = Places::default();
    places.check_machine(&wanted)?;
    places.limits(&wanted)
}

/// Maps the block of every other rank: the next one's first, so that not all ranks wait in the driver for the first
/// rank's memory.
fn map_peers<B: Backend>(
    backend: &B,
    request: &Request,
    own: &B::Block,
    hellos: &[Hello],
) -> Result<Vec<Option<B::Peer>>> {
    let mut addresses = vec![B::own_address(own)];
    let mut open = |peer: usize| {
        let hello = &hellos[peer];
        let opened = backend.open(&hello.handle, hello.nonce, request.bytes).and_then(|mapped| {
            // What the handles' identities did not tell: a driver that has mapped some memory gives the same address.
            let address = B::peer_address(&mapped);
            if addresses.contains(&address) {
                return Err(Error::Argument("it is the memory of another rank".to_owned()));
            }
            addresses.push(address);
            Ok(mapped)
        });
        opened.map_err(|error| {
            Error::Argument(format!("cannot map the memory of rank {peer} ({}): {error}", hello.device))
        })
    };
    let mut peers: Vec<_> = hellos.iter().map(|_| None).collect();
    for peer in (request.rank + 1..hellos.len()).chain(0..request.rank) {
        peers[peer] = Some(open(peer)?);
    }
    Ok(peers)
}

/// Maps the page of every other rank.
fn map_pages<B: Backend>(rank: usize, hellos: &[Hello]) -> Result<Vec<Option<PeerPage>>> {
    let open = |(peer, hello): (usize, &Hello)| {
        if peer == rank {
            return Ok(None);
        }
        match PeerPage::open(&hello.page, hello.nonce) {
            Ok(page) => Ok(Some(page)),
            Err(_) if !B::NEEDS_PAGES => Ok(None),
            Err(error) => {
                let device = &hello.device;
                Err(Error::Argument(format!("cannot map the page of notices of rank {peer} ({device}): {error}")))
            }
        }
    };
    hellos.iter().enumerate().map(open).collect()
}
