//! Every error names file, line and field; every documented field is read.

use super::*;
use crate::capacity::gpu::DriverReserve;
use crate::capacity::pod::software::Framework;
use crate::capacity::policy::{Field, FrameworkPolicy, Mode, OnConflict, OnShortfall, Policies};
use crate::capacity::vram::Vram;

fn cluster(spec: &str) -> String {
    let indented: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let spec = if spec.is_empty() { "spec: {}\n".to_owned() } else { format!("spec:\n{indented}") };
    format!("apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata:\n  name: cluster\n{spec}")
}

fn namespaced(spec: &str) -> String {
    cluster(spec).replace("ClusterVramPolicy", "VramPolicy").replace("name: cluster", "name: p\n  namespace: ml")
}

fn read_one(text: &str) -> Result<Configuration, Vec<DocumentError>> {
    read([("policies/p.yaml", text)])
}

fn error(text: &str) -> String {
    let errors = read_one(text).expect_err("an error");
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_field_is_read() {
    let text = cluster(
        "mode: Warn\nonShortfall: Deny\ndeclaration:\n  required: true\n  onUnaccounted: Warn\n  default: 2Gi\n  min: 1Gi\n  max: 16Gi\nquota: 64Gi\n\
         models:\n  qwen3-8b: 17Gi\nenvironment:\n  framework: vLLM\n  onConflict: Deny\n\
         reroute:\n  pools: [{matchLabels: {nvidia.com/gpu.product: NVIDIA-L40S}}]\nperProcessOverhead: 500Mi\nheadroom:\n  percent: 2\n  minimum: 0\n  driverReserve: 300Mi\novercommit: \"1.25\"\n\
         startup:\n  serializePerGpu: true\nexemptNamespaces: [infra]\nlocked: [mode, declaration.max]",
    );
    let configuration = read_one(&text).unwrap();
    let policy = configuration.documents.cluster.as_ref().unwrap();
    assert_eq!(policy.layer.set_fields().len(), Field::ALL.len(), "a field of the shared table that is not read");
    assert_eq!(policy.layer.mode, Some(Mode::Warn));
    assert_eq!(policy.layer.on_shortfall, Some(OnShortfall::Deny));
    assert_eq!(policy.layer.framework, Some(FrameworkPolicy::Named(Framework::Vllm)));
    assert_eq!(policy.layer.on_conflict, Some(OnConflict::Deny));
    assert_eq!(policy.layer.models["qwen3-8b"], Vram::from_mib(17 * 1024));
    assert_eq!(policy.headroom_minimum, Some(Vram::ZERO));
    assert_eq!(policy.driver_reserve, Some(DriverReserve::Amount(Vram::from_mib(300))));
    assert_eq!(policy.overcommit.unwrap().to_string(), "1.25");
    assert_eq!(policy.locked, [Field::Mode, Field::Max].into());
    let pools: Vec<String> = policy.reroute_pools.iter().map(ToString::to_string).collect();
    assert_eq!(pools, ["nvidia.com/gpu.product=NVIDIA-L40S"]);
    let policies = Policies::new(&configuration.documents, "own");
    assert_eq!(policies.rules().per_process_overhead, Vram::from_mib(500));
    assert!(policies.of("infra").is_none() && policies.of("kube-system").is_some());
}

#[test]
fn the_field_that_pinned_gpus_is_refused_and_what_replaced_it_is_named() {
    for value in ["Leave", "Pin", "{}"] {
        let error = error(&cluster(&format!("environment:\n  visibleDevices: {value}")));
        for part in ["policies/p.yaml", "spec.environment.visibleDevices", "no longer exists", "docs/several-gpus.md"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn the_samples_that_are_shipped_are_read() {
    for (name, text) in [
        ("cluster.yaml", include_str!("../../../policies/cluster.yaml")),
        ("team-agents.yaml", include_str!("../../../policies/team-agents.yaml")),
        ("team-notebooks.yaml", include_str!("../../../policies/team-notebooks.yaml")),
        ("gpu-inventory.yaml", include_str!("../../../policies/gpu-inventory.yaml")),
        ("deploy", include_str!("../../../deploy/base/policies/cluster.yaml")),
    ] {
        assert!(read([(name, text)]).is_ok(), "{name}: {:?}", read([(name, text)]));
    }
}

#[test]
fn the_commented_sample_states_the_defaults() {
    let sample = read([("s", include_str!("../../../policies/cluster.yaml"))]).unwrap();
    let empty = read_one(&cluster("")).unwrap();
    let in_force = |configuration: &Configuration| Policies::new(&configuration.documents, "vramguard-system");
    assert_eq!(in_force(&sample), in_force(&empty));
}

#[test]
fn errors_name_file_line_and_field() {
    for (text, expected) in [
        (cluster("mode: enforce"), "policies/p.yaml:6: spec.mode: "),
        (cluster("\ndeclaration:\n  min: 8GB"), "policies/p.yaml:8: spec.declaration.min: "),
        (cluster("declaration:\n  min: 8"), "policies/p.yaml:7: spec.declaration.min: "),
        (cluster("declaration:\n  required: maybe"), "policies/p.yaml:7: spec.declaration.required: "),
        (cluster("modes: Warn"), "policies/p.yaml:6: spec"),
        (cluster("declaration:\n  minimum: 8Gi"), "policies/p.yaml:7: spec.declaration"),
        (cluster("headroom:\n  percent: 101"), "policies/p.yaml:7: spec.headroom.percent: "),
        (cluster("headroom:\n  percent: -1"), "policies/p.yaml:7: spec.headroom.percent: "),
        (cluster("exemptNamespaces: [\"kube-*\"]"), "policies/p.yaml:6: spec.exemptNamespaces[0]: "),
        (namespaced("").replace("namespace: ml", "namespace: ML team"), "policies/p.yaml:5: metadata.namespace: "),
        (cluster("overcommit: \"0\""), "policies/p.yaml:6: spec.overcommit: "),
        (cluster("overcommit: \"1.2345\""), "policies/p.yaml:6: spec.overcommit: "),
        (cluster("locked: [headroom]"), "policies/p.yaml:6: spec.locked"),
        (cluster("models:\n  a: 1Gi\n  b: lots"), "policies/p.yaml:8: spec.models.b: "),
        (
            cluster("declaration:\n  min: 2Gi\n  max: 1Gi"),
            "policies/p.yaml:1: spec.declaration: min 2Gi is above max 1Gi",
        ),
        (namespaced("headroom: {percent: 1}"), "policies/p.yaml:7: spec.headroom"),
        (namespaced("locked: []"), "policies/p.yaml:7: spec.locked: "),
        (namespaced("").replace("namespace: ml", "labels: {}"), "policies/p.yaml:1: metadata.namespace: is missing"),
        (cluster("").replace("v1alpha1", "v1"), "policies/p.yaml:1: apiVersion: "),
        (cluster("").replace("ClusterVramPolicy", "ClusterPolicy"), "policies/p.yaml:1: kind: "),
        (cluster("").replace("kind: ClusterVramPolicy\n", ""), "policies/p.yaml:4: kind is missing"),
        ("mode: Enforce\n".to_owned(), "policies/p.yaml:1: "),
        ("a: [\n".to_owned(), "policies/p.yaml:"),
        (cluster("mode: Warn\nmode: Audit"), "policies/p.yaml:7: "),
    ] {
        let error = error(&text);
        assert!(error.starts_with(expected), "{expected:?} expected, got {error:?} for\n{text}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn the_line_counts_from_the_start_of_the_file() {
    let text = format!("# two documents\n---\n{}---\n{}", cluster("mode: Warn"), namespaced("mode: Never"));
    assert!(error(&text).starts_with("policies/p.yaml:16: spec.mode: "), "{}", error(&text));
}

#[test]
fn a_field_of_the_cluster_is_refused_in_a_namespace_by_saying_so() {
    let error = error(&namespaced("perProcessOverhead: 1Gi"));
    assert!(error.contains("only the ClusterVramPolicy may set it"), "{error}");
}

#[test]
fn there_is_one_cluster_policy_and_one_policy_a_namespace() {
    let twice = |text: String| read([("a.yaml", text.as_str()), ("b.yaml", text.as_str())]).unwrap_err()[0].to_string();
    assert_eq!(
        twice(cluster("")),
        "b.yaml:1: the ClusterVramPolicy is there twice, the first time in a.yaml; keep one"
    );
    assert!(twice(namespaced("")).contains("the VramPolicy of namespace \"ml\" is there twice"));
}

#[test]
fn every_document_with_an_error_is_named_at_once() {
    let text = format!("{}---\n{}", cluster("mode: x"), namespaced("mode: y"));
    assert_eq!(read_one(&text).unwrap_err().len(), 2);
}

#[test]
fn a_bare_zero_is_an_amount_in_policies_only() {
    for zero in ["0", "\"0\"", "0Gi"] {
        let configuration = read_one(&cluster(&format!("quota: {zero}"))).unwrap();
        assert_eq!(configuration.documents.cluster.unwrap().layer.quota, Some(Vram::ZERO));
    }
}

#[test]
fn an_inventory_entry_describes_nodes_and_gpus() {
    let entry = |body: &str| {
        format!(
            "apiVersion: vramguard.dev/v1alpha1\nkind: GpuInventory\nmetadata: {{name: i}}\nspec:\n  nodes:\n    - {body}\n"
        )
    };
    let read = read_one(&entry("{names: [n], resource: nvidia.com/gpu, replicas: 4, gpus: [24Gi, 80Gi]}")).unwrap();
    assert_eq!(read.overrides[0].gpus, [Vram::from_mib(24 * 1024), Vram::from_mib(80 * 1024)]);
    assert!(!read.overrides[0].hard_limits, "nobody said so");
    let limited = entry("{names: [n], resource: nvidia.com/gpu, replicas: 4, gpus: [24Gi], hardLimits: true}");
    assert!(read_one(&limited).unwrap().overrides[0].hard_limits);
    for (body, expected) in [
        ("{resource: nvidia.com/gpu, replicas: 4, gpus: [24Gi]}", "spec.nodes[0]: describes no node"),
        ("{names: [n], resource: nvidia.com/gpu, replicas: 4, gpus: []}", "spec.nodes[0].gpus: is empty"),
        ("{names: [n], resource: nvidia.com/gpu, replicas: 4, gpus: [0]}", "spec.nodes[0].gpus[0]: is zero"),
        (
            "{names: [n], resource: nvidia.com/gpu, replicas: 1, gpus: [17Ti]}",
            "spec.nodes[0].gpus[0]: is more than 16384Gi",
        ),
        ("{names: [n], resource: nvidia.com/gpu, replicas: 0, gpus: [1Gi]}", "spec.nodes[0].replicas: "),
        (
            "{names: [n], resource: nvidia.com/mig-1g.10gb, replicas: 1, gpus: [10Gi], hardLimits: true}",
            "spec.nodes[0].hardLimits: does not hold for MIG devices",
        ),
        (
            "{names: [n], resource: nvidia.com/gpu, sharing: MPS, replicas: 4, gpus: [24Gi], hardLimits: true}",
            "spec.nodes[0].hardLimits: does not hold under MPS",
        ),
        (
            "{names: [n], resource: nvidia.com/gpu, replicas: 4, gpus: [24Gi], hardLimits: 1}",
            "spec.nodes[0].hardLimits: ",
        ),
        ("{names: [n], resource: amd.com/gpu, replicas: 1, gpus: [1Gi]}", "spec.nodes[0].resource: "),
    ] {
        assert!(error(&entry(body)).contains(expected), "{expected}: {}", error(&entry(body)));
    }
}

#[test]
fn each_field_of_a_document_has_a_file_and_a_line() {
    let of_cluster = cluster("mode: Warn\ndeclaration:\n  min: 1Gi\nmodels: {a: 1Gi}\nlocked: [mode]");
    let text = format!("# two documents\n---\n{of_cluster}---\n{}", namespaced("quota: 0"));
    let one_line =
        "{apiVersion: vramguard.dev/v1alpha1, kind: VramPolicy, metadata: {name: p, namespace: b}, spec: {mode: Warn}}";
    let sources = sources([("p.yaml", text.as_str()), ("q.yaml", one_line)], &[]);
    let cluster = sources.cluster.unwrap();
    let line = |field: &str| cluster.lines.get(field).copied();
    assert_eq!(
        (line("mode"), line("declaration.min"), line("models.a"), line("locked")),
        (Some(8), Some(10), Some(11), Some(12))
    );
    assert_eq!((line("quota"), cluster.file.as_str()), (None, "p.yaml"));
    assert_eq!(sources.namespaces["ml"].lines["quota"], 20);
    assert_eq!(sources.namespaces["b"], Source { file: "q.yaml".into(), lines: BTreeMap::new() });
}

#[test]
fn text_before_and_between_documents_is_no_document() {
    assert_eq!(split("# nothing\n---\n\n---\n# still nothing\n").len(), 0);
    assert_eq!(split("a: 1\n---\nb: 2\n").iter().map(|(line, _)| *line).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(split("a: |\n  text with --- inside\n").len(), 1);
}

#[test]
fn a_framework_that_is_none_is_refused_with_the_names() {
    let error = error(&cluster("environment:\n  framework: vllm"));
    for part in ["spec.environment.framework", "\"vllm\" is not a framework", "Auto, None", "vLLM", "llama.cpp"] {
        assert!(error.contains(part), "{error}");
    }
}
