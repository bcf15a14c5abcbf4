//! Usage of a node → the `status` of its `GpuLedger`. Owns the fields that the controller writes.
//! [`crate::capacity::verdict`] owns the text of the conditions, and the node agent owns its own section, which stays
//! unchanged.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{Accounting, Resource, Rules};
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::usage::{NodeUsage, PoolUsage};
use crate::capacity::verdict::Condition;
use crate::capacity::vram::Vram;
use crate::k8s::gpu_ledger::time;
use crate::k8s::publication;

/// Type of the condition that tells whether every GPU is accounted for.
pub const ACCOUNTED: &str = "Accounted";
/// Type of the condition that tells whether a GPU is overcommitted, or may be.
pub const OVERCOMMITTED: &str = "Overcommitted";

/// Type of the condition that tells whether the node agent reports. Only a ledger with a report has it.
pub const AGENT_REPORTS: &str = "AgentReports";

/// The merge patch that brings the status of a ledger up to date, or `None` if it is. `current` is the present status.
pub fn patch(
    facts: &NodeFacts,
    ledger: &NodeLedger,
    usage: &NodeUsage,
    rules: &Rules,
    guards: impl Fn(&Resource) -> bool,
    current: &Value,
    now: Timestamp,
) -> Option<Value> {
    let pools: Vec<&PoolUsage> = usage.pools.iter().filter(|pool| guards(&pool.resource)).collect();
    let mut wanted = Map::new();
    let worst = pools.iter().map(|pool| pool.accounting).max().unwrap_or(Accounting::Unknown);
    let gpus: Vec<Value> = pools.iter().flat_map(|pool| gpus_of(facts, pool)).collect();
    wanted.insert("mode".into(), json!(worst.to_string()));
    wanted.insert("gpuCount".into(), json!(gpus.len()));
    wanted.insert("gpus".into(), Value::Array(gpus));
    let held: Vram = pools.iter().map(|pool| pool.held).sum();
    let allocatable: Vram = pools.iter().filter_map(|pool| pool.allocatable).sum();
    for (name, amount) in [("allocatable", allocatable), ("held", held), ("placeable", usage.free)] {
        wanted.insert(name.into(), json!(amount.to_string()));
        wanted.insert(format!("{name}MiB"), json!(amount.mib()));
    }
    wanted.insert("reservations".into(), json!(ledger.content().map_or(0, |content| content.reservations.len())));
    let conditions = [
        (ACCOUNTED, Condition::accounted(&facts.pools, usage, rules, &guards)),
        (OVERCOMMITTED, Condition::overcommitted(&pools)),
    ];
    let before = current.get("conditions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let agent = agent(ledger, current).map(|condition| (AGENT_REPORTS, condition));
    let conditions = conditions
        .into_iter()
        .chain(agent)
        .map(|(kind, condition)| publication::condition(kind, condition, before, now));
    wanted.insert("conditions".into(), conditions.collect());
    wanted.retain(|field, value| current.get(field.as_str()) != Some(value));
    (!wanted.is_empty()).then(|| json!({ "status": wanted }))
}

fn gpus_of<'p>(facts: &'p NodeFacts, pool: &'p PoolUsage) -> impl Iterator<Item = Value> + 'p {
    let contents = facts.pools.iter().find(|known| known.resource == pool.resource);
    let known = contents.and_then(|known| known.contents.as_ref().ok()).map(|contents| contents.gpus.as_slice());
    pool.gpus.iter().zip(known.unwrap_or_default()).map(|(gpu_usage, gpu)| {
        let mut row = json!({
            "gpu": gpu_usage.id.to_string(),
            "index": gpu.index.gpu,
            "resource": pool.resource.0.as_str(),
            "mode": pool.accounting.to_string(),
            "totalMiB": gpu_usage.total.mib(),
            "allocatableMiB": gpu_usage.allocatable.mib(),
            "heldMiB": gpu_usage.held.mib(),
        });
        if let Some(mig) = gpu.index.mig {
            row["migIndex"] = json!(mig);
        }
        if let Some(free) = gpu_usage.free {
            row["freeMiB"] = json!(free.mib());
        }
        row
    })
}

/// The condition about the node agent; `None` if it has never reported.
fn agent(ledger: &NodeLedger, current: &Value) -> Option<Condition> {
    let inventory = ledger.content()?.inventory.as_ref()?;
    let reported = inventory.reported.map(time).unwrap_or_default();
    let digest = digest(current.get("agent")?);
    Some(Condition::agent_reports(
        &reported,
        inventory.source,
        ledger.has_stale_report(),
        digest["unreadable"].as_str(),
    ))
}

/// The part of the agent's section that only its condition shows: why a GPU is unreadable.
pub fn digest(section: &Value) -> Value {
    let gpus = section["gpus"].as_array().into_iter().flatten();
    let unreadable = gpus.chain([section]).find_map(|part| part["unreadable"].as_str());
    json!({ "unreadable": unreadable })
}
