//! The components of `deploy/components/`: each combination of them is built, and has what each of them adds.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::bindings::of_bindings;
use crate::support::{assets, run, write};

/// Whether built objects have what a component adds.
type Adds = fn(&[Value]) -> bool;

/// Each component, and what it adds.
const COMPONENTS: [(&str, Adds); 4] = [
    ("cert-manager", |objects| find(objects, "Issuer").is_some()),
    ("fail-closed", |objects| {
        find(objects, "MutatingWebhookConfiguration")
            .is_some_and(|object| of_bindings(object)["failurePolicy"] == "Fail")
    }),
    ("network-policy", |objects| find(objects, "NetworkPolicy").is_some()),
    ("audit", |objects| {
        let deployment =
            find(objects, "Deployment").map(|object| object["spec"]["template"]["spec"]["containers"][0].clone());
        deployment.is_some_and(|container| container["env"].to_string().contains("VRAMGUARD_AUDIT_EVERY"))
    }),
];

fn find<'o>(objects: &'o [Value], kind: &str) -> Option<&'o Value> {
    objects.iter().find(|object| object["kind"] == kind)
}

/// The variables that tell an agent its node and its pod.
const OWN: [&str; 4] =
    ["NODE_NAME", "VRAMGUARD_AGENT_POD_UID", "VRAMGUARD_AGENT_POD_NAMESPACE", "VRAMGUARD_AGENT_POD_NAME"];

/// The path of a folder of the checkout as seen from another one. A kustomization names no absolute paths.
fn relative(from: &Path, to: &Path) -> String {
    let up = "../".repeat(from.components().count() - 1);
    format!("{up}{}", to.strip_prefix("/").expect("an absolute path").display())
}

#[test]
fn every_combination_of_components_is_built_and_has_what_each_adds() {
    let kubectl = assets::program("kubectl").expect("the programs of the control plane");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").canonicalize().expect("the manifests");
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().canonicalize().expect("it exists");
    for number in 0..1 << COMPONENTS.len() {
        let is_in = |index: usize| number >> index & 1 == 1;
        let resource = relative(&place, &deploy.join("base"));
        let mut text = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{resource}]\ncomponents:\n"
        );
        for (_, (name, _)) in COMPONENTS.iter().enumerate().filter(|(index, _)| is_in(*index)) {
            text += &format!("  - {}\n", relative(&place, &deploy.join("components").join(name)));
        }
        write(&place.join("kustomization.yaml"), &text);
        let built = run(Command::new(&kubectl).arg("kustomize").arg(&place), Duration::from_secs(60)).expect_success();
        let objects: Vec<Value> =
            built.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("kubectl prints YAML")).collect();
        for (index, (name, has)) in COMPONENTS.iter().enumerate() {
            assert_eq!(has(&objects), is_in(index), "{name}\n{text}");
        }
    }
}

#[test]
fn the_agent_that_steers_has_the_device_plugins_directory_and_the_one_that_observes_does_not() {
    let kubectl = assets::program("kubectl").expect("the programs of the control plane");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").canonicalize().expect("the manifests");
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().canonicalize().expect("it exists");
    for (base, steers) in [("agent", false), ("agent", true), ("agent-host-driver", true), ("agent-dcgm", true)] {
        let resource = relative(&place, &deploy.join(base));
        let mut text =
            format!("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{resource}]\n");
        if steers {
            let component = relative(&place, &deploy.join("components/steering"));
            text += &format!("components: [{component}]\n");
        }
        write(&place.join("kustomization.yaml"), &text);
        let built = run(Command::new(&kubectl).arg("kustomize").arg(&place), Duration::from_secs(60)).expect_success();
        let objects: Vec<Value> =
            built.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("kubectl prints YAML")).collect();
        let pod = &find(&objects, "DaemonSet").expect("the agent")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let has =
            |list: &Value, name: &str| list.as_array().is_some_and(|list| list.iter().any(|of| of["name"] == name));
        assert_eq!(has(&pod["volumes"], "device-plugins"), steers, "{base}");
        assert_eq!(has(&container["volumeMounts"], "device-plugins"), steers, "{base}");
        assert!(has(&pod["volumes"], "pod-resources"), "{base}: what it had before stays");
        for name in OWN {
            assert!(has(&container["env"], name), "{base}: what it had before stays");
        }
        assert_eq!(container["args"].to_string().contains("--steer"), steers, "{base}");
        let rules = find(&objects, "ClusterRole").expect("its rights")["rules"].to_string();
        assert_eq!(rules.contains("\"get\""), steers, "{base}: {rules}");
    }
}

#[test]
fn the_agent_that_takes_over_differs_from_the_one_that_steers_in_one_argument() {
    let kubectl = assets::program("kubectl").expect("the programs of the control plane");
    let build = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
        run(Command::new(&kubectl).arg("kustomize").arg(&folder), Duration::from_secs(60)).expect_success()
    };
    let (steering, takeover) = (build("agent-steering"), build("agent-takeover"));
    assert_eq!(takeover.replace("        - --takeover\n", ""), steering);
    assert_ne!(takeover, steering);
}

#[test]
fn the_agent_that_reads_an_exporter_needs_no_gpu_and_finds_it_on_its_own_node() {
    let kubectl = assets::program("kubectl").expect("the programs of the control plane");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/agent-dcgm");
    let built = run(Command::new(&kubectl).arg("kustomize").arg(&folder), Duration::from_secs(60)).expect_success();
    let objects: Vec<Value> =
        built.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("kubectl prints YAML")).collect();
    let pod = &find(&objects, "DaemonSet").expect("the agent")["spec"]["template"]["spec"];
    for absent in ["runtimeClassName", "hostPID"] {
        assert!(pod.get(absent).is_none(), "{absent}: {pod}");
    }
    let env = pod["containers"][0]["env"].as_array().expect("variables");
    assert!(OWN.iter().all(|name| env.iter().any(|variable| variable["name"] == *name)), "{env:?}");
    let names: Vec<&str> = env.iter().map(|variable| variable["name"].as_str().expect("a name")).collect();
    assert!(!names.iter().any(|name| name.starts_with("NVIDIA_")), "{names:?}");
    // A variable sees only those before it.
    let place =
        |name: &str| names.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name}: {names:?}"));
    assert!(place("HOST_IP") < place("VRAMGUARD_AGENT_DCGM_EXPORTER"), "{names:?}");
    let url = env[place("VRAMGUARD_AGENT_DCGM_EXPORTER")]["value"].as_str().expect("a URL");
    let of = |address: &str| url.replace("$(HOST_IP)", address).parse::<vramguard::agent::dcgm::Exporter>();
    assert_eq!(of("10.0.0.7").expect("a URL").to_string(), "http://10.0.0.7:9400/metrics");
}
