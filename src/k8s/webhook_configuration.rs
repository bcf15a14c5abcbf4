//! The parts of the webhook configurations that vramguard writes: namespace selectors and the trusted CA. The selectors
//! follow from the policies in force. Owns the selectors and the patch that sets them. The manifest owns everything
//! else in those objects.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::{Value, json};

use crate::capacity::policy::{Namespaces, Policies};
use crate::keys;

/// Name of the mutating entry for pods.
pub const MUTATE: &str = "pods.vramguard.dev";
/// Name of the mutating entry for bindings.
pub const BIND: &str = "bindings.vramguard.dev";
/// Name of the validating entry with failurePolicy Fail.
pub const ENFORCE: &str = "enforce.pods.vramguard.dev";
/// Name of the validating entry for pods that only make GPUs visible. It has failurePolicy Ignore, and the same
/// namespaces as [`ENFORCE`].
pub const DEVICES: &str = "devices.pods.vramguard.dev";
/// Name of the validating entry with failurePolicy Ignore for all other namespaces.
pub const REPORT: &str = "report.pods.vramguard.dev";

/// Name of the validating entry for workloads whose template is in the usual place. It only warns, and has failurePolicy
/// Ignore.
pub const WORKLOADS: &str = "workloads.vramguard.dev";
/// Name of the validating entry for CronJobs, whose template is in another place. It is otherwise as [`WORKLOADS`].
pub const CRON_JOBS: &str = "cronjobs.vramguard.dev";
/// Name of the validating entry for LeaderWorkerSets, which have up to two templates. It is otherwise as [`WORKLOADS`].
pub const LEADER_WORKER_SETS: &str = "leaderworkersets.vramguard.dev";
/// Name of the validating entry for autoscalers. It is otherwise as [`WORKLOADS`].
pub const AUTOSCALERS: &str = "autoscalers.vramguard.dev";

const OURS: [&str; 9] = [MUTATE, BIND, ENFORCE, DEVICES, REPORT, WORKLOADS, CRON_JOBS, LEADER_WORKER_SETS, AUTOSCALERS];

/// The namespaceSelector that an entry must have; `None` for an entry that is not ours.
pub fn selector(entry: &str, policies: &Policies) -> Option<LabelSelector> {
    let exempt = policies.exempt();
    match entry {
        MUTATE | WORKLOADS | CRON_JOBS | LEADER_WORKER_SETS | AUTOSCALERS => Some(all_but(exempt)),
        BIND => Some(those(policies.injected())),
        ENFORCE | DEVICES => Some(those(policies.enforced())),
        REPORT => Some(match policies.enforced() {
            Namespaces::AllBut(others) => only(&others.difference(exempt).cloned().collect()),
            Namespaces::Only(enforced) => all_but(&enforced.union(exempt).cloned().collect()),
        }),
        _ => None,
    }
}

fn those(namespaces: Namespaces) -> LabelSelector {
    match namespaces {
        Namespaces::AllBut(others) => all_but(&others),
        Namespaces::Only(listed) => only(&listed),
    }
}

fn all_but(namespaces: &BTreeSet<String>) -> LabelSelector {
    if namespaces.is_empty() {
        return LabelSelector::default();
    }
    requirement("NotIn", Some(namespaces.iter().cloned().collect()))
}

/// Selects the listed namespaces. Every namespace has the label with its own name, so a selector that requires its
/// absence selects no namespace.
fn only(namespaces: &BTreeSet<String>) -> LabelSelector {
    if namespaces.is_empty() {
        return requirement("DoesNotExist", None);
    }
    requirement("In", Some(namespaces.iter().cloned().collect()))
}

fn requirement(operator: &str, values: Option<Vec<String>>) -> LabelSelector {
    let key = keys::NAMESPACE_NAME_LABEL.to_owned();
    let requirement = LabelSelectorRequirement { key, operator: operator.to_owned(), values };
    LabelSelector { match_expressions: Some(vec![requirement]), match_labels: None }
}

/// One entry of a webhook configuration on the server.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Name of the entry, such as [`ENFORCE`].
    pub name: &'a str,
    /// The namespaceSelector of the entry.
    pub selector: Option<&'a LabelSelector>,
    /// The clientConfig of the entry, with the trusted CA.
    pub client: &'a WebhookClientConfig,
}

/// A webhook configuration of either kind.
pub trait Entries {
    /// The entries, in the order of the object.
    fn entries(&self) -> Vec<Entry<'_>>;
}

/// Implements [`Entries`] for a kind. The entry types of the two kinds differ, and have these three fields in common.
macro_rules! entries_of {
    ($configuration:ty) => {
        impl Entries for $configuration {
            fn entries(&self) -> Vec<Entry<'_>> {
                let entries = self.webhooks.iter().flatten();
                let parts = entries.map(|e| (&e.name, e.namespace_selector.as_ref(), &e.client_config));
                parts.map(|(name, selector, client)| Entry { name, selector, client }).collect()
            }
        }
    };
}

entries_of!(MutatingWebhookConfiguration);
entries_of!(ValidatingWebhookConfiguration);

/// The CA that all our entries trust, in PEM; `None` if an entry trusts no CA or two entries differ.
pub fn trusted(entries: &[Entry<'_>]) -> Option<String> {
    let ours = |entry: &&Entry<'_>| OURS.contains(&entry.name);
    let mut bundles = entries.iter().filter(ours).map(|entry| entry.client.ca_bundle.as_ref().map(|bundle| &bundle.0));
    let first = bundles.next()??;
    let text = String::from_utf8(first.clone()).ok().filter(|text| !text.is_empty())?;
    bundles.all(|bundle| bundle == Some(first)).then_some(text)
}

/// Returns the JSON Patch that makes the entries match the policies and the CA, or `None` if they do. `ca` is in PEM,
/// and `None` if another controller sets it.
///
/// The selectors of [`ENFORCE`] and [`BIND`] are not changed before the entry trusts a CA, because until then every
/// review would fail. [`ENFORCE`] fails closed. [`BIND`] fails closed if the administrator configures it so, and would
/// be useless before.
pub fn patch(entries: &[Entry<'_>], policies: &Policies, ca: Option<&str>) -> Option<Value> {
    let mut operations = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(wanted) = selector(entry.name, policies) else {
            continue;
        };
        let mut changes = Vec::new();
        let trusts = ca.is_some() || entry.client.ca_bundle.as_ref().is_some_and(|bundle| !bundle.0.is_empty());
        if !same(entry.selector, &wanted) && (trusts || ![ENFORCE, BIND].contains(&entry.name)) {
            changes
                .push(json!({ "op": "add", "path": format!("/webhooks/{index}/namespaceSelector"), "value": wanted }));
        }
        if let Some(ca) = ca.map(|ca| ByteString(ca.as_bytes().to_vec()))
            && entry.client.ca_bundle.as_ref() != Some(&ca)
        {
            changes
                .push(json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": ca }));
        }
        if !changes.is_empty() {
            // The entries may have been reordered since they were read.
            operations.push(json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": entry.name }));
            operations.append(&mut changes);
        }
    }
    (!operations.is_empty()).then_some(Value::Array(operations))
}

fn same(current: Option<&LabelSelector>, wanted: &LabelSelector) -> bool {
    let normal = |selector: &LabelSelector| {
        let mut expressions = selector.match_expressions.clone().unwrap_or_default();
        expressions.iter_mut().for_each(|e| e.values.iter_mut().for_each(|values| values.sort()));
        (selector.match_labels.clone().unwrap_or_default(), expressions)
    };
    current.is_some_and(|current| normal(current) == normal(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::policy::{ClusterPolicy, Documents, Layer, Mode};

    fn policies(cluster: Option<Mode>, ml: Option<Mode>) -> Policies {
        let layer = |mode| Layer { mode: Some(mode), ..Layer::default() };
        let documents = Documents {
            cluster: cluster.map(|mode| ClusterPolicy { layer: layer(mode), ..ClusterPolicy::default() }),
            namespaces: ml.map(|mode| ("ml".to_owned(), layer(mode))).into_iter().collect(),
        };
        Policies::new(&documents, "vramguard-system")
    }

    /// Whether the selector of an entry selects a namespace.
    fn selects(entry: &str, policies: &Policies, namespace: &str) -> bool {
        let selector = selector(entry, policies).unwrap();
        selector.match_expressions.into_iter().flatten().all(|requirement| {
            let listed = requirement.values.unwrap_or_default().iter().any(|value| value == namespace);
            match requirement.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "DoesNotExist" => false,
                other => panic!("{other}"),
            }
        })
    }

    #[test]
    fn each_namespace_is_in_exactly_the_entries_of_its_mode() {
        let modes = [None, Some(Mode::Enforce), Some(Mode::Warn), Some(Mode::Audit), Some(Mode::Off)];
        for (cluster, ml) in modes.iter().flat_map(|cluster| modes.iter().map(move |ml| (*cluster, *ml))) {
            let policies = policies(cluster, ml);
            for namespace in ["ml", "other", "created-later", "kube-system", "vramguard-system"] {
                let mode = policies.of(namespace).map(|policy| policy.mode);
                let enforced = selects(ENFORCE, &policies, namespace);
                assert_eq!(enforced, mode == Some(Mode::Enforce), "{cluster:?} {ml:?} {namespace}");
                let reported = selects(REPORT, &policies, namespace);
                assert_eq!(reported, mode.is_some() && !enforced, "{cluster:?} {ml:?} {namespace}");
                for entry in [MUTATE, WORKLOADS, CRON_JOBS, AUTOSCALERS] {
                    assert_eq!(selects(entry, &policies, namespace), mode.is_some(), "{entry} {namespace}");
                }
                let injected = matches!(mode, Some(Mode::Enforce | Mode::Warn));
                assert_eq!(selects(BIND, &policies, namespace), injected, "{cluster:?} {ml:?} {namespace}");
            }
        }
    }

    #[test]
    fn an_entry_that_may_fail_closed_is_not_asked_before_it_trusts_somebody() {
        let policies = policies(Some(Mode::Enforce), None);
        let nobody = WebhookClientConfig::default();
        let somebody = WebhookClientConfig { ca_bundle: Some(ByteString(b"CA".to_vec())), ..nobody.clone() };
        let patched = |name, client| patch(&[Entry { name, selector: None, client }], &policies, None).is_some();
        assert!(!patched(ENFORCE, &nobody) && !patched(BIND, &nobody));
        assert!(patched(ENFORCE, &somebody) && patched(BIND, &somebody));
        assert!(patched(REPORT, &nobody) && patched(MUTATE, &nobody));
    }

    #[test]
    fn trust_is_what_all_of_our_entries_share() {
        let client = |ca: &str| WebhookClientConfig { ca_bundle: Some(ByteString(ca.into())), ..Default::default() };
        let (a, b, none) = (client("a"), client("b"), WebhookClientConfig::default());
        let trust = |pairs: &[(&str, &WebhookClientConfig)]| {
            let entry = |&(name, client): &(_, _)| (name, client);
            let entries: Vec<(&str, &WebhookClientConfig)> = pairs.iter().map(entry).collect();
            trusted(&entries.iter().map(|(name, client)| Entry { name, selector: None, client }).collect::<Vec<_>>())
        };
        assert_eq!(trust(&[(ENFORCE, &a), (REPORT, &a), ("other", &b)]), Some("a".into()));
        assert_eq!(trust(&[(ENFORCE, &a), (REPORT, &b)]), None);
        assert_eq!(trust(&[(ENFORCE, &a), (REPORT, &none)]), None);
        assert_eq!(trust(&[(ENFORCE, &a), (AUTOSCALERS, &b)]), None);
        assert_eq!(trust(&[(BIND, &b), (MUTATE, &a)]), None);
        assert_eq!(trust(&[]), None);
    }

    #[test]
    fn entries_are_patched_once_and_others_left_alone() {
        let policies = policies(Some(Mode::Enforce), None);
        let stale = only(&BTreeSet::new());
        let client = WebhookClientConfig::default();
        let patch_of = |selector: &LabelSelector, ca| {
            let other = Entry { name: "other", selector: Some(&stale), client: &client };
            patch(&[other, Entry { name: ENFORCE, selector: Some(selector), client: &client }], &policies, ca)
        };
        let operations = patch_of(&stale, Some("CA")).unwrap();
        let paths: Vec<&str> = operations.as_array().unwrap().iter().map(|op| op["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["/webhooks/1/name", "/webhooks/1/namespaceSelector", "/webhooks/1/clientConfig/caBundle"]);
        assert_eq!(operations[2]["value"], "Q0E=");
        assert_eq!(patch_of(&selector(ENFORCE, &policies).unwrap(), None), None);
    }
}
