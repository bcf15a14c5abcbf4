//! Namespaces: what their pods declare and hold, against their quota.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::nodes::declares;
use super::outcome::{Enforced, NamespaceState};
use super::scene::Stage;
use super::{Modes, View};
use crate::capacity::name::Name;
use crate::capacity::verdict::finding::{Finding, Matter, Object, Severity};
use crate::capacity::vram::Vram;

/// All namespaces that have something to do with GPUs.
pub(super) fn look(
    view: &View<'_>,
    policies: &BTreeMap<Name, Option<Modes>>,
    enforced: &Enforced,
    findings: &mut Findings,
) -> Vec<NamespaceState> {
    let mut namespaces: BTreeMap<Name, NamespaceState> = BTreeMap::new();
    let fresh = |name: &Name| {
        // A namespace without a subject has pods of other kinds alone, and its policy was not looked up yet.
        let policy = view.policies.of(name).map(|policy| view.modes_of(policy));
        let known = policies.get(name).map(Option::as_ref).unwrap_or(policy.as_ref());
        let quotas =
            known.and_then(|modes| modes.quota).into_iter().chain(view.scene.quotas.get(name.as_str()).copied());
        NamespaceState {
            name: name.clone(),
            mode: known.map(|modes| modes.mode),
            declared: Vram::ZERO,
            held: Vram::ZERO,
            quota: quotas.min(),
            pods: 0,
            undeclared: 0,
            refused: 0,
            waiting: 0,
        }
    };
    for node in view.cluster.node_names().filter_map(|name| view.cluster.node(name)) {
        for (uid, holder) in node.ledger.counted() {
            let Some(pool) = node.facts.pools.iter().find(|pool| holder.takes(&pool.resource).is_some()) else {
                continue;
            };
            let name = &holder.name.namespace;
            let namespace = namespaces.entry(name.clone()).or_insert_with(|| fresh(name));
            let rules = view.cluster.rules();
            let amount = node.ledger.amount(uid, holder, pool.slot(rules), rules).unwrap_or_default();
            namespace.pods += 1;
            namespace.held = namespace.held.plus(amount).min(Vram::MAX);
            if declares(holder) {
                namespace.declared = namespace.declared.plus(amount).min(Vram::MAX);
            } else if view.cluster.guards(&pool.resource) {
                namespace.undeclared += 1;
            }
        }
    }
    for subject in &view.scene.subjects {
        let name = &subject.pod.name.namespace;
        if subject.pod.containers.iter().any(|container| !container.gpus.is_empty()) {
            let namespace = namespaces.entry(name.clone()).or_insert_with(|| fresh(name));
            namespace.waiting += usize::from(subject.stage == Stage::Waiting);
        }
    }
    for (pod, _) in &enforced.refused {
        namespaces.entry(pod.namespace.clone()).or_insert_with(|| fresh(&pod.namespace)).refused += 1;
    }
    for namespace in namespaces.values() {
        if let Some(quota) = namespace.quota.filter(|quota| namespace.held > *quota) {
            let object =
                Object { kind: Name::from("Namespace"), namespace: Name::default(), name: namespace.name.clone() };
            let own = view.scene.quotas.get(namespace.name.as_str());
            let of_policy = own.is_none_or(|own| *own > quota);
            let matter = Matter::OverQuota { of_policy, held: namespace.held, quota };
            let pods = u64::try_from(namespace.pods).unwrap_or(u64::MAX);
            findings.add(Finding { object, matter, severity: Severity::Warn, node: None, pods, place: None });
        }
    }
    namespaces.into_values().collect()
}
