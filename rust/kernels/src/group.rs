//! Making the group parameters of a rank.

use std::time::Duration;

use lamport_rs_protocol::exchange::Awaited;
use lamport_rs_protocol::geometry::{Geometry, MAX_WORLD_SIZE};
use lamport_rs_protocol::sentinel::{VECTOR_WORDS, Vector};

use crate::parameters::{Group, TIME_UNIT_BITS};

/// Device addresses that a group's kernels need beside the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlAddresses {
    /// `int32[3]` of the table.
    pub counters: u64,
    /// `int64[2]` of the table.
    pub extents: u64,
    /// Of [`Group::control_copies`].
    pub copies: u64,
    /// A [`Report`](crate::parameters::Report) in pinned host memory, all 0 at first.
    pub report: u64,
}

impl Group {
    /// `blocks[i]` is where rank i's block is in this process. `timeout` is how long a kernel waits for a peer; `None`:
    /// for ever.
    ///
    /// # Panics
    /// If there is not one block per rank, or `rank` is not a rank.
    pub fn new(
        geometry: &Geometry,
        rank: usize,
        blocks: &[u64],
        control: ControlAddresses,
        timeout: Option<Duration>,
    ) -> Self {
        let world_size = geometry.world_size();
        assert_eq!(blocks.len(), world_size, "one block per rank");
        assert!(rank < world_size, "rank {rank} of {world_size}");
        let mut peers = [0; MAX_WORLD_SIZE - 1];
        for (distance, peer) in (1..world_size).zip(&mut peers) {
            *peer = blocks[(rank + distance) % world_size];
        }
        Self {
            own: blocks[rank],
            peers,
            comm_size: geometry.comm_size() as u64,
            counters: control.counters,
            extents: control.extents,
            report: control.report,
            first_hand_timeout: 0,
            second_hand_timeout: 0,
            rank: rank as u32,
            world_size: world_size as u32,
            control_copies: control.copies,
            header: [0; VECTOR_WORDS],
            is_checked: 0,
            reserved: 0,
        }
        .with_timeout(timeout)
    }

    /// For kernels that wait for a peer for `timeout`; `None`: for ever.
    pub fn with_timeout(self, timeout: Option<Duration>) -> Self {
        let units = |awaited: Awaited| units_of(timeout.map(|timeout| awaited.limit(timeout)));
        Self { first_hand_timeout: units(Awaited::FirstHand), second_hand_timeout: units(Awaited::SecondHand), ..self }
    }

    /// For operations that the ranks compare, or that they do not.
    pub fn with_checks(self, is_checked: bool) -> Self {
        Self { is_checked: u32::from(is_checked), ..self }
    }

    /// For an operation with this header, whose number is `header[0]` above that of the one before.
    pub fn with_header(self, header: Vector) -> Self {
        Self { header, ..self }
    }
}

/// A timeout in the kernels' units. The kernel's clock and this are both rounded down: one more, so that no kernel gives up
/// too early. What does not fit, some seven weeks, is no timeout.
fn units_of(timeout: Option<Duration>) -> u32 {
    timeout
        .and_then(|timeout| u32::try_from(timeout.as_nanos() >> TIME_UNIT_BITS).ok())
        .map_or(u32::MAX, |units| units.saturating_add(1))
}
