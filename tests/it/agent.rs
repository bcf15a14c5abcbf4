//! The node agent as a user starts it, with a stand-in for the driver's library: see `tests/nvml/fake.rs`.
//!
//! | module | tests |
//! |---|---|
//! | `fake` | nothing: it builds the stand-in, and writes what it shows |
//! | `kubelet` | nothing: it answers as the kubelet's PodResources socket does |
//! | `once` | `vramguard agent --once` |
//! | `cluster` | the agent against a real API server, under the manifests of `deploy/agent` |
//! | `one_gpu` | the agent beside a server and a scheduler, on a node with one GPU |
//! | `exporter` | nothing: it answers as a DCGM exporter does |
//! | `totals` | `vramguard agent --dcgm-exporter`, once and against a real API server |
//! | `plugin_config` | `--plugin-config-map` against a real API server, under the rights of the example |
//! | `hang` | an agent that steers and hangs |
//! | `cost` | CPU time and memory of an agent that steers, against a real API server |

mod cluster;
mod cost;
mod exporter;
pub(crate) mod fake;
mod hang;
mod kubelet;
mod once;
mod one_gpu;
mod plugin_config;
mod totals;
