//! How a workspace on the host is given up.

use super::HostWorkspace;
use crate::deferred::Teardown;

impl Teardown for HostWorkspace {
    /// Nothing goes on behind its calls, and mappings keep its memory.
    fn give_up(&self) {}
}

impl Drop for HostWorkspace {
    fn drop(&mut self) {
        self.lifecycle().let_go();
    }
}
