//! vramguard makes GPU memory a first-class Kubernetes resource on NVIDIA time-sliced GPUs.
//!
//! Three tiers; imports only point down this list:
//!
//! 1. [`capacity`]: pure decisions.
//! 2. [`k8s`]: translation between the Kubernetes API and those decisions.
//! 3. shells (all other modules, feature `cluster`): I/O only.
//!
//! `ARCHITECTURE.md` is the map.

// The shells read clocks, files and the environment; `capacity` and `k8s` forbid it to themselves.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod capacity;
pub mod k8s;
pub mod keys;

#[cfg(feature = "cluster")]
pub mod cli;
#[cfg(feature = "cluster")]
pub mod controller;
#[cfg(feature = "cluster")]
pub mod index;
#[cfg(feature = "cluster")]
pub mod ledgers;
#[cfg(feature = "cluster")]
pub mod metrics;
#[cfg(feature = "cluster")]
pub mod policies;
#[cfg(feature = "cluster")]
pub mod tls;
#[cfg(feature = "cluster")]
pub mod unbound;
#[cfg(feature = "cluster")]
pub mod watch;
#[cfg(feature = "cluster")]
pub mod webhook;
