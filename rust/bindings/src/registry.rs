//! Workspaces by their table: operations take the table tensor too, as the operators of serving stacks do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lamport_rs_core::workspace::host::HostWorkspace;

static WORKSPACES: Mutex<Option<HashMap<usize, Weak<HostWorkspace>>>> = Mutex::new(None);

/// Remembers `workspace` for as long as it lives.
pub fn register(workspace: &Arc<HostWorkspace>) {
    let mut workspaces = WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    let workspaces = workspaces.get_or_insert_default();
    workspaces.retain(|_, workspace| workspace.strong_count() > 0);
    workspaces.insert(workspace.table().as_ptr() as usize, Arc::downgrade(workspace));
}

/// The workspace whose table is at `pointer`.
pub fn find(pointer: usize) -> Option<Arc<HostWorkspace>> {
    let workspaces = WORKSPACES.lock().unwrap_or_else(PoisonError::into_inner);
    workspaces.as_ref()?.get(&pointer)?.upgrade()
}
