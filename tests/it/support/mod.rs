//! The real parts that the integration tests drive: a control plane, nodes that kwok plays, and one real kubelet.
//!
//! Owns starting, stopping and cleaning up of processes. Knows nothing of vramguard: what is tested is in the modules
//! beside this folder.
// Not every helper has a user at all times. What the pure tiers may not touch is what this is made of.
#![allow(dead_code, unused_imports)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod assets;
mod components;
mod control_plane;
mod gpu_node;
mod host;
mod image;
mod process;
mod real_node;
mod runtime;
mod wait;

pub use components::{ADMISSION_CONFIGURATION, ClientLimits, Component, SECOND_SCHEDULER, free_port};
pub use control_plane::ControlPlane;
pub use gpu_node::GpuNode;
pub use process::{Finished, Process, run};
pub use real_node::{RealNode, Skip};
pub use wait::{Patience, eventually, pause, within};
