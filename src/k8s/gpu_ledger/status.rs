//! Where a node stands → the `status` of its `GpuLedger`. Owns its fields and the wording of its conditions; the agent's
//! section is left alone.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{Accounting, Resource, Rules};
use crate::capacity::ledger::{NodeLedger, PoolStanding, Standing};
use crate::capacity::vram::Vram;
use crate::k8s::publication;

/// Whether every GPU is accounted for.
pub const ACCOUNTED: &str = "Accounted";
/// Whether a GPU is overcommitted, or may be.
pub const OVERCOMMITTED: &str = "Overcommitted";

/// The merge patch that makes the status say where the node stands, or `None` where it does. `current` is the status as it
/// is.
pub fn patch(
    facts: &NodeFacts,
    ledger: &NodeLedger,
    standing: &Standing,
    rules: &Rules,
    guards: impl Fn(&Resource) -> bool,
    current: &Value,
    now: Timestamp,
) -> Option<Value> {
    let pools: Vec<&PoolStanding> = standing.pools.iter().filter(|pool| guards(&pool.resource)).collect();
    let mut wanted = Map::new();
    let worst = pools.iter().map(|pool| pool.accounting).max().unwrap_or(Accounting::Unknown);
    let gpus: Vec<Value> = pools.iter().flat_map(|pool| gpus_of(facts, pool)).collect();
    wanted.insert("mode".into(), json!(worst.to_string()));
    wanted.insert("gpuCount".into(), json!(gpus.len()));
    wanted.insert("gpus".into(), Value::Array(gpus));
    let held: Vram = pools.iter().map(|pool| pool.held).sum();
    let allocatable: Vram = pools.iter().filter_map(|pool| pool.allocatable).sum();
    for (name, amount) in [("allocatable", allocatable), ("held", held), ("placeable", standing.placeable)] {
        wanted.insert(name.into(), json!(amount.to_string()));
        wanted.insert(format!("{name}MiB"), json!(amount.mib()));
    }
    wanted.insert("reservations".into(), json!(ledger.shared().map_or(0, |shared| shared.reservations.len())));
    let conditions = [accounted(facts, standing, rules, &guards), overcommitted(&pools)];
    let conditions = conditions.into_iter().map(|condition| condition.merged(current, now));
    wanted.insert("conditions".into(), conditions.collect());
    wanted.retain(|field, value| current.get(field.as_str()) != Some(value));
    (!wanted.is_empty()).then(|| json!({ "status": wanted }))
}

fn gpus_of<'p>(facts: &'p NodeFacts, pool: &'p PoolStanding) -> impl Iterator<Item = Value> + 'p {
    let contents = facts.pools.iter().find(|known| known.resource == pool.resource);
    let known = contents.and_then(|known| known.contents.as_ref().ok()).map(|contents| contents.gpus.as_slice());
    pool.gpus.iter().zip(known.unwrap_or_default()).map(|(stands, gpu)| {
        let mut row = json!({
            "gpu": stands.id.to_string(),
            "index": gpu.index,
            "resource": pool.resource.0.as_str(),
            "mode": pool.accounting.to_string(),
            "totalMiB": stands.total.mib(),
            "allocatableMiB": stands.allocatable.mib(),
            "heldMiB": stands.held.mib(),
        });
        if let Some(free) = stands.free {
            row["freeMiB"] = json!(free.mib());
        }
        row
    })
}

/// A condition by the API conventions.
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl Condition {
    /// With the time of its last transition kept where the status is the same.
    fn merged(self, current: &Value, now: Timestamp) -> Value {
        let before = current.get("conditions").and_then(Value::as_array).into_iter().flatten();
        let before = before.into_iter().find(|condition| condition["type"] == self.kind);
        let kept = before.filter(|condition| condition["status"] == self.status);
        let since = kept.and_then(|condition| condition.get("lastTransitionTime")).cloned();
        json!({
            "type": self.kind,
            "status": self.status,
            "reason": self.reason,
            "message": self.message,
            "lastTransitionTime": since.unwrap_or_else(|| json!(publication::seconds(now))),
        })
    }
}

fn accounted(facts: &NodeFacts, standing: &Standing, rules: &Rules, guards: &impl Fn(&Resource) -> bool) -> Condition {
    let kind = ACCOUNTED;
    if let Some((resource, why)) = publication::unknown(facts).filter(|(resource, _)| guards(resource)) {
        return Condition { kind, status: "False", reason: "Unknown", message: format!("{resource}: {why}") };
    }
    let pools: Vec<&PoolStanding> = standing.pools.iter().filter(|pool| guards(&pool.resource)).collect();
    let Some(worst) = pools.iter().map(|pool| pool.accounting).max() else {
        let message = "no guarded GPU resource on this node".to_owned();
        return Condition { kind, status: "False", reason: "NotShared", message };
    };
    let each: Vec<String> = pools.iter().map(|pool| publication::accounted(pool, rules)).collect();
    Condition { kind, status: "True", reason: publication::reason(worst), message: each.join("; ") }
}

fn overcommitted(pools: &[&PoolStanding]) -> Condition {
    let kind = OVERCOMMITTED;
    let worst = pools.iter().filter_map(|pool| Some((pool.deficit.as_ref()?, pool)));
    match worst.max_by_key(|(deficit, _)| (deficit.on.is_some(), deficit.by)) {
        None => {
            let message = "what is promised of each GPU is no more than its allocatable".to_owned();
            Condition { kind, status: "False", reason: "WithinAllocatable", message }
        }
        Some((deficit, pool)) => {
            let reason = if deficit.on.is_some() { "GpuOvercommitted" } else { "GpuMayBeOvercommitted" };
            Condition { kind, status: "True", reason, message: publication::overcommitted(pool) }
        }
    }
}
