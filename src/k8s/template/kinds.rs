//! The kinds of workloads that make pods. Owns, for each, where its pod template is, and which fields say how many pods
//! it makes. `explain`, `plan`, `convert`, `recommend` and the audit all read this table.

use serde_json::Value;

use crate::k8s::quantity;

/// How many pods are made of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// This many.
    Exactly(u64),
    /// One for each node that it may be placed on.
    PerNode,
}

/// One kind of workload. A kind with several templates gets a row for each of them.
#[derive(Debug, PartialEq, Eq)]
pub struct WorkloadKind {
    /// API groups that have it; empty for the core group.
    groups: &'static [&'static str],
    /// Its `kind`.
    pub kind: &'static str,
    /// JSON pointer from the object to its pod template; empty for a Pod, which is its own.
    pub template: &'static str,
    /// Which fields say how many pods are made of the template.
    count: Count,
    /// Whether a rollout makes new pods before the old ones have ended.
    pub surges: bool,
    /// Whether another workload usually makes it, whose template counts instead.
    pub is_made: bool,
    /// Kind of the direct owner of its pods.
    pub owner_of_pods: &'static str,
}

/// Which fields say how many pods there are, as JSON pointers from the object.
#[derive(Debug, PartialEq, Eq)]
enum Count {
    /// The object is a pod.
    One,
    /// The nodes decide.
    PerNode,
    /// This field; 1 if it is absent.
    Field(&'static str),
    /// Pods that run at the same time: `parallelism`, 1 if it is absent, and never more than `completions`.
    Parallel { parallelism: &'static str, completions: &'static str, suspend: &'static [&'static str] },
}

const APPS: &[&str] = &["apps", "extensions"];
const CORE: &[&str] = &[""];
const BATCH: &[&str] = &["batch"];
const REPLICAS: Count = Count::Field("/spec/replicas");

/// Every kind whose pods are known.
const KINDS: [WorkloadKind; 8] = [
    WorkloadKind { template: "", ..row("Pod", CORE, Count::One) },
    WorkloadKind { surges: true, owner_of_pods: "ReplicaSet", ..row("Deployment", APPS, REPLICAS) },
    row("StatefulSet", APPS, REPLICAS),
    row("DaemonSet", APPS, Count::PerNode),
    WorkloadKind { is_made: true, ..row("ReplicaSet", APPS, REPLICAS) },
    WorkloadKind { is_made: true, ..row("ReplicationController", CORE, REPLICAS) },
    WorkloadKind {
        is_made: true,
        ..row(
            "Job",
            BATCH,
            Count::Parallel {
                parallelism: "/spec/parallelism",
                completions: "/spec/completions",
                suspend: &["/spec/suspend"],
            },
        )
    },
    WorkloadKind {
        template: "/spec/jobTemplate/spec/template",
        owner_of_pods: "Job",
        ..row(
            "CronJob",
            BATCH,
            Count::Parallel {
                parallelism: "/spec/jobTemplate/spec/parallelism",
                completions: "/spec/jobTemplate/spec/completions",
                suspend: &["/spec/suspend", "/spec/jobTemplate/spec/suspend"],
            },
        )
    },
];

/// A kind with its template in the usual place, which makes its pods itself.
const fn row(kind: &'static str, groups: &'static [&'static str], count: Count) -> WorkloadKind {
    WorkloadKind { groups, kind, template: "/spec/template", count, surges: false, is_made: false, owner_of_pods: kind }
}

/// The kind of an object whose pods are known. An object without `apiVersion`, as in a snippet, is known by its kind.
pub fn of(object: &Value) -> Option<&'static WorkloadKind> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let kind = text("kind")?;
    match text("apiVersion") {
        Some(version) => find(version.split_once('/').map_or("", |(group, _)| group), kind),
        None => named(kind),
    }
}

/// The kind of this API group and name; the group is empty for the core group.
pub fn find(group: &str, kind: &str) -> Option<&'static WorkloadKind> {
    KINDS.iter().find(|row| row.kind == kind && row.groups.contains(&group))
}

/// The kind of this name, whatever its API group.
pub fn named(kind: &str) -> Option<&'static WorkloadKind> {
    KINDS.iter().find(|row| row.kind == kind)
}

/// The pointers to all templates that are not the object itself, each once.
pub fn templates() -> impl Iterator<Item = &'static str> {
    let others = |at: usize| KINDS.iter().take(at);
    let rows = KINDS.iter().enumerate().filter(|(_, row)| !row.template.is_empty());
    rows.filter(move |(at, row)| others(*at).all(|other| other.template != row.template)).map(|(_, row)| row.template)
}

impl WorkloadKind {
    /// The `apiVersion` under which an API server serves it today.
    pub fn api_version(&self) -> String {
        // The first group is the present one, and all of these kinds are stable.
        match self.groups.first() {
            Some(group) if !group.is_empty() => format!("{group}/v1"),
            _ => "v1".to_owned(),
        }
    }

    /// How many pods an object of this kind makes. A job that is suspended is counted as if it ran.
    ///
    /// # Errors
    /// A field is no whole number. The text names the field.
    pub fn copies(&self, object: &Value) -> Result<Copies, String> {
        let number = |pointer: &str| number(object, pointer);
        Ok(match self.count {
            Count::One => Copies::Exactly(1),
            Count::PerNode => Copies::PerNode,
            Count::Field(pointer) => Copies::Exactly(number(pointer)?.unwrap_or(1)),
            Count::Parallel { parallelism, completions, .. } => {
                let parallelism = number(parallelism)?.unwrap_or(1);
                Copies::Exactly(number(completions)?.map_or(parallelism, |most| most.min(parallelism)))
            }
        })
    }

    /// Whether an object of this kind makes no pods until somebody resumes it.
    pub fn is_suspended(&self, object: &Value) -> bool {
        let Count::Parallel { suspend, .. } = self.count else { return false };
        suspend.iter().any(|pointer| object.pointer(pointer) == Some(&Value::Bool(true)))
    }
}

/// A JSON pointer as messages name the field: `/spec/replicas` is `spec.replicas`.
pub fn field(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

/// Reads a whole number; `None` if the field is absent.
pub(in crate::k8s) fn number(object: &Value, pointer: &str) -> Result<Option<u64>, String> {
    match object.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => quantity::whole(value).map(Some).map_err(|why| format!("{}: {why}", field(pointer))),
    }
}
