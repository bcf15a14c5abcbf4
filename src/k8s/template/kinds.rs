//! The kinds of workloads that make pods. Owns, for each, where its pod template is, and which fields say how many pods
//! it makes. `explain`, `plan`, `convert`, `recommend` and the audit all read this table.

use serde_json::Value;

use crate::capacity::verdict::finding::Members;
use crate::k8s::quantity;
use crate::keys;

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
    /// Whether an object may lack this template, because another one then counts for its pods too.
    pub is_optional: bool,
    /// Which fields say how many pods are made of the template.
    count: Count,
    /// What a rollout makes before the old pods have ended.
    pub rollout: Rollout,
    /// Who makes objects of this kind, whose template counts instead.
    made_by: MadeBy,
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
    /// As many groups as `/spec/replicas` says, 1 if it is absent, each with these members.
    Groups(Members),
    /// Pods that run at the same time: `parallelism`, 1 if it is absent, and never more than `completions`.
    Parallel { parallelism: &'static str, completions: &'static str, suspend: &'static [&'static str] },
}

/// What a rollout makes before the old pods have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Nothing: it replaces pods in place.
    InPlace,
    /// Pods, as a Deployment does.
    Pods,
    /// Groups, as a LeaderWorkerSet does.
    Groups,
}

/// Owners of an object whose template counts instead of its own.
#[derive(Debug, PartialEq, Eq)]
enum MadeBy {
    /// Any controller.
    Anybody,
    /// A controller of one of these kinds. An operator is none of them: nobody knows where its objects have a template.
    Kinds(&'static [&'static str]),
}

const APPS: &[&str] = &["apps", "extensions"];
const CORE: &[&str] = &[""];
const BATCH: &[&str] = &["batch"];
const REPLICAS: Count = Count::Field("/spec/replicas");

/// Every kind whose pods are known.
const KINDS: [WorkloadKind; 10] = [
    WorkloadKind { template: "", ..row("Pod", CORE, Count::One) },
    WorkloadKind { rollout: Rollout::Pods, owner_of_pods: "ReplicaSet", ..row("Deployment", APPS, REPLICAS) },
    // A LeaderWorkerSet makes one for all of its leaders. Each leader, which is a Pod, owns one for the workers of its group.
    WorkloadKind { made_by: MadeBy::Kinds(&[keys::LWS_KIND, "Pod"]), ..row("StatefulSet", APPS, REPLICAS) },
    row("DaemonSet", APPS, Count::PerNode),
    WorkloadKind { made_by: MadeBy::Anybody, ..row("ReplicaSet", APPS, REPLICAS) },
    WorkloadKind { made_by: MadeBy::Anybody, ..row("ReplicationController", CORE, REPLICAS) },
    WorkloadKind {
        made_by: MadeBy::Anybody,
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
    WorkloadKind { template: "/spec/leaderWorkerTemplate/workerTemplate", ..groups(Members::Workers) },
    WorkloadKind { template: LEADER, is_optional: true, ..groups(Members::Leaders) },
];

/// Where a LeaderWorkerSet has the template of its leaders. Without it they are made of that of the workers.
const LEADER: &str = "/spec/leaderWorkerTemplate/leaderTemplate";
/// Number of pods of each group, its leader among them.
const SIZE: &str = "/spec/leaderWorkerTemplate/size";

/// A kind with its template in the usual place, which makes its pods itself.
const fn row(kind: &'static str, groups: &'static [&'static str], count: Count) -> WorkloadKind {
    WorkloadKind {
        groups,
        kind,
        template: "/spec/template",
        is_optional: false,
        count,
        rollout: Rollout::InPlace,
        made_by: MadeBy::Kinds(&[]),
        owner_of_pods: kind,
    }
}

/// A LeaderWorkerSet, as far as these pods of its groups are concerned.
const fn groups(members: Members) -> WorkloadKind {
    let row = row(keys::LWS_KIND, &[keys::LWS_GROUP], Count::Groups(members));
    WorkloadKind { rollout: Rollout::Groups, owner_of_pods: "StatefulSet", ..row }
}

/// The kind of an object whose pods are known, with its first template. An object without `apiVersion`, as in a snippet,
/// is known by its kind.
pub fn of(object: &Value) -> Option<&'static WorkloadKind> {
    rows(object).next()
}

/// The kind of an object whose pods are known, once for each template that an object of this kind may have.
pub fn rows(object: &Value) -> impl Iterator<Item = &'static WorkloadKind> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let kind = text("kind").unwrap_or_default();
    let group = text("apiVersion").map(|version| version.split_once('/').map_or("", |(group, _)| group));
    let is_it = move |row: &&WorkloadKind| row.kind == kind && group.is_none_or(|group| row.groups.contains(&group));
    KINDS.iter().filter(is_it)
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

    /// How many pods an object of this kind makes of the template. A job that is suspended is counted as if it ran.
    ///
    /// # Errors
    /// A field is no whole number. The text names the field.
    pub fn copies(&self, object: &Value) -> Result<Copies, String> {
        Ok(match self.replicas(object)? {
            Copies::Exactly(replicas) => Copies::Exactly(replicas.saturating_mul(self.each(object)?)),
            Copies::PerNode => Copies::PerNode,
        })
    }

    /// How many pods, or groups of pods, an object of this kind should have.
    ///
    /// # Errors
    /// As [`WorkloadKind::copies`].
    pub fn replicas(&self, object: &Value) -> Result<Copies, String> {
        let number = |pointer: &str| number(object, pointer);
        Ok(match self.count {
            Count::One => Copies::Exactly(1),
            Count::PerNode => Copies::PerNode,
            Count::Field(pointer) => Copies::Exactly(number(pointer)?.unwrap_or(1)),
            Count::Groups(_) => Copies::Exactly(number("/spec/replicas")?.unwrap_or(1)),
            Count::Parallel { parallelism, completions, .. } => {
                let parallelism = number(parallelism)?.unwrap_or(1);
                Copies::Exactly(number(completions)?.map_or(parallelism, |most| most.min(parallelism)))
            }
        })
    }

    /// How many pods of each group are made of the template; 1 for a kind that makes its pods one by one.
    ///
    /// # Errors
    /// As [`WorkloadKind::copies`].
    pub fn each(&self, object: &Value) -> Result<u64, String> {
        let Some(members) = self.members(object) else { return Ok(1) };
        let size = number(object, SIZE)?.unwrap_or(1);
        Ok(match members {
            Members::All => size,
            Members::Leaders => 1,
            Members::Workers => size.saturating_sub(1),
        })
    }

    /// Which pods of each group are made of the template; `None` for a kind that makes its pods one by one.
    pub fn members(&self, object: &Value) -> Option<Members> {
        match self.count {
            Count::Groups(Members::Workers) if !has(object, LEADER) => Some(Members::All),
            Count::Groups(members) => Some(members),
            _ => None,
        }
    }

    /// Whether an object of this kind lacks this template, and another one counts for its pods.
    pub fn is_left_out(&self, object: &Value) -> bool {
        self.is_optional && !has(object, self.template)
    }

    /// Whether the template of another object counts, by the kind of the controller that owns the object.
    pub fn is_made_by(&self, controller: &str) -> bool {
        match self.made_by {
            MadeBy::Anybody => true,
            MadeBy::Kinds(kinds) => kinds.contains(&controller),
        }
    }

    /// Whether Kubernetes itself defines the kind. Only then does its API server take strategic merge patches.
    pub fn is_built_in(&self) -> bool {
        !self.groups.contains(&keys::LWS_GROUP)
    }

    /// Whether an object of this kind makes no pods until somebody resumes it.
    pub fn is_suspended(&self, object: &Value) -> bool {
        let Count::Parallel { suspend, .. } = self.count else { return false };
        suspend.iter().any(|pointer| object.pointer(pointer) == Some(&Value::Bool(true)))
    }
}

fn has(object: &Value, pointer: &str) -> bool {
    object.pointer(pointer).is_some_and(|value| !value.is_null())
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
