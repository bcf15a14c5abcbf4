//! vramguard makes GPU memory a first-class Kubernetes resource on NVIDIA time-sliced GPUs.
//!
//! Three tiers; imports only point down this list:
//!
//! 1. [`capacity`]: pure decisions.
//! 2. [`k8s`]: translation between the Kubernetes API and those decisions.
//! 3. shells (all other modules, feature `cluster`): I/O only.
//!
//! `ARCHITECTURE.md` is the map.

pub mod capacity;
pub mod k8s;
pub mod keys;

#[cfg(feature = "cluster")]
pub mod index;
#[cfg(feature = "cluster")]
pub mod metrics;
#[cfg(feature = "cluster")]
pub mod policies;
#[cfg(feature = "cluster")]
pub mod tls;
#[cfg(feature = "cluster")]
pub mod webhook;
