//! Policies as resources on a real control plane: precedence, status, and one answer whichever way a policy is written.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

mod fields;
mod lifecycle;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::support::{GuardedCluster, PATIENCE, eventually, run};

/// A VramPolicy that may be applied: the name of a resource is fixed.
fn of_namespace(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: vramguard.dev/v1alpha1\nkind: VramPolicy\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// The condition of a document, as status, reason and message; an error while it has none for its present generation.
async fn condition(
    cluster: &GuardedCluster,
    document: &[&str],
    kind: &str,
) -> anyhow::Result<(String, String, String)> {
    let arguments = [&["get", "-o", "json"], document].concat();
    let object: Value = serde_json::from_str(&cluster.plane.kubectl(&arguments).await.expect_success())?;
    let conditions = object["status"]["conditions"].as_array().context("no status yet")?;
    let found = conditions.iter().find(|condition| condition["type"] == kind).context("no such condition")?;
    ensure!(found["observedGeneration"] == object["metadata"]["generation"], "of an earlier generation: {found}");
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

/// Waits until a document's `InForce` has this reason, and returns the message.
async fn in_force(cluster: &GuardedCluster, document: &[&str], reason: &str) -> String {
    eventually(&format!("{document:?} to be {reason}"), PATIENCE, async || {
        let (status, found, message) = condition(cluster, document, "InForce").await?;
        ensure!(found == reason, "{status} {found}: {message}{}", cluster.guard.server.log_tail());
        Ok(message)
    })
    .await
}

/// What a command of vramguard prints about the live cluster.
fn vramguard(cluster: &GuardedCluster, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    command.args(arguments).env("KUBECONFIG", cluster.plane.admin_kubeconfig());
    run(&mut command, PATIENCE).expect_success()
}

/// Time in which a wrong change would have taken effect.
const LONG_ENOUGH: Duration = Duration::from_secs(4);
