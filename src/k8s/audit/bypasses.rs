//! The ways to a GPU past the device plugin that an object shows. Owns the same rules as
//! `deploy/base/validatingadmissionpolicy-devices.yaml`, except the one on variables of containers, which
//! [`crate::capacity::admission`] reports.

use serde_json::Value;

use super::{kept, listed};
use crate::keys;

/// Returns what a pod or template has of them, each as the beginning of a message.
pub(super) fn of_pod(object: &Value) -> Vec<String> {
    let annotations =
        object.get("metadata").and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
    let cdi = annotations.into_iter().flat_map(|annotations| annotations.keys());
    let cdi = cdi.filter(|key| keys::CDI_OF.iter().any(|prefix| key.starts_with(prefix)));
    let cdi = cdi.map(|key| format!("annotation {}", kept::cut(key)));
    let volumes = listed(object, "volumes").filter_map(device);
    let volumes = volumes.map(|path| format!("hostPath volume {}", kept::cut(&path)));
    let ephemeral = listed(object, "ephemeralContainers").filter(|container| shows_gpus(container));
    let ephemeral = ephemeral.map(|container| {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        format!("{} of ephemeral container {}", keys::ENV_VISIBLE_DEVICES, kept::cut(name))
    });
    cdi.chain(volumes).chain(ephemeral).take(kept::MOST).collect()
}

/// The normalised path of a volume below `/dev/nvidia`. Kubernetes refuses `..`, but accepts `//` and `/./`.
fn device(volume: &Value) -> Option<String> {
    let path = volume.get("hostPath")?.get("path")?.as_str()?;
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let path = parts.join("/");
    path.starts_with("dev/nvidia").then(|| format!("/{path}"))
}

/// Whether the variable that makes GPUs visible is set, and not to a value that hides them.
fn shows_gpus(container: &Value) -> bool {
    let variables = container.get("env").and_then(Value::as_array).into_iter().flatten();
    let mut visible = variables
        .filter(|variable| variable.get("name").and_then(Value::as_str) == Some(keys::ENV_VISIBLE_DEVICES))
        .map(|variable| {
            let value = variable.get("value").and_then(Value::as_str).unwrap_or_default();
            variable.get("valueFrom").is_some() || !matches!(value, "" | "void" | "none")
        });
    visible.any(|shows| shows)
}
