//! Graphs that keep what their kernels use.

use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::check;
use crate::deferred::defer_last;
use crate::error::Result;

/// From `CUuserObject_flags` and `CUuserObjectRetain_flags`, which the binding has as enumerations.
const NO_DESTRUCTOR_SYNC: u32 = sys::CUuserObject_flags::CU_USER_OBJECT_NO_DESTRUCTOR_SYNC as u32;
const MOVE: u32 = sys::CUuserObjectRetain_flags::CU_GRAPH_USER_OBJECT_MOVE as u32;

/// Lets `graph` own a reference to `owner` until the graph, its copies and all that was instantiated from them are gone,
/// and their last runs have ended.
///
/// # Safety
/// `graph` is a graph, or one that a stream's capture makes.
pub unsafe fn retain<T: Send + Sync + 'static>(graph: sys::CUgraph, owner: Arc<T>) -> Result<()> {
    let pointer = Arc::into_raw(owner);
    let mut object = std::ptr::null_mut();
    // SAFETY: `release` takes the reference that the pointer stands for, once.
    let created = unsafe {
        sys::cuUserObjectCreate(&mut object, pointer.cast_mut().cast(), Some(release::<T>), 1, NO_DESTRUCTOR_SYNC)
    };
    check("cuUserObjectCreate", created).inspect_err(|_| {
        // SAFETY: nobody else has taken it.
        drop(unsafe { Arc::from_raw(pointer) });
    })?;
    // SAFETY: the object was created above, with one reference, which the graph takes.
    check("cuGraphRetainUserObject", unsafe { sys::cuGraphRetainUserObject(graph, object, 1, MOVE) }).inspect_err(
        |_| {
            // SAFETY: the reference is still this function's.
            let _ = unsafe { sys::cuUserObjectRelease(object, 1) };
        },
    )
}

/// Gives the reference back. The driver forbids to call it from here, and dropping the last reference may do so.
unsafe extern "C" fn release<T: Send + Sync + 'static>(pointer: *mut std::ffi::c_void) {
    // SAFETY: made by `retain`, for one call.
    defer_last(unsafe { Arc::from_raw(pointer.cast_const().cast::<T>()) });
}
