//! The memory of a group, as `rust/core` lays it out, and what must be in it.

use std::mem::offset_of;
use std::time::Duration;

use lamport_rs_kernels::group::ControlAddresses;
use lamport_rs_kernels::parameters::{CONTROL_COPIES, CONTROL_COPY_BYTES, Group, Report, SKIPPED_IS_THERE};
use lamport_rs_protocol::geometry::{Geometry, SLOTS};
use lamport_rs_protocol::sentinel::{SENTINEL, VECTOR_BYTES, Vector};
use lamport_rs_protocol::table::{ARRIVAL_COUNTER, CLEAR_EXTENT, COMM_SIZE, COUNTERS, Control, EXTENTS, SLOT_INDEX};

use crate::machine::{Kind, Machine};
use crate::memory::Memory;

const WORD_BYTES: usize = 4;
/// What is told of every operation: that it is the next one, and three words that say nothing here.
pub const HEADER: Vector = [1, 2, 3, 4];
const COPY_WORDS: usize = CONTROL_COPY_BYTES / WORD_BYTES;

/// A rank's memory.
pub struct Member {
    pub group: Group,
    slots: Memory,
    counters: Memory,
    extents: Memory,
    copies: Memory,
    report: Memory,
}

/// A group's memory.
pub struct Workspace {
    pub geometry: Geometry,
    pub members: Vec<Member>,
}

impl Workspace {
    pub fn new(geometry: Geometry, is_checked: bool, timeout: Option<Duration>) -> Self {
        let ranks = 0..geometry.world_size();
        let slots: Vec<_> = ranks
            .clone()
            .map(|_| Memory::of_words(std::iter::repeat_n(SENTINEL, geometry.used_bytes() / WORD_BYTES)))
            .collect();
        let addresses: Vec<_> = slots.iter().map(Memory::address).collect();
        let member = |(rank, slots)| {
            let counters = Memory::filled(COUNTERS * WORD_BYTES, 0);
            let mut extents = [0_u64; EXTENTS];
            extents[COMM_SIZE] = geometry.comm_size() as u64;
            let extents = Memory::of_bytes(&extents.map(u64::to_ne_bytes).concat());
            // Behind the copies lies the header of the operation in progress.
            let copies = Memory::filled((CONTROL_COPIES + 1) * CONTROL_COPY_BYTES, 0);
            let report = Memory::filled(size_of::<Report>(), 0);
            let control = ControlAddresses {
                counters: counters.address(),
                extents: extents.address(),
                copies: copies.address(),
                report: report.address(),
            };
            let group =
                Group::new(&geometry, rank, &addresses, control, timeout).with_header(HEADER).with_checks(is_checked);
            Member { group, slots, counters, extents, copies, report }
        };
        Self { geometry, members: ranks.zip(slots).map(member).collect() }
    }

    /// Tells the machine of it.
    pub fn declare(&self, machine: &mut Machine) {
        for (rank, member) in self.members.iter().enumerate() {
            let mut add = |memory: &Memory, kind, name| {
                machine.add_memory(memory.address(), memory.len(), kind, rank, name);
            };
            add(&member.slots, Kind::System, "slots");
            add(&member.report, Kind::System, "report");
            add(&member.counters, Kind::Device, "counters");
            add(&member.extents, Kind::Device, "extents");
            add(&member.copies, Kind::Device, "control copies");
        }
    }

    /// Checks every rank's control words after `calls` calls that left `control`.
    pub fn check_control(&self, control: &Control, calls: u32) -> Result<(), String> {
        for (rank, member) in self.members.iter().enumerate() {
            let check = |what: &str, found: u64, expected: u64| {
                let message = || format!("rank {rank}: {what} is {found}, but should be {expected}");
                (found == expected).then_some(()).ok_or_else(message)
            };
            let counters = member.counters.words();
            check("the arrival counter", counters[ARRIVAL_COUNTER].into(), 0)?;
            check("the slot index", counters[SLOT_INDEX].into(), control.slot_index() as u64)?;
            check("the counter between them", counters[1].into(), 0)?;
            let extents = member.extents.words();
            let extent = |index: usize| u64::from(extents[2 * index]) | u64::from(extents[2 * index + 1]) << 32;
            let region = control.previous_region_bytes;
            check("the extent to clear", extent(CLEAR_EXTENT), (self.geometry.world_size() * region) as u64)?;
            check("the table's comm_size", extent(COMM_SIZE), self.geometry.comm_size() as u64)?;
            for (index, copy) in member.copies.words().chunks(COPY_WORDS).take(CONTROL_COPIES).enumerate() {
                check(&format!("the slot in copy {index}"), u64::from(copy[0] & 3), control.slot as u64)?;
                check(&format!("the region in copy {index}"), u64::from(copy[0] >> 2), (region / 16) as u64)?;
                check(&format!("the number in copy {index}"), copy[1].into(), calls.into())?;
                check(&format!("the mark in copy {index}"), copy[2].into(), 0)?;
            }
            check("the report", self.report(rank).into(), 0)?;
        }
        Ok(())
    }

    /// Checks that every rank's words are the sentinel, but for those that the operation before left in its slot.
    pub fn check_cleared(&self, control: &Control) -> Result<(), String> {
        let (world_size, region) = (self.geometry.world_size(), control.previous_region_bytes);
        let used = self.geometry.slot_offset(control.previous_slot());
        for (rank, member) in self.members.iter().enumerate() {
            for (index, word) in member.slots.words().into_iter().enumerate() {
                let offset = index * WORD_BYTES;
                let in_peers = (0..world_size).filter(|&peer| peer != rank).any(|peer| {
                    let begin = used + peer * region;
                    (begin..begin + region).contains(&offset)
                });
                if word != SENTINEL && !in_peers && !self.is_header(control, rank, offset) {
                    let slot = offset / self.geometry.comm_size();
                    let place = if slot < SLOTS { format!("slot {slot}") } else { "the headers".to_owned() };
                    return Err(format!("rank {rank}: byte {offset}, in {place}, was not cleared: {word:#010x}"));
                }
            }
        }
        Ok(())
    }

    /// Whether `offset` is in what a peer of `rank` told of the operation that left `control`.
    fn is_header(&self, control: &Control, rank: usize, offset: usize) -> bool {
        let begin = |peer| self.geometry.header_offset(control.previous_slot(), peer);
        control.previous_has_header
            && (0..self.geometry.world_size())
                .filter(|&peer| peer != rank)
                .any(|peer| (begin(peer)..begin(peer) + VECTOR_BYTES).contains(&offset))
    }

    /// The ranks, a bit each, that a rank has missed; from bit 16 on, those that did something else.
    pub fn report(&self, rank: usize) -> u32 {
        self.members[rank].report.words()[0]
    }

    /// The host of `rank` tells its kernels that the ranks of the bit mask `ended` send nothing more.
    pub fn tell_ended(&mut self, rank: usize, ended: u32) {
        self.members[rank].report.write(offset_of!(Report, ended), &ended.to_ne_bytes());
    }

    /// The number of the first call in a row of which `rank` sent nothing, if its kernels have said so.
    pub fn skipped(&self, rank: usize) -> Option<u32> {
        let word = self.members[rank].report.words()[offset_of!(Report, skipped) / WORD_BYTES];
        (word != 0).then_some(word ^ SKIPPED_IS_THERE)
    }

    /// The header of the operation that `rank` has waited for long in, if any.
    pub fn waiting(&self, rank: usize) -> Option<Vector> {
        let header = self.reported_vector(rank, offset_of!(Report, waiting));
        (header != Vector::default()).then_some(header)
    }

    /// The header of the operation in which `rank` has failed, if its kernels have said so.
    pub fn failed_operation(&self, rank: usize) -> Vector {
        self.reported_vector(rank, offset_of!(Report, operation))
    }

    /// What `peer` has told `rank` that it does, if it was something else.
    pub fn told(&self, rank: usize, peer: usize) -> Vector {
        self.reported_vector(rank, offset_of!(Report, peers) + peer * VECTOR_BYTES)
    }

    fn reported_vector(&self, rank: usize, offset: usize) -> Vector {
        let begin = offset / WORD_BYTES;
        self.members[rank].report.words()[begin..begin + HEADER.len()].try_into().expect("a vector")
    }

    /// All of a rank's report.
    pub fn report_words(&self, rank: usize) -> Vec<u32> {
        self.members[rank].report.words()
    }

    /// Whether a rank's slot holds nothing.
    pub fn is_empty(&self, rank: usize, slot: usize) -> bool {
        let begin = self.geometry.slot_offset(slot) / WORD_BYTES;
        let end = begin + self.geometry.comm_size() / WORD_BYTES;
        self.members[rank].slots.words()[begin..end].iter().all(|&word| word == SENTINEL)
    }
}
