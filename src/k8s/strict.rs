//! A pod object → the first field in it that a Pod does not have. Owns how strictly a pod is read whose author expects every
//! field of it to matter, as in a test.
//!
//! The schema is that of the Kubernetes API's own types. They ignore a field that they do not know, so that field is missing
//! when they are written again.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::wording;

/// Checks that a Pod has each field of an object.
///
/// # Errors
/// A field is unknown, or has a value of another type. The error is a JSON pointer to the field, and what is wrong.
pub fn check(pod: &Value) -> Result<(), (String, String)> {
    let mut pod = pod.clone();
    quote_quantities(&mut pod);
    let read: Pod = serde_path_to_error::deserialize(&pod).map_err(|error| {
        let field = error.path().to_string();
        let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
        (pointer.trim_end_matches(['/', '?']).to_owned(), wording::json(error.inner()))
    })?;
    let known = serde_json::to_value(read).unwrap_or_default();
    match unknown(&pod, &known) {
        None => Ok(()),
        Some((pointer, name)) => {
            Err((pointer, format!("there is no field {name:?} in a Pod here; correct its name, or leave it out")))
        }
    }
}

/// The API reads an amount such as `nvidia.com/gpu: 1` as a text or a number, and its types read a text.
fn quote_quantities(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, member) in members.iter_mut() {
                match (key.as_str(), &mut *member) {
                    ("limits" | "requests" | "overhead", Value::Object(amounts)) => {
                        amounts.values_mut().for_each(quote);
                    }
                    ("sizeLimit" | "divisor", amount) => quote(amount),
                    _ => quote_quantities(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quote_quantities),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn quote(amount: &mut Value) {
    if let Value::Number(number) = amount {
        *amount = Value::String(number.to_string());
    }
}

/// The first member of `given` that `known` does not have: its JSON pointer and name. A member without content is the same
/// as none.
fn unknown(given: &Value, known: &Value) -> Option<(String, String)> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(name, value)| {
            let step = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
            match known.get(name) {
                Some(known) => unknown(value, known).map(|(rest, name)| (format!("{step}{rest}"), name)),
                None if is_empty(value) => None,
                None => Some((step, name.clone())),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            let mut pairs = given.iter().zip(known).enumerate();
            pairs.find_map(|(index, (given, known))| {
                unknown(given, known).map(|(rest, name)| (format!("/{index}{rest}"), name))
            })
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(pod: Value) -> String {
        let (pointer, what) = check(&pod).unwrap_err();
        format!("{pointer}: {what}")
    }

    /// Such a pod has no container, so that a case about it passed.
    #[test]
    fn a_misspelt_field_of_a_pod_is_named() {
        let what = |name: &str| format!("there is no field {name:?} in a Pod here; correct its name, or leave it out");
        assert_eq!(
            refused(json!({"spec": {"container": [{"name": "main"}]}})),
            format!("/spec/container: {}", what("container"))
        );
        assert_eq!(
            refused(
                json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limit": {"cpu": 1}}}]}})
            ),
            format!("/spec/containers/1/resources/limit: {}", what("limit"))
        );
        assert_eq!(
            refused(json!({"spec": {"priority": "high"}})),
            "/spec/priority: is the text \"high\", expected a whole number"
        );
    }

    #[test]
    fn every_form_of_a_pod_that_the_api_accepts_is_accepted() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "annotations": {"vramguard.dev/vram": "8Gi"}, "labels": {}, "creationTimestamp": null},
            "spec": {
                "nodeSelector": {"a.b/c": "d"}, "tolerations": [{"operator": "Exists"}], "initContainers": [],
                "containers": [{"name": "main", "image": "i", "env": [{"name": "A", "value": ""}, {"name": "B"}],
                    "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": 0.5}, "requests": {"memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/"}}, "ports": [{"containerPort": 80}]}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                    {"nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}}},
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {"sizeLimit": 1}}]
            },
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
        });
        assert_eq!(check(&pod), Ok(()));
    }
}
