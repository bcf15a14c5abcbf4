//! [`Explanation`]: the answer of `vramguard explain` as a document. Owns names and shapes of its JSON fields; `answer`
//! asks the core, and `table` shows the document.
//!
//! Fields may be added and are never renamed or removed while `schemaVersion` is `v1`. Amounts are whole MiB; `null` is
//! not known or not set.

use serde::Serialize;

mod answer;
pub mod table;

pub use answer::{Question, answer};

/// The version of the contract.
pub const SCHEMA_VERSION: &str = "v1";

/// The policy of a namespace, and what it makes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// [`SCHEMA_VERSION`].
    pub schema_version: String,
    /// Program and version, such as `vramguard 0.1.0`.
    pub generated_by: String,
    /// The namespace.
    pub namespace: String,
    /// Whether the namespace is exempt, so that no policy applies.
    pub exempt: bool,
    /// The values in force, in the order of the documentation. For an exempt namespace they are those of any other.
    pub policy: Vec<Setting>,
    /// ResourceQuotas of the namespace that limit VRAM, by name; empty without a cluster.
    pub quotas: Vec<Quota>,
    /// What becomes of the pod; `null` if none was given.
    pub pod: Option<Pod>,
    /// What each node can do for the pod; `null` without a pod, without a cluster, or if no node is asked.
    pub nodes: Option<Nodes>,
    /// What limits this answer.
    pub notes: Vec<String>,
}

/// The value of one field in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setting {
    /// Path of the field, such as `declaration.min`; of an entry of the model catalogue, `models.<name>`.
    pub field: String,
    /// The value as a policy file writes it; `null` if the field has none.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: Origin,
    /// The place in a file; `null` for a default.
    pub source: Option<Source>,
    /// Whether the ClusterVramPolicy locks the field.
    pub locked: bool,
    /// A value that the other document sets, and that is not in force.
    pub ignored: Option<Ignored>,
}

/// The document that a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// No document sets it.
    Default,
    /// The ClusterVramPolicy.
    Cluster,
    /// The VramPolicy of the namespace.
    Namespace,
}

/// The place of a value in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The file, or kind, namespace and name of a resource; of a document in a snapshot, with the object in parentheses.
    pub file: String,
    /// The line, from 1; `null` if it is not known.
    pub line: Option<u64>,
}

/// A value that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ignored {
    /// The value as a policy file writes it.
    pub value: String,
    /// The document that sets it.
    pub origin: Origin,
    /// The place in a file.
    pub source: Option<Source>,
    /// `locked`, `replaced` (the namespace sets another value) or `lessStrict` (of two bounds).
    pub why: &'static str,
}

/// A ResourceQuota that limits VRAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Its name.
    pub name: String,
    /// Whether vramguard keeps it, as the policy's quota.
    pub kept_by_vramguard: bool,
    /// Its limit, in MiB; `null` if that cannot be read.
    pub hard_mib: Option<u64>,
    /// What the pods of the namespace request, in MiB; `null` if that has not been counted.
    pub used_mib: Option<u64>,
    /// What is left, in MiB.
    pub left_mib: Option<u64>,
}

/// What becomes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Kind of the object that was given, such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its containers, in start order.
    pub containers: Vec<Container>,
    /// Demand of the pod as Kubernetes counts it, in MiB.
    pub demand_mib: Option<u64>,
    /// What `/mutate/pods` changes in addition to the containers.
    pub mutate: Mutate,
    /// What `/validate/pods` answers.
    pub validate: Validate,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Its name.
    pub name: String,
    /// `app`, `init` or `sidecar`.
    pub role: &'static str,
    /// Whether its demand counts.
    pub counts: bool,
    /// Why it counts, or why not.
    pub why: String,
    /// What it declares, in MiB; `null` if it declares nothing, or if the declaration is refused.
    pub declared_mib: Option<u64>,
    /// Where the declared amount is written; empty if there is none.
    pub source: String,
    /// Where an amount is written too that does not decide.
    pub also: Vec<String>,
    /// The number of CUDA processes, each with an overhead; `null` if the annotation is not a number.
    pub processes: Option<u32>,
    /// The overhead of all its processes, in MiB; `null` if it does not count.
    pub overhead_mib: Option<u64>,
    /// Its demand, in MiB; `null` if it has none.
    pub demand_mib: Option<u64>,
    /// Whether the demand is one slot, because nothing is declared.
    pub slot: bool,
    /// The request for `vramguard.dev/vram` that is injected, in MiB; `null` if none is.
    pub injected_request_mib: Option<u64>,
    /// The variables that are injected, as `NAME=value`.
    pub injected_env: Vec<String>,
    /// The variable that is taken out.
    pub removed_env: Option<String>,
    /// The variables to which something is added, as `NAME=value` with the new value.
    pub edited_env: Vec<String>,
    /// The flag that is appended to its arguments.
    pub appended_argument: Option<String>,
    /// The framework that it runs; `null` if none is known, or if nothing is injected.
    pub framework: Option<&'static str>,
    /// What keeps it to what it declares: `driver`, `allocator`, `plan` or `nothing`; `null` if it takes no part of a
    /// shared GPU, or if nothing is injected.
    pub bounded_by: Option<&'static str>,
    /// `boundedBy` in words, and why; empty without it.
    pub bound: String,
}

/// What `/mutate/pods` changes in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mutate {
    /// Whether it changes anything, containers included.
    pub changes: bool,
    /// Annotations that are removed.
    pub removed_annotations: Vec<String>,
    /// The alternatives that the required node affinity adds, without those for pools; the node must meet one.
    pub affinity: Vec<String>,
    /// The pool that the pod asks for, if it is rerouted; `null` if it is not.
    pub own_pool: Option<String>,
    /// The further pools that it may use, in the order in which it prefers them.
    pub further_pools: Vec<String>,
    /// Its warnings.
    pub warnings: Vec<String>,
}

/// What `/validate/pods` answers about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Validate {
    /// `Allow` or `Deny`.
    pub verdict: &'static str,
    /// What breaks the policy. Only mode `Enforce` refuses a pod for it.
    pub violations: Vec<Violation>,
    /// What would break the policy, depending on nodes that are not known here.
    pub depends_on_nodes: Vec<Violation>,
    /// Its warnings.
    pub warnings: Vec<String>,
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Reason code.
    pub reason: String,
    /// What is the matter, with the numbers and the remedy.
    pub message: String,
}

/// What becomes of the pod on the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// All nodes of the cluster.
    pub total: usize,
    /// Nodes that can take it now, by name.
    pub now: Vec<String>,
    /// Nodes that can take it once others leave, by reason.
    pub later: Vec<Group>,
    /// Nodes that can never take it as they are, by reason.
    pub never: Vec<Group>,
}

/// The nodes with one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// The reason. It continues a sentence that begins with the nodes.
    pub why: String,
    /// How many nodes it is.
    pub count: usize,
    /// The first of them, by name.
    pub nodes: Vec<String>,
    /// The message about the first one, with its numbers; empty if there is no more to say.
    pub example: String,
}

impl Explanation {
    /// The explanation as JSON, indented, with a line break at its end.
    pub fn json(&self) -> String {
        crate::report::json::pretty(self)
    }
}

#[cfg(test)]
mod tests;
