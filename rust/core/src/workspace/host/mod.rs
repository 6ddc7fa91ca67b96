//! The workspace over shared memory.

mod control;
mod teardown;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lamport_rs_protocol::exchange::{Collective, Extent, Member, exchange};
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::sentinel::SENTINEL;
use lamport_rs_protocol::table::Control;
use lamport_rs_protocol::two_shot::{ShardedCollective, exchange_two_shot};

use self::control::ControlWords;
use crate::error::{Error, Result};
use crate::interrupts::{Interrupted, Interrupts};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::memory::WorkspaceMemory;
use crate::lifecycle::pages::Pages;
use crate::memory::host::{Block, HostMemory, Mapping};
use crate::memory::host_slots::Blocks;
use crate::memory::{GroupMemory, Memory};
use crate::operations::description::{Description, NUMBER_MASK, Operation};
use crate::parking::Parking;
use crate::rendezvous::construct::{Constructed, construct};
use crate::rendezvous::phases::Phases;
use crate::rendezvous::{AllGather, Rendezvous};
use crate::wait::{BoundedWait, WaitPolicy};
use crate::workspace::Settings;
use crate::workspace::exclusive::{Access, Exclusive, ThreadGate};

/// What one operation at a time may touch.
#[derive(Debug)]
struct State {
    /// What the operation before left in the control words.
    control: Control,
    /// Working memory of operations, kept to spare its allocation.
    scratch: Vec<f32>,
    /// How to wait, as waits have taught.
    waiting: WaitPolicy,
}

impl State {
    fn new(world_size: usize) -> Self {
        Self { control: Control::default(), scratch: Vec::new(), waiting: WaitPolicy::new(world_size) }
    }
}

/// One rank's workspace. Its memory lives until the last reference to it is gone, the table's included.
#[derive(Debug)]
pub struct HostWorkspace {
    member: Member,
    /// How long its operations wait; `None` for ever.
    pub timeout: Option<Duration>,
    /// Bytes from which tensors are summed in two shots, if the caller said so.
    pub two_shot_from: Option<usize>,
    /// Where the time went when it was made.
    pub phases: Phases,
    blocks: Blocks,
    control: Box<ControlWords>,
    table: Vec<i64>,
    state: Exclusive<State>,
    /// Calls so far, those that were refused or had nothing to do among them.
    calls_made: AtomicU32,
    /// For callers whose calls last longer than the operation in them.
    pub calls: ThreadGate,
    /// Keeps `blocks` valid.
    memory: WorkspaceMemory<HostMemory>,
}

// SAFETY: the pointers in `blocks` and `table` belong to `memory` and `control`, which live as long; the control
// words are accessed by the operation that has `state` only, and the slots through `VectorAccess`.
unsafe impl Send for HostWorkspace {}
// SAFETY: as above.
unsafe impl Sync for HostWorkspace {}

impl HostWorkspace {
    /// Creates this rank's part. Collective: all ranks call it, and all return or raise together.
    pub fn create(settings: &Settings, transport: &mut dyn AllGather) -> Result<Self> {
        let mut rendezvous = Rendezvous::new(transport, settings.rank, settings.world_size);
        let checked = settings.check();
        let request =
            checked.clone().map(|(member, timeout)| settings.request(member, timeout, member.geometry.used_bytes()));
        let mut phases = Phases::begin();
        let made = construct(&HostMemory, &mut rendezvous, request, &mut phases)?;
        let (member, timeout) = checked?;
        let mut workspace = Self::over(member, timeout, made);
        workspace.two_shot_from = settings.two_shot_from();
        workspace.phases = phases;
        Ok(workspace)
    }

    /// The workspaces of a whole group whose ranks are threads of this process, over one mapping of each block: a race
    /// detector sees that the ranks access the same memory.
    pub fn in_process(world_size: i64, comm_size: i64, timeout: Option<Duration>) -> Result<Vec<Self>> {
        let geometry = Geometry::new(world_size, comm_size)?;
        let blocks =
            (0..world_size).map(|_| Block::allocate(geometry.used_bytes(), SENTINEL)).collect::<Result<Vec<_>>>()?;
        let mappings: Vec<_> = blocks.iter().map(|block| block.mapping().clone()).collect();
        let pages = Pages::in_process(geometry.world_size())?;
        let over = |(rank, (mut own, pages)): (usize, (Block, Pages))| {
            HostMemory.all_have_mapped(&mut own);
            let is_peer = |(at, mapping): (usize, &Arc<Mapping>)| (at != rank).then(|| mapping.clone());
            let peers = mappings.iter().enumerate().map(is_peer).collect();
            let lifecycle = Arc::new(Lifecycle::new(rank, pages));
            let memory = WorkspaceMemory::new(GroupMemory { peers, own }, lifecycle.clone());
            Self::over(Member { rank, geometry }, timeout, Constructed { memory, lifecycle, nonces: vec![] })
        };
        Ok(blocks.into_iter().zip(pages).enumerate().map(over).collect())
    }

    /// A workspace over blocks that are mapped and filled.
    fn over(member: Member, timeout: Option<Duration>, made: Constructed<HostMemory>) -> Self {
        let (geometry, Constructed { memory, lifecycle, .. }) = (member.geometry, made);
        let bases: Vec<NonNull<u8>> = memory.blocks().of_each(Block::pointer, |mapping| mapping.pointer());
        // SAFETY: each mapping is page-aligned, at least `used_bytes` long, and kept in `memory`.
        let blocks = unsafe { Blocks::new(&bases, geometry.used_bytes()) };
        let control = Box::new(ControlWords::new(&geometry));
        let pointers: Vec<u64> = bases.iter().map(|base| base.as_ptr() as u64).collect();
        let table = control.table(&pointers);
        Self {
            member,
            timeout,
            two_shot_from: None,
            phases: Phases::begin(),
            blocks,
            control,
            table,
            state: Exclusive::new(State::new(geometry.world_size()), lifecycle),
            calls_made: AtomicU32::new(0),
            calls: ThreadGate::new(),
            memory,
        }
    }

    /// Rank and geometry.
    pub fn member(&self) -> Member {
        self.member
    }

    /// Bytes of shared memory that this rank takes.
    pub fn memory_bytes(&self) -> usize {
        self.member.geometry.used_bytes()
    }

    /// The pointer table: [`table::table_len`] entries.
    pub fn table(&self) -> &[i64] {
        &self.table
    }

    /// Whether it may be used, and what peers are told. The memory goes when the last reference does.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.state.lifecycle
    }

    /// Begins anew, with all ranks: see `Lifecycle::reset`.
    pub fn reset(&self, timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Result<()> {
        let mut state = self.state.access_failed("reset")?;
        let refill = || {
            HostMemory.refill(self.memory.own(), self.member.geometry.used_bytes())?;
            state.control = Control::default();
            self.write_control_words(Control::default());
            self.calls_made.store(0, Ordering::Relaxed);
            Ok(())
        };
        self.lifecycle().reset(timeout, interrupted, |_| Ok(()), refill)
    }

    /// The number of the call that is made now.
    fn next_number(&self) -> u32 {
        self.calls_made.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & NUMBER_MASK
    }

    /// Counts a call that sends nothing: it was refused on this rank, or has nothing to do here. If its caller goes on,
    /// all later operations would be paired with others of the peers'.
    pub fn note_refusal(&self) {
        self.lifecycle().refuse(self.next_number());
    }

    /// Runs one operation of the protocol: `extent` of it over slots accessed as `memory` does.
    #[inline(always)]
    pub(crate) fn run<M: SlotMemory, C: Collective>(
        &self,
        running: &mut Running<'_>,
        memory: &M,
        extent: Extent,
        collective: &mut C,
    ) -> Result<()> {
        let mut control = self.begin_segment(running, extent)?;
        let outcome = exchange(self.member, memory, &mut control, extent, collective, &mut self.wait(running));
        self.finish(running, control, outcome)
    }

    /// Likewise in two shots.
    #[inline(always)]
    pub(crate) fn run_two_shot<M: SlotMemory, C: ShardedCollective>(
        &self,
        running: &mut Running<'_>,
        memory: &M,
        extent: Extent,
        collective: &mut C,
    ) -> Result<()> {
        let mut control = self.begin_segment(running, extent)?;
        let outcome = exchange_two_shot(self.member, memory, &mut control, extent, collective, &mut self.wait(running));
        self.finish(running, control, outcome)
    }

    fn wait<'a, 'o>(&'a self, running: &'a mut Running<'o>) -> BoundedWait<'a, 'o> {
        let Running { interrupts, state, .. } = running;
        BoundedWait::new(self.timeout, interrupts, Parking::new(self.member, &self.blocks), &mut state.waiting)
    }

    /// What precedes a segment of a message. The second and later ones ask whether to go on: a long message may wait
    /// often and never for long.
    fn begin_segment(&self, running: &mut Running<'_>, extent: Extent) -> Result<Control> {
        if extent.header.is_none() {
            self.check(running)?;
        }
        self.read_control(running)
    }

    /// To be called every few milliseconds by an operation that computes. An error, which ends it, if it should stop.
    pub(crate) fn check(&self, running: &mut Running<'_>) -> Result<()> {
        running.interrupts.check().map_err(|error| self.failed(error))
    }

    /// Keeps what an operation leaves for the next, or why there can be none.
    fn finish(&self, running: &mut Running<'_>, control: Control, outcome: Result<()>) -> Result<()> {
        outcome.map_err(|error| self.failed(error))?;
        self.write_control(running, control);
        Ok(())
    }

    /// Notes the error, which ends the operation, and advises what there can be.
    #[cold]
    fn failed(&self, error: Error) -> Error {
        self.lifecycle().fail(&error);
        self.lifecycle().advised(error)
    }

    /// Takes the workspace for one operation, and gives it its number. An error if another is running.
    pub(crate) fn begin<'a>(&'a self, description: &Description, interrupted: Interrupted<'a>) -> Result<Running<'a>> {
        let name = description.kind.name();
        let numbered = |number| Operation(description.header(number));
        let state = self.state.access(name).map_err(|error| {
            // As the operation would have been numbered.
            let number = self.calls_made.load(Ordering::Relaxed).wrapping_add(1) & NUMBER_MASK;
            error.seen_by(self.member.rank, numbered(number))
        })?;
        self.lifecycle().tally.count(description);
        self.lifecycle().serve();
        let operation = numbered(self.next_number());
        let interrupts = Interrupts::new(operation, self.lifecycle(), interrupted);
        Ok(Running { blocks: self.blocks, operation, interrupts, state })
    }

    /// Takes part in a call that has nothing to do: the peers' has nothing to do either, or theirs differs.
    pub(crate) fn skip(&self) -> Result<()> {
        // It needs no peer.
        self.lifecycle().check()?;
        self.note_refusal();
        Ok(())
    }
}

/// One operation's hold on a workspace.
pub(crate) struct Running<'a> {
    /// The group's blocks.
    pub blocks: Blocks,
    operation: Operation,
    interrupts: Interrupts<'a>,
    state: Access<'a, State>,
}

impl Running<'_> {
    /// What peers are told of the operation.
    pub fn header(&self) -> Header {
        self.operation.0
    }

    /// The workspace's working memory; give it back with [`Running::return_scratch`].
    pub fn take_scratch(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.state.scratch)
    }

    /// Keeps working memory for the next operation.
    pub fn return_scratch(&mut self, scratch: Vec<f32>) {
        self.state.scratch = scratch;
    }
}
