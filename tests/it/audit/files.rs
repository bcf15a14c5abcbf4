//! Audits of files: what is printed, what is written, and what is refused.

use std::io::Write;
use std::process::Stdio;

use super::*;

const SNAPSHOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");

fn snapshot(name: &str) -> String {
    format!("{SNAPSHOTS}/{name}")
}

/// A folder for one test, with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

#[test]
fn the_table_begins_with_the_verdict_and_ends_with_what_to_do_next() {
    let finished = audit(&["--snapshot", &snapshot("time-slicing.yaml")]);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    let lines: Vec<&str> = finished.stdout.lines().collect();
    assert!(lines[0].contains("2 GPUs on 1 node") && lines[0].contains("GiB held"), "{}", lines[0]);
    let next = finished.stdout.rfind("\nnext: ").expect("what to do next");
    assert!(finished.stdout[next..].contains("vramguard ") || finished.stdout[next..].contains("kubectl"));
    assert!(!finished.stdout.contains('\x1b'), "no colour away from a terminal");
    assert!(lines.iter().all(|line| line.chars().count() <= 120), "no line is longer than 120 columns");
}

#[test]
fn clusters_of_other_tools_show_their_gpus() {
    for (name, gpus, overcommitted) in [("hami.yaml", 3, 1), ("kai.yaml", 4, 0), ("dra.json", 4, 0)] {
        let report = json(&audit(&["--snapshot", &snapshot(name), "--output", "json"]));
        let summary = &report["summary"];
        assert_eq!((&summary["gpus"], &summary["overcommittedGpus"]), (&json!(gpus), &json!(overcommitted)), "{name}");
        assert!(summary["heldMib"].as_u64().unwrap() > 0, "{name}");
    }
}

#[test]
fn several_reports_are_written_in_one_run_and_a_later_run_tells_what_is_new() {
    let folder = folder(&[]);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let outputs: Vec<String> = [
        ("json", "a.json"),
        ("yaml", "a.yaml"),
        ("html", "a.html"),
        ("markdown", "a.md"),
        ("sarif", "a.sarif"),
        ("junit", "a.xml"),
        ("github", "a.txt"),
        ("policyreport", "reports.yaml"),
        ("table", "table.txt"),
    ]
    .iter()
    .map(|(format, name)| format!("--output={format}={}", path(name)))
    .collect();
    let snapshot = format!("--snapshot={}", snapshot("time-slicing.yaml"));
    let arguments: Vec<&str> =
        [snapshot.as_str(), "--fail-on=never"].into_iter().chain(outputs.iter().map(String::as_str)).collect();
    let finished = audit(&arguments);
    assert_eq!(finished.expect_success(), "", "nothing is printed if all goes to files");
    for name in ["a.json", "a.yaml", "a.html", "a.md", "a.sarif", "a.xml", "a.txt", "reports.yaml", "table.txt"] {
        let text = std::fs::read_to_string(path(name)).expect("the report");
        assert!(text.contains("NeverFits") || text.contains("Never fits"), "{name}");
    }
    let baseline = path("a.json");
    let again = [
        "--snapshot",
        &super::files::snapshot("time-slicing.yaml"),
        "--baseline",
        &baseline,
        "--fail-on",
        "new",
        "--output",
        "json",
    ];
    let finished = audit(&again);
    assert_eq!(finished.status.code(), Some(0), "nothing is new: {}", finished.stdout);
    let report = json(&finished);
    assert_eq!(report["baseline"]["new"], json!([]));
    assert_eq!(report["baseline"]["same"], report["findings"].as_array().unwrap().len());

    let other = [
        "--snapshot",
        &super::files::snapshot("hami.yaml"),
        "--baseline",
        &baseline,
        "--fail-on",
        "new",
        "--output",
        "json",
    ];
    let finished = audit(&other);
    assert_eq!(finished.status.code(), Some(1), "findings of another cluster are new");
}

#[test]
fn findings_in_manifests_have_file_and_line() {
    let manifests = "# agents\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: one, namespace: ml}\nspec: {template: {}}\n---\n\
                     apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: two, namespace: ml}\nspec:\n  template:\n    metadata:\n      \
                     annotations: {vramguard.dev/vram: 8 gigs}\n    spec:\n      containers:\n        - name: llm\n          resources: \
                     {limits: {nvidia.com/gpu: 1}}\n";
    let folder = folder(&[("agents.yaml", manifests)]);
    let file = folder.path().join("agents.yaml").display().to_string();
    let report = json(&audit(&["--snapshot", &snapshot("time-slicing.yaml"), "--snapshot", &file, "--output", "json"]));
    let findings = report["findings"].as_array().unwrap();
    let unreadable = findings.iter().find(|finding| finding["reason"] == "VramUnreadable").expect("a finding");
    assert_eq!((&unreadable["kind"], &unreadable["name"]), (&json!("Deployment"), &json!("two")));
    assert_eq!(unreadable["source"], json!({"file": file, "line": 8}));
}

#[test]
fn a_manifest_of_a_change_takes_the_place_of_the_workload_in_the_snapshot() {
    let before = json(&audit(&["--snapshot", &snapshot("time-slicing.yaml"), "--output", "json"]));
    let reasons = |report: &Value| {
        let findings = report["findings"].as_array().expect("findings").clone();
        let of_llm = findings.into_iter().filter(|finding| finding["name"] == "llm" && finding["kind"] == "Deployment");
        of_llm.map(|finding| finding["reason"].as_str().expect("a reason").to_owned()).collect::<Vec<_>>()
    };
    assert!(reasons(&before).contains(&"NeverFits".to_owned()), "{:?}", reasons(&before));
    let changed = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: llm, namespace: ml}\nspec:\n  replicas: 1\n  template:\n    \
                   metadata:\n      annotations: {vramguard.dev/vram: eight}\n    spec:\n      containers:\n        - name: llm\n          \
                   resources: {limits: {nvidia.com/gpu: 1}}\n";
    let folder = folder(&[("llm.yaml", changed)]);
    let file = folder.path().join("llm.yaml").display().to_string();
    let arguments = ["--snapshot", &snapshot("time-slicing.yaml"), "--snapshot", &file, "--output", "json"];
    let after = json(&audit(&arguments));
    assert!(reasons(&after).contains(&"VramUnreadable".to_owned()), "{:?}", reasons(&after));
    let workloads = after["workloads"].as_array().expect("workloads");
    assert_eq!(workloads.iter().filter(|workload| workload["name"] == "llm").count(), 1);
}

#[test]
fn workloads_of_kinds_that_are_not_read_are_named() {
    let job = "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: tune, namespace: ml}\nspec:\n  pytorchReplicaSpecs:\n    \
               Worker: {template: {spec: {containers: [{name: t, resources: {limits: {nvidia.com/gpu: 1}}}]}}}\n---\n\
               apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n";
    let folder = folder(&[("job.yaml", job)]);
    let file = folder.path().join("job.yaml").display().to_string();
    let report = json(&audit(&["--snapshot", &file, "--output", "json"]));
    let gaps = report["gaps"].as_array().expect("gaps");
    assert!(gaps.len() == 1 && gaps[0]["what"] == "PyTorchJob", "{gaps:?}");
}

#[test]
fn a_snapshot_may_come_through_a_pipe() {
    let mut command = Command::new(BINARY);
    command.args(["audit", "--snapshot", "-", "--output", "json", "--fail-on", "never"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let text = std::fs::read(snapshot("hami.yaml")).expect("the snapshot");
    child.stdin.take().expect("a pipe").write_all(&text).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["summary"]["gpus"], 3);
}

#[test]
fn an_assumption_is_reported_beside_today() {
    let arguments = [
        "--snapshot",
        &snapshot("time-slicing.yaml"),
        "--assume",
        "mode=Enforce",
        "--assume",
        "steered",
        "--output",
        "json",
    ];
    let report = json(&audit(&arguments));
    assert_eq!(report["assumed"]["assumptions"], json!(["mode=Enforce", "steered"]));
    let assumed = &report["assumed"]["report"];
    let namespaces = assumed["namespaces"].as_array().unwrap();
    let modes: Vec<&Value> =
        namespaces.iter().filter(|known| known["namespace"] == "ml").map(|ml| &ml["mode"]).collect();
    assert_eq!(modes, ["Enforce"]);
    assert_eq!(report["gpus"].as_array().unwrap().len(), assumed["gpus"].as_array().unwrap().len());
    assert!(assumed["gpus"].as_array().unwrap().iter().all(|gpu| gpu["mode"] == "exact"), "each GPU counts by itself");
    let policy = folder(&[(
        "p.yaml",
        "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: c}\nspec: {mode: Enforce, declaration: {required: true}}\n",
    )]);
    let assumption = format!("policy={}/p.yaml", policy.path().display());
    let report =
        json(&audit(&["--snapshot", &snapshot("time-slicing.yaml"), "--assume", &assumption, "--output", "json"]));
    let denied = |report: &Value| report["summary"]["refusedPods"].as_u64().unwrap();
    assert!(denied(&report["assumed"]["report"]) > denied(&report), "undeclared pods would be refused");
}

/// A node on which vramguard publishes memory, or does not.
fn node(capacity: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: gpu-0}}, status: {{capacity: {{nvidia.com/gpu: '4'{capacity}}}}}}}\n"
    )
}

/// What the report of these files lacks.
fn gaps(files: &[(&str, &str)], more: &[&str]) -> Vec<String> {
    let folder = folder(files);
    let files: Vec<String> =
        files.iter().map(|(name, _)| format!("--snapshot={}", folder.path().join(name).display())).collect();
    let arguments: Vec<&str> =
        files.iter().map(String::as_str).chain(["--output=json"]).chain(more.iter().copied()).collect();
    let report = json(&audit(&arguments));
    let gaps = report["gaps"].as_array().expect("gaps").iter();
    gaps.map(|gap| gap["what"].as_str().expect("what").to_owned()).collect()
}

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c}]}}\n";

#[test]
fn a_snapshot_says_that_pods_or_policies_of_the_cluster_are_missing() {
    let (plain, installed) = (node(""), node(", vramguard.dev/vram: '1000'"));
    assert_eq!(gaps(&[("nodes.yaml", &plain)], &[]), ["pods"]);
    assert!(gaps(&[("nodes.yaml", &plain), ("pods.yaml", POD)], &[]).is_empty());
    assert!(gaps(&[("pods.yaml", POD)], &[]).is_empty(), "manifests alone");
    let of_cluster = [("nodes.yaml", installed.as_str()), ("pods.yaml", POD)];
    let missing = ["configmaps vramguard-system/vramguard-policies"];
    assert_eq!(gaps(&of_cluster, &[]), missing);
    let policies = folder(&[("p.yaml", ENFORCE)]);
    let given = format!("--policies={}", policies.path().display());
    assert!(gaps(&of_cluster, &[&given]).is_empty());
}

#[test]
fn the_policies_of_a_snapshot_are_those_of_its_config_map() {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"cluster.yaml": ENFORCE},
        "metadata": {"name": "vramguard-policies", "namespace": "vramguard-system"}});
    let folder = folder(&[
        ("nodes.yaml", &node(", vramguard.dev/vram: '1000'")),
        ("pods.yaml", &POD.replace("{name: c}", "{name: c, resources: {limits: {nvidia.com/gpu: '1'}}}")),
        ("policies.json", &map.to_string()),
    ]);
    let files = ["nodes.yaml", "pods.yaml", "policies.json"]
        .map(|name| format!("--snapshot={}", folder.path().join(name).display()));
    let report = json(&audit(&[&files[0], &files[1], &files[2], "--output=json"]));
    assert_eq!((&report["gaps"], &report["namespaces"][0]["mode"]), (&json!([]), &json!("Enforce")), "{report}");
}

/// Arguments, files and what the message names.
#[test]
fn wrong_usage_and_unreadable_input_end_with_2_and_say_where() {
    let folder = folder(&[
        ("broken.json", "{\"kind\": \"List\", \"items\": [\n{\"kind\": \"Pod\","),
        (
            "twice.yaml",
            "{apiVersion: v1, kind: Node, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: a}}\n",
        ),
        ("types.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: 3}\n"),
        (
            "policy.yaml",
            "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {name: c}\nspec: {modus: Off}\n",
        ),
        (
            "report.json",
            "{\"schemaVersion\": \"v9\", \"gpus\": [], \"nodes\": [], \"namespaces\": [], \"findings\": [], \"summary\": {\"gpus\": 0, \"overcommittedGpus\": 0, \"deny\": 0, \"warn\": 0, \"info\": 0}}",
        ),
    ]);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let good = snapshot("hami.yaml");
    let (broken, twice, types, policy, report) =
        (path("broken.json"), path("twice.yaml"), path("types.yaml"), path("policy.yaml"), path("report.json"));
    let cases: [(&[&str], &[&str]); 13] = [
        (&["--snapshot", "/nonexistent"], &["/nonexistent"]),
        (&["--snapshot", &broken], &["broken.json:2"]),
        (&["--snapshot", &twice], &["twice.yaml:3", "twice.yaml:1", "twice"]),
        (&["--snapshot", &types], &["types.yaml:1", "containers"]),
        (&["--snapshot", &good, "--snapshot", &policy], &["policy.yaml", "modus"]),
        (&["--snapshot", &good, "--policies", "/nonexistent"], &["/nonexistent"]),
        (&["--snapshot", &good, "--output", "xlsx"], &["xlsx", "sarif", "html"]),
        (&["--snapshot", &good, "--output", "json", "--output", "table"], &["stdout"]),
        (&["--snapshot", &good, "--output", "json=/nonexistent/a.json"], &["/nonexistent/a.json"]),
        (&["--snapshot", &good, "--fail-on", "new"], &["--baseline"]),
        (&["--snapshot", &good, "--baseline", &report], &["report.json", "v9"]),
        (&["--snapshot", &good, "--assume", "replicas=0"], &["replicas", "at least 1"]),
        (&[], &["KUBECONFIG", "--snapshot"]),
    ];
    for (arguments, expected) in cases {
        let finished = audit(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {}{}", finished.stdout, finished.stderr);
        for text in expected {
            assert!(finished.stderr.contains(text), "{arguments:?}: {text:?} is not in {}", finished.stderr);
        }
        assert!(finished.stdout.is_empty(), "{arguments:?}: {}", finished.stdout);
    }
}

#[test]
fn every_reason_code_is_documented() {
    let source = include_str!("../../../src/capacity/verdict/reason.rs");
    let list = source.split("pub enum Reason {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("the enum");
    let documented = [include_str!("../../../docs/audit.md"), include_str!("../../../docs/metrics.md")].concat();
    let names: Vec<&str> =
        list.lines().filter_map(|line| line.trim().strip_suffix(',')).filter(|name| !name.contains(' ')).collect();
    assert!(names.len() > 50, "{names:?}");
    let missing: Vec<&&str> = names.iter().filter(|name| !documented.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
}
