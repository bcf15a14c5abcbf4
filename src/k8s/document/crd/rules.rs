//! Bounds and rules that the types do not have: the API server needs bounds to estimate the cost of rules, and CEL rules
//! do what `schema` does in its conversions.

use serde_json::{Value, json};

use super::super::schema::MAX_MODEL_NAME;
use super::super::values::{CLUSTER_ONLY, HARD_MIG, HARD_MPS, NO_NODE, REMOVED};
use super::structural::at;
use crate::keys;

/// Path of a field, a keyword of its schema, and the value of the keyword.
type Bound = (&'static str, &'static str, u32);

pub(super) const LAYER_BOUNDS: &[Bound] = &[("models", "maxProperties", 1000)];
pub(super) const CLUSTER_BOUNDS: &[Bound] = &[("exemptNamespaces", "maxItems", 1000), ("locked", "maxItems", 32)];
pub(super) const INVENTORY_BOUNDS: &[Bound] = &[
    ("nodes", "maxItems", 500),
    ("nodes[].names", "maxItems", 1000),
    ("nodes[].names[]", "maxLength", 253),
    ("nodes[].matchLabels", "maxProperties", 64),
    ("nodes[].matchLabels{}", "maxLength", 63),
    ("nodes[].gpus", "minItems", 1),
    ("nodes[].gpus", "maxItems", 256),
];

/// Sets bounds.
pub(super) fn bound(spec: &mut Value, bounds: &[Bound]) {
    for (path, keyword, value) in bounds {
        at(spec, path)[keyword] = json!(value);
    }
}

/// A rule over the fields of an object.
pub(super) struct Rule {
    /// Path of the object; empty for the spec.
    object: &'static str,
    /// Field of the object that an error names; empty for the object itself.
    field: &'static str,
    /// What must be true, in CEL.
    rule: String,
    /// What the error says of the field.
    message: &'static str,
    reason: &'static str,
}

/// Adds rules to the objects that they are about.
///
/// # Panics
/// If an object or a field does not exist.
pub(super) fn add(spec: &mut Value, rules: Vec<Rule>) {
    for Rule { object, field, rule, message, reason } in rules {
        let schema = at(spec, object);
        let mut entry = json!({"rule": rule, "message": message, "reason": reason});
        if !field.is_empty() {
            at(schema, field);
            entry["fieldPath"] = json!(format!(".{field}"));
        }
        let entries = schema.as_object_mut().expect("a schema is an object").entry("x-kubernetes-validations");
        entries.or_insert(json!([])).as_array_mut().expect("a list of rules").push(entry);
    }
}

/// The rules of what a ClusterVramPolicy and a VramPolicy have in common.
pub(super) fn layer() -> Vec<Rule> {
    // A text that does not match the pattern of amounts gets here too.
    let at_most = |small: &str, large: &str| {
        format!(
            "!has(self.{small}) || !has(self.{large}) || \
             !isQuantity(string(self.{small})) || !isQuantity(string(self.{large})) || \
             quantity(string(self.{small})).compareTo(quantity(string(self.{large}))) <= 0"
        )
    };
    let bound =
        |field, rule, message| Rule { object: "declaration", field, rule, message, reason: "FieldValueInvalid" };
    vec![
        bound("min", at_most("min", "max"), "is above max"),
        bound("default", at_most("min", "default"), "is below min"),
        bound("default", at_most("default", "max"), "is above max"),
        Rule {
            object: "models",
            field: "",
            rule: format!("self.all(name, size(name) <= {MAX_MODEL_NAME})"),
            message: "has a name of more than 253 characters",
            reason: "FieldValueInvalid",
        },
        Rule {
            object: "environment",
            field: "visibleDevices",
            rule: "!has(self.visibleDevices)".to_owned(),
            message: REMOVED,
            reason: "FieldValueForbidden",
        },
    ]
}

/// The fields that only a ClusterVramPolicy may set.
pub(super) const CLUSTER_ONLY_FIELDS: [&str; 7] =
    ["reroute", "perProcessOverhead", "headroom", "overcommit", "startup", "exemptNamespaces", "locked"];

pub(super) fn cluster_only() -> Vec<Rule> {
    let rule = |field: &&'static str| Rule {
        object: "",
        field,
        rule: format!("!has(self.{field})"),
        message: CLUSTER_ONLY,
        reason: "FieldValueForbidden",
    };
    CLUSTER_ONLY_FIELDS.iter().map(rule).collect()
}

/// The schema of a field in the VramPolicy that only a ClusterVramPolicy may set, from its schema there.
///
/// It has the same type, because CEL does not see fields without a type. Its content is kept, because an API server
/// prunes unknown fields of clients that did not ask for strict validation, and the rule would then see nothing.
pub(super) fn only_in_cluster(of_cluster: &Value) -> Value {
    let mut schema = json!({"description": "Only the ClusterVramPolicy may set it."});
    for keyword in ["type", "x-kubernetes-int-or-string"] {
        if let Some(value) = of_cluster.get(keyword) {
            schema[keyword] = value.clone();
        }
    }
    match of_cluster["type"].as_str() {
        Some("object") => schema["x-kubernetes-preserve-unknown-fields"] = json!(true),
        Some("array") => schema["items"] = json!({"type": "string"}),
        _ => {}
    }
    schema
}

pub(super) fn inventory() -> Vec<Rule> {
    let rule = |field, rule: &str, message| Rule {
        object: "nodes[]",
        field,
        rule: rule.to_owned(),
        message,
        reason: "FieldValueInvalid",
    };
    let mig =
        format!("!has(self.hardLimits) || !self.hardLimits || !self.resource.startsWith('{}')", keys::MIG_RESOURCE_OF);
    vec![
        rule(
            "",
            "(has(self.names) && size(self.names) > 0) || (has(self.matchLabels) && size(self.matchLabels) > 0)",
            NO_NODE,
        ),
        rule("hardLimits", &mig, HARD_MIG),
        rule(
            "hardLimits",
            "!has(self.hardLimits) || !self.hardLimits || !has(self.sharing) || self.sharing != 'MPS'",
            HARD_MPS,
        ),
    ]
}
