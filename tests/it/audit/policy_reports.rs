//! Audits by the leader: policy reports, metrics, and the page.

use super::*;
use crate::support::http::metric;

/// CRDs with the names of OpenReports; `Any` stands for the schema, which vramguard does not ship.
fn crds() -> String {
    let crd = |kind: &str, plural: &str, scope: &str| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.openreports.io")},
            "spec": {
                "group": "openreports.io", "scope": scope,
                "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        })
    };
    let items = [crd("Report", "reports", "Namespaced"), crd("ClusterReport", "clusterreports", "Cluster")];
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// A report of an earlier audit that is not needed any more, and reports of another tool.
fn earlier_reports() -> String {
    let report = |namespace: &str, name: &str, manager: &str| {
        json!({
            "apiVersion": "openreports.io/v1alpha1", "kind": "Report", "results": [],
            "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": manager}},
        })
    };
    let items = [
        report("lab", "vramguard-audit", "vramguard"),
        report("ml", "scan", "another"),
        report("default", "vramguard-audit", "another"),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// The reports in the cluster, as namespace and name.
async fn reports(plane: &ControlPlane) -> String {
    let names = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}";
    plane.kubectl(&["get", "reports.openreports.io", "-A", "-o", names]).await.expect_success().trim().to_owned()
}

#[tokio::test]
async fn the_leader_keeps_a_report_in_each_namespace_and_leaves_those_of_others_alone() {
    let plane = overcommitted().await;
    plane.apply(&crds()).await;
    plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).await.expect_success();
    plane.kubectl(&["create", "namespace", "lab"]).await.expect_success();
    // A finding in `default`, where the report of that name is another's.
    plane.apply(&gpu_pod("default", "more", "{}", "")).await;
    plane.apply(&earlier_reports()).await;
    let flags = ["--audit-every", "2", "--policy-reports", "--report"];
    let guard = Guard::start_in(&plane, "deploy/audit", &[("cluster.yaml", ENFORCE)], &flags).await;
    eventually("the reports to be those of this audit", PATIENCE, async || {
        let seen = reports(&plane).await;
        ensure!(seen == "default/vramguard-audit ml/scan ml/vramguard-audit", "{seen}{}", guard.server.log_tail());
        Ok(())
    })
    .await;
    let ours = plane
        .kubectl(&["-n", "ml", "get", "reports.openreports.io", "vramguard-audit", "-o", "json"])
        .await
        .expect_success();
    let ours: Value = serde_json::from_str(&ours).expect("an object");
    let rules: Vec<&str> =
        ours["results"].as_array().unwrap().iter().filter_map(|result| result["rule"].as_str()).collect();
    assert!(rules.contains(&"VramUndeclared"), "{rules:?}");
    let another = plane
        .kubectl(&["get", "reports.openreports.io", "vramguard-audit", "-o", "jsonpath={.results} {.metadata.labels}"])
        .await
        .expect_success();
    assert_eq!(another, r#"[] {"app.kubernetes.io/managed-by":"another"}"#);
    assert_eq!(guard.server.log_tail().matches("is left alone").count(), 1, "{}", guard.server.log_tail());
    let cluster = plane
        .kubectl(&["get", "clusterreports.openreports.io", "vramguard-audit", "-o", "json"])
        .await
        .expect_success();
    assert!(cluster.contains("GpuOvercommitted"), "{cluster}");

    eventually("the metrics to say the same", PATIENCE, async || {
        let name = "vramguard_audit_findings{reason=\"GpuOvercommitted\",severity=\"deny\"}";
        ensure!(metric(guard.http(), name) == Some(1.0), "{:?}", guard.metrics());
        let bytes = metric(guard.http(), "vramguard_audit_overcommitted_bytes");
        // 3 × 8,912 and a slot of 5,967 on 23,870 MiB.
        ensure!(bytes == Some(f64::from(3 * 8_912 + 5_967 - 23_870) * 1_048_576.0), "{bytes:?}");
        Ok(())
    })
    .await;
    let page = get(guard.http(), "/report");
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("text/html") && page.contains("</html>"), "{page:.400}");

    // Nothing changes, so nothing is written again.
    let version = async || {
        let field = [
            "-n",
            "ml",
            "get",
            "reports.openreports.io",
            "vramguard-audit",
            "-o",
            "jsonpath={.metadata.resourceVersion}",
        ];
        plane.kubectl(&field).await.expect_success()
    };
    let before = version().await;
    crate::support::stays("the report as it is", Duration::from_secs(7), async || {
        let now = version().await;
        ensure!(now == before, "{now} after {before}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_namespace_whose_report_cannot_be_written_does_not_keep_the_others_from_theirs() {
    let plane = overcommitted().await;
    // Before the CRDs, there is nothing to write, and that is no failure.
    let flags = ["--audit-every", "2", "--policy-reports"];
    let guard = Guard::start_in(&plane, "deploy/audit", &[("cluster.yaml", ENFORCE)], &flags).await;
    eventually("an audit", PATIENCE, async || {
        let at = guard.metric("vramguard_audit_last_success_timestamp_seconds");
        ensure!(at.is_some_and(|at| at > 1_700_000_000.0), "{at:?}{}", guard.server.log_tail());
        ensure!(guard.server.log_tail().contains("serves no API"), "{}", guard.server.log_tail());
        Ok(())
    })
    .await;
    assert_eq!(guard.metric("vramguard_audit_failures_total"), Some(0.0));

    // By name, both are before `ml`.
    for namespace in ["full", "going"] {
        plane.kubectl(&["create", "namespace", namespace]).await.expect_success();
        plane.apply(&deployment(namespace, "agent", 0, "{}")).await;
    }
    let quota = ["-n", "full", "create", "quota", "reports", "--hard=count/reports.openreports.io=0"];
    plane.kubectl(&quota).await.expect_success();
    let finalizer = r#"{"metadata": {"finalizers": ["example.com/never"]}}"#;
    plane
        .kubectl(&["-n", "going", "patch", "deployment", "agent", "--type=merge", "-p", finalizer])
        .await
        .expect_success();
    plane.kubectl(&["delete", "namespace", "going", "--wait=false"]).await.expect_success();
    plane.apply(&crds()).await;
    eventually("the report of ml, and the error about full", PATIENCE, async || {
        let log = guard.server.log_tail();
        let report = plane.kubectl(&["-n", "ml", "get", "reports.openreports.io", "vramguard-audit"]).await;
        ensure!(report.status.success(), "{}{log}", report.stderr);
        ensure!(log.contains("1 report could not be kept: namespace \"full\""), "{log}");
        Ok(())
    })
    .await;
    assert!(guard.metric("vramguard_audit_failures_total") > Some(0.0));
    let log = guard.server.log_tail();
    assert!(!log.contains("namespace \"going\""), "a namespace that is being deleted needs no report: {log}");
    let going = plane.kubectl(&["get", "namespace", "going", "-o", "jsonpath={.status.phase}"]).await.expect_success();
    assert_eq!(going, "Terminating");
}

#[tokio::test]
async fn without_being_asked_nobody_audits_and_there_is_no_page() {
    let cluster = crate::support::GuardedCluster::start(&[GpuNode::new("gpu-0")], &[("cluster.yaml", ENFORCE)]).await;
    assert!(get(cluster.guard.http(), "/report").starts_with("HTTP/1.1 404"));
    assert!(!cluster.guard.metrics().contains("vramguard_audit_findings{"));
}
