//! Where a node stands → the patch of its status: `vramguard.dev/vram` in capacity and allocatable alike, the condition
//! `VramAccounted`, the label of what one pod can get. Owns their wording; nothing is patched where the node says it all already.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::node::{Advertised, CONDITION, says};
use super::quantity;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{Accounting, Pool, Resource, Rules, Sharing, Unknown};
use crate::capacity::ledger::{NodeLedger, PoolStanding, Standing};
use crate::capacity::verdict::count;
use crate::capacity::vram::Vram;
use crate::keys;

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// The strategic merge patch that makes a node advertise where it stands, or `None` where it does. Without a standing
/// (a node whose GPUs are gone) what it advertised is taken back.
pub fn status_patch(
    facts: &NodeFacts,
    standing: Option<&Standing>,
    rules: &Rules,
    guards: impl Fn(&Resource) -> bool,
    advertised: &Advertised,
    now: Timestamp,
) -> Option<Value> {
    let published = standing.and_then(|standing| standing.published);
    let mut status = Map::new();
    // Allocatable is what the scheduler reads, and the kubelet rewrites it from capacity every few seconds: one number in
    // both, or the two fight.
    for (list, current) in [("capacity", &advertised.capacity), ("allocatable", &advertised.allocatable)] {
        if !says(current.as_deref(), published) {
            status.insert(list.into(), json!({ keys::VRAM_RESOURCE: published.map(|amount| amount.to_string()) }));
        }
    }
    let said = said(facts, standing, rules, guards);
    let before = advertised.condition.as_ref();
    // A node that never had guarded GPUs has no condition either.
    let said = said.or_else(|| before.map(|_| not_shared()));
    if let Some(said) = said.filter(|said| !before.is_some_and(|before| said.is(before))) {
        let mut condition = json!({
            "type": CONDITION, "status": said.status, "reason": said.reason, "message": said.message,
            "lastHeartbeatTime": seconds(now),
        });
        // Kept by the merge where the status stays.
        if before.is_none_or(|before| before.status != said.status) {
            condition["lastTransitionTime"] = json!(seconds(now));
        }
        status.insert("conditions".into(), json!([condition]));
    }
    let mut patch = Map::new();
    // One write for both, which the API server takes through the status as well: never a number without the label that says
    // how much of it one pod can get.
    let pod_max = standing.and_then(|standing| standing.pod_max).map(|most| most.mib().to_string());
    // While the GPUs are not known, and no pod can be placed, a label that is there goes on keeping pods from preempting for it.
    let pod_max =
        pod_max.or_else(|| advertised.pod_max.clone().filter(|_| standing.is_some() && unknown(facts).is_some()));
    if advertised.pod_max != pod_max {
        patch.insert("metadata".into(), json!({ "labels": { keys::POD_MAX_MIB: pod_max } }));
    }
    if !status.is_empty() {
        patch.insert("status".into(), status.into());
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The patch that makes a node advertise at least what is bound there, or `None` where it does, or advertises nothing yet.
/// kube-scheduler stays below what it sees; two of them, or one that saw more a moment ago, may not, and the controller that
/// would say more may be on its way back.
pub fn raise(advertised: &Advertised, bound: Vram) -> Option<Value> {
    let mut status = Map::new();
    for (list, current) in [("capacity", &advertised.capacity), ("allocatable", &advertised.allocatable)] {
        let current = quantity::bytes(current.as_deref()?).map(quantity::Bytes::vram);
        // Unreadable is not enough.
        if current.is_none_or(|current| NodeLedger::falls_short(current, bound)) {
            status.insert(list.into(), json!({ keys::VRAM_RESOURCE: bound.to_string() }));
        }
    }
    (!status.is_empty()).then(|| json!({ "status": status }))
}

/// What a patch of the condition says of an overcommitted GPU, if that is news.
pub fn says_overcommitted(patch: &Value) -> Option<String> {
    let condition = patch.pointer("/status/conditions/0").filter(|condition| condition["reason"] == OVERCOMMITTED)?;
    Some(condition["message"].as_str()?.to_owned())
}

const OVERCOMMITTED: &str = "Overcommitted";

/// Node conditions carry whole seconds.
pub(super) fn seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Said {
    fn is(&self, condition: &super::object::Condition) -> bool {
        self.status == condition.status
            && Some(self.reason) == condition.reason.as_deref()
            && Some(self.message.as_str()) == condition.message.as_deref()
    }
}

fn not_shared() -> Said {
    Said { status: "False", reason: "NotShared", message: "no guarded GPU resource on this node".into() }
}

fn said(
    facts: &NodeFacts,
    standing: Option<&Standing>,
    rules: &Rules,
    guards: impl Fn(&Resource) -> bool,
) -> Option<Said> {
    let standing = standing?;
    let pools: Vec<_> = facts.pools.iter().zip(&standing.pools).filter(|(pool, _)| guards(&pool.resource)).collect();
    let unknown = pools.iter().find_map(|(pool, _)| Some((&pool.resource, pool.contents.as_ref().err()?)));
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
        return Some(Said { status: "False", reason: "Unknown", message });
    }
    if let Some((_, pool)) = pools.iter().find(|(_, pool)| pool.deficit.is_some()) {
        return Some(Said { status: "False", reason: OVERCOMMITTED, message: overcommitted(pool) });
    }
    let Some(worst) = pools.iter().map(|(_, pool)| pool.accounting).max() else {
        return facts.pools.iter().find_map(not_accounted);
    };
    let each: Vec<String> = pools.iter().map(|(_, pool)| accounted(pool, rules)).collect();
    Some(Said { status: "True", reason: reason(worst), message: each.join("; ") })
}

/// What there is to say of a pool that is not guarded: where the node does not say how it shares its GPUs, vramguard may be
/// missing something. Whole GPUs and MIG devices are apart in hardware.
fn not_accounted(pool: &Pool) -> Option<Said> {
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
    Some(Said { status: "False", reason: "NotAccounted", message })
}

/// The first resource whose GPUs are not known, and why.
pub(super) fn unknown(facts: &NodeFacts) -> Option<(&Resource, &Unknown)> {
    facts.pools.iter().find_map(|pool| Some((&pool.resource, pool.contents.as_ref().err()?)))
}

pub(super) fn overcommitted(pool: &PoolStanding) -> String {
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

pub(super) fn accounted(pool: &PoolStanding, rules: &Rules) -> String {
    let total = pool.allocatable.unwrap_or_default();
    let overcommit =
        if rules.overcommit.is_on() { format!(", overcommit {}", rules.overcommit) } else { String::new() };
    format!("{}: {} accounting, {total} allocatable{overcommit}", pool.resource, pool.accounting)
}

pub(super) fn reason(accounting: Accounting) -> &'static str {
    match accounting {
        Accounting::Exact => "Exact",
        Accounting::Confirmed => "Confirmed",
        Accounting::Pinned => "Pinned",
        Accounting::Slot => "Slot",
        Accounting::Exclusive => "Exclusive",
        Accounting::Unknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::cluster::Cluster;
    use crate::k8s::node;
    use crate::k8s::object::NodeObject;
    use std::collections::BTreeSet;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00.5Z".parse().unwrap()
    }

    /// The patch for a node, and the node as it is after the patch.
    fn patch(node: &Value) -> (Option<Value>, Value) {
        let object: NodeObject = serde_json::from_value(node.clone()).unwrap();
        let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
        cluster.apply_node("n", node::facts(&object, &[]));
        let stands = cluster.node("n");
        let none = NodeFacts::default();
        let (facts, standing) = stands.map_or((&none, None), |(facts, _, standing)| (facts, Some(standing)));
        let guards = |resource: &Resource| cluster.guards(resource);
        let patch = status_patch(facts, standing, cluster.rules(), guards, &node::advertised(&object), now());
        let mut after = node.clone();
        if let Some(patch) = &patch {
            // The conditions list is merged by type on the server; here there is only ours.
            json_patch::merge(&mut after, patch);
        }
        (patch, after)
    }

    fn node(count: &str) -> Value {
        json!({
            "metadata": { "name": "n", "labels": {
                "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "1", "nvidia.com/gpu.replicas": "4",
                "nvidia.com/gpu.sharing-strategy": "time-slicing",
            } },
            "status": { "capacity": { "nvidia.com/gpu": count }, "allocatable": { "nvidia.com/gpu": count } },
        })
    }

    #[test]
    fn a_node_is_patched_once() {
        let (first, after) = patch(&node("4"));
        let status = &first.unwrap()["status"];
        assert_eq!(status["capacity"], json!({ "vramguard.dev/vram": Vram::from_mib(23_870).to_string() }));
        assert_eq!(status["allocatable"], status["capacity"]);
        assert_eq!(status["conditions"][0]["reason"], "Exact");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-11-22T12:00:00Z");
        assert_eq!(patch(&after).0, None);
    }

    #[test]
    fn of_several_gpus_the_number_says_all_and_the_label_what_one_pod_gets() {
        let mut several = node("8");
        several["metadata"]["labels"]["nvidia.com/gpu.count"] = json!("2");
        let (first, mut after) = patch(&several);
        let first = first.unwrap();
        assert_eq!(first["status"]["capacity"], json!({ "vramguard.dev/vram": "47736Mi" }));
        assert_eq!(first["metadata"], json!({ "labels": { "vramguard.dev/pod-max-mib": "5967" } }));
        assert_eq!(patch(&after).0, None);
        // Alone, where the rest is as it should be.
        for wrong in [json!("23870"), json!(null)] {
            after["metadata"]["labels"]["vramguard.dev/pod-max-mib"] = wrong;
            after["metadata"]["labels"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
            assert_eq!(
                patch(&after).0,
                Some(json!({ "metadata": { "labels": { "vramguard.dev/pod-max-mib": "5967" } } }))
            );
        }
        // A label of GPU Feature Discovery is away for a moment.
        let mut away = after.clone();
        away["metadata"]["labels"]["vramguard.dev/pod-max-mib"] = json!("5967");
        away["metadata"]["labels"].as_object_mut().unwrap().remove("nvidia.com/gpu.memory");
        let (unknown, after_it) = patch(&away);
        assert_eq!(unknown.unwrap()["status"]["capacity"], json!({ "vramguard.dev/vram": "0Mi" }));
        assert_eq!(after_it["metadata"]["labels"]["vramguard.dev/pod-max-mib"], "5967");
        // One GPU left: the number says it.
        let mut one = after.clone();
        one["metadata"]["labels"]["vramguard.dev/pod-max-mib"] = json!("5967");
        one["metadata"]["labels"]["nvidia.com/gpu.count"] = json!("1");
        one["status"]["capacity"]["nvidia.com/gpu"] = json!("4");
        let (back, after) = patch(&one);
        assert_eq!(back.unwrap()["metadata"], json!({ "labels": { "vramguard.dev/pod-max-mib": null } }));
        assert!(after["metadata"]["labels"].get("vramguard.dev/pod-max-mib").is_none());
    }

    #[test]
    fn what_somebody_removed_is_put_back() {
        let (_, mut after) = patch(&node("4"));
        after["status"]["allocatable"] = json!({ "nvidia.com/gpu": "4" });
        let (again, _) = patch(&after);
        assert_eq!(again.unwrap(), json!({ "status": { "allocatable": { "vramguard.dev/vram": "23870Mi" } } }));
    }

    #[test]
    fn a_node_whose_labels_contradict_its_capacity_says_so() {
        let (patch, _) = patch(&node("8"));
        let status = &patch.unwrap()["status"];
        assert_eq!(status["capacity"], json!({ "vramguard.dev/vram": "0Mi" }));
        assert_eq!(status["conditions"][0]["status"], "False");
        assert_eq!(status["conditions"][0]["reason"], "Unknown");
    }

    #[test]
    fn a_node_that_lost_its_gpus_takes_back_what_it_advertised() {
        let (_, mut after) = patch(&node("4"));
        after["metadata"]["labels"] = json!({});
        after["status"]["capacity"]["nvidia.com/gpu"] = json!("0");
        let (back, _) = patch(&after);
        let status = &back.unwrap()["status"];
        assert_eq!(status["capacity"], json!({ "vramguard.dev/vram": null }));
        assert_eq!(status["conditions"][0]["reason"], "NotShared");
    }

    #[test]
    fn a_node_is_made_to_advertise_what_is_bound_and_never_less_than_it_does() {
        let advertised = |amount: Option<&str>| Advertised {
            capacity: amount.map(Into::into),
            allocatable: amount.map(Into::into),
            pod_max: None,
            condition: None,
            uid: None,
        };
        let raised = |amount| raise(&advertised(amount), Vram::from_mib(6000));
        assert_eq!(raised(Some("5999Mi")).unwrap()["status"]["capacity"], json!({ "vramguard.dev/vram": "6000Mi" }));
        assert_eq!(raised(Some("6000Mi")), None);
        assert_eq!(raised(Some("24Gi")), None);
        assert_eq!(raised(None), None);
    }

    /// It once said that nothing more is placed there, while pods were placed there unaccounted.
    #[test]
    fn a_node_without_labels_says_that_its_pods_are_not_accounted_for() {
        let mut unlabelled = node("32");
        unlabelled["metadata"]["labels"] = json!({});
        let (first, after) = patch(&unlabelled);
        let first = first.unwrap();
        let condition = &first["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("NotAccounted")));
        let message = condition["message"].as_str().unwrap();
        assert!(message.contains("pods are placed here without a VRAM request"), "{message}");
        assert_eq!(first["status"].get("capacity"), None);
        assert_eq!(patch(&after).0, None);
    }

    #[test]
    fn a_node_with_mig_devices_or_whole_gpus_alone_gets_no_condition() {
        let mut mig = node("0");
        mig["status"]["capacity"] = json!({ "nvidia.com/mig-1g.10gb": "7" });
        assert_eq!(patch(&mig).0, None);
        let mut whole = node("1");
        whole["metadata"]["labels"]["nvidia.com/gpu.sharing-strategy"] = json!("none");
        assert_eq!(patch(&whole).0, None);
    }

    #[test]
    fn a_node_without_gpus_is_left_alone() {
        assert_eq!(patch(&json!({ "metadata": { "name": "n" }, "status": { "capacity": { "cpu": "8" } } })).0, None);
    }
}
