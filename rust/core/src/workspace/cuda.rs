//! The workspace over device memory.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cudarc::driver::sys;
use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::group::ControlAddresses;
use lamport_rs_kernels::parameters::{CONTROL_COPIES, CONTROL_COPY_BYTES, Group as KernelGroup, SkipParameters};
use lamport_rs_kernels::plan;
use lamport_rs_protocol::exchange::Member;
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::table;

use crate::cuda::device::{CONTROL_BYTES, Device, Entered};
use crate::cuda::graph::retain;
use crate::cuda::memory::{DeviceMemory, PeerMemory, PinnedWords};
use crate::cuda::order::StreamOrder;
use crate::cuda::plans::Plans;
use crate::cuda::pool::{Kind, PooledBuffer};
use crate::error::{Error, Result};
use crate::exchange::{AllGather, Exchange};
use crate::interrupts::Interrupted;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::watcher::{Watching, watch};
use crate::operations::operation::{Description, Skipped};
use crate::panics::caught;
use crate::workspace::Settings;
use crate::workspace::construct::{Group, construct};
use crate::workspace::cuda_backend::{CudaBackend, fill_and_wait};
use crate::workspace::cuda_faults::Faults;
use crate::workspace::exclusive::{Access, Exclusive, ThreadGate};
use crate::workspace::phases::Phases;
use crate::workspace::teardown::free_when_unmapped;
use crate::workspace::verification;

/// How long kernels that wait when their workspace is cleaned up may still wait.
const CLEAN_UP_GRACE: Duration = Duration::from_secs(1);

/// What one operation at a time may touch.
#[derive(Debug)]
struct State {
    order: StreamOrder,
    plans: Plans,
}

/// One rank's workspace. Its memory lives until the last reference to it is gone, the table's included.
#[derive(Debug)]
pub struct CudaWorkspace {
    this: Weak<Self>,
    watching: Option<Watching>,
    /// The device it is on.
    pub device: Arc<Device>,
    member: Member,
    /// Bytes from which tensors are summed in two shots, if the caller said so.
    pub two_shot_from: Option<usize>,
    /// Where the time went when it was made.
    pub phases: Phases,
    group: KernelGroup,
    /// Where each rank's block is.
    slots: Vec<u64>,
    state: Exclusive<State>,
    /// Calls that sent nothing.
    pub skipped: Skipped,
    /// For callers whose calls last longer than the launch in them.
    pub calls: ThreadGate,
    own: DeviceMemory,
    /// Control words and table.
    control: PooledBuffer,
    peers: Vec<PeerMemory>,
    faults: Arc<Faults>,
}

/// What this rank has beside the blocks.
#[derive(Debug)]
struct Private {
    control: PooledBuffer,
    pinned: PinnedWords,
}

impl Private {
    /// Takes it, and loads the kernel of the verification.
    fn take(device: &Arc<Device>) -> Result<Self> {
        let (control, pinned) = (PooledBuffer::take(device, Kind::Device)?, PinnedWords::take(device)?);
        let _entered = device.enter()?;
        device.modules.function(ModuleKey::Verify, device)?;
        // A call may be refused while a kernel waits, and loading then would wait for it.
        device.modules.function(ModuleKey::Skip, device)?;
        Ok(Self { control, pinned })
    }
}

/// Where the control memory holds what, in bytes: the three counters, the two extents, the copies of what kernels read
/// first, the table.
const EXTENTS_OFFSET: usize = 16;
const COPIES_OFFSET: usize = CONTROL_COPY_BYTES;
/// Behind the copies lies the header of the operation in progress, in a line of its own.
const TABLE_OFFSET: usize = COPIES_OFFSET + (CONTROL_COPIES + 1) * CONTROL_COPY_BYTES;
const _: () = assert!(TABLE_OFFSET + table::table_len(MAX_WORLD_SIZE) * size_of::<i64>() <= CONTROL_BYTES);

impl CudaWorkspace {
    /// Creates this rank's part on `device`. Collective: all ranks call it, and all return or raise together. A CUDA graph
    /// that has captured its operations keeps it.
    pub fn create(
        settings: &Settings,
        device: Result<Arc<Device>>,
        transport: &mut dyn AllGather,
    ) -> Result<Arc<Self>> {
        let mut workspace = Self::create_unshared(settings, device, transport)?;
        Ok(Arc::new_cyclic(|this| {
            workspace.this = this.clone();
            workspace
        }))
    }

    fn create_unshared(
        settings: &Settings,
        device: Result<Arc<Device>>,
        transport: &mut dyn AllGather,
    ) -> Result<Self> {
        let mut exchange = Exchange::new(transport, settings.rank, settings.world_size);
        let mut phases = Phases::begin();
        // All that can fail on this rank alone comes before the handles: once peers have them, they store here.
        let checked = caught(|| {
            let (member, timeout) = settings.check()?;
            let device = device?;
            let private = Private::take(&device)?;
            Ok((member, timeout, device, private))
        });
        // Where there is no device, there is no backend to construct with, but the peers must hear of it.
        let (member, timeout, device, private) = checked.map_err(|error| exchange.refuse(error))?;
        let request = settings.request(member, member.geometry.block_bytes());
        phases.end("take private memory");
        let group = construct(&CudaBackend::new(device.clone()), &mut exchange, Ok(request), &mut phases)?;
        let nonces = group.nonces.clone();
        let mut workspace = Self::over(member, timeout, device, private, group);
        workspace.two_shot_from = settings.two_shot_from();
        let verified = caught(|| {
            workspace.write_control()?;
            workspace.be_watched()?;
            verification::verify(&workspace.device, workspace.group, &workspace.faults.words, &nonces)
        });
        // Should peers have a workspace nevertheless, they hear of it there.
        let verified = verified.inspect_err(|error| workspace.lifecycle().fail(error));
        verification::settle(&mut exchange, verified)?;
        phases.end("verify");
        workspace.phases = phases;
        Ok(workspace)
    }

    fn over(
        member: Member,
        timeout: Option<Duration>,
        device: Arc<Device>,
        private: Private,
        group: Group<CudaBackend>,
    ) -> Self {
        let slots = group.addresses();
        let lifecycle = Arc::new(Lifecycle::new(member.rank, group.pages.expect("a workspace asks for them")));
        let Member { rank, geometry } = member;
        let Private { control, pinned } = private;
        let (counters, extents) = (control.address(), control.address() + EXTENTS_OFFSET as u64);
        let addresses = ControlAddresses {
            counters,
            extents,
            copies: control.address() + COPIES_OFFSET as u64,
            report: pinned.report_address(),
        };
        let kernel_group =
            KernelGroup::new(&geometry, rank, &slots, addresses, timeout).with_checks(device.checks_operations);
        let faults = Arc::new(Faults::new(pinned, lifecycle.clone(), timeout, device.checks_operations));
        Self {
            this: Weak::new(),
            watching: None,
            member,
            two_shot_from: None,
            phases: Phases::begin(),
            group: kernel_group,
            slots,
            state: Exclusive::new(State { order: StreamOrder::new(&device), plans: Plans::default() }, lifecycle),
            skipped: Skipped::default(),
            calls: ThreadGate::new(),
            faults,
            control,
            peers: group.peers.into_iter().flatten().collect(),
            own: group.own,
            device,
        }
    }

    /// From now on the kernels are told what this rank's host and the peers tell.
    fn be_watched(&mut self) -> Result<()> {
        self.watching = Some(watch(self.faults.clone())?);
        Ok(())
    }

    /// Control words and table, as they are at first.
    fn write_control(&self) -> Result<()> {
        let KernelGroup { counters, extents, .. } = self.group;
        let mut words = vec![0_i64; TABLE_OFFSET / size_of::<i64>()];
        words[EXTENTS_OFFSET / size_of::<i64>() + table::COMM_SIZE] = self.member.geometry.comm_size() as i64;
        words.extend(table::table(&self.slots, counters, extents));
        self.control.write(&words)
    }

    /// Rank and geometry.
    pub fn member(&self) -> Member {
        self.member
    }

    /// Bytes of device memory that this rank takes.
    pub fn memory_bytes(&self) -> usize {
        self.member.geometry.block_bytes() + TABLE_OFFSET + size_of::<i64>() * self.table().1
    }

    /// What kernels are told, for an operation with this header, whose number follows the one before.
    fn kernel_group(&self, description: &Description) -> KernelGroup {
        self.group.with_header(description.header(1_u32.wrapping_add(self.skipped.take())))
    }

    /// Address and length of the pointer table, in device memory.
    pub fn table(&self) -> (u64, usize) {
        (self.control.address() + TABLE_OFFSET as u64, table::table_len(self.member.geometry.world_size()))
    }

    /// Whether it may be used, and what peers are told. The memory goes when the last reference does.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.state.lifecycle
    }

    /// Begins anew, with all ranks, on the same memory: see [`Lifecycle::reset`]. Graphs that were captured before are
    /// right again.
    pub fn reset(&self, timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Result<()> {
        let _state = self.state.access_failed("reset")?;
        let stop = |interrupted: Interrupted<'_>| self.device.synchronise_all_until(interrupted);
        self.lifecycle().reset(timeout, interrupted, stop, || self.refill())?;
        self.faults.begin_epoch();
        Ok(())
    }

    /// Gives it up, once the kernels that run have ended: refuses all further operations, and tells the peers. The memory
    /// goes when the last reference does.
    pub fn clean_up(&self) {
        if self.lifecycle().is_cleaned_up() {
            return;
        }
        if !self.lifecycle().is_elsewhere() {
            self.faults.give_up_after(CLEAN_UP_GRACE);
            // What was sent is then there, for peers that still need it. If this fails, they must hear of the end still.
            let _ = self.device.wait_for_kernels();
        }
        self.lifecycle().clean_up();
    }

    /// Slots, control words and reports as they were at first.
    fn refill(&self) -> Result<()> {
        // In this order: the wait is for both.
        self.write_control()?;
        fill_and_wait(&self.device, &self.own, self.member.geometry.block_bytes())?;
        self.faults.clear();
        self.skipped.take();
        Ok(())
    }

    /// Takes the workspace for one operation on `stream`, and makes the stream wait for the last one. An error if another
    /// thread is launching one.
    #[inline]
    pub fn begin(&self, description: &Description, stream: sys::CUstream) -> Result<Launching<'_>> {
        self.faults.check()?;
        let state = self.state.access(description.kind.name())?;
        self.lifecycle().tally.count(description);
        let entered = self.device.enter_for(stream)?;
        let mut launching =
            Launching { lifecycle: self.lifecycle(), state, group: self.kernel_group(description), _entered: entered };
        // The peers' operations go ahead: this rank would be one behind them for ever.
        let graph = launching.state.order.follow(stream).inspect_err(|error| launching.fail(error))?;
        if let Some((graph, this)) = graph.and_then(|graph| Some((graph, self.this.upgrade()?))) {
            // SAFETY: a capture makes it.
            unsafe { retain(graph, this) }.inspect_err(|error| launching.fail(error))?;
        }
        Ok(launching)
    }

    /// Takes part in a call that has nothing to do: the peers' has nothing to do either, or theirs differs.
    pub fn skip(&self, stream: sys::CUstream) -> Result<()> {
        self.check()?;
        self.note_refusal(stream);
        Ok(())
    }

    /// Counts a call that sends nothing, in `stream`'s order: it was refused on this rank, or has nothing to do here. Peers
    /// that wait for it are told.
    pub fn note_refusal(&self, stream: sys::CUstream) {
        self.skipped.note(1);
        // What cannot be told now is told by the header of the next operation.
        let _ = self.move_on(stream);
    }

    /// Moves the operations' numbers on by the calls that were skipped, if no graph and no other thread stands against it.
    fn move_on(&self, stream: sys::CUstream) -> Result<()> {
        if !self.device.checks_operations || self.member.geometry.world_size() == 1 {
            return Ok(());
        }
        let mut state = self.state.access("a call that was refused")?;
        let _entered = self.device.enter_for(stream)?;
        if !state.order.follow_unless_captured(stream)? {
            return Ok(());
        }
        let function = self.device.modules.function(ModuleKey::Skip, &self.device)?;
        let calls = self.skipped.take();
        let parameters = SkipParameters { group: self.group.with_header([calls, 0, 0, 0]) };
        // SAFETY: the context is current; these are the parameters of `skip`, and the workspace's memory goes when no kernel
        // runs any more.
        let launched = unsafe { function.launch(&plan::skip(self.device.plan), stream, &parameters) };
        launched.inspect_err(|_| self.skipped.note(calls))
    }

    /// Whether an operation may run.
    #[inline]
    pub fn check_open(&self) -> Result<()> {
        self.faults.check()?;
        self.lifecycle().check_usable()
    }

    /// What went wrong, as it was first said. Does not wait for the device.
    pub fn check(&self) -> Result<()> {
        self.faults.check()?;
        self.lifecycle().check()
    }

    /// Copies a tensor on `stream`: the sum of a single rank.
    ///
    /// # Safety
    /// Both are device addresses, valid for `bytes` bytes until the stream has passed the copy.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: usize, stream: sys::CUstream) -> Result<()> {
        self.check_open()?;
        if bytes == 0 || from == to {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.device.copy(from, to, bytes, stream) }
    }

    /// Waits for all work on the device, replayed graphs included, and raises what went wrong in it.
    pub fn synchronise(&self) -> Result<()> {
        self.device.synchronise_all()?;
        self.check()
    }

    /// Likewise, until `interrupted` says so.
    pub fn synchronise_until(&self, interrupted: Interrupted<'_>) -> Result<()> {
        self.device.synchronise_all_until(interrupted)?;
        self.check()
    }
}

impl Drop for CudaWorkspace {
    fn drop(&mut self) {
        let own = self.own.take();
        if self.lifecycle().is_elsewhere() {
            // It is the other process's, and the driver's memory with it.
            std::mem::forget((own, std::mem::take(&mut self.peers), self.watching.take()));
            self.abandon_pooled();
            return;
        }
        self.faults.give_up_after(CLEAN_UP_GRACE);
        // Whatever streams are captured meanwhile.
        let ended = self.device.wait_for_kernels();
        self.lifecycle().clean_up();
        self.watching = None;
        if ended.is_err() {
            // Kernels may still run: neither the peers nor the next workspace must get what they write.
            std::mem::forget((own, std::mem::take(&mut self.peers)));
            self.abandon_pooled();
            return;
        }
        self.peers.clear();
        self.lifecycle().unmap();
        free_when_unmapped(own, self.state.lifecycle.clone());
    }
}

impl CudaWorkspace {
    /// Nobody is to get the small memory after this.
    fn abandon_pooled(&mut self) {
        self.control.abandon();
        if let Some(faults) = Arc::get_mut(&mut self.faults) {
            faults.words.abandon();
        }
    }
}

/// One operation's hold on a workspace, while it is launched.
pub struct Launching<'a> {
    lifecycle: &'a Lifecycle,
    state: Access<'a, State>,
    /// What its kernel is told.
    pub group: KernelGroup,
    _entered: Entered,
}

impl Launching<'_> {
    /// Notes that the operation failed: this rank is out of step with its peers, and the workspace refuses further work.
    pub fn fail(&self, error: &Error) {
        self.lifecycle.fail(error);
    }

    /// What is launched next belongs to the same call, and has its number.
    pub fn go_on(&mut self) {
        self.group.header[0] = 0;
    }

    /// The launch plans made so far.
    pub fn plans(&mut self) -> &mut Plans {
        &mut self.state.plans
    }
}
