//! [`Report`]: one audit as a document, which is the JSON contract of `vramguard audit`. Owns names and shapes of its
//! fields.
//!
//! Fields may be added and are never renamed or removed while `schemaVersion` is `v1`. `docs/audit.schema.json` is its
//! JSON Schema. Amounts are whole MiB. `null` is not known, and `0` is none.

use std::collections::BTreeMap;

mod amounts;

pub(super) use amounts::vram;

use serde::{Deserialize, Serialize};

/// The version of the contract.
pub const SCHEMA_VERSION: &str = "v1";

/// The result of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// When the cluster was read, in RFC 3339, UTC.
    #[serde(default)]
    pub generated_at: String,
    /// Program and version, such as `vramguard 0.1.0`.
    #[serde(default)]
    pub generated_by: String,
    /// The name of the kubeconfig's context, or the names of the snapshot's files.
    #[serde(default)]
    pub cluster: String,
    /// What could not be read. The report says nothing about it.
    #[serde(default)]
    pub gaps: Vec<Gap>,
    /// The totals.
    pub summary: Summary,
    /// Each physical GPU and MIG device whose size is known, by node and index.
    pub gpus: Vec<Gpu>,
    /// Each node with GPUs, by name.
    pub nodes: Vec<Node>,
    /// Each namespace with pods or workloads that request GPUs, by name.
    pub namespaces: Vec<Namespace>,
    /// Each workload that requests shared GPUs, by namespace, kind and name.
    #[serde(default)]
    pub workloads: Vec<Workload>,
    /// The findings, most severe first, then by reason and object.
    pub findings: Vec<Finding>,
    /// What would happen to the pods of today under mode Enforce.
    #[serde(default)]
    pub enforced: Enforced,
    /// The same cluster under the assumptions of `--assume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assumed: Option<Assumed>,
    /// The comparison with an earlier report, by `--baseline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// The resource or file, such as `resourceclaims.resource.k8s.io`.
    pub what: String,
    /// Why, and what the report lacks because of it.
    pub why: String,
}

/// The totals of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Number of entries of [`Report::gpus`].
    pub gpus: u64,
    /// GPUs that are overcommitted for certain.
    pub overcommitted_gpus: u64,
    /// Findings of severity `deny`.
    pub deny: u64,
    /// Findings of severity `warn`.
    pub warn: u64,
    /// Findings of severity `info`.
    pub info: u64,
    /// What is held beyond the allocatable of its GPU, for certain, in MiB.
    #[serde(default)]
    pub overcommitted_mib: u64,
    /// Nodes with GPUs.
    #[serde(default)]
    pub nodes: u64,
    /// Nodes on which a GPU may be overcommitted, depending on which pod is on which GPU.
    #[serde(default)]
    pub maybe_overcommitted_nodes: u64,
    /// Nodes whose GPUs are not known.
    #[serde(default)]
    pub unknown_nodes: u64,
    /// Pods that hold a shared GPU.
    #[serde(default)]
    pub gpu_pods: u64,
    /// Pods that request a shared GPU and have no node.
    #[serde(default)]
    pub waiting_pods: u64,
    /// Pods that hold a shared GPU and declare nothing.
    #[serde(default)]
    pub undeclared_pods: u64,
    /// Pods that mode Enforce would refuse if they were created now.
    #[serde(default)]
    pub refused_pods: u64,
    /// Allocatable of all known GPUs, in MiB.
    #[serde(default)]
    pub allocatable_mib: u64,
    /// Held on all nodes, in MiB.
    #[serde(default)]
    pub held_mib: u64,
    /// Free on all nodes, and smaller than the smallest demand that waits, in MiB; `null` if none waits.
    #[serde(default)]
    pub stranded_mib: Option<u64>,
    /// Memory in use, in MiB, on the GPUs whose node agents report currently; absent if there is no such GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_mib: Option<u64>,
    /// Number of these GPUs.
    #[serde(default)]
    pub used_gpus: u64,
}

/// One physical GPU, or one MIG device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Name of the node.
    pub node: String,
    /// UUID, or the index if the UUID is not known.
    pub gpu: String,
    /// Accounting mode of its pool: `exact`, `slot`, `exclusive`, `confirmed`, `steered`.
    pub mode: String,
    /// All its memory, in MiB.
    pub total_mib: u64,
    /// What pods can be given, in MiB: total − driver reserve − headroom − out-of-band use.
    pub allocatable_mib: u64,
    /// What the pods that are known to be on this GPU hold, in MiB. In mode `slot` it is 0, and the pods are in
    /// [`Node::unassigned`].
    pub held_mib: u64,
    /// The largest demand that fits now, in MiB; `null` where it is known for the node only.
    pub free_mib: Option<u64>,
    /// Whether `heldMib` exceeds `allocatableMib`.
    pub overcommitted: bool,
    /// The containers that are known to be on this GPU.
    pub holders: Vec<Holder>,
    /// Resource name that containers request it by.
    #[serde(default)]
    pub resource: String,
    /// Product name, from the node's labels; `null` if not known.
    #[serde(default)]
    pub product: Option<String>,
    /// Replicas that the device plugin makes of it; 1 if it is not shared.
    #[serde(default)]
    pub replicas: u64,
    /// Driver reserve and headroom, in MiB.
    #[serde(default)]
    pub headroom_mib: u64,
    /// Memory in use as the node agent reports it, in MiB; `null` if not known.
    #[serde(default)]
    pub used_mib: Option<u64>,
    /// What of `usedMib` no pod counts with, in MiB; absent if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside_mib: Option<u64>,
    /// Why `usedMib` and `outsideMib` are not current, such as `reported 3 hours ago`; absent if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// State of the GPU.
    #[serde(default)]
    pub status: Status,
}

/// State of a GPU or a node, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// Room is left.
    #[default]
    Ok,
    /// Nothing more fits.
    Full,
    /// The GPUs are not known, so nothing is certain.
    Unknown,
    /// A GPU may be overcommitted, depending on which pod is on which GPU.
    MaybeOvercommitted,
    /// A GPU is overcommitted for certain.
    Overcommitted,
}

/// One container that holds memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// What it counts as, in MiB; `null` if that is not known.
    pub vram_mib: Option<u64>,
    /// Whether it declares or requests an amount. If not, it counts as a slot.
    #[serde(default)]
    pub declared: bool,
    /// Whether it counts as what it was seen to use, because its pod declares nothing and it uses more than its slots.
    #[serde(default)]
    pub seen: bool,
    /// What keeps it to what it declares: `driver`, `allocator`, `plan` or `nothing`; absent if it takes no part of a
    /// shared GPU, or if its pod was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_by: Option<String>,
    /// Memory that it really uses, in MiB, as the node agent reports it; absent if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_mib: Option<u64>,
    /// The most that it has used, in MiB; absent if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_mib: Option<u64>,
    /// For how many seconds none of its processes has computed; absent if one does, or if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// What the node agent found wrong: `OverDeclaration`, `Undeclared`, `Idle` or `FarUnder`; absent if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Why these amounts are not current; absent if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

impl Holder {
    /// What the amount comes from, in a few words.
    pub fn counted_by(&self) -> &'static str {
        match (self.seen, self.declared) {
            (true, _) => "use: declares nothing",
            (false, true) => "declaration",
            (false, false) => "slot: declares nothing",
        }
    }
}

/// The node agent of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// When it reported last, in RFC 3339, UTC; `null` if its report names no time.
    #[serde(default)]
    pub reported_at: Option<String>,
    /// How many seconds before the cluster was read that was; `null` if not known.
    #[serde(default)]
    pub age_seconds: Option<u64>,
    /// Why it does not tell what each pod uses; absent if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals_only: Option<String>,
    /// Why what it reported is not current; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

impl Node {
    /// Whether the GPU of each pod of the node is known, of which these are the GPUs. Outside of the modes in which it
    /// always is, a report of another tool may have said it.
    pub fn is_assigned(&self, gpus: &[&Gpu]) -> bool {
        let said = self.unassigned.is_empty() && gpus.iter().any(|gpu| !gpu.holders.is_empty());
        said || !["slot", "unknown"].contains(&self.mode.as_str())
    }
}

/// One node with GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Name of the node.
    pub node: String,
    /// The least certain accounting mode of its pools; `unknown` if the GPUs of one are not known.
    pub mode: String,
    /// What the node should publish as `vramguard.dev/vram`, in MiB; `null` if nothing on it is shared.
    pub published_mib: Option<u64>,
    /// What further pods may request together, in MiB.
    pub placeable_mib: Option<u64>,
    /// The containers whose GPU is not known.
    pub unassigned: Vec<Holder>,
    /// Number of its GPUs; 0 if they are not known.
    #[serde(default)]
    pub gpus: u64,
    /// Product name, from its labels; `null` if not known.
    #[serde(default)]
    pub product: Option<String>,
    /// Its GPU resources, in order.
    #[serde(default)]
    pub resources: Vec<String>,
    /// Allocatable of all its GPUs, in MiB; `null` if the GPUs of a pool are not known.
    #[serde(default)]
    pub allocatable_mib: Option<u64>,
    /// What its pods hold, in MiB, as far as that is known.
    #[serde(default)]
    pub held_mib: u64,
    /// The largest demand of one more pod, in MiB; `null` if the GPUs of a pool are not known.
    #[serde(default)]
    pub free_mib: Option<u64>,
    /// The most that one pod can ever get here, in MiB; `null` if not known.
    #[serde(default)]
    pub pod_max_mib: Option<u64>,
    /// Free, and smaller than the smallest demand that waits, in MiB; `null` if none waits.
    #[serde(default)]
    pub stranded_mib: Option<u64>,
    /// Pods that hold a shared GPU here.
    #[serde(default)]
    pub pods: u64,
    /// Those of them that declare nothing.
    #[serde(default)]
    pub undeclared_pods: u64,
    /// Why the GPUs of a pool are not known; `null` if all are.
    #[serde(default)]
    pub unknown: Option<String>,
    /// State of the node.
    #[serde(default)]
    pub status: Status,
    /// Its node agent; absent if none has reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
}

/// One namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Namespace {
    /// Its name.
    pub namespace: String,
    /// Policy mode in force: `Enforce`, `Warn`, `Audit`, `Off`, or `Exempt`.
    pub mode: String,
    /// What its pods on nodes declare or request, in MiB, as far as the amounts are known.
    pub declared_mib: u64,
    /// Its quota, in MiB; `null` if it has none.
    pub quota_mib: Option<u64>,
    /// Pods on nodes that declare nothing.
    pub undeclared_pods: u64,
    /// Pods that hold a shared GPU.
    #[serde(default)]
    pub pods: u64,
    /// What they hold, in MiB, as far as the amounts are known.
    #[serde(default)]
    pub held_mib: u64,
    /// Pods that mode Enforce would refuse.
    #[serde(default)]
    pub refused_pods: u64,
    /// Pods that request a GPU and have no node.
    #[serde(default)]
    pub waiting_pods: u64,
}

/// One workload, such as a Deployment, whose pods request a shared GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Kind of the workload.
    pub kind: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload.
    pub name: String,
    /// Demand of one pod, in MiB; `null` if not known.
    pub demand_mib: Option<u64>,
    /// Pods that it should have now.
    pub replicas: u64,
    /// The most that it may have: by its HorizontalPodAutoscaler, or by the surge of a rollout.
    pub max_replicas: u64,
    /// How many more of its pods fit now for certain, counted up to `maxReplicas`; `null` if that is not known.
    pub fits_more: Option<u64>,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods can die, or mode Enforce refuses them.
    Deny,
    /// Something will not work as its author expects.
    Warn,
    /// Good to know.
    Info,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// Reason code of the closed list in `docs/audit.md`.
    pub reason: String,
    /// Kind of the object.
    pub kind: String,
    /// Namespace of the object; empty if it has none.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// What is wrong, with the numbers.
    pub message: String,
    /// A line to paste, or what to do; empty if there is nothing to do.
    pub remedy: String,
    /// The same in every report about the same thing: it depends on the reason, the object and the container, and not
    /// on numbers.
    #[serde(default)]
    pub id: String,
    /// The container that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The node or GPU that it is about, if that is not the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Number of pods of the object that it applies to; 1 for a pod, 0 if it is not about pods.
    #[serde(default)]
    pub pods: u64,
    /// The numbers of the message. Each name ends in its unit, as in `heldMib`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
    /// Where the object is written, if it was read from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The file, as it was given.
    pub file: String,
    /// The first line of the object, from 1.
    pub line: u64,
}

/// What would happen to the pods of today under mode Enforce.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforced {
    /// Pods that would be refused.
    pub refused: Vec<Refused>,
    /// Running pods that would wait, because the pods before them take the room.
    pub waiting: Vec<Moved>,
    /// Running pods that would run on another node.
    pub elsewhere: Vec<Moved>,
}

/// A pod that would be refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Reason code of the first violation.
    pub reason: String,
    /// All violations.
    pub message: String,
}

/// A pod that would wait, or run elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// The node that it is on today.
    pub from: String,
    /// The node that it would be on; `null` if it would wait.
    pub to: Option<String>,
}

/// The same cluster under assumptions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assumed {
    /// The assumptions, as they were given.
    pub assumptions: Vec<String>,
    /// The report under them.
    pub report: Box<Report>,
}

/// The comparison with an earlier report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// When the earlier report was made.
    pub generated_at: String,
    /// Ids of the findings that the earlier report does not have.
    pub new: Vec<String>,
    /// The findings that only the earlier report has.
    pub gone: Vec<Finding>,
    /// Number of findings that both have.
    pub same: u64,
}

#[cfg(test)]
mod tests;
