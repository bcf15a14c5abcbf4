//! Finds which published field of a node another manager changed, and which manager, from the node's managedFields.
//! Owns the paths of our fields there; the caller reports the change.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use super::node::{Advertised, CONDITION};
use crate::keys;

/// Field manager of the controller's writes to nodes.
pub const PUBLISH_MANAGER: &str = "vramguard";
/// Field manager of the binding guard's writes to nodes. The guard only raises the published amount, so it never undoes
/// a publication.
pub const RAISE_MANAGER: &str = "vramguard-bindings";

/// A field of a node that vramguard publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `vramguard.dev/vram` in `status.capacity`.
    Capacity,
    /// `vramguard.dev/vram` in `status.allocatable`.
    Allocatable,
    /// The label `vramguard.dev/pod-max-mib`.
    PodMax,
    /// The condition `VramAccounted`.
    Condition,
}

impl Field {
    /// Returns the first field whose value is no longer the written one. `None` if all are as written, or if the node
    /// is another one of the same name.
    pub fn undone(written: &Advertised, found: &Advertised) -> Option<Field> {
        if written.uid != found.uid {
            return None;
        }
        let differs = [
            (Field::Capacity, written.capacity != found.capacity),
            (Field::Allocatable, written.allocatable != found.allocatable),
            (Field::PodMax, written.pod_max != found.pod_max),
            (Field::Condition, written.condition != found.condition),
        ];
        differs.into_iter().find_map(|(field, differs)| differs.then_some(field))
    }

    /// The path of the field in the field set of a managedFields entry.
    fn path(self) -> [String; 3] {
        let field = |name: &str| format!("f:{name}");
        match self {
            Field::Capacity => [field("status"), field("capacity"), field(keys::VRAM_RESOURCE)],
            Field::Allocatable => [field("status"), field("allocatable"), field(keys::VRAM_RESOURCE)],
            Field::PodMax => [field("metadata"), field("labels"), field(keys::POD_MAX_MIB)],
            Field::Condition => [field("status"), field("conditions"), format!(r#"k:{{"type":"{CONDITION}"}}"#)],
        }
    }

    /// Returns the manager that wrote this field last. `None` if no manager owns it, for example after it was deleted.
    pub fn last_manager(self, managed: &[ManagedFieldsEntry]) -> Option<&str> {
        let path = self.path();
        let is_in = |fields: &Value| path.iter().try_fold(fields, |fields, part| fields.get(part)).is_some();
        let owners = managed.iter().filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| is_in(&fields.0)));
        // An entry without a time counts as older than every entry with one.
        owners.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?.manager.as_deref()
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Capacity => write!(f, "{} in its capacity", keys::VRAM_RESOURCE),
            Field::Allocatable => write!(f, "{} in its allocatable", keys::VRAM_RESOURCE),
            Field::PodMax => write!(f, "its label {}", keys::POD_MAX_MIB),
            Field::Condition => write!(f, "its condition {CONDITION}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn managed() -> Vec<ManagedFieldsEntry> {
        let entry = |manager: &str, time: Option<&str>, fields: Value| {
            json!({
                "manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields,
                "subresource": "status", "time": time,
            })
        };
        let number = json!({ "f:status": { "f:capacity": { "f:vramguard.dev/vram": {} } } });
        let kubelet =
            json!({ "f:status": { "f:allocatable": { "f:vramguard.dev/vram": {} }, "f:capacity": { "f:cpu": {} } } });
        let condition = json!({ "f:status": { "f:conditions": { "k:{\"type\":\"VramAccounted\"}": { ".": {}, "f:status": {} } } } });
        serde_json::from_value(json!([
            entry("old", None, number.clone()),
            entry("label-syncer", Some("2026-11-24T12:00:02Z"), number.clone()),
            entry("kubelet", Some("2026-11-24T12:00:09Z"), kubelet),
            entry("vramguard", Some("2026-11-24T12:00:01Z"), number),
            entry("vramguard", Some("2026-11-24T12:00:01Z"), condition),
        ]))
        .unwrap()
    }

    #[test]
    fn the_last_writer_of_a_field_is_its_latest_owner_and_none_where_nobody_owns_it() {
        let managed = managed();
        assert_eq!(Field::Capacity.last_manager(&managed), Some("label-syncer"));
        assert_eq!(Field::Allocatable.last_manager(&managed), Some("kubelet"));
        assert_eq!(Field::Condition.last_manager(&managed), Some("vramguard"));
        assert_eq!(Field::PodMax.last_manager(&managed), None, "deleted");
        assert_eq!(Field::Capacity.last_manager(&[]), None);
    }

    #[test]
    fn what_was_undone_is_the_first_field_that_differs_on_the_same_node() {
        let written = Advertised {
            capacity: Some("24320Mi".into()),
            allocatable: Some("24320Mi".into()),
            pod_max: Some("24320".into()),
            condition: None,
            uid: Some("a".into()),
        };
        assert_eq!(Field::undone(&written, &written), None);
        let number = Advertised { capacity: Some("99Gi".into()), allocatable: None, ..written.clone() };
        assert_eq!(Field::undone(&written, &number), Some(Field::Capacity));
        let label = Advertised { pod_max: None, ..written.clone() };
        assert_eq!(Field::undone(&written, &label), Some(Field::PodMax));
        let another = Advertised { uid: Some("b".into()), ..number };
        assert_eq!(Field::undone(&written, &another), None);
    }
}
