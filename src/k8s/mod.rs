//! Translation between the Kubernetes API and the pure core, and nothing else: API types, but no client and no runtime.
//! Admission, the watch and snapshots share the same parsers, so an object that was admitted can also be read later.
//!
//! | module | translates |
//! |---|---|
//! | [`audit`] | the objects of a cluster → what an audit looks at |
//! | [`bounded`] | lists and maps of any length → a bounded number of their entries |
//! | [`checkpoint`] | the kubelet's device checkpoint → the devices of each container |
//! | [`object`] | JSON and YAML of pods and nodes → the few fields that vramguard reads |
//! | [`quantity`] | Kubernetes quantities → counts and amounts |
//! | [`pod`] | pod object → its requests, declarations and placement; bound pod → ledger holder |
//! | [`node`] | node object → its GPUs |
//! | [`node_pod`] | pod object → what a node agent needs to know of a pod on its node |
//! | [`cgroup`] | the cgroup of a process → its pod and container |
//! | [`document`] | policy documents → policies, with file, line and field in every error |
//! | [`manifests`] | files of JSON or YAML → objects, one at a time, each with its line |
//! | [`manifest`] | a Pod or a workload with a pod template → its pod |
//! | [`snapshot`] | `kubectl get -o yaml` → the objects of a static cluster |
//! | [`case`] | case files: a cluster, policies, pods, and the expected outcome of each pod |
//! | [`simulation`] | a cluster and policies without an API server: create, filter, bind |
//! | [`convert`] | declarations for other projects, and claims ↔ vramguard's declarations |
//! | [`device_plugin`] | configuration of the NVIDIA device plugin ↔ plan; its own rules as findings |
//! | [`dcgm_exporter`] | the metrics of a DCGM exporter → the GPUs of its node |
//! | [`foreign`] | pod template → what it declares for KAI, HAMi, Volcano or gpushare |
//! | [`gpu_ledger`] | `GpuLedger` objects ↔ reservations and reports |
//! | [`known_pod`] | pod object → what the node agent needs to know of a pod on its node |
//! | [`kubelet_config`] | the kubelet's configuration file → its topology manager policy |
//! | [`preflight`] | pods and ledgers → whether device plugin and agent are ready for steering |
//! | [`review`] | AdmissionReview ↔ verdict |
//! | [`pod_review`] | pod object → the answers of both pod webhooks |
//! | [`extender`] | kube-scheduler's request to an extender ↔ the nodes that can take the pod |
//! | [`patch`] | changes → JSON Patch |
//! | [`publication`] | usage of a node → patch of the node's status |
//! | [`event`] | a warning → `Event` |
//! | [`ownership`] | managedFields of a node → which manager changed a published field |
//! | [`strict`] | pod object → the first field in it that a Pod does not have |
//! | [`template`] | pods and workloads → their templates, and what those demand |
//! | [`tree`] | YAML text → nodes with their places in the text |
//! | [`counts`] | numbers of GPUs in a file → what is wrong with them |
//! | [`wording`] | errors of the parsers → words for the author of a file |
//! | [`workload`] | a workload or autoscaler under review → how many pods it may have, and its answer |
//! | [`webhook_configuration`] | policies → the namespace selectors of the webhook configurations |

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod agent_pod;
pub mod audit;
pub mod bounded;
pub mod case;
pub mod cgroup;
pub mod checkpoint;
pub mod convert;
pub mod counts;
pub mod dcgm_exporter;
pub mod device_plugin;
pub mod document;
pub mod event;
pub mod extender;
pub mod foreign;
pub mod gpu_ledger;
pub mod known_pod;
pub mod kubelet_config;
pub mod manifest;
pub mod manifests;
pub mod node;
pub mod node_pod;
pub mod object;
pub mod ownership;
pub mod patch;
pub mod pod;
pub mod pod_review;
pub mod preflight;
pub mod publication;
pub mod quantity;
pub mod resource_quota;
pub mod review;
pub mod simulation;
pub mod snapshot;
pub mod strict;
pub mod template;
#[cfg(test)]
pub(crate) mod testing;
pub mod tree;
pub mod webhook_configuration;
pub mod wording;
pub mod workload;
