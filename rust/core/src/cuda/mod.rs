//! What of the CUDA driver the workspace needs. Every call's error carries the call, the driver's name and its text.
//!
//! | module | concept |
//! | --- | --- |
//! | [`driver`] | whether there is one; errors |
//! | [`device`] | a device's primary context, shared with torch |
//! | `launch` | modules loaded on first use, and launches |
//! | `null_stream` | those of two contexts of one device |
//! | `order` | operations on different streams, one after the other |
//! | [`own_stream`] | streams of the package's own |
//! | `plans` | launch plans, made once per shape |

pub mod device;
pub mod driver;
pub(crate) mod launch;
mod null_stream;
pub(crate) mod order;
pub mod own_stream;
pub(crate) mod plans;

/// A stream of the driver.
pub type Stream = cudarc::driver::sys::CUstream;
