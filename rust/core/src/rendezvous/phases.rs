//! Where the time of a construction goes: what the log and the benchmark show.

use std::time::{Duration, Instant};

/// The parts of a construction, in order, and how long each took.
#[derive(Clone, Debug)]
pub struct Phases {
    began: Instant,
    taken: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// The first part begins.
    pub fn begin() -> Self {
        Self { began: Instant::now(), taken: Vec::with_capacity(10) }
    }

    /// The part in progress was this one, and ends. The next begins.
    pub fn end(&mut self, name: &'static str) {
        let now = Instant::now();
        self.taken.push((name, now - self.began));
        self.began = now;
    }

    /// All parts so far.
    pub fn taken(&self) -> &[(&'static str, Duration)] {
        &self.taken
    }
}
