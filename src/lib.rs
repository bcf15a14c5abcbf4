//! vramguard makes GPU memory a first-class Kubernetes resource on NVIDIA time-sliced GPUs.
//!
//! The modules form three tiers. A module imports only from its own tier and the tiers above it in this list:
//!
//! 1. [`capacity`] decides. It imports from no other tier.
//! 2. [`k8s`] translates between the Kubernetes API and those decisions, [`model`] from files of models to their shapes, and
//!    [`report`] from findings to text. All import `capacity`; `k8s` and `model` import neither `report` nor each other.
//! 3. The shells act: `state`, `webhook`, `controller`, `agent`, `tls`, `metrics`, `server` and `cli` (feature
//!    `cluster`). They do all I/O, and import all of these.
//!
//! [`keys`] holds names only and imports nothing, so every tier may use it. `ARCHITECTURE.md` has the map of the
//! modules.

// The shells read clocks, files and the environment. `capacity`, `k8s`, `model` and `report` deny these lints again.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod capacity;
pub mod k8s;
pub mod keys;
pub mod model;
pub mod report;

#[cfg(feature = "cluster")]
pub mod agent;
#[cfg(feature = "cluster")]
pub mod cli;
#[cfg(feature = "cluster")]
pub mod controller;
#[cfg(feature = "cluster")]
pub mod metrics;
#[cfg(feature = "cluster")]
pub mod server;
#[cfg(feature = "cluster")]
pub mod state;
#[cfg(feature = "cluster")]
pub mod tls;
#[cfg(feature = "cluster")]
pub mod webhook;
