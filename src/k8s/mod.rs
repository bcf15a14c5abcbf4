//! Translation between the Kubernetes API and the pure core, and nothing else: API types, but no client and no runtime.
//! The same parsers serve admission, the watch and snapshots, so what is admitted can be read later.
//!
//! | module | translates |
//! |---|---|
//! | [`bounded`] | lists and maps of any length → what is kept of them |
//! | [`object`] | JSON and YAML of pods and nodes → the few fields that matter |
//! | [`quantity`] | Kubernetes quantities |
//! | [`pod`] | pod object → what it asks for; bound pod → ledger holder |
//! | [`node`] | node object → its GPUs |
//! | [`document`] | policy documents → policies, with file, line and field in every error |
//! | [`snapshot`] | `kubectl get -o yaml` → the objects of a static cluster |
//! | [`case`] | case files: a cluster, policies, pods, and what is expected |
//! | [`gpu_ledger`] | `GpuLedger` objects ↔ reservations and reports |
//! | [`review`] | AdmissionReview ↔ verdict |
//! | [`extender`] | what kube-scheduler asks an extender ↔ which nodes can take the pod |
//! | [`patch`] | changes → JSON Patch |
//! | [`publication`] | where a node stands → patch of its status |
//! | [`event`] | a warning → `Event` |
//! | [`ownership`] | managedFields of a node → who changed what we publish |
//! | [`webhook_configuration`] | policies → which namespaces the API server asks about |

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod bounded;
pub mod case;
pub mod document;
pub mod event;
pub mod extender;
pub mod gpu_ledger;
pub mod node;
pub mod object;
pub mod ownership;
pub mod patch;
pub mod pod;
pub mod publication;
pub mod quantity;
pub mod review;
pub mod snapshot;
pub mod webhook_configuration;
