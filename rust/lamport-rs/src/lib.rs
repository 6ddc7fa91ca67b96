#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "cuda")]
pub mod cuda;
mod element;
mod error;
mod experts;
mod handle;
pub mod host;
mod options;
mod quantised;
pub mod rendezvous;

pub use self::element::{Element, HalfElement, LayerNorm, RmsNorm, WeightFor};
pub use self::error::{Error, ErrorKind, Result};
pub use self::handle::{Handle, Status, Work};
pub use self::options::Options;
pub use self::quantised::QuantFormat;
pub use self::rendezvous::{FileRendezvous, Rendezvous, TcpRendezvous};

/// The crates below this one, by the features `core`, `protocol` and `kernels`: for kernels of one's own on a workspace's
/// table, say. They are public for their siblings: **any release may change them**.
#[cfg(any(feature = "core", feature = "protocol", feature = "kernels"))]
pub mod internals {
    #[cfg(feature = "core")]
    pub use lamport_rs_core as core;
    #[cfg(feature = "kernels")]
    pub use lamport_rs_kernels as kernels;
    #[cfg(feature = "protocol")]
    pub use lamport_rs_protocol as protocol;
}
