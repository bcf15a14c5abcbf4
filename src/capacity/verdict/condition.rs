//! The condition `VramAccounted` of a node and the conditions of its `GpuLedger`. Owns when each applies and its
//! wording; [`crate::k8s::publication`] and [`crate::k8s::gpu_ledger`] turn them into JSON.

use super::count;
use super::observation::{agent_reports, agent_stale};
use crate::capacity::gpu::{Accounting, AllocationPolicy, Pool, Resource, Rules, Sharing, Unknown};
use crate::capacity::node::inventory::Source;
use crate::capacity::node::presence::Doubt;
use crate::capacity::node::usage::{NodeUsage, PoolUsage};
use crate::capacity::vram::Vram;
use crate::keys;

/// The `reason` of a node's condition while one of its GPUs is, or may be, overcommitted.
pub const OVERCOMMITTED: &str = "Overcommitted";

/// A condition that follows the Kubernetes API conventions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `status`: `"True"` or `"False"`.
    pub status: &'static str,
    /// `reason`, in CamelCase.
    pub reason: &'static str,
    /// `message`, for users.
    pub message: String,
}

impl Condition {
    /// The condition of a node that has no guarded GPUs.
    pub fn not_shared() -> Condition {
        Condition { status: "False", reason: "NotShared", message: "no guarded GPU resource on this node".into() }
    }

    /// The condition `VramAccounted` of a node; `None` if there is nothing to report about its GPUs.
    pub fn of_node(
        pools: &[Pool],
        usage: Option<&NodeUsage>,
        rules: &Rules,
        guards: impl Fn(&Resource) -> bool,
    ) -> Option<Condition> {
        let usage = usage?;
        let guarded: Vec<_> = pools.iter().zip(&usage.pools).filter(|(pool, _)| guards(&pool.resource)).collect();
        let unknown = guarded.iter().find_map(|(pool, _)| Some((&pool.resource, pool.contents.as_ref().err()?)));
        if let Some((resource, why)) = unknown {
            let remedy = match why {
                Unknown::Ledger { .. } => "it can be read",
                Unknown::ReportContradicts { .. } | Unknown::ReportedNone { .. } | Unknown::UnevenReplicas { .. } => {
                    "the node agent and the device plugin agree"
                }
                Unknown::Unlabelled { .. }
                | Unknown::BadLabel { .. }
                | Unknown::Contradiction { .. }
                | Unknown::BadCapacity { .. }
                | Unknown::Renamed { .. }
                | Unknown::Unsupported { .. } => "a GpuInventory describes the node",
            };
            let message = format!("{resource}: {why}; nothing more is placed here until {remedy}");
            return Some(Condition { status: "False", reason: "Unknown", message });
        }
        if let Some((_, pool)) = guarded.iter().find(|(_, pool)| pool.deficit.is_some()) {
            return Some(Condition { status: "False", reason: OVERCOMMITTED, message: overcommitted(pool) });
        }
        let Some(worst) = guarded.iter().map(|(_, pool)| pool.accounting).max() else {
            return pools.iter().find_map(not_accounted);
        };
        let doubt = usage.doubt.as_deref();
        let each: Vec<String> = guarded.iter().map(|(pool, usage)| accounted(pool, usage, rules, doubt)).collect();
        Some(Condition { status: "True", reason: reason(worst), message: each.join("; ") })
    }

    /// The condition `Accounted` of a `GpuLedger`: whether the size of every guarded GPU of the node is known.
    pub fn accounted(
        pools: &[Pool],
        usage: &NodeUsage,
        rules: &Rules,
        guards: impl Fn(&Resource) -> bool,
    ) -> Condition {
        if let Some((resource, why)) = unknown(pools.iter().filter(|pool| guards(&pool.resource))) {
            return Condition { status: "False", reason: "Unknown", message: format!("{resource}: {why}") };
        }
        let guarded: Vec<_> = pools.iter().zip(&usage.pools).filter(|(pool, _)| guards(&pool.resource)).collect();
        let Some(worst) = guarded.iter().map(|(_, usage)| usage.accounting).max() else {
            return Condition::not_shared();
        };
        let doubt = usage.doubt.as_deref();
        let each: Vec<String> = guarded.iter().map(|(pool, usage)| accounted(pool, usage, rules, doubt)).collect();
        Condition { status: "True", reason: reason(worst), message: each.join("; ") }
    }

    /// The condition `AgentReports` of a `GpuLedger`: whether the node agent reports. `reported` is when it did so last,
    /// `source` is what it reads, and `unreadable` is why it cannot read a GPU.
    pub fn agent_reports(reported: &str, source: Source, stale: bool, unreadable: Option<&str>) -> Condition {
        if stale {
            return Condition { status: "False", reason: "Stale", message: agent_stale(reported) };
        }
        let reason = match (unreadable, source.tells_processes()) {
            (Some(_), _) => "GpuUnreadable",
            (None, true) => "Reporting",
            (None, false) => "ReportingTotals",
        };
        Condition { status: "True", reason, message: agent_reports(source, unreadable) }
    }

    /// The condition `Overcommitted` of a `GpuLedger`: whether a GPU of these pools is, or may be, overcommitted.
    pub fn overcommitted(pools: &[&PoolUsage]) -> Condition {
        let worst = pools.iter().filter_map(|pool| Some((pool.deficit.as_ref()?, pool)));
        match worst.max_by_key(|(deficit, _)| (deficit.on.is_some(), deficit.by)) {
            None => {
                let message = "what is promised of each GPU is no more than its allocatable".to_owned();
                Condition { status: "False", reason: "WithinAllocatable", message }
            }
            Some((deficit, pool)) => {
                let reason = if deficit.on.is_some() { "GpuOvercommitted" } else { "GpuMayBeOvercommitted" };
                Condition { status: "True", reason, message: overcommitted(pool) }
            }
        }
    }
}

/// The condition for a pool that is not guarded, if the node does not advertise how it shares these GPUs.
///
/// Such GPUs may be shared without being accounted for. Whole GPUs and MIG devices are isolated in hardware, so they
/// need no condition.
fn not_accounted(pool: &Pool) -> Option<Condition> {
    if pool.sharing != Sharing::Unstated || pool.resource.is_mig() {
        return None;
    }
    let why = match &pool.contents {
        Err(why) => why.to_string(),
        Ok(_) => format!("the node carries no {} label", keys::GFD_SHARING),
    };
    let message = format!(
        "{}: {why}, so it is not known whether its GPUs are shared; pods are placed here without a VRAM request. Run GPU Feature \
         Discovery on the node, or describe it in a GpuInventory",
        pool.resource
    );
    Some(Condition { status: "False", reason: "NotAccounted", message })
}

/// The first resource whose GPUs are not known, and the cause.
pub fn unknown<'p>(pools: impl IntoIterator<Item = &'p Pool>) -> Option<(&'p Resource, &'p Unknown)> {
    pools.into_iter().find_map(|pool| Some((&pool.resource, pool.contents.as_ref().err()?)))
}

/// The message about a pool with a deficit: by how much, and on which GPU if that is known.
fn overcommitted(pool: &PoolUsage) -> String {
    let (deficit, gpu) = pool.deficit.as_ref().map_or((Vram::ZERO, None), |d| (d.by, d.on.as_ref()));
    let total = pool.allocatable.unwrap_or_default();
    let held = format!("{} of {total} held by {}", pool.held, count(pool.holders, "pod"));
    let may = match gpu {
        None => "one GPU may be".to_owned(),
        Some(_) if pool.gpus.len() == 1 => "the GPU is".to_owned(),
        Some(gpu) => format!("GPU {gpu} is"),
    };
    format!(
        "{}: {may} overcommitted by {deficit} ({held}, {} accounting); nothing is evicted, and nothing more is placed here \
         until it fits",
        pool.resource, pool.accounting
    )
}

/// The message about a pool that is accounted for: accounting mode, allocatable and overcommit factor, and whether the
/// node agent has fallen silent or no longer runs.
fn accounted(pool: &Pool, usage: &PoolUsage, rules: &Rules, doubt: Option<&Doubt>) -> String {
    let total = usage.allocatable.unwrap_or_default();
    let overcommit =
        if rules.overcommit.is_on() { format!(", overcommit {}", rules.overcommit) } else { String::new() };
    let why = match pool.allocation_policy {
        AllocationPolicy::Stale => "; the last report of the node agent is too old, check its pod".to_owned(),
        AllocationPolicy::Doubted => doubt.map(|doubt| format!("; not steered: {doubt}")).unwrap_or_default(),
        AllocationPolicy::Unverified
        | AllocationPolicy::Distributed
        | AllocationPolicy::Packed
        | AllocationPolicy::Steered => String::new(),
    };
    format!("{}: {} accounting, {total} allocatable{overcommit}{why}", pool.resource, usage.accounting)
}

/// The `reason` of a condition for an accounting mode.
fn reason(accounting: Accounting) -> &'static str {
    match accounting {
        Accounting::Exact => "Exact",
        Accounting::Confirmed => "Confirmed",
        Accounting::Steered => "Steered",
        Accounting::Slot => "Slot",
        Accounting::Exclusive => "Exclusive",
        Accounting::Unknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::capacity::node::ledger::NodeLedger;
    use crate::capacity::testing::{gpu, pool, rules};

    /// An unguarded pool that came first once hid the guarded one, and the condition was True for the reason Unknown.
    #[test]
    fn a_guarded_pool_of_unknown_gpus_is_named_also_after_an_unguarded_one() {
        let of = |name: &str| {
            let resource = Resource(name.into());
            let contents = Err(Unknown::ReportedNone { resource: resource.clone() });
            Pool { resource, contents, ..pool(&[24_576], 4) }
        };
        let pools = [of("nvidia.com/gpu.other"), of("nvidia.com/gpu")];
        let guarded = BTreeSet::from([gpu()]);
        let guards = |resource: &Resource| guarded.contains(resource);
        let usage = NodeLedger::default().usage(&pools, &rules(), guards);
        let condition = Condition::accounted(&pools, &usage, &rules(), guards);
        assert_eq!((condition.status, condition.reason), ("False", "Unknown"));
        assert!(condition.message.starts_with("nvidia.com/gpu: "), "{}", condition.message);
    }
}
