//! The protocol as shipped, and protocols broken in one point each.
//!
//! All of them run the real `exchange` and `exchange_two_shot`. What is broken is broken by an adapter around the memory it is given, so that
//! the production code needs no knobs for it.

use std::cell::{Cell, RefCell};

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::{Collective, Extent, Member, Wait, exchange};
use lamport_rs_protocol::memory::SlotMemory;
use lamport_rs_protocol::sentinel::{SENTINEL, Vector};
use lamport_rs_protocol::table::Control;
use lamport_rs_protocol::two_shot::{ShardedCollective, exchange_two_shot};

/// Stands in for a word that has not arrived where a broken reader must not notice it. No payload contains it.
const UNNOTICED: u32 = 0xdead_dead;

/// Which protocol runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The real code and nothing else.
    AsShipped,
    /// Two slots in turn, cleared as three are.
    TwoSlots,
    /// Senders push sentinel words as they are.
    UnscrubbedSentinels,
    /// Likewise the sums of two-shot.
    UnscrubbedSums,
    /// The clears of an operation are issued after the next operation's pushes.
    ClearAfterNextPush,
    /// The block is filled by stores that nothing orders with the peers' first pushes.
    FillAfterExchange,
    /// No release fence.
    NoRelease,
    /// A vector counts as arrived when its first word has.
    FirstWordOnly,
    /// Nothing is cleared.
    NoClear,
    /// The clears cover this operation's extent instead of the previous one's.
    ClearsOwnExtent,
    /// The clears cover the first halves of the regions: all there is without sums.
    ClearsFirstHalves,
    /// The clears leave the headers.
    KeepsHeaders,
}

/// Stores a broken protocol holds back from one operation to the next.
pub type Held = Vec<(usize, Vector)>;

/// One operation as a rank starts it.
pub struct Operation {
    pub number: usize,
    pub member: Member,
    pub algorithm: Algorithm,
    pub extent: Extent,
}

impl Operation {
    fn run<M: SlotMemory, C: Collective + ShardedCollective, W: Wait>(
        &self,
        memory: &M,
        control: &mut Control,
        collective: &mut C,
        wait: &mut W,
    ) -> Result<(), W::Error> {
        match self.algorithm {
            Algorithm::OneShot => exchange(self.member, memory, control, self.extent, collective, wait),
            Algorithm::TwoShot => exchange_two_shot(self.member, memory, control, self.extent, collective, wait),
        }
    }
}

impl Protocol {
    pub const ALL: [Self; 12] = [
        Self::AsShipped,
        Self::TwoSlots,
        Self::UnscrubbedSentinels,
        Self::UnscrubbedSums,
        Self::ClearAfterNextPush,
        Self::FillAfterExchange,
        Self::NoRelease,
        Self::FirstWordOnly,
        Self::NoClear,
        Self::ClearsOwnExtent,
        Self::ClearsFirstHalves,
        Self::KeepsHeaders,
    ];

    /// Runs one operation by the real code.
    pub fn run<M: SlotMemory, C: Collective + ShardedCollective, W: Wait>(
        self,
        operation: &Operation,
        memory: &M,
        control: &mut Control,
        held: &mut Held,
        collective: &mut C,
        wait: &mut W,
    ) -> Result<(), W::Error> {
        if self == Protocol::AsShipped {
            return operation.run(memory, control, collective, wait);
        }
        if self == Protocol::ClearsOwnExtent && control.previous_region_bytes != 0 {
            control.previous_region_bytes = operation.extent.region_bytes;
        }
        let unscrubbed = Cell::default();
        let altered = AlteredMemory {
            protocol: self,
            operation,
            previous_region_bytes: control.previous_region_bytes,
            memory,
            unscrubbed: &unscrubbed,
            held: RefCell::new(std::mem::take(held)),
            cleared: Cell::new(false),
        };
        let mut collective = AlteredCollective { protocol: self, collective, unscrubbed: &unscrubbed };
        operation.run(&altered, control, &mut collective, wait)?;
        *held = altered.held.into_inner();
        Ok(())
    }
}

/// The memory as a broken protocol uses it.
struct AlteredMemory<'a, M> {
    protocol: Protocol,
    operation: &'a Operation,
    previous_region_bytes: usize,
    memory: &'a M,
    /// What is pushed next, before the real code scrubs it, if that is how the protocol is broken.
    unscrubbed: &'a Cell<Option<Vector>>,
    held: RefCell<Held>,
    /// Whether this operation has begun to clear: its first pushes are behind it then.
    cleared: Cell<bool>,
}

impl<M: SlotMemory> AlteredMemory<'_, M> {
    /// `offset`, moved to the slot that operation `number` has if there are two.
    fn in_two_slots(&self, offset: usize, number: usize) -> usize {
        let comm_size = self.operation.member.geometry.comm_size();
        offset % comm_size + self.operation.member.geometry.slot_offset(number % 2)
    }

    fn is_header(&self, offset: usize) -> bool {
        offset >= self.operation.member.geometry.header_offset(0, 0)
    }

    fn clear(&self, offset: usize, vector: Vector) {
        let Operation { number, member, .. } = *self.operation;
        match self.protocol {
            Protocol::NoClear => {}
            Protocol::KeepsHeaders if self.is_header(offset) => {}
            Protocol::ClearsFirstHalves => {
                let within = offset % member.geometry.comm_size() % self.previous_region_bytes;
                if within < self.previous_region_bytes / 2 {
                    self.memory.store(member.rank, offset, vector);
                }
            }
            Protocol::TwoSlots => self.memory.store(member.rank, self.in_two_slots(offset, number + 1), vector),
            Protocol::ClearAfterNextPush => {
                if !self.cleared.replace(true) {
                    for (offset, vector) in self.held.take() {
                        self.memory.store(member.rank, offset, vector);
                    }
                }
                self.held.borrow_mut().push((offset, vector));
            }
            _ => self.memory.store(member.rank, offset, vector),
        }
    }
}

impl<M: SlotMemory> SlotMemory for AlteredMemory<'_, M> {
    fn load(&self, rank: usize, offset: usize) -> Vector {
        let number = self.operation.number;
        match self.protocol {
            Protocol::TwoSlots => self.memory.load(rank, self.in_two_slots(offset, number)),
            Protocol::FirstWordOnly => {
                let vector = self.memory.load(rank, offset);
                let arrived = vector[0] != SENTINEL;
                vector.map(|word| if word == SENTINEL && arrived { UNNOTICED } else { word })
            }
            _ => self.memory.load(rank, offset),
        }
    }

    fn store(&self, rank: usize, offset: usize, vector: Vector) {
        if rank == self.operation.member.rank {
            return self.clear(offset, vector);
        }
        match self.protocol {
            Protocol::TwoSlots => self.memory.store(rank, self.in_two_slots(offset, self.operation.number), vector),
            _ => self.memory.store(rank, offset, self.unscrubbed.get().unwrap_or(vector)),
        }
    }

    fn release(&self) {
        if self.protocol != Protocol::NoRelease {
            self.memory.release();
        }
    }

    fn acquire(&self) {
        self.memory.acquire();
    }
}

/// The collective as a broken protocol uses it.
struct AlteredCollective<'a, C> {
    protocol: Protocol,
    collective: &'a mut C,
    unscrubbed: &'a Cell<Option<Vector>>,
}

impl<C> AlteredCollective<'_, C> {
    /// Notes a vector that `broken` pushes as it is.
    fn note(&self, broken: Protocol, vector: Vector) -> Vector {
        self.unscrubbed.set((self.protocol == broken).then_some(vector));
        vector
    }
}

/// As a broken reader hands it on.
pub fn received(vector: Vector) -> Vector {
    vector.map(|word| if word == UNNOTICED { SENTINEL } else { word })
}

impl<C: Collective> Collective for AlteredCollective<'_, C> {
    fn contribution(&mut self, at: usize) -> Vector {
        let vector = self.collective.contribution(at);
        self.note(Protocol::UnscrubbedSentinels, vector)
    }

    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.collective.receive(rank, at, received(vector));
    }

    fn complete(&mut self, at: usize) {
        self.collective.complete(at);
    }
}

impl<C: ShardedCollective> ShardedCollective for AlteredCollective<'_, C> {
    fn contribution(&mut self, shard: usize, at: usize) -> Vector {
        let vector = self.collective.contribution(shard, at);
        self.note(Protocol::UnscrubbedSentinels, vector)
    }

    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.collective.receive(rank, at, received(vector));
    }

    fn complete(&mut self, at: usize) -> Vector {
        let sum = self.collective.complete(at);
        self.note(Protocol::UnscrubbedSums, sum)
    }

    fn receive_sum(&mut self, shard: usize, at: usize, sum: Vector) {
        self.collective.receive_sum(shard, at, received(sum));
    }
}
