//! The integration tests. They are one crate, because linking the product once per file would take longer than the tests.
//!
//! | module | tests |
//! |---|---|
//! | `tiers` | the source tree: which module may import which |
//! | `docs` | the Markdown files: links, paths, and the map of the source tree |
//! | `cases` | the case files of `tests/cases`, through the core, the handlers and, on a real control plane, the binding guard |
//! | `snapshots` | the clusters of `tests/snapshots`, as an audit sees them |
//! | `server` | the real listener: TLS, limits, invalid bodies, certificates, drain |
//! | `suite` | `vramguard test`, as a user starts it: the shipped suites, the tutorial, failures and garbage |
//! | `explain` | `vramguard explain`, as a user starts it |
//! | `shipped` | every file of `policies/` and `deploy/`: none is there that no test loads |
//! | `agent` | the node agent, with a stand-in for the driver, on its own and against a real API server |
//! | `preflight` | `vramguard preflight`, as a user starts it |
//! | `plan`, `convert` | these commands, as a user starts them, and the commands of their pages |
//! | `quota` | ResourceQuotas on a real control plane |
//! | `policies` | policies as resources on a real control plane |
//! | `recommend` | `vramguard recommend` on a snapshot, and its patches on a real API server |
//! | `estimate` | `vramguard estimate` on files of each format, and against published measurements |
//! | `demo` | the demo and the command line, as a user starts them |
//! | `harness` | the control plane itself |
//! | `cluster` | a real control plane with the manifests of `deploy/` |
//! | `ledger` | `GpuLedger` objects and bindings on nodes with several GPUs |
//! | `publishing` | node status, events, and what the documented removal leaves behind |
//! | `deploy` | each manifest on a real API server |
//! | `chaos` | the promise with several replicas and injected faults |
//! | `kubelet` | a guarded node with a real kubelet and containerd |
//! | `steering` | the agent between a real kubelet and the test device plugin |
//! | `edges` | workloads from before the installation: device plugins, whole GPUs |
//! | `extender` | a real kube-scheduler that calls the extender |
//! | `hostile` | attacks on a server with the memory limit of the manifests |
//! | `reroute` | pods that use further pools, on a real kube-scheduler |
//! | `workloads` | warnings about workloads and autoscalers, on a real control plane |
//! | `report_html` | the HTML report in headless Chromium |
//! | `figures` | measurements, which are printed and not asserted |
//! | `support` | nothing: it holds the helpers that several modules share |

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests read files, start programs and measure time

mod agent;
mod audit;
mod cases;
mod chaos;
mod cluster;
mod convert;
mod demo;
mod deploy;
mod docs;
mod edges;
mod estimate;
mod explain;
mod extender;
mod figures;
mod harness;
mod hostile;
mod kubelet;
mod ledger;
mod outputs;
mod plan;
mod policies;
mod preflight;
mod publishing;
mod quota;
mod recommend;
mod report_html;
mod reroute;
mod server;
mod shipped;
mod snapshots;
mod steering;
mod suite;
mod support;
mod tiers;
mod workloads;

use support::guard; // the path that `cases` imports
