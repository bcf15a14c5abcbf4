//! How many pods a workload may have: its own numbers, the surge of a rollout, and what an autoscaler may ask for. Audits
//! and reviews of workloads both read them here. [`kinds`] knows which fields hold the numbers of a kind.

use serde_json::Value;

use super::kinds::{self, Copies, Rollout, WorkloadKind};
use crate::k8s::object::PodObject;
use crate::k8s::quantity;

/// The number of pods, or groups of pods, that a workload should have, and how many a rollout adds; `None` if its nodes
/// decide.
///
/// # Errors
/// A field is no whole number, or no percentage where one may be. The text names the field.
pub(in crate::k8s) fn numbers(kind: &WorkloadKind, object: &Value) -> Result<Option<(u64, u64)>, String> {
    Ok(match kind.replicas(object)? {
        Copies::PerNode => None,
        Copies::Exactly(_) if kind.is_suspended(object) => Some((0, 0)),
        Copies::Exactly(replicas) => {
            let surge = match kind.rollout {
                Rollout::InPlace => 0,
                Rollout::Pods => surge(object, replicas)?,
                Rollout::Groups => surge_of_groups(object, replicas)?,
            };
            Some((replicas, surge))
        }
    })
}

/// The groups that a rollout of a LeaderWorkerSet adds. Its controller makes them first and waits for them, also if other
/// groups may be unavailable, so old ones make no room for them.
fn surge_of_groups(object: &Value, replicas: u64) -> Result<u64, String> {
    const FIELD: &str = "/spec/rolloutStrategy/rollingUpdateConfiguration/maxSurge";
    let surge = IntOrPercent::of(object.pointer(FIELD), IntOrPercent::Int(0));
    let surge = surge.map_err(|error| format!("{}: {error}", kinds::field(FIELD)))?;
    Ok(surge.of_replicas(replicas, u64::div_ceil).min(replicas))
}

/// The pods for which a rollout of a Deployment needs room beside the old ones. Kubernetes never scales the new ReplicaSet
/// above `replicas`. If pods may be unavailable, old ones make room for new ones.
fn surge(object: &Value, replicas: u64) -> Result<u64, String> {
    let strategy = object.pointer("/spec/strategy");
    let is_recreated = strategy.and_then(|strategy| strategy.get("type")?.as_str()) == Some("Recreate");
    if is_recreated || object.pointer("/spec/paused") == Some(&Value::Bool(true)) {
        return Ok(0);
    }
    let bound = |field: &str| {
        let value = strategy.and_then(|strategy| strategy.get("rollingUpdate")?.get(field));
        IntOrPercent::of(value, IntOrPercent::Percent(25))
    };
    let bound = |field: &str| bound(field).map_err(|error| format!("spec.strategy.rollingUpdate.{field}: {error}"));
    let surge = bound("maxSurge")?.of_replicas(replicas, u64::div_ceil);
    let unavailable = bound("maxUnavailable")?.of_replicas(replicas, |share, all| share / all);
    // If both are zero, Kubernetes lets one pod be unavailable, and then the surge is zero anyway.
    Ok(if unavailable > 0 { 0 } else { surge.min(replicas) })
}

/// A bound of a rollout.
#[derive(Clone, Copy, Debug)]
enum IntOrPercent {
    Int(u64),
    Percent(u64),
}

impl IntOrPercent {
    /// Reads a bound, which has a default. A percentage that is too large for a number is the largest one.
    fn of(value: Option<&Value>, default: IntOrPercent) -> Result<IntOrPercent, String> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(default) };
        let percent = |text: &str| {
            let digits = text.strip_suffix('%')?;
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| IntOrPercent::Percent(digits.parse().unwrap_or(u64::MAX)))
        };
        match value.as_str() {
            Some(text) => {
                percent(text).ok_or_else(|| format!("{value} is neither a whole number nor a percentage, as in 25%"))
            }
            None => quantity::whole(value).map(IntOrPercent::Int).map_err(|why| format!("{why} or a percentage")),
        }
    }

    /// The number of pods. `divide` rounds a share.
    fn of_replicas(self, replicas: u64, divide: impl Fn(u64, u64) -> u64) -> u64 {
        match self {
            IntOrPercent::Int(pods) => pods,
            IntOrPercent::Percent(percent) => divide(replicas.saturating_mul(percent), 100),
        }
    }
}

/// The target of a HorizontalPodAutoscaler, and the most pods that it may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::k8s) struct Autoscaler<'o> {
    /// Kind of the target.
    pub(in crate::k8s) kind: &'o str,
    /// Name of the target.
    pub(in crate::k8s) name: &'o str,
    /// `spec.maxReplicas`.
    pub(in crate::k8s) most: u64,
}

impl Autoscaler<'_> {
    /// Reads a HorizontalPodAutoscaler.
    ///
    /// # Errors
    /// A field is missing or cannot be read. The text names the field.
    pub(in crate::k8s) fn of(object: &Value) -> Result<Autoscaler<'_>, String> {
        let most = kinds::number(object, "/spec/maxReplicas")?.ok_or("spec.maxReplicas: is missing")?;
        let text = |field: &str| {
            let text = object.pointer(&format!("/spec/scaleTargetRef/{field}")).and_then(Value::as_str);
            text.ok_or_else(|| format!("spec.scaleTargetRef.{field}: is missing, or no text"))
        };
        Ok(Autoscaler { kind: text("kind")?, name: text("name")?, most })
    }
}

/// Gives a template the metadata with which the controller of a workload makes a pod of it.
pub(in crate::k8s) fn as_made_by(template: &mut PodObject, namespace: &str, workload: &str) {
    template.metadata.namespace = Some(namespace.to_owned());
    template.metadata.name = None;
    template.metadata.generate_name = Some(format!("{workload}-"));
}
