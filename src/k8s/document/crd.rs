//! The CustomResourceDefinitions of the policies, generated from the types that read policy files. Owns what a schema of
//! Kubernetes needs in addition to these types: scope, names, columns, status, bounds, and rules over several fields.
//!
//! It is compiled for tests only. `tests` compares the result with `deploy/crds/`, and `just crds` writes it there.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::schema::{ClusterSpec, InventorySpec, NamespaceSpec};
use crate::keys;

mod rules;
mod structural;
mod tests;
mod values;

use structural::{at, structural};

/// What a CustomResourceDefinition says about one kind, except for the schema of its spec.
struct Kind {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static str,
    scope: &'static str,
    description: &'static str,
    /// The only name that an object may have, and why.
    name: Option<(&'static str, &'static str)>,
    conditions: &'static str,
    columns: fn() -> Vec<Value>,
    spec: fn() -> Value,
}

const KINDS: [Kind; 3] = [
    Kind {
        kind: "ClusterVramPolicy",
        plural: "clustervrampolicies",
        singular: "clustervrampolicy",
        short: "cvramp",
        scope: "Cluster",
        description: "The policy of the cluster. There is one, with the name cluster.",
        name: Some(("cluster", "must be cluster, because a cluster has one ClusterVramPolicy")),
        conditions: "InForce says whether the document is in force, and if not, why.",
        columns: cluster_columns,
        spec: cluster_spec,
    },
    Kind {
        kind: "VramPolicy",
        plural: "vrampolicies",
        singular: "vrampolicy",
        short: "vramp",
        scope: "Namespaced",
        description: "The policy of one namespace. There is one in each namespace at most, with the name default.",
        name: Some(("default", "must be default, because a namespace has one VramPolicy")),
        conditions: "InForce says whether the document is in force, and if not, why. LockedFieldsIgnored says which fields \
                     are locked by the ClusterVramPolicy and therefore ignored.",
        columns: namespace_columns,
        spec: namespace_spec,
    },
    Kind {
        kind: "GpuInventory",
        plural: "gpuinventories",
        singular: "gpuinventory",
        short: "gpuinv",
        scope: "Cluster",
        description: "Describes GPUs of nodes whose labels are wrong or missing, and of nodes that do not exist yet.",
        name: None,
        conditions: "InForce says whether the document is in force, and if not, why.",
        columns: inventory_columns,
        spec: inventory_spec,
    },
];

/// The CustomResourceDefinition of a kind.
fn definition(kind: &Kind) -> Value {
    let mut metadata = json!({"type": "object"});
    let mut schema = json!({
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": format!("{}.", keys::API_VERSION), "type": "string"},
            "kind": {"description": format!("{}.", kind.kind), "type": "string"},
            "spec": (kind.spec)(),
            "status": status(kind.conditions),
        },
    });
    if let Some((name, why)) = kind.name {
        metadata["properties"] = json!({"name": {"type": "string", "maxLength": 253}});
        let rule = format!("self.metadata.name == '{name}'");
        schema["x-kubernetes-validations"] = json!([{"rule": rule, "fieldPath": ".metadata.name", "message": why}]);
    }
    schema["properties"]["metadata"] = metadata;
    let version = keys::API_VERSION.rsplit('/').next();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", kind.plural, keys::API_GROUP)},
        "spec": {
            "group": keys::API_GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.kind,
                "listKind": format!("{}List", kind.kind),
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
                "categories": ["vramguard"],
            },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": (kind.columns)(),
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

/// The schema of a type, in the form that Kubernetes wants.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural("spec", &mut schema);
    schema
}

fn cluster_spec() -> Value {
    let mut spec = schema_of::<ClusterSpec>();
    rules::bound(&mut spec, &[rules::LAYER_BOUNDS, rules::CLUSTER_BOUNDS].concat());
    rules::add(&mut spec, rules::layer());
    spec
}

fn namespace_spec() -> Value {
    let mut spec = schema_of::<NamespaceSpec>();
    rules::bound(&mut spec, rules::LAYER_BOUNDS);
    rules::add(&mut spec, rules::layer());
    let mut of_cluster = schema_of::<ClusterSpec>();
    for field in rules::CLUSTER_ONLY_FIELDS {
        *at(&mut spec, field) = rules::only_in_cluster(at(&mut of_cluster, field));
    }
    rules::add(&mut spec, rules::cluster_only());
    spec
}

fn inventory_spec() -> Value {
    let mut spec = schema_of::<InventorySpec>();
    *at(&mut spec, "nodes[].gpus[]") = values::gpu_size();
    rules::bound(&mut spec, rules::INVENTORY_BOUNDS);
    rules::add(&mut spec, rules::inventory());
    spec
}

fn column(name: &str, path: &str, description: &str) -> Value {
    json!({"name": name, "type": "string", "jsonPath": path, "description": description})
}

/// A column that is shown with `-o wide` only.
fn wide(mut column: Value) -> Value {
    column["priority"] = json!(1);
    column
}

/// The status of a condition, or another field of it.
fn of_condition(condition: &str, field: &str) -> String {
    format!(".status.conditions[?(@.type==\"{condition}\")].{field}")
}

fn policy_columns() -> Vec<Value> {
    vec![
        column("Mode", ".spec.mode", "What follows a violation of the policy, if it is set."),
        column("Shortfall", ".spec.onShortfall", "What happens to a pod that no node has room for, if it is set."),
        column("Quota", ".spec.quota", "Bound on what the pods of a namespace hold together, if it is set."),
    ]
}

fn in_force() -> [Value; 2] {
    [
        column("In Force", &of_condition("InForce", "status"), "Whether the document is in force."),
        wide(column("Reason", &of_condition("InForce", "reason"), "Why it is in force or not.")),
    ]
}

fn age() -> Value {
    json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
}

fn cluster_columns() -> Vec<Value> {
    policy_columns().into_iter().chain(in_force()).chain([age()]).collect()
}

fn namespace_columns() -> Vec<Value> {
    let ignored = of_condition("LockedFieldsIgnored", "status");
    let ignored = wide(column("Ignored", &ignored, "Whether fields are locked by the ClusterVramPolicy, and ignored."));
    policy_columns().into_iter().chain(in_force()).chain([ignored, age()]).collect()
}

fn inventory_columns() -> Vec<Value> {
    in_force().into_iter().chain([age()]).collect()
}

/// The schema of the status, whose conditions are those of Kubernetes' own objects.
fn status(conditions: &str) -> Value {
    let prefix = "([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?";
    json!({
        "description": "What vramguard made of the document. Only vramguard writes it.",
        "type": "object",
        "properties": {"conditions": {
            "description": conditions,
            "type": "array",
            "maxItems": 8,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "description": "One aspect of the current state, as Kubernetes' own objects have them.",
                "type": "object",
                "required": ["lastTransitionTime", "message", "reason", "status", "type"],
                "properties": {
                    "lastTransitionTime": {
                        "description": "When status last changed.",
                        "type": "string", "format": "date-time", "maxLength": 40,
                    },
                    "message": {"description": "For people.", "type": "string", "maxLength": 32768},
                    "observedGeneration": {
                        "description": "The metadata.generation that this follows from.",
                        "type": "integer", "format": "int64", "minimum": 0,
                    },
                    "reason": {
                        "description": "For programs, one word in CamelCase.",
                        "type": "string", "minLength": 1, "maxLength": 1024,
                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    },
                    "status": {"description": "Whether it is so.", "type": "string", "enum": ["True", "False", "Unknown"]},
                    "type": {
                        "description": "The name of the condition.",
                        "type": "string", "maxLength": 316,
                        "pattern": format!("^{prefix}(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"),
                    },
                },
            },
        }},
    })
}
