//! Weak memory: stores become visible late and out of order.
//!
//! A store enters its rank's *pending* stores and becomes visible (is *committed*) in a transition of its own. Commits
//! to different locations happen in any order, those of one rank to one location in program order (coherence). The own
//! loads see the own pending stores. A release fence closes a group of pending stores: a store is committed only when
//! all of the groups before its own are. The rank itself does not wait for that.
//!
//! That is SPARC's partial store order with store barriers. Why it may stand in for relaxed atomics with fences here:
//!
//! - Each block is polled by its owner alone, so that no two ranks can disagree on the order of two stores by loading
//!   them: "visible" needs to mean visible to the block's owner, and one moment of it per store is general enough.
//! - The order of the stores to a word, from different ranks, is the order of their commits, and that is constrained by
//!   fences only. A push may thus be ordered ahead of a clear that its rank issued long before.
//! - The argument in `exchange`, which is that of `two_shot` too, takes no chain of more than two ranks, so it does not
//!   matter that fences are cumulative here. (What two-shot would be without padding does: `loom` has that.)
//!
//! What it does not cover: loads happen one after the other and no store happens ahead of an earlier load. So the
//! acquire fence is not put to the test. The argument needs it for just that, and C11 without it would allow pushes
//! ahead of the polls that they depend on; no hardware does that across a branch. The `loom` test covers both.

/// A part of a vector in some rank's block: the unit that becomes visible at once.
pub type Location = u16;

/// The number of a part's value.
pub type Value = u16;

/// A part that has been stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub location: Location,
    pub value: Value,
}

/// The stores of one rank that are not visible yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Between one release fence and the next, by location. None but the last is empty.
    groups: Vec<Vec<Entry>>,
}

impl Default for Pending {
    fn default() -> Self {
        Self { groups: vec![Vec::new()] }
    }
}

impl Pending {
    pub fn store(&mut self, entry: Entry) {
        let group = self.groups.last_mut().expect("there is a last group");
        // Equal histories must be equal states: only among stores to one location does order matter.
        group.insert(group.partition_point(|earlier| earlier.location <= entry.location), entry);
    }

    pub fn release(&mut self) {
        if self.groups.last().is_some_and(|group| !group.is_empty()) {
            self.groups.push(Vec::new());
        }
    }

    /// What the rank itself sees at `location`, if it has a store to it pending.
    pub fn newest(&self, location: Location) -> Option<Value> {
        let mut entries = self.groups.iter().rev().flat_map(|group| group.iter().rev());
        entries.find(|entry| entry.location == location).map(|entry| entry.value)
    }

    /// The groups, oldest first.
    pub fn groups(&self) -> &[Vec<Entry>] {
        &self.groups
    }

    /// Commits the first store to `location` in `group`, and ahead of it all groups before.
    pub fn commit(&mut self, group: usize, location: Location) -> Vec<Entry> {
        let mut committed: Vec<Entry> = self.groups.drain(..group).flatten().collect();
        let rest = &mut self.groups[0];
        let first = rest.iter().position(|entry| entry.location == location).expect("a pending store");
        committed.push(rest.remove(first));
        if rest.is_empty() && self.groups.len() > 1 {
            self.groups.remove(0);
        }
        committed
    }
}

/// A commit that may happen next: by whom, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub rank: usize,
    pub group: usize,
    pub location: Location,
}

/// All commits of single stores that may happen next.
pub fn every_commit(pending: &[&Pending]) -> Vec<Commit> {
    let mut commits = Vec::new();
    for (rank, pending) in pending.iter().enumerate() {
        for entry in &pending.groups[0] {
            push_once(&mut commits, Commit { rank, group: 0, location: entry.location });
        }
    }
    commits
}

/// The commits that matter when the loads that may come next are of the locations `awaited`.
///
/// A commit can be put off until just before the first transition that depends on it: a load of its location, a commit
/// of another store to its location, or a commit of its own rank behind a fence. Nothing but the order of independent
/// transitions changes by that, so all loads return what they did. Put off like that, a commit is one of
///
/// - the commit of a store to an awaited location;
/// - part of those that a fence forces ahead of such a commit (they follow one another immediately);
/// - a commit to a location that one of these commits to as well, and which therefore may come before it.
///
/// So every finite execution has an equivalent one that makes only these commits, but for commits at its end that no
/// load sees. A rank that waits for ever shows too: let everything pending be committed and everybody look once more in
/// vain; in the equivalent execution, all that the awaited locations got is then committed as well.
pub fn needed_commits(pending: &[&Pending], awaited: &[Location]) -> Vec<Commit> {
    let mut commits = Vec::new();
    let mut to_look_at: Vec<Location> = awaited.to_vec();
    let mut looked_at: Vec<Location> = Vec::new();
    while let Some(location) = to_look_at.pop() {
        if looked_at.contains(&location) {
            continue;
        }
        looked_at.push(location);
        for (rank, stores) in pending.iter().enumerate() {
            for (group, entries) in stores.groups.iter().enumerate() {
                if !entries.iter().any(|entry| entry.location == location) {
                    continue;
                }
                push_once(&mut commits, Commit { rank, group, location });
                for forced in stores.groups[..group].iter().flatten() {
                    if shared(pending, rank, forced.location) {
                        to_look_at.push(forced.location);
                    }
                }
            }
        }
    }
    commits
}

/// Whether a rank other than `rank` has a store to `location` pending.
fn shared(pending: &[&Pending], rank: usize, location: Location) -> bool {
    pending.iter().enumerate().any(|(other, stores)| other != rank && stores.newest(location).is_some())
}

fn push_once(commits: &mut Vec<Commit>, commit: Commit) {
    if !commits.contains(&commit) {
        commits.push(commit);
    }
}
