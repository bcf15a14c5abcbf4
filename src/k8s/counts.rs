//! The numbers of GPUs that the containers of a pod object request, as files write them. Owns what is refused of them.
//!
//! The API server stores no count that is not a whole number, but a file may have any text. The types of
//! [`super::object`] take such a container as one with a GPU: a webhook sees a pod before the API server validates it, so
//! it must guard the pod. A report counts nothing that it cannot read, so it asks here first.

use serde_json::Value;

use super::quantity;
use crate::keys;

/// Checks the counts of a pod or pod template.
///
/// # Errors
/// A count of GPUs is not a whole number. The error is the field with a leading dot, and what is wrong, with container
/// and value.
pub fn check(pod: &Value) -> Result<(), (String, String)> {
    for list in ["initContainers", "containers"] {
        let containers = pod.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
        for (index, container) in containers.into_iter().flatten().enumerate() {
            for amounts in ["limits", "requests"] {
                let quantities = container.get("resources").and_then(|resources| resources.get(amounts));
                for (resource, amount) in quantities.and_then(Value::as_object).into_iter().flatten() {
                    if let Some(why) = fault(resource, amount) {
                        let field = format!(".spec.{list}[{index}].resources.{amounts}[{resource}]");
                        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
                        let expected = "expected a whole number of GPUs, as in 1";
                        return Err((field, format!("container {name:?}: {amount} {why}, {expected}")));
                    }
                }
            }
        }
    }
    Ok(())
}

/// What is wrong with an amount of a resource; `None` if it can be read, or is not about GPUs.
fn fault(resource: &str, amount: &Value) -> Option<&'static str> {
    if !keys::is_gpu_resource(resource) {
        return None;
    }
    match amount {
        Value::String(text) => quantity::checked_count(text).err(),
        Value::Number(number) => quantity::checked_count(&number.to_string()).err(),
        // The type of the field refuses it.
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_count_that_is_no_number_of_gpus_is_named_with_its_container() {
        let check = |amount: Value| {
            super::check(&json!({"spec": {"containers": [
                {"name": "proxy"}, {"name": "llm", "resources": {"limits": {"cpu": "abc", "nvidia.com/gpu": amount}}}]}}))
        };
        for (amount, why) in [
            (json!("abc"), "\"abc\" is not a number"),
            (json!("-1"), "\"-1\" is below zero"),
            (json!(-1), "-1 is below zero"),
            (json!("0.5"), "\"0.5\" is not whole"),
            (json!("99999999999999999999"), "\"99999999999999999999\" is too large"),
        ] {
            let field = ".spec.containers[1].resources.limits[nvidia.com/gpu]".to_owned();
            let what = format!("container \"llm\": {why}, expected a whole number of GPUs, as in 1");
            assert_eq!(check(amount), Err((field, what)));
        }
        for amount in [json!(1), json!("1"), json!("0"), json!("1k")] {
            assert_eq!(check(amount), Ok(()));
        }
    }
}
