//! The schemas of the values in policy documents. Each describes in Kubernetes' words what `values` and `pool` read.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::super::pool::{Labels, MAX_LABELS, MAX_POOLS, Pool, Pools};
use super::super::values::{
    Amount, CLUSTER_ONLY, ClusterOnly, DriverReserveText, FieldText, FrameworkText, GpuResource, NamespaceName,
    OvercommitText, Percent, Removed, ZERO_GPU, too_large_gpu,
};
use crate::capacity::pod::software::Framework;
use crate::capacity::policy::{Field, FrameworkPolicy};
use crate::k8s::node::MAX_GPU;
use crate::keys;

/// Gives types a schema that does not depend on other types.
macro_rules! schemas {
    ($($value:ident = $schema:expr;)+) => {
        $(impl JsonSchema for $value {
            fn schema_name() -> Cow<'static, str> {
                stringify!($value).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                Schema::try_from($schema).expect("a schema is an object")
            }
        })+
    };
}

schemas! {
    Amount = amount(&format!("^(0|{AMOUNT})$"), "must have a unit, as in 8Gi, or be 0");
    DriverReserveText =
        amount(&format!("^(Auto|0|{AMOUNT})$"), "must be Auto, an amount with a unit, as in 512Mi, or 0");
    Percent = json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 100});
    OvercommitText = text(6, json!([{
        "rule": "self.matches('^[0-9]{1,2}([.][0-9]{1,3})?$') && double(self) >= 0.001 && double(self) <= 10.0",
        "message": "must be a number from \"0.001\" to \"10.0\" with at most 3 decimals",
    }]));
    NamespaceName = text(63, json!([{
        "rule": "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
        "message": "must be the name of a namespace (a-z, 0-9 and -, at most 63)",
    }]));
    FieldText = json!({"type": "string", "enum": Field::ALL.map(Field::path)});
    FrameworkText = json!({"type": "string", "enum": frameworks()});
    GpuResource = text(317, json!([{
        "rule": format!(
            "self == '{0}' || self.matches('^{2}[.-].') || self.startsWith('{1}')",
            keys::GPU_RESOURCE,
            keys::MIG_RESOURCE_OF,
            keys::GPU_RESOURCE.replace('.', "[.]")
        ),
        "message": format!(
            "must be a GPU resource: {0}, {0}.<name>, {0}-<name> or {1}<profile>",
            keys::GPU_RESOURCE, keys::MIG_RESOURCE_OF
        ),
    }]));
    // Only a field that has a type can be named in a rule. `rules::only_in_cluster` gives it that of the ClusterVramPolicy.
    ClusterOnly = json!({"description": CLUSTER_ONLY});
    Removed = json!({"type": "string", "maxLength": 64, "description": "No longer exists."});
    Labels = json!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": MAX_LABELS,
        "x-kubernetes-validations": [
            {
                "rule": format!("self.all(key, !key.startsWith('{}'))", keys::PREFIX),
                "message": format!("{}* is set by vramguard and cannot name a pool", keys::PREFIX),
            },
            {
                "rule": format!("self.all(key, key.matches('^({DOMAIN}/)?{LABEL}$') && size(key.split('/')[0]) <= 253)"),
                "message": "must have keys of labels, as in example.com/pool",
            },
        ],
        "additionalProperties": text(63, json!([{
            "rule": "self.matches('^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$')",
            "message": "must be the value of a label (letters, digits, -, _ and ., at most 63)",
        }])),
    });
}

impl JsonSchema for Pools {
    fn schema_name() -> Cow<'static, str> {
        "Pools".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let pools = json!({"type": "array", "maxItems": MAX_POOLS, "items": generator.subschema_for::<Pool>()});
        Schema::try_from(pools).expect("a schema is an object")
    }
}

/// The prefix of a label's key, and what follows it, as `pool` checks them.
const DOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL: &str = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?";

/// An amount with a unit, below the limit of a quantity by the number of its digits. A pattern costs nothing, unlike CEL
/// on a value that may be a number or a text.
const AMOUNT: &str = r"[0-9]{1,12}(\.[0-9]{1,18})?(k|M|Ki|Mi)|[0-9]{1,6}(\.[0-9]{1,18})?(G|T|Gi|Ti)";

/// A text of this pattern, or the number 0.
///
/// Kubernetes estimates `type(self) != int` as if the value filled a request, and `in` by the length of the list.
fn amount(pattern: &str, message: &str) -> Value {
    json!({
        "x-kubernetes-int-or-string": true,
        "pattern": pattern,
        "x-kubernetes-validations": [{"rule": "type(self) in [string] || int(self) == 0", "message": message}],
    })
}

fn text(max_length: u32, rules: Value) -> Value {
    json!({"type": "string", "maxLength": max_length, "x-kubernetes-validations": rules})
}

fn frameworks() -> Vec<String> {
    let named = Framework::ALL.map(FrameworkPolicy::Named);
    [FrameworkPolicy::Auto, FrameworkPolicy::None].iter().chain(&named).map(ToString::to_string).collect()
}

/// The size of a GPU: an amount that is not zero. It is a text only, so that CEL may compare it.
pub(super) fn gpu_size() -> Value {
    json!({
        "type": "string",
        "maxLength": 32,
        "pattern": format!("^({AMOUNT})$"),
        "x-kubernetes-validations": [
            {"rule": "!isQuantity(self) || quantity(self).isGreaterThan(quantity('0'))", "message": ZERO_GPU},
            {
                "rule": format!("!isQuantity(self) || !quantity(self).isGreaterThan(quantity('{MAX_GPU}'))"),
                "message": too_large_gpu(),
            },
        ],
    })
}
