//! Checks that a test loads every file of `policies/` and `deploy/`, so that none can be added that nobody looks at.
//!
//! Here each file is parsed and has its place: a suite, a kustomization, or a list of examples with a check of their
//! own. That the manifests work is shown on a real API server by `deploy` and `cluster`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vramguard::k8s::{document, manifest, snapshot};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files under a folder with these extensions, relative to the root, sorted.
fn files(under: &str, extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(under), &mut found);
    found.sort();
    let wanted = |path: &PathBuf| path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted));
    let relative = |path: PathBuf| path.strip_prefix(root()).expect("under the root").to_owned();
    let found: Vec<PathBuf> = found.into_iter().filter(wanted).map(relative).collect();
    assert!(!found.is_empty(), "{under} holds no such files");
    found
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn objects(path: &Path) -> Vec<Value> {
    let objects = snapshot::objects(&path.display().to_string(), &text(path)).unwrap_or_else(|error| panic!("{error}"));
    objects.into_iter().map(|(_, object)| object).collect()
}

#[test]
fn every_shipped_policy_is_valid_and_has_a_suite() {
    for path in files("policies", &["yaml", "yml", "json"]) {
        let name = path.file_name().expect("a name").to_str().expect("UTF-8");
        if path.starts_with("policies/tests") {
            assert!(name.ends_with(".vramguard-test.yaml"), "{}: `vramguard test` does not find it", path.display());
            continue;
        }
        let text = text(&path);
        let read = document::read([(name, text.as_str())]);
        assert!(read.is_ok(), "{read:?}");
        // The files of a folder are one set, and have one suite.
        let relative = path.strip_prefix("policies").expect("it is in there");
        let set = relative.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(relative);
        let suite = Path::new("policies/tests").join(set.with_extension("vramguard-test.yaml"));
        assert!(root().join(&suite).is_file(), "{} has no suite {}", path.display(), suite.display());
        let reference = format!("\"../{}\"", relative.display());
        let loads = objects(&suite).iter().any(|suite| suite["policies"].to_string().contains(&reference));
        assert!(loads, "{} does not load {reference}", suite.display());
    }
}

/// The files that a kustomization names: resources, patches and the files of ConfigMaps.
fn named_by(kustomization: &Path) -> Vec<PathBuf> {
    let [content] = objects(kustomization).try_into().expect("one document");
    let folder = kustomization.parent().expect("it is in a folder");
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let patches = content["patches"].as_array().into_iter().flatten().filter_map(|patch| patch["path"].as_str());
    let mut named: Vec<String> = [texts(&content["resources"]), texts(&content["components"])].concat();
    named.extend(patches.map(str::to_owned));
    for map in content["configMapGenerator"].as_array().into_iter().flatten() {
        named.extend(texts(&map["files"]).iter().map(|file| file.rsplit('=').next().expect("a path").to_owned()));
    }
    named.into_iter().map(|name| folder.join(name)).collect()
}

#[test]
fn every_manifest_is_named_by_a_kustomization_or_is_an_example() {
    let all = files("deploy", &["yaml", "yml", "json"]);
    let is_kustomization = |path: &&PathBuf| path.ends_with("kustomization.yaml");
    let mut named = BTreeSet::new();
    for kustomization in all.iter().filter(is_kustomization) {
        for path in named_by(kustomization) {
            let real = root().join(&path).canonicalize();
            let real = real.unwrap_or_else(|_| panic!("{} names {}", kustomization.display(), path.display()));
            named.insert(real.strip_prefix(root().canonicalize().expect("the root")).expect("inside").to_owned());
        }
    }
    for path in &all {
        let parts = objects(path);
        assert!(!parts.is_empty(), "{} is empty", path.display());
        let example = path.starts_with("deploy/examples");
        assert!(
            named.contains(path) || path.ends_with("kustomization.yaml") || example,
            "{} is named by no kustomization, so nobody applies it",
            path.display()
        );
        // A patch in JSON Patch form is a list, and an example may be a fragment for another object.
        let whole = |object: &Value| object["apiVersion"].is_string() && object["kind"].is_string();
        let is_patch = path.to_string_lossy().ends_with("-patch.yaml");
        assert!(is_patch || parts.iter().all(whole), "{} holds no Kubernetes object", path.display());
    }
}

/// Each example, and the kinds that it must hold. Examples with pods declare VRAM in a way that is admitted.
const EXAMPLES: [(&str, &[&str]); 11] = [
    ("admission-configuration.yaml", &["AdmissionConfiguration"]),
    ("agent-plugin-config-map.yaml", &["Role", "RoleBinding"]),
    ("auditor.yaml", &["ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"]),
    ("device-plugin-steered-patch.yaml", &[]),
    ("gpu-operator-clusterpolicy-patch.yaml", &[]),
    ("gpu-operator-steered-patch.yaml", &[]),
    ("karpenter.yaml", &["NodeOverlay", "NodePool"]),
    ("llm-agent.yaml", &["Deployment"]),
    ("ollama-agent.yaml", &["Deployment"]),
    ("scheduler-config.yaml", &["KubeSchedulerConfiguration"]),
    ("time-slicing-config.yaml", &["ConfigMap"]),
];

#[test]
fn every_example_is_listed_and_holds_what_it_is_for() {
    let found = files("deploy/examples", &["yaml", "yml", "json"]);
    let names: Vec<&str> =
        found.iter().map(|path| path.file_name().expect("a name").to_str().expect("UTF-8")).collect();
    assert_eq!(names, EXAMPLES.map(|(name, _)| name), "an example that this test does not know");
    for (name, kinds) in EXAMPLES {
        let path = Path::new("deploy/examples").join(name);
        let objects = objects(&path);
        for kind in kinds {
            assert!(objects.iter().any(|object| object["kind"] == *kind), "{name} holds no {kind}");
        }
    }
}

/// The workloads of the examples, through the shipped policies, as `vramguard explain` follows them.
#[test]
fn the_workloads_of_the_examples_are_admitted_under_the_shipped_policies() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut workloads = 0;
    for path in files("deploy/examples", &["yaml"]) {
        for object in objects(&path) {
            let text = object.to_string();
            if manifest::read("example", &text, None).is_err() || !text.contains("nvidia.com/gpu") {
                continue;
            }
            let file = folder.path().join("workload.yaml");
            std::fs::write(&file, &text).expect("a file");
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vramguard"));
            command
                .current_dir(root())
                .args(["explain", "--policies", "policies", "--output", "json", "--pod"])
                .arg(&file);
            let answer = crate::support::run(&mut command, std::time::Duration::from_secs(60)).expect_success();
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            let validate = &answer["pod"]["validate"];
            assert_eq!(
                (&validate["verdict"], &validate["dependsOnNodes"]),
                (&"Allow".into(), &Value::Array(vec![])),
                "{path:?}: {answer:#}"
            );
            assert!(answer["pod"]["demandMib"].as_u64().is_some_and(|mib| mib > 0), "{path:?}: {answer:#}");
            workloads += 1;
        }
    }
    assert!(workloads >= 2, "{workloads}");
}

/// The server recognises the pod of an agent by the first variable, and the agent names its pod by all three.
#[test]
fn the_daemonset_tells_the_agent_its_node_and_its_pod() {
    let variables = [
        ("NODE_NAME", "spec.nodeName"),
        ("VRAMGUARD_AGENT_POD_UID", "metadata.uid"),
        ("VRAMGUARD_AGENT_POD_NAMESPACE", "metadata.namespace"),
        ("VRAMGUARD_AGENT_POD_NAME", "metadata.name"),
    ];
    let mut help = std::process::Command::new(env!("CARGO_BIN_EXE_vramguard"));
    let help = crate::support::run(help.args(["agent", "--help"]), std::time::Duration::from_secs(60)).expect_success();
    let [daemonset] = objects(Path::new("deploy/agent/daemonset.yaml")).try_into().expect("one object");
    let containers = daemonset["spec"]["template"]["spec"]["containers"].as_array().expect("a list");
    let [agent] = containers.as_slice() else { panic!("{containers:?}") };
    for (name, field) in variables {
        assert!(help.contains(&format!("[env: {name}=")), "the agent does not read {name}:\n{help}");
        let of_name = |variable: &&Value| variable["name"] == name;
        let variable = agent["env"].as_array().expect("a list").iter().find(of_name);
        let from = variable.and_then(|variable| variable.pointer("/valueFrom/fieldRef/fieldPath"));
        assert_eq!(from, Some(&field.into()), "{name}");
    }
}
