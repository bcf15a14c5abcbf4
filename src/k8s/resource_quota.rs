//! ResourceQuota ↔ the quota of a policy. Owns the form of the object that vramguard applies, and how it recognises its
//! own field.

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Value, json};

use super::quantity::{self, Bytes};
use crate::capacity::quota::{self, Found};
use crate::capacity::vram::Vram;
use crate::keys;

/// Field manager of the ResourceQuotas that vramguard applies.
pub const MANAGER: &str = "vramguard-quota";
/// Name of the ResourceQuota in each namespace.
pub const NAME: &str = "vramguard";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// What a ResourceQuota says of VRAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The limit; `None` if the text is not a quantity.
    pub hard: Option<Vram>,
    /// What its pods request together; `None` if the API server has not counted yet.
    pub used: Option<Vram>,
    /// Whether it is the one that vramguard keeps.
    pub ours: bool,
}

impl Limit {
    /// What is left; `None` if not known.
    pub fn left(&self) -> Option<Vram> {
        Some(quota::left(self.hard?, self.used?))
    }
}

/// The limit on VRAM of a ResourceQuota for all pods of its namespace; `None` if it has none. One with scopes limits only
/// some pods.
pub fn limit(quota: &ResourceQuota) -> Option<Limit> {
    let spec = quota.spec.as_ref()?;
    let scoped = spec.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty()) || spec.scope_selector.is_some();
    let hard = spec.hard.as_ref()?.get(keys::VRAM_QUOTA).filter(|_| !scoped)?;
    let used = quota.status.as_ref().and_then(|status| status.used.as_ref()?.get(keys::VRAM_QUOTA));
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(Limit {
        namespace: text(&quota.metadata.namespace),
        name: text(&quota.metadata.name),
        uid: text(&quota.metadata.uid),
        hard: limited(&hard.0),
        // What is used is rounded up, so that what is left is never too much.
        used: used.and_then(|used| quantity::bytes(&used.0)).map(Bytes::vram),
        ours: is_ours(quota),
    })
}

/// The limit that a quantity sets. Requests are whole MiB, so a fraction of one is worth nothing.
pub fn limited(quantity: &str) -> Option<Vram> {
    Some(match quantity::bytes(quantity)? {
        Bytes::Exactly(limit) => limit,
        Bytes::RoundedUp(limit) => Vram::from_mib(limit.mib().saturating_sub(1)),
    })
}

/// What was found of the ResourceQuota that vramguard would keep.
pub fn found(quota: &ResourceQuota) -> Found {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref()?.get(keys::VRAM_QUOTA));
    let managed = quota.metadata.managed_fields.as_deref().unwrap_or_default();
    // The controller-manager writes the status.
    let of_people = |entry: &&ManagedFieldsEntry| {
        entry.manager.as_deref() != Some(MANAGER) && entry.subresource.as_deref() != Some("status")
    };
    let owns_limit = |entry: &ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        let key = format!("f:{}", keys::VRAM_QUOTA);
        let path = ["f:spec", "f:hard", &key];
        fields.is_some_and(|fields| path.iter().try_fold(fields, |fields, part| fields.get(part)).is_some())
    };
    let by_us = managed.iter().any(|entry| !of_people(&entry) && owns_limit(entry));
    let by_others = managed.iter().filter(of_people).any(owns_limit);
    Found {
        ours: is_ours(quota),
        hard: hard.and_then(|hard| limited(&hard.0)),
        hard_is_ours: by_us && !by_others,
        shared: managed.iter().any(|entry| of_people(&entry)),
    }
}

fn is_ours(quota: &ResourceQuota) -> bool {
    let labels = quota.metadata.labels.as_ref();
    quota.metadata.name.as_deref() == Some(NAME)
        && labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == "vramguard")
}

/// The object to apply; without a limit, vramguard gives up the field.
pub fn applied(limit: Option<Vram>) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {
            "name": NAME,
            "labels": { (MANAGED_BY): "vramguard" },
        },
    });
    if let Some(limit) = limit {
        object["spec"] = json!({ "hard": { (keys::VRAM_QUOTA): limit.to_string() } });
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(hard: &str, managed: &[(&str, &str, bool)], labelled: bool) -> ResourceQuota {
        let managed: Vec<Value> = managed
            .iter()
            .map(|(manager, subresource, limit)| {
                let fields = if *limit {
                    json!({ "f:spec": { "f:hard": { "f:requests.vramguard.dev/vram": {} } } })
                } else {
                    json!({ "f:status": {} })
                };
                json!({ "manager": manager, "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
                        "fieldsV1": fields, "subresource": subresource })
            })
            .collect();
        let labels = if labelled { json!({ "app.kubernetes.io/managed-by": "vramguard" }) } else { json!({}) };
        serde_json::from_value(json!({
            "metadata": { "name": "vramguard", "namespace": "ml", "labels": labels, "managedFields": managed },
            "spec": { "hard": { "requests.vramguard.dev/vram": hard } },
            "status": { "used": { "requests.vramguard.dev/vram": "8912Mi" } },
        }))
        .unwrap()
    }

    #[test]
    fn the_limit_is_ours_until_somebody_else_writes_it() {
        let status = ("kube-controller-manager", "status", false);
        let ours = ("vramguard-quota", "", true);
        let edited = ("kubectl-edit", "", true);
        let label = ("kubectl-label", "", false);
        let of = |managed: &[_]| found(&quota("16Gi", managed, true));
        let expected = Found { ours: true, hard: Some(Vram::from_mib(16_384)), hard_is_ours: true, shared: false };
        assert_eq!(of(&[ours, status]), expected);
        assert_eq!(of(&[ours, status, label]), Found { shared: true, ..expected });
        assert_eq!(of(&[ours, edited]), Found { hard_is_ours: false, shared: true, ..expected });
        assert_eq!(of(&[edited]), Found { hard_is_ours: false, shared: true, ..expected });
        assert!(!found(&quota("16Gi", &[edited], false)).ours, "somebody else made it");
    }

    #[test]
    fn what_is_left_is_never_too_much() {
        let read = limit(&quota("20Gi", &[], true)).unwrap();
        assert_eq!(read.left(), Some(Vram::from_mib(20_480 - 8_912)));
        let unreadable = limit(&quota("much", &[], true)).unwrap();
        assert_eq!((unreadable.hard, unreadable.left()), (None, None), "unreadable is not zero");
        let fraction = limit(&quota("1500k", &[], true)).unwrap();
        assert_eq!(fraction.hard, Some(Vram::from_mib(1)), "1,500,000 bytes hold one request of 1 MiB");
        assert_eq!(limit(&quota("1Gi", &[], true)).unwrap().left(), Some(Vram::ZERO), "more is used than allowed");
        let mut scoped = quota("20Gi", &[], true);
        scoped.spec.as_mut().unwrap().scopes = Some(vec!["BestEffort".into()]);
        assert_eq!(limit(&scoped), None, "it limits only some pods");
    }

    #[test]
    fn the_object_that_is_applied_has_the_limit_and_nothing_else() {
        let object = applied(Some(Vram::from_mib(65_536)));
        assert_eq!(object["spec"], json!({ "hard": { "requests.vramguard.dev/vram": "64Gi" } }));
        assert_eq!(applied(None).get("spec"), None);
    }
}
