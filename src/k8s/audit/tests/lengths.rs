//! How much of an object is kept.

use super::*;
use crate::capacity::gpu::GpuId;

fn long() -> String {
    "ü".repeat(100_000)
}

#[test]
fn what_a_tenant_writes_is_kept_up_to_a_bound() {
    let long = long();
    let path = format!("/dev/nvidia/{long}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ml", "annotations": {
            "vramguard.dev/vram": long, "vramguard.dev/model": long, "vramguard.dev/processes": long,
            "vramguard.dev/gpu.main": long, format!("vramguard.dev/{long}"): "", format!("vramguard.dev/vram.{long}"): "1Gi",
            format!("nvidia.cdi.k8s.io/{long}"): "", "gpu-memory": long, "hami.io/vgpu-devices-allocated": long}},
        "spec": {"nodeName": "gpu-0", "nodeSelector": {"a": long}, "tolerations": [{"key": "a", "value": long}],
            "volumes": [{"hostPath": {"path": path}}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "In", "values": [long]}]}]}}},
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": 1, "vramguard.dev/vram": long}},
                "env": [{"name": "OLLAMA_MAX_VRAM", "value": long}, {"name": "NVIDIA_VISIBLE_DEVICES", "value": long}]}]}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0"},
        "status": {"capacity": {"nvidia.com/gpu": "1"}}});
    let scene = scene(&[pod, node]);
    let text = format!("{:?}", scene.subjects);
    let longest = text.split(|c| c != 'ü').map(|run| run.chars().count()).max();
    assert_eq!(longest, Some(317), "of a label: {}", text.len());
    let subject = &scene.subjects[0];
    assert_eq!(subject.environment[0].value, format!("{}…", "ü".repeat(128)));
    assert_eq!(subject.foreign[0].text, format!("{}…", "ü".repeat(128)));
    assert!(subject.bypasses.iter().all(|bypass| bypass.ends_with('…')), "{:?}", subject.bypasses);
    let holders = scene.cluster.node("gpu-0").unwrap();
    let gpus: Vec<&GpuId> = holders
        .ledger
        .counted()
        .flat_map(|(_, holder)| holder.parts.iter().filter_map(|part| part.gpu.as_ref()))
        .collect();
    assert!(matches!(gpus.as_slice(), [GpuId::Uuid(uuid)] if uuid.chars().count() == 129), "{}", gpus.len());
}

#[test]
fn many_faults_of_one_pod_are_kept_up_to_a_bound() {
    let variables: Vec<Value> = (0..1000).map(|_| json!({"name": "OLLAMA_MAX_VRAM", "value": "1"})).collect();
    let volumes: Vec<Value> = (0..1000).map(|_| json!({"hostPath": {"path": "/dev/nvidia0"}})).collect();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"volumes": volumes, "containers": [{"name": "c", "env": variables}]}});
    let scene = scene(&[pod]);
    assert_eq!((scene.subjects[0].environment.len(), scene.subjects[0].bypasses.len()), (128, 128));
}

#[test]
fn a_name_that_kubernetes_does_not_allow_is_an_error_that_is_short() {
    for field in ["name", "namespace", "uid", "generateName"] {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}});
        pod["metadata"][field] = "a".repeat(254).into();
        let error = error(pod);
        let expected = format!("metadata.{field}: is 254 bytes long, and no name in Kubernetes has more than 253");
        assert!(error.ends_with(&expected) && error.len() < 300, "{error}");
    }
    let mut longest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a".repeat(253)}});
    assert!(read(std::slice::from_ref(&longest)).is_ok());
    longest["spec"] = json!({"nodeName": "a".repeat(254)});
    assert!(error(longest).contains("spec.nodeName: is 254 bytes long"));
    let deployment = named("apps/v1", "Deployment", json!({"spec": {"template": {}, "replicas": long()}}));
    assert!(error(deployment).chars().count() < 600, "a value that is repeated is cut");
}

#[test]
fn a_pod_with_an_owner_of_an_impossible_name_is_its_own_subject() {
    let scene = scene(&[gpu_pod("p", owner("Job", &long()))]);
    assert_eq!(owners(&scene), ["Pod p"]);
}

#[test]
fn objects_are_counted_whether_or_not_they_are_about_gpus() {
    let plain = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    let reader = read(&[plain("a"), plain("b"), secret]).unwrap();
    assert_eq!((reader.objects(), reader.subjects()), (2, 0));
}
