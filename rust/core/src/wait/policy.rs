//! How long a rank spins and yields before it parks, as its waits have taught it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Most pauses (some 40 ns each) before a rank parks, where each rank has a core.
const MOST_SPINS: u32 = 10_000;
/// Fewest pauses, and all that there are where ranks share cores: the peer that is waited for may need this very core.
const FEWEST_SPINS: u32 = 16;
/// What [`MOST_SPINS`] take, more or less: who comes later is not worth spinning for.
pub(super) const LONGEST_SPIN: Duration = Duration::from_micros(500);
/// Yields before a rank parks, where ranks share cores: to a peer, that is cheaper than a sleep and a wake-up.
const YIELDS: u32 = 200;
/// A yield of this length has given the core to a process that computes: peers wait, and give it back, earlier.
const LONG_YIELD: Duration = Duration::from_millis(1);
/// Fewest waits without yields that follow such a one: so many sleeps and wake-ups cost about as much as that yield.
const FEWEST_WITHOUT_YIELDS: u32 = 128;
/// Most, where each trial of yields has been as dear.
const MOST_WITHOUT_YIELDS: u32 = 8192;

/// How long a rank spins and yields before it parks. It learns that from its waits.
///
/// The limit of the spins is from one wait to the next twice what sufficed, or would have, or half of what was in vain.
/// On an idle machine words come while the rank spins. Beside a busy process they often come only once the rank has
/// left its core to the peer, and then all spinning is lost.
#[derive(Debug)]
pub struct WaitPolicy {
    most_spins: u32,
    spins: u32,
    yields: u32,
    /// Waits without yields, after a long one.
    without_yields: u32,
    /// Waits since the last long yield, these included.
    waits: u32,
}

impl WaitPolicy {
    /// For a group of `world_size` ranks.
    pub fn new(world_size: usize) -> Self {
        let (most_spins, yields) = if world_size <= cores() { (MOST_SPINS, 0) } else { (FEWEST_SPINS, YIELDS) };
        let without_yields = FEWEST_WITHOUT_YIELDS;
        Self { most_spins, spins: most_spins, yields, without_yields, waits: without_yields }
    }

    /// Pauses that a wait has, from now on.
    #[inline]
    pub(super) fn spins(&self) -> u32 {
        self.spins
    }

    /// Yields that it has then.
    #[inline]
    pub(super) fn yields(&self) -> u32 {
        if self.waits < self.without_yields { 0 } else { self.yields }
    }

    /// A yield has taken so long. If it comes as soon after waits without yields as these were many, they become twice
    /// as many.
    pub(super) fn learn_yield(&mut self, took: Duration) {
        if took >= LONG_YIELD {
            let soon = self.waits < 2 * self.without_yields;
            let twice = (2 * self.without_yields).min(MOST_WITHOUT_YIELDS);
            self.without_yields = if soon { twice } else { FEWEST_WITHOUT_YIELDS };
            self.waits = 0;
        }
    }

    /// A wait is over, in which spinning was in vain, or was not.
    pub(super) fn learn_wait(&mut self, in_vain: bool) {
        self.waits = self.waits.saturating_add(1);
        self.spins = if in_vain { (self.spins / 2).max(FEWEST_SPINS) } else { (2 * self.spins).min(self.most_spins) };
    }
}

/// Cores this process may run on, asked for once. An atomic, since the race detector does not see into the library's
/// cells.
fn cores() -> usize {
    static CORES: AtomicUsize = AtomicUsize::new(0);
    match CORES.load(Ordering::Relaxed) {
        0 => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            CORES.store(cores, Ordering::Relaxed);
            cores
        }
        cores => cores,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_become_fewer_where_they_are_in_vain_and_more_where_they_are_not() {
        let mut policy = WaitPolicy { most_spins: MOST_SPINS, ..WaitPolicy::new(2) };
        (0..20).for_each(|_| policy.learn_wait(true));
        assert_eq!(policy.spins, FEWEST_SPINS);
        (0..20).for_each(|_| policy.learn_wait(false));
        assert_eq!(policy.spins, MOST_SPINS);
    }

    /// Waits without yields after a long one.
    fn without_yields(policy: &mut WaitPolicy) -> u32 {
        policy.learn_yield(LONG_YIELD);
        let mut waits = 0;
        while policy.yields() == 0 {
            policy.learn_wait(true);
            waits += 1;
        }
        waits
    }

    #[test]
    fn a_yield_that_has_given_the_core_away_is_followed_by_waits_without_any_and_by_more_if_the_next_is_as_dear() {
        let mut policy = WaitPolicy::new(2 * cores());
        (0..FEWEST_WITHOUT_YIELDS).for_each(|_| policy.learn_wait(false));
        policy.learn_yield(LONG_YIELD / 2);
        assert_eq!(policy.yields(), YIELDS);
        let dear = [(); 3].map(|()| without_yields(&mut policy));
        assert_eq!(dear, [FEWEST_WITHOUT_YIELDS, 2 * FEWEST_WITHOUT_YIELDS, 4 * FEWEST_WITHOUT_YIELDS]);
        (0..20).for_each(|_| _ = without_yields(&mut policy));
        assert_eq!(without_yields(&mut policy), MOST_WITHOUT_YIELDS);
        // As many that are not dear.
        (0..MOST_WITHOUT_YIELDS).for_each(|_| policy.learn_wait(false));
        assert_eq!(without_yields(&mut policy), FEWEST_WITHOUT_YIELDS);
    }
}
