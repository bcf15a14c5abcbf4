//! Usage of a node → the patch that publishes it. The patch has `vramguard.dev/vram` in capacity and allocatable alike,
//! the condition `VramAccounted`, and the label `vramguard.dev/pod-max-mib`. Owns which fields need a patch; a node
//! that is up to date gets none. [`crate::capacity::verdict`] owns the text of the condition.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::node::{Advertised, CONDITION, advertises};
use super::quantity;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{Resource, Rules};
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::usage::NodeUsage;
use crate::capacity::verdict::{self, Condition, OVERCOMMITTED};
use crate::capacity::vram::Vram;
use crate::keys;

/// A write to a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// The strategic merge patch, for the status subresource.
    pub patch: Value,
    /// The new message of the condition, if the condition changes and reports an overcommitted GPU.
    pub overcommitted: Option<String>,
}

/// Returns the write that makes a node advertise its usage, or `None` if the node is up to date. `usage` is `None` for
/// a node whose GPUs are gone; the advertised amount and label are removed then.
pub fn status_patch(
    facts: &NodeFacts,
    usage: Option<&NodeUsage>,
    rules: &Rules,
    guards: impl Fn(&Resource) -> bool,
    advertised: &Advertised,
    now: Timestamp,
) -> Option<Publication> {
    let published = usage.and_then(|usage| usage.published);
    let mut status = Map::new();
    // The scheduler reads allocatable, and the kubelet rewrites allocatable from capacity every few seconds. With
    // different numbers in the two, vramguard and the kubelet would overwrite each other forever.
    for (list, current) in [("capacity", &advertised.capacity), ("allocatable", &advertised.allocatable)] {
        if !advertises(current.as_deref(), published) {
            status.insert(list.into(), json!({ keys::VRAM_RESOURCE: published.map(|amount| amount.to_string()) }));
        }
    }
    let condition = Condition::of_node(&facts.pools, usage, rules, guards);
    let mut overcommitted = None;
    let before = advertised.condition.as_ref();
    // A node that never had guarded GPUs gets no condition.
    let condition = condition.or_else(|| before.map(|_| Condition::not_shared()));
    if let Some(condition) = condition.filter(|condition| !before.is_some_and(|before| matches(condition, before))) {
        let mut written = json!({
            "type": CONDITION, "status": condition.status, "reason": condition.reason, "message": condition.message,
            "lastHeartbeatTime": seconds(now),
        });
        // If the status does not change, the merge keeps the old time.
        if before.is_none_or(|before| before.status != condition.status) {
            written["lastTransitionTime"] = json!(seconds(now));
        }
        status.insert("conditions".into(), json!([written]));
        overcommitted = Some(condition.message).filter(|_| condition.reason == OVERCOMMITTED);
    }
    let mut patch = Map::new();
    // Label and status go in one write, because the API server accepts labels through the status subresource too. So
    // the amount is never published without the label that tells how much of it one pod can get.
    let pod_max = usage.and_then(|usage| usage.pod_max).map(|most| most.mib().to_string());
    // While the GPUs are unknown, no pod can be placed. An existing label stays, because it still keeps pods that are
    // too large from preempting on this node.
    let pod_max = pod_max
        .or_else(|| advertised.pod_max.clone().filter(|_| usage.is_some() && verdict::unknown(&facts.pools).is_some()));
    if advertised.pod_max != pod_max {
        patch.insert("metadata".into(), json!({ "labels": { keys::POD_MAX_MIB: pod_max } }));
    }
    if !status.is_empty() {
        patch.insert("status".into(), status.into());
    }
    (!patch.is_empty()).then_some(Publication { patch: Value::Object(patch), overcommitted })
}

/// Returns the patch that raises the advertised amount to `bound`. `None` if the amount suffices, or if the node
/// advertises nothing yet.
///
/// One kube-scheduler never binds more than it sees. Two schedulers may together, and so may one that saw a larger
/// amount a moment ago. The controller, which would publish more, may be restarting at that time.
pub fn raise(advertised: &Advertised, bound: Vram) -> Option<Value> {
    let mut status = Map::new();
    for (list, current) in [("capacity", &advertised.capacity), ("allocatable", &advertised.allocatable)] {
        let current = quantity::bytes(current.as_deref()?).map(quantity::Bytes::vram);
        // An unreadable amount does not suffice.
        if current.is_none_or(|current| NodeLedger::falls_short(current, bound)) {
            status.insert(list.into(), json!({ keys::VRAM_RESOURCE: bound.to_string() }));
        }
    }
    (!status.is_empty()).then(|| json!({ "status": status }))
}

/// Renders a condition of an object of ours. The time of its last transition is kept if its `status` is as in `before`.
pub(super) fn condition(kind: &str, condition: Condition, before: &[Value], now: Timestamp) -> Value {
    let before = before.iter().find(|before| before["type"] == kind);
    let kept = before.filter(|before| before["status"] == condition.status);
    let since = kept.and_then(|before| before.get("lastTransitionTime")).cloned();
    json!({
        "type": kind,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": since.unwrap_or_else(|| json!(seconds(now))),
    })
}

/// Formats a time in whole seconds, as in node conditions.
pub(super) fn seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn matches(condition: &Condition, written: &super::object::Condition) -> bool {
    condition.status == written.status
        && Some(condition.reason) == written.reason.as_deref()
        && Some(condition.message.as_str()) == written.message.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::cluster::{Cluster, NodeView};
    use crate::k8s::node;
    use crate::k8s::object::NodeObject;
    use std::collections::BTreeSet;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00.5Z".parse().unwrap()
    }

    /// The patch for a node, and the patched node.
    fn patch(node: &Value) -> (Option<Value>, Value) {
        let object: NodeObject = serde_json::from_value(node.clone()).unwrap();
        let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
        cluster.apply_node("n", node::facts(&object, &[]));
        let view = cluster.node("n");
        let none = NodeFacts::default();
        let (facts, usage) = view.map_or((&none, None), |NodeView { facts, usage, .. }| (facts, Some(usage)));
        let guards = |resource: &Resource| cluster.guards(resource);
        let publication = status_patch(facts, usage, cluster.rules(), guards, &node::advertised(&object), now());
        let patch = publication.map(|publication| publication.patch);
        let mut after = node.clone();
        if let Some(patch) = &patch {
            // The server merges the list of conditions by type; here it has only ours.
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
        // Only the label is patched if the rest is up to date.
        for wrong in [json!("23870"), json!(null)] {
            after["metadata"]["labels"]["vramguard.dev/pod-max-mib"] = wrong;
            after["metadata"]["labels"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
            assert_eq!(
                patch(&after).0,
                Some(json!({ "metadata": { "labels": { "vramguard.dev/pod-max-mib": "5967" } } }))
            );
        }
        // A label of GPU Feature Discovery is missing for a moment.
        let mut away = after.clone();
        away["metadata"]["labels"]["vramguard.dev/pod-max-mib"] = json!("5967");
        away["metadata"]["labels"].as_object_mut().unwrap().remove("nvidia.com/gpu.memory");
        let (unknown, after_it) = patch(&away);
        assert_eq!(unknown.unwrap()["status"]["capacity"], json!({ "vramguard.dev/vram": "0Mi" }));
        assert_eq!(after_it["metadata"]["labels"]["vramguard.dev/pod-max-mib"], "5967");
        // With one GPU left the published amount is enough, and the label goes.
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

    /// Regression: the condition reported that no more pods are placed, while pods were placed unaccounted.
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
