//! Client certificates: an API server under `deploy/examples/admission-configuration.yaml`, and a server that requires one.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::kubectl;
use crate::support::guard::Guard;
use crate::support::objects::{ENFORCE, gpu_pod};
use crate::support::{ADMISSION_CONFIGURATION, Authority, ControlPlane, GpuNode, eventually};

/// Folder of the files in the example.
const FOLDER: &str = "/etc/kubernetes/vramguard";

/// Writes the example and the kubeconfig in its comment, with `folder` as the folder of the files.
///
/// The kubeconfig's user is `*`, because the webhooks of a test have a URL in place of a Service.
fn prepare(folder: &Path, certificate: &str, key: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/admission-configuration.yaml");
    let example = std::fs::read_to_string(path).expect("the example");
    let (_, comment) = example.split_once("/kubeconfig.yaml:\n#\n").expect("the example has a kubeconfig");
    let kubeconfig: String = comment.lines().map(|line| format!("{}\n", line.trim_start_matches("#   "))).collect();
    let mut kubeconfig: Value = serde_saphyr::from_str(&kubeconfig).expect("its kubeconfig is YAML");
    assert_eq!(kubeconfig["users"][0]["name"], "vramguard.vramguard-system.svc");
    kubeconfig["users"][0]["name"] = json!("*");
    let here = |text: &str| text.replace(FOLDER, &folder.display().to_string());
    for (name, text) in [
        (ADMISSION_CONFIGURATION, here(&example)),
        ("kubeconfig.yaml", here(&kubeconfig.to_string())),
        ("client.crt", certificate.to_owned()),
        ("client.key", key.to_owned()),
    ] {
        std::fs::write(folder.join(name), text).expect("a file in the control plane's folder");
    }
}

fn pod(name: &str) -> String {
    gpu_pod("ml", name, "{vramguard.dev/vram: 5Gi}", "")
}

#[tokio::test]
async fn an_api_server_is_answered_with_its_certificate_and_with_no_other() {
    let (ca, other) = (Authority::new("vramguard clients"), Authority::new("others"));
    let presented = ca.sign("vramguard-clients");
    let plane = ControlPlane::start_prepared(|folder| prepare(folder, &presented.certificate, &presented.key)).await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    let file = plane.folder().join("clients.crt");
    std::fs::write(&file, &ca.certificate).expect("a file in the control plane's folder");
    let path = file.display().to_string();
    let flags = ["--client-ca", &path, "--client-name", "vramguard-clients"];
    let mut guard = Guard::start_with(&plane, &[("cluster.yaml", ENFORCE)], &flags).await;
    kubectl(&plane, "create namespace ml", "").await.expect_success();
    plane.apply(&pod("first")).await;
    let limits = "get pod first -n ml -o jsonpath={.spec.containers[0].resources.limits}";
    let limits = kubectl(&plane, limits, "").await.expect_success();
    assert!(limits.contains("vramguard.dev/vram"), "{limits}");
    assert_eq!(guard.metric("vramguard_refused_clients_total"), Some(0.0));

    // A server that trusts another CA refuses the API server, so Enforce fails closed. The test restarts it, because open
    // connections are not verified again.
    guard.server.stop();
    std::fs::write(&file, &other.certificate).expect("a file in the control plane's folder");
    guard.server.start();
    guard.ready(&plane).await;
    let refused = kubectl(&plane, "apply -f -", &pod("second")).await.expect_failure();
    assert!(refused.contains("failed calling webhook"), "{refused}");
    // The API server sees the end of its connection before the server has counted it.
    eventually("the refused client to be counted", Duration::from_secs(20), async || {
        let counted = guard.metric("vramguard_refused_clients_total");
        anyhow::ensure!(counted > Some(0.0), "{counted:?}{}", guard.server.log_tail());
        Ok(())
    })
    .await;
    println!("the API server says: {refused}");

    // The server follows the file.
    std::fs::write(&file, [other.certificate, ca.certificate].concat()).expect("a file in the control plane's folder");
    eventually("the API server to be answered again", Duration::from_secs(20), async || {
        let applied = kubectl(&plane, "apply -f -", &pod("second")).await;
        anyhow::ensure!(applied.status.success(), "{}", applied.stderr);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_network_policy_lets_in_the_control_plane_and_the_monitoring_alone() {
    let plane = ControlPlane::start().await;
    kubectl(&plane, "apply -k deploy/network-policy", "").await.expect_success();
    let found = kubectl(&plane, "get networkpolicy vramguard -n vramguard-system -o json", "").await.expect_success();
    let policy: Value = serde_json::from_str(&found).expect("kubectl prints JSON");
    let ingress = policy["spec"]["ingress"].as_array().expect("rules");
    let ports: Vec<&str> = ingress.iter().filter_map(|rule| rule["ports"][0]["port"].as_str()).collect();
    assert_eq!(ports, ["https", "metrics"], "no rule is for all ports: {found}");
    assert!(ingress.iter().all(|rule| !rule["from"].as_array().is_none_or(Vec::is_empty)), "{found}");
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    let deployment = "get deployment vramguard -n vramguard-system -o jsonpath={.spec.template.metadata.labels}";
    let labels = kubectl(&plane, deployment, "").await.expect_success();
    let selected = policy["spec"]["podSelector"]["matchLabels"].to_string();
    assert!(labels.contains(selected.trim_matches(['{', '}'])), "{labels} {selected}");
}
