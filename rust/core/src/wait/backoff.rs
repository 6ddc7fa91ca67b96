//! How far a wait has come.

use std::time::{Duration, Instant};

use lamport_rs_protocol::parking::Sleeper;
use lamport_rs_protocol::rank_set::RankSet;

/// How far one wait has come.
pub(super) struct Backoff {
    pub(super) spun: u32,
    pub(super) pauses: u32,
    pub(super) yielded: u32,
    /// When it began to park.
    pub(super) parked: Option<Instant>,
    pub(super) sleeper: Sleeper,
    /// It left its core to the peer that it waited for.
    pub(super) gave_way: bool,
    /// For how long it had parked when it last asked whether the peers' processes live.
    pub(super) asked_for_processes: Duration,
    /// A rank that takes part in nothing more, unless what it has sent before is there by now.
    pub(super) gone: Option<usize>,
    /// For how long it had parked when that was first found out.
    pub(super) gone_since: Duration,
    /// For whom it parked last.
    pub(super) missing: RankSet,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self {
            spun: 0,
            pauses: 1,
            yielded: 0,
            parked: None,
            sleeper: Sleeper::default(),
            gave_way: false,
            asked_for_processes: Duration::ZERO,
            gone: None,
            gone_since: Duration::ZERO,
            missing: RankSet::default(),
        }
    }
}
