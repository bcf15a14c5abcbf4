//! The integration tests, one crate: linking the product once for each file would take longer than the tests.
//!
//! | module | against |
//! |---|---|
//! | `tiers` | the source tree: who may import what |
//! | `cases` | the case files of `tests/cases`, through the core, the handlers and, on a real control plane, the binding guard |
//! | `server` | the real listener: TLS, limits, garbage, certificates, drain |
//! | `demo` | the demo and the command line, as a user starts them |
//! | `harness` | the control plane itself |
//! | `cluster` | a real control plane with the manifests of `deploy/` |
//! | `ledger` | the same, with nodes of several GPUs: bindings, `GpuLedger` objects |
//! | `publishing` | the same: what is written on nodes and said about pods, and what is left of it |
//! | `deploy` | the manifests themselves: what the API server makes of each |
//! | `chaos` | the same, with several replicas and everything going wrong |
//! | `kubelet` | a real kubelet and containerd |
//! | `edges` | what lived on the cluster before: device plugins, whole GPUs |
//! | `extender` | a real kube-scheduler that asks the extender |
//! | `hostile` | attacks, with the memory of the manifests: on the server alone, and the long form on a control plane |
//! | `figures` | the same, measured: printed, not judged |

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests read files, start programs and measure time

mod cases;
mod chaos;
mod cluster;
mod demo;
mod deploy;
mod edges;
mod extender;
mod figures;
mod guard;
mod harness;
mod hostile;
mod kubelet;
mod ledger;
mod publishing;
mod server;
mod support;
mod tiers;
