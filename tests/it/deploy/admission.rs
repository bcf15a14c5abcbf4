//! The ValidatingAdmissionPolicies, which hold without a running vramguard.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use super::{kubectl, kubectl_as};
use crate::support::guard::{OnOutage, apply_manifests};
use crate::support::{ControlPlane, GpuNode, eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(30);
const OWN: &str = "vramguard.dev/gpu.main";

fn pod(namespace: &str, name: &str, annotations: &str, limits: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}, spec: {{containers: \
         [{{name: main, image: none, resources: {{limits: {limits}}}}}]}}}}"
    )
}

/// A control plane with the manifests, and the kubeconfig of a user who may edit namespace `ml`. No server runs.
async fn start() -> (ControlPlane, String) {
    let plane = ControlPlane::start().await;
    apply_manifests(&plane, "deploy", free_port(), OnOutage::AsShipped).await;
    for command in [
        "create namespace ml",
        "-n ml create serviceaccount dev",
        "-n ml create rolebinding dev --clusterrole=edit --serviceaccount=ml:dev",
        // `edit` does not cover the status, and a write of the status can change annotations.
        "create clusterrole status-writer --verb=patch,update --resource=pods/status",
        "-n ml create rolebinding status --clusterrole=status-writer --serviceaccount=ml:dev",
    ] {
        kubectl(&plane, command, "").await.expect_success();
    }
    let dev = plane.service_account_kubeconfig("ml", "dev").await;
    eventually("the policies to be in force", PATIENCE, async || {
        let stray = pod("ml", "stray", "{}", "{vramguard.dev/vram: 1Gi}");
        let created = kubectl(&plane, "create --dry-run=server -f -", &stray).await;
        let written = kubectl(&plane, "-n vramguard-system get pods", "").await;
        ensure!(!created.status.success() && written.status.success(), "{}", created.stdout);
        Ok(())
    })
    .await;
    (plane, dev.to_str().expect("temporary folders have plain names").to_owned())
}

#[tokio::test]
async fn annotations_that_count_stay_as_they_are_for_the_life_of_a_pod() {
    let (plane, dev) = start().await;
    let annotations =
        format!("{{{OWN}: GPU-a, vramguard.dev/vram: 8Gi, nvidia.com/container.main.gpu-memory.limit: 8Gi, note: a}}");
    plane.apply(&pod("ml", "llm", &annotations, "{nvidia.com/gpu: 1}")).await;
    let patch = async |subresource: &str, patch: &str| {
        kubectl_as(&plane, &dev, &format!("-n ml patch pod llm {subresource}-p {patch}"), "").await
    };
    let changes = [
        (OWN, json!("GPU-b"), "is fixed once the pod exists"),
        (OWN, json!(null), "is fixed once the pod exists"),
        ("vramguard.dev/vram", json!("1Gi"), "is fixed once the pod exists"),
        ("nvidia.com/container.main.gpu-memory.limit", json!("1Gi"), "is fixed once the pod exists"),
        ("nvidia.com/container.main.gpu-memory.request", json!("1Gi"), "counts at the creation of a pod only"),
        ("vramguard.dev/gpu.other", json!("GPU-b"), "counts at the creation of a pod only"),
        ("vramguard.dev/processes", json!("2"), "counts at the creation of a pod only"),
    ];
    eventually("the policy to be in force", PATIENCE, async || {
        let (key, value, _) = &changes[0];
        let asked = patch("--dry-run=server ", &json!({"metadata": {"annotations": {*key: value}}}).to_string()).await;
        ensure!(!asked.status.success());
        Ok(())
    })
    .await;
    for subresource in ["", "--subresource=status "] {
        for (key, value, why) in &changes {
            let refused = patch(subresource, &json!({"metadata": {"annotations": {*key: value}}}).to_string()).await;
            let refused = refused.expect_failure();
            let expected = format!(
                "ValidatingAdmissionPolicy 'vramguard-annotations' with binding 'vramguard-annotations' denied request: annotation \"{key}\" {why}"
            );
            assert!(refused.contains(&expected), "{refused}");
        }
        for allowed in [r#"{"metadata":{"annotations":{"note":"b"}}}"#, r#"{"metadata":{"labels":{"a":"b"}}}"#] {
            patch(subresource, allowed).await.expect_success();
        }
    }
    // Exempt namespaces are not affected.
    plane.apply(&pod("kube-system", "llm", &annotations, "{nvidia.com/gpu: 1}")).await;
    kubectl(&plane, "-n kube-system annotate pod llm vramguard.dev/vram=1Gi --overwrite", "").await.expect_success();
}

#[tokio::test]
async fn the_service_account_writes_nothing_of_a_pod_but_missing_annotations_of_its_own() {
    let (plane, _) = start().await;
    plane.apply(&pod("ml", "llm", "{vramguard.dev/vram: 8Gi, note: a}", "{nvidia.com/gpu: 1}")).await;
    let own = plane.service_account_kubeconfig("vramguard-system", "vramguard").await;
    let own = own.to_str().expect("temporary folders have plain names");
    let patch = async |patch: &str| kubectl_as(&plane, own, &format!("-n ml patch pod llm -p {patch}"), "").await;
    let annotation = |key: &str, value| json!({"metadata": {"annotations": {key: value}}}).to_string();
    eventually("the policy to be in force", PATIENCE, async || {
        ensure!(!patch(r#"{"metadata":{"labels":{"probe":"a"}}}"#).await.status.success());
        Ok(())
    })
    .await;
    let others = r#"{"spec":{"containers":[{"name":"main","image":"other"}]}}"#;
    let finalizer = r#"{"metadata":{"finalizers":["example.com/hold"]}}"#;
    for refused in [others, finalizer, r#"{"metadata":{"labels":{"a":"b"}}}"#] {
        let refused = patch(refused).await.expect_failure();
        assert!(
            refused.contains("vramguard may change nothing of a pod but its vramguard.dev/ annotations"),
            "{refused}"
        );
    }
    for (key, value) in [("note", json!("b")), ("note", json!(null)), ("other", json!("c"))] {
        let refused = patch(&annotation(key, value)).await.expect_failure();
        assert!(
            refused.contains("vramguard may change no annotations of a pod but those of vramguard.dev/"),
            "{refused}"
        );
    }
    for key in ["vramguard.dev/vram", "vramguard.dev/model"] {
        patch(&annotation(key, json!("1Gi"))).await.expect_failure();
    }
    for key in [OWN, "vramguard.dev/gpu-total-mib", "vramguard.dev/vram-fraction.main"] {
        patch(&annotation(key, json!("1"))).await.expect_success();
        let refused = patch(&annotation(key, json!("2"))).await.expect_failure();
        assert!(refused.contains("is fixed once the pod exists"), "{refused}");
    }
    // RBAC grants nothing else.
    for denied in ["-n ml delete pod llm", "delete gpuledger gpu-0", "-n ml get secrets", "delete node gpu-0"] {
        let refused = kubectl_as(&plane, own, denied, "").await.expect_failure();
        assert!(refused.contains("(Forbidden)"), "{denied}: {refused}");
    }
}

#[tokio::test]
async fn vram_is_requested_with_a_gpu_only_and_other_controllers_go_on() {
    let (plane, _) = start().await;
    plane.add_gpu_node(&GpuNode::new("gpu-0")).await;
    plane.publish("gpu-0", "vramguard.dev/vram", Some("23870Mi")).await;
    let create = async |namespace: &str, limits: &str| {
        kubectl(&plane, "create --dry-run=server -f -", &pod(namespace, "llm", "{}", limits)).await
    };
    let refused = create("ml", "{vramguard.dev/vram: 1Gi, cpu: 1}").await.expect_failure();
    assert!(
        refused.contains("container \"main\" requests vramguard.dev/vram but no GPU (nvidia.com/gpu, "),
        "{refused}"
    );
    // Zero GPUs and resources with a similar name are no GPU: such a pod would hold VRAM and no replica.
    for no_gpu in ["nvidia.com/gpu: 0", "nvidia.com/gpufoo: 1", "nvidia.com/gpumem: 1", "example.com/gpu: 1"] {
        let refused = create("ml", &format!("{{vramguard.dev/vram: 1Gi, {no_gpu}}}")).await.expect_failure();
        assert!(refused.contains("requests vramguard.dev/vram but no GPU"), "{no_gpu}: {refused}");
    }
    for gpu in ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/gpu-small", "nvidia.com/mig-1g.10gb"] {
        create("ml", &format!("{{vramguard.dev/vram: 1Gi, {gpu}: 1}}")).await.expect_success();
    }
    create("ml", "{cpu: 1}").await.expect_success();
    create("kube-system", "{vramguard.dev/vram: 1Gi}").await.expect_success();

    // The Job controller can remove its finalizer from a pod that has ended.
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": "ml"}, "spec": {"template": {
        "metadata": {"annotations": {"vramguard.dev/vram": "8Gi"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none",
            "resources": {"limits": {"nvidia.com/gpu": "1", "vramguard.dev/vram": "8912Mi"}}}]}}}});
    plane.apply(&job.to_string()).await;
    let status = async |path: &str| {
        kubectl(&plane, &format!("-n ml get pods -l job-name=once -o jsonpath={path}"), "").await.stdout
    };
    eventually("the pod to run", PATIENCE, async || {
        let phase = status("{.items[*].status.phase}").await;
        ensure!(phase == "Running", "{phase}");
        Ok(())
    })
    .await;
    assert!(status("{.items[*].metadata.finalizers}").await.contains("batch.kubernetes.io/job-tracking"));
    let name = status("{.items[0].metadata.name}").await;
    let ended = r#"{"status":{"phase":"Succeeded"}}"#;
    kubectl(&plane, &format!("-n ml patch pod {name} --subresource=status -p {ended}"), "").await.expect_success();
    kubectl(&plane, "-n ml wait --for=condition=Complete --timeout=30s job/once", "").await.expect_success();
    assert_eq!(status("{.items[*].metadata.finalizers}").await, "");

    // The API server's type checker has no warning about the expressions.
    let warnings =
        "get validatingadmissionpolicies -o jsonpath={range.items[*]}{.metadata.name}={.status.typeChecking}{end}";
    eventually("the expressions to be checked", PATIENCE, async || {
        let found = kubectl(&plane, warnings, "").await.stdout;
        ensure!(
            found == "vramguard-annotations={}vramguard-devices={}vramguard-policies={}vramguard-requests={}vramguard-serviceaccount={}",
            "{found}"
        );
        Ok(())
    })
    .await;
}

/// Tests each way around the device plugin under the shipped binding, which warns, and under one that refuses.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of ways, tried one after the other")]
async fn ways_to_a_gpu_past_the_device_plugin_are_warned_about_and_refused_by_one_line() {
    let (plane, _) = start().await;
    let pod = |name: &str, annotations: Value, spec: Value| {
        let mut spec = spec;
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container["image"] = json!("none");
            }
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ml", "annotations": annotations}, "spec": spec})
            .to_string()
    };
    let visible = |value: &str| json!([{"name": "NVIDIA_VISIBLE_DEVICES", "value": value}]);
    let from_a_config_map =
        json!([{"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]);
    let alone = |env: Value| json!({"containers": [{"name": "main", "env": env}]});
    let host = |path: &str| json!({"containers": [{"name": "main"}], "volumes": [{"name": "dev", "hostPath": {"path": path}}]});
    let ways = [
        ("sets NVIDIA_VISIBLE_DEVICES without requesting a GPU", pod("a", json!({}), alone(visible("all")))),
        ("sets NVIDIA_VISIBLE_DEVICES without requesting a GPU", pod("b", json!({}), alone(from_a_config_map))),
        (
            "container \"first\" sets NVIDIA_VISIBLE_DEVICES without requesting a GPU",
            pod(
                "c",
                json!({}),
                json!({"containers": [{"name": "main"}], "initContainers": [{"name": "first", "env": visible("0")}]}),
            ),
        ),
        ("annotation \"cdi.k8s.io/x\" asks", pod("d", json!({"cdi.k8s.io/x": "nvidia.com/gpu=all"}), alone(json!([])))),
        ("annotation \"nvidia.cdi.k8s.io/x\" asks", pod("e", json!({"nvidia.cdi.k8s.io/x": "all"}), alone(json!([])))),
        ("volume \"dev\" mounts /dev/nvidia0", pod("f", json!({}), host("/dev/nvidia0"))),
        ("volume \"dev\" mounts //dev/./nvidia-uvm", pod("g", json!({}), host("//dev/./nvidia-uvm"))),
    ];
    let mut privileged = alone(visible("all"));
    privileged["containers"][0]["securityContext"] = json!({"privileged": true});
    let mut plugin = host("/var/lib/kubelet/device-plugins");
    plugin["containers"][0]["env"] = visible("all");
    let mut guarded = alone(visible("all"));
    guarded["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
    let harmless = [
        ("hidden", alone(visible("void"))),
        ("privileged", privileged),
        ("device-plugin", plugin),
        // The mutating webhook removes the variable.
        ("with-a-gpu", guarded),
        ("other-path", host("/dev/shm")),
        // The device cgroup denies the device files to a container without privileges.
        ("all-devices", host("/dev")),
    ];
    let create = async |pod: &str| kubectl(&plane, "create --dry-run=server -f -", pod).await;
    eventually("the policy to be in force", PATIENCE, async || {
        let asked = create(&ways[0].1).await;
        ensure!(asked.status.success() && asked.stderr.contains(ways[0].0), "{}{}", asked.stdout, asked.stderr);
        Ok(())
    })
    .await;
    for (message, pod) in &ways {
        let created = create(pod).await;
        assert!(created.stderr.contains(message), "{}", created.stderr);
        created.expect_success();
    }
    for (name, spec) in &harmless {
        let created = create(&pod(name, json!({}), spec.clone())).await;
        assert!(!created.stderr.contains("Warning"), "{name}: {}", created.stderr);
        created.expect_success();
    }
    // The webhooks do not review ephemeral containers.
    plane.apply(&pod("llm", json!({"cdi.k8s.io/x": "nvidia.com/gpu=all"}), alone(json!([])))).await;
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "none", "env": visible("all")}]}});
    let debug_pod =
        format!("-n ml patch pod llm --dry-run=server --subresource=ephemeralcontainers --type=strategic -p {debug}");
    let admin = async || kubectl(&plane, &debug_pod, "").await;
    let warned = admin().await;
    assert!(warned.stderr.contains("ephemeral container \"debug\" sets NVIDIA_VISIBLE_DEVICES"), "{}", warned.stderr);
    warned.expect_success();

    let deny = r#"patch validatingadmissionpolicybinding vramguard-devices -p {"spec":{"validationActions":["Deny"]}}"#;
    kubectl(&plane, deny, "").await.expect_success();
    eventually("the policy to refuse", PATIENCE, async || {
        ensure!(!create(&ways[0].1).await.status.success());
        Ok(())
    })
    .await;
    for (message, pod) in &ways {
        let refused = create(pod).await.expect_failure();
        assert!(
            refused.contains("'vramguard-devices' with binding 'vramguard-devices' denied request")
                && refused.contains(message),
            "{refused}"
        );
    }
    for (name, spec) in harmless {
        create(&pod(name, json!({}), spec)).await.expect_success();
    }
    let refused = admin().await.expect_failure();
    assert!(refused.contains("ephemeral container \"debug\""), "{refused}");
}
