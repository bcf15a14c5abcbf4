//! Which of our fields of a node somebody else changed, and who: from the node's managedFields. Owns how our fields are named
//! there.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use super::node::{Advertised, CONDITION};
use crate::keys;

/// Field manager of what the controller writes to nodes.
pub const PUBLISHES: &str = "vramguard";
/// Field manager of what the binding guard writes to nodes: it raises a number, and undoes nothing.
pub const RAISES: &str = "vramguard-bindings";

/// One of our fields of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `status.capacity` of our resource.
    Capacity,
    /// `status.allocatable` of our resource.
    Allocatable,
    /// The label of what one pod can get.
    PodMax,
    /// The condition.
    Condition,
}

impl Field {
    /// The first of our fields that does not say any more what was written; `None` where all do, and for another node of the
    /// same name.
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

    /// Its path in the field set of a managedFields entry.
    fn path(self) -> [String; 3] {
        let field = |name: &str| format!("f:{name}");
        match self {
            Field::Capacity => [field("status"), field("capacity"), field(keys::VRAM_RESOURCE)],
            Field::Allocatable => [field("status"), field("allocatable"), field(keys::VRAM_RESOURCE)],
            Field::PodMax => [field("metadata"), field("labels"), field(keys::POD_MAX_MIB)],
            Field::Condition => [field("status"), field("conditions"), format!(r#"k:{{"type":"{CONDITION}"}}"#)],
        }
    }

    /// The manager of the last write of this field. `None` where nobody owns it, as after it was deleted.
    pub fn last_manager(self, managed: &[ManagedFieldsEntry]) -> Option<&str> {
        let path = self.path();
        let is_in = |fields: &Value| path.iter().try_fold(fields, |fields, part| fields.get(part)).is_some();
        let owners = managed.iter().filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| is_in(&fields.0)));
        // An entry without a time is older than all that have one.
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
