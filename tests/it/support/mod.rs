//! Helpers that several test modules share: real processes, a guarded cluster, objects, clients and waiting.
//!
//! Owns starting, stopping and cleaning up of processes. Holds no tests, except those of the helpers themselves.
//!
//! | module | owns |
//! |---|---|
//! | `control_plane`, `components`, `assets` | one real control plane and its programs |
//! | `gpu_node` | nodes that kwok simulates |
//! | `real_node`, `runtime`, `image`, `host` | one node with a real kubelet |
//! | `guard`, `guarded_cluster` | vramguard under the manifests of `deploy/` |
//! | `test_server` | vramguard alone, on a snapshot |
//! | `client`, `authority`, `http` | clients of a server |
//! | `schema` | values against the JSON Schemas |
//! | `objects`, `stream` | objects that tests apply, and watches |
//! | `process`, `wait` | child processes, and waiting for them |
// Not every helper has a user at all times, and helpers need files, processes and time.
#![allow(dead_code, unused_imports)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub(crate) mod assets;
mod authority;
pub(crate) mod client;
mod components;
mod control_plane;
mod gpu_node;
pub(crate) mod guard;
mod guarded_cluster;
mod host;
pub(crate) mod http;
mod image;
pub(crate) mod objects;
mod process;
mod real_node;
mod runtime;
pub(crate) mod schema;
pub(crate) mod stream;
pub(crate) mod test_server;
mod wait;

pub(crate) use authority::Authority;
pub(crate) use components::{ADMISSION_CONFIGURATION, ClientLimits, Component, SECOND_SCHEDULER, free_port};
pub(crate) use control_plane::ControlPlane;
pub(crate) use gpu_node::GpuNode;
pub(crate) use guarded_cluster::{GuardedCluster, PATIENCE};
pub(crate) use process::{Finished, Process, run, write};
pub(crate) use real_node::{RealNode, Skip};
pub(crate) use wait::{Patience, eventually, pause, stays, within};
