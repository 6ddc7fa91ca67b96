//! The order of construction: allocate → meet → map the peers → agree. To meet takes a round of the transport, which
//! brings the handles. To agree takes another only if something is wrong, or not all ranks see each other's pages and
//! processes.
//!
//! The fill comes before the last agreement: a peer that starts early must never have its data overwritten by a late fill.
//! Memory of the host is filled once the ranks have met, and agree that it is there for all.

use std::sync::Arc;
use std::time::Duration;

use lamport_rs_protocol::construction::{Built, Outcome};
use lamport_rs_protocol::geometry::LAYOUT_VERSION;
use lamport_rs_protocol::sentinel::Vector;

use super::built::are_built;
use super::hello::{AS_MEASURED, Hello, Plan, VERSION};
use super::identity::{host_identity, nonce};
use super::phases::Phases;
use super::{Rendezvous, Transcript, Verdict, matching};
use crate::deferred::await_deferred;
use crate::error::{Error, Result};
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::memory::{PEERS_UNHEARD, WorkspaceMemory, free_later};
use crate::lifecycle::pages::{OwnPage, Pages, PeerPage};
use crate::memory::allowance::{self, Limit, Places, Wanted};
use crate::memory::{GroupMemory, Memory};
use crate::panics::caught;

/// What a construction has made. To drop it is its teardown.
#[derive(Debug)]
pub struct Constructed<M: Memory> {
    /// The blocks of all ranks.
    pub(crate) memory: WorkspaceMemory<M>,
    /// What the ranks tell each other.
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// Each rank's random vector.
    pub nonces: Vec<Vector>,
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
    /// Whether operations are to run on it: each rank launches grids then that must be equal, and a workspace that is on
    /// devices is verified after this.
    pub has_operations: bool,
    /// How long to wait for the others to map what they were brought, but for a second at least; `None` for ever.
    pub timeout: Option<Duration>,
}

/// Allocates, meets the peers and maps their memory. `request` is an error where this rank's arguments were wrong: the
/// others hear of it.
///
/// Where all goes well that is one round of the rendezvous, as a round takes a good part of the time. What the ranks make
/// of its messages they tell through their status pages.
pub fn construct<M: Memory>(
    memory: &M,
    rendezvous: &mut Rendezvous<'_>,
    request: Result<Request>,
    phases: &mut Phases,
) -> Result<Constructed<M>> {
    // What fails, a panic too, is told in the agreement that follows: the peers wait there. What was made until then lives
    // as long, since they may be using it.
    let allocated = caught(|| {
        let request = request?;
        let limits = check_memory::<M>(&request)?;
        let mut block = allocate(memory, &request, &mut || rendezvous.is_interrupted())?;
        phases.end("allocate");
        let mut page = OwnPage::allocate()?;
        phases.end("allocate page");
        let nonce = nonce()?;
        let hello = Hello {
            version: VERSION.to_owned(),
            host: host_identity()?,
            backend: memory.name(),
            world_size: request.world_size as u64,
            comm_size: request.comm_size as u64,
            two_shot_from: request.two_shot_from.map_or(AS_MEASURED, |bytes| bytes as u64),
            device: memory.device(),
            nonce,
            handle: memory.export(&mut block, nonce)?,
            page: page.export(nonce).encode(),
            layout: LAYOUT_VERSION,
            plan: memory.plan().filter(|_| request.has_operations).map(Plan::of),
            limits,
        };
        phases.end("export");
        // Memory of a device is full before any peer can hear of the block.
        memory.await_fill(&block)?;
        phases.end("await fill");
        Ok((request, block, page, hello))
    });
    let (own, hello) = match allocated {
        Ok((request, block, page, hello)) => (Ok((request, block, page)), Ok(hello)),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    let hellos = match rendezvous.conclude(hello) {
        Ok(hellos) => hellos,
        Err(verdict) => {
            // Ranks that were brought all of it wait for what this one makes of it.
            let built = if matches!(verdict, Verdict::Own(_)) { Built::Doubtful } else { Built::Gone };
            own.iter().for_each(|(.., page)| page.tell(built));
            let error = rendezvous.settle(verdict);
            if let Ok((_, block, page)) = own {
                page.unmap();
                // Also where all ranks know, and so none should have mapped it: it may be that a message was forged.
                free_later::<M>(block);
            }
            return Err(error);
        }
    };
    phases.end("meet");
    let (request, mut own, page) = own?;
    let mapped = caught(|| {
        matching::check_agreement(&hellos, request.size_name)?;
        rendezvous.check_size(hellos.len())?;
        matching::check_distinct(&hellos, M::identity)?;
        let limits: Vec<_> = hellos.iter().map(|hello| hello.limits.as_slice()).collect();
        allowance::check_groups(&limits, &wanted::<M>(&request))?;
        let brought = rendezvous.transcript()?;
        memory.fill(&own, request.word, &mut || rendezvous.is_interrupted())?;
        phases.end("fill");
        let peers = map_peers(memory, &request, &own, &hellos)?;
        phases.end("map");
        Ok((peers, map_pages::<M>(request.rank, &hellos)?, brought))
    });
    let (peers, pages, mut brought) = match mapped {
        Ok((peers, pages, brought)) => (peers, pages, Ok(brought)),
        Err(error) => (vec![], pages_there_are(request.rank, request.world_size, &hellos), Err(error)),
    };
    // `page` stays until the peers have mapped it, too.
    let pages = Pages::new(request.rank, &page, pages);
    phases.end("map pages");
    let is_there = brought.is_ok();
    let concluded = match are_built(&pages, request.rank, &mut brought, request.timeout, rendezvous) {
        Ok(true) => Ok(()),
        Ok(false) => rendezvous.conclude(brought).and_then(|ranks| Transcript::check(&ranks).map_err(Verdict::Own)),
        // This rank's own failure says more.
        Err(error) => Err(Verdict::Unserved(brought.err().unwrap_or(error))),
    };
    let lifecycle = Arc::new(Lifecycle::new(request.rank, pages));
    if let Err(verdict) = concluded {
        // Peers may have mapped the block, or, if they were brought something else, have what they constructed.
        let _memory = WorkspaceMemory::new(GroupMemory::<M> { peers, own }, lifecycle.clone());
        let is_verified = is_there && request.has_operations && memory.plan().is_some();
        // Others may verify. That fails without this rank, and they come to another round for the reason, unless one gives up.
        let is_own = matches!(verdict, Verdict::Own(_));
        let own = if is_own { Outcome::Refused } else { Outcome::Abandoned(request.rank) };
        let comes_to_another =
            is_verified && lifecycle.decide(own).map_or(is_own, |outcome| outcome == Outcome::Refused);
        let error = Error::from(verdict);
        if !comes_to_another {
            lifecycle.give_up_construction();
        }
        lifecycle.fail(&error);
        return Err(if comes_to_another { rendezvous.refuse(error) } else { error });
    }
    phases.end("agree");
    memory.all_have_mapped(&mut own);
    let nonces = hellos.iter().map(|hello| hello.nonce).collect();
    let memory = WorkspaceMemory::new(GroupMemory { peers, own }, lifecycle.clone());
    Ok(Constructed { memory, lifecycle, nonces })
}

/// Allocates this rank's block. Where that fails, once more when the memory that earlier failures left has been freed.
fn allocate<M: Memory>(memory: &M, request: &Request, interrupted: Interrupted<'_>) -> Result<M::Block> {
    memory.allocate(request.bytes, request.word).or_else(|error| {
        let is_more_free = await_deferred(PEERS_UNHEARD + INTERRUPT_INTERVAL, interrupted);
        if is_more_free { memory.allocate(request.bytes, request.word) } else { Err(error) }
    })
}

/// What all ranks take of the host's memory.
fn wanted<M: Memory>(request: &Request) -> Wanted {
    Wanted { ranks: request.world_size, bytes: M::host_bytes(request.bytes), size_name: request.size_name }
}

/// Refuses what the machine cannot hold, and returns the limits of this rank's control groups, for all ranks to check.
fn check_memory<M: Memory>(request: &Request) -> Result<Vec<Limit>> {
    let wanted = wanted::<M>(request);
    if wanted.bytes == 0 {
        return Ok(vec![]);
    }
    let places = Places::default();
    places.check_machine(&wanted)?;
    places.limits(&wanted)
}

/// Maps the block of every other rank: the next one's first, so that not all ranks wait in the driver for the first
/// rank's memory.
fn map_peers<M: Memory>(
    memory: &M,
    request: &Request,
    own: &M::Block,
    hellos: &[Hello],
) -> Result<Vec<Option<M::Mapping>>> {
    let mut addresses = vec![M::address(own)];
    let mut open = |peer: usize| {
        let hello = &hellos[peer];
        let opened = memory.map(&hello.handle, hello.nonce, request.bytes).and_then(|mapped| {
            // What the handles' identities did not tell: a driver that has mapped some memory gives the same address.
            let address = M::mapped_address(&mapped);
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
fn map_pages<M: Memory>(rank: usize, hellos: &[Hello]) -> Result<Vec<Option<PeerPage>>> {
    let open = |(peer, hello): (usize, &Hello)| {
        if peer == rank {
            return Ok(None);
        }
        match PeerPage::open(&hello.page, hello.nonce) {
            Ok(page) => Ok(Some(page)),
            Err(_) if !M::NEEDS_PAGES => Ok(None),
            Err(error) => {
                let device = &hello.device;
                Err(Error::Argument(format!("cannot map the status page of rank {peer} ({device}): {error}")))
            }
        }
    };
    hellos.iter().enumerate().map(open).collect()
}

/// Those of the other ranks' pages that can be mapped, where the construction has failed: peers tell there that they have
/// this rank's memory mapped no more.
fn pages_there_are(rank: usize, world_size: usize, hellos: &[Hello]) -> Vec<Option<PeerPage>> {
    let open = |peer: usize| {
        let hello = hellos.get(peer).filter(|_| peer != rank)?;
        PeerPage::open(&hello.page, hello.nonce).ok()
    };
    (0..world_size).map(open).collect()
}
