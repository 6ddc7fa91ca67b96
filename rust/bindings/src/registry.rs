//! Workspaces by their table: operations take the table tensor too, as the operators of serving stacks do.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::backend::{AnyWorkspace, WeakWorkspace};

static WORKSPACES: Mutex<Option<HashMap<u64, WeakWorkspace>>> = Mutex::new(None);

/// Remembers `workspace` for as long as it lives.
pub fn register(workspace: &AnyWorkspace) {
    let mut workspaces = WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    let workspaces = workspaces.get_or_insert_default();
    workspaces.retain(|_, workspace| !workspace.is_gone());
    workspaces.insert(workspace.table().0, workspace.downgrade());
}

/// The workspace whose table is at `pointer`.
pub fn find(pointer: u64) -> Option<AnyWorkspace> {
    let workspaces = WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    workspaces.as_ref()?.get(&pointer)?.upgrade()
}

/// The workspace of the host whose table has these `entries`: a copy says as much as the table itself, and compilers
/// and torch's checks of operators make copies of what they are given. Device memory is not read for that.
pub fn find_copied(entries: &[i64]) -> Option<AnyWorkspace> {
    let workspaces = WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    let live: Vec<_> = workspaces.as_ref()?.values().filter_map(WeakWorkspace::upgrade).collect();
    // One of them may be the last reference by now, and let go of the interpreter's lock.
    drop(workspaces);
    live.into_iter()
        .find(|workspace| matches!(workspace, AnyWorkspace::Host(workspace) if workspace.table() == entries))
}
