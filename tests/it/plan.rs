//! Tests `vramguard plan` as a user starts it, and runs the commands of the page about it.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Finished, run};

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

/// Runs a shell script in a folder, in which `vramguard` is the built binary.
pub(crate) fn shell(folder: &Path, script: &str) -> Finished {
    let bin = Path::new(BINARY).parent().expect("it is in a folder").display();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(folder).env("PATH", path);
    run(&mut command, Duration::from_secs(60))
}

/// Runs all blocks of a page that are marked `sh`, one after the other in one folder. Returns their output.
pub(crate) fn run_page(page: &str, folder: &Path) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page)).expect("a page");
    let blocks: Vec<&str> = text.split("\n```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    assert!(!blocks.is_empty(), "{page} has commands");
    blocks.into_iter().map(|block| shell(folder, block).expect_success()).collect()
}

fn plan(arguments: &str) -> Finished {
    let folder = tempfile::tempdir().expect("a folder");
    shell(folder.path(), &format!("vramguard plan {arguments}"))
}

const EIGHT: &str = "--gpu-memory-mib 81559 --count 16 --gpus-per-node 8";

#[test]
fn the_commands_of_the_page_run_as_written_and_print_what_it_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run_page("plan.md", folder.path());
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plan.md")).expect("a page");
    let shown = page.split("\n```text\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("an output");
    assert!(output.starts_with(shown), "{output}");
    assert!(output.contains("config.yaml: 1 config, 0 findings; a plan would change nothing"), "{output}");
}

#[test]
fn nine_agents_of_8gi_fit_each_h100_by_slots_and_by_the_sum() {
    for (each, mode) in [(8, "slot"), (1, "exact")] {
        let arguments = format!("--gpu-memory-mib 81559 --count 8 --gpus-per-node {each} --demand 8Gi --output json");
        let report: Value = serde_json::from_str(&plan(&arguments).expect_success()).expect("JSON");
        let pool = &report["pools"][0];
        assert_eq!(
            (&pool["mode"], &pool["replicas"], &pool["pods"]),
            (&mode.into(), &9.into(), &72.into()),
            "{report}"
        );
    }
}

#[test]
fn the_printed_config_map_passes_its_own_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = format!("{EIGHT} --demand 8Gi:10");
    let script = format!("vramguard plan {arguments} --output yaml | vramguard plan --check - {arguments}");
    let output = shell(folder.path(), &script).expect_success();
    assert_eq!(output, "standard input: 1 config, 0 findings; a plan would change nothing\n");
}

#[test]
fn pools_that_differ_get_named_configs_and_labels_and_the_default_shares_nothing() {
    let snapshot = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/demo/cluster.yaml");
    let arguments = format!("--snapshot {snapshot} --demand 8Gi:6 --output json");
    let report: Value = serde_json::from_str(&plan(&arguments).expect_success()).expect("JSON");
    let map: Value = serde_saphyr::from_str(report["configMap"].as_str().expect("a text")).expect("YAML");
    assert_eq!(map["data"]["default"], "version: v1\n");
    for pool in report["pools"].as_array().expect("a list") {
        let (name, replicas) = (pool["config"].as_str().expect("a name"), &pool["replicas"]);
        let config = map["data"][name].as_str().expect("a config");
        assert!(config.contains(&format!("replicas: {replicas}\n")), "{map}");
    }
    let commands = report["commands"].to_string();
    let label = "kubectl label node --overwrite h100-0 nvidia.com/device-plugin.config=1x80gi-r9";
    assert!(commands.contains(label), "{commands}");
    assert!(commands.contains("clusterpolicies.nvidia.com/cluster-policy"), "{commands}");
}

#[test]
fn a_check_names_file_line_and_field_and_says_what_would_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "version: v1\nsharing:\n  timeSlicing:\n    failRequestsGreaterThanOne: true\n    resources:\n    - name: \
                nvidia.com/gpu\n      replicas: 16\n    - name: nvidia.com/mig-1g.10gb\n      replicas: 1\n";
    std::fs::write(folder.path().join("c.yaml"), text).expect("a file");
    let finished = shell(folder.path(), &format!("vramguard plan --check c.yaml {EIGHT} --demand 8Gi || echo exit $?"));
    let output = finished.expect_success();
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].starts_with("c.yaml:7: risky: sharing.timeSlicing.resources[0].replicas: is 16, so that a slot"));
    assert!(lines[1].starts_with("c.yaml:9: refused: sharing.timeSlicing.resources[1].replicas: is 1; "), "{output}");
    assert_eq!(lines[2], "plan: 2 × 8x80gi, config default: nvidia.com/gpu replicas 16 -> 9");
    assert_eq!(lines[4], "exit 1");
}

#[test]
fn wrong_usage_and_unreadable_input_exit_2_and_say_what_to_do() {
    for (arguments, error) in [
        ("", "give --snapshot FILE with nodes, or --gpu-memory-mib with --count"),
        ("--gpu-memory-mib 81559 --count 1 --demand 8", "--demand 8: \"8\" has no unit"),
        ("--gpu-memory-mib 81559 --count 1 --demand 0Gi", "an amount is above zero"),
        ("--gpu-memory-mib 81559 --count 1 --demand 8Gi:x", "\"x\" is no number of pods: it is not a whole number"),
        ("--gpu-memory-mib 81559 --count 1 --demand 8Gi:0", "8Gi:0: \"0\" is no number of pods: it is too small"),
        ("--gpu-memory-mib 81559 --count 1 --demand 8Gi:-1", "it is below zero; expected a whole number of at least 1"),
        ("--gpu-memory-mib 81559 --count 1 --demand 8Gi:0", "write AMOUNT:PODS, as in 8Gi:40, or AMOUNT alone"),
        ("--gpu-memory-mib 81559 --count 1 --max-replicas 0", "is too small; expected a whole number of at least 1"),
        ("--gpu-memory-mib 81559 --count 1 --output json --output table", "only one format can go to stdout"),
        ("--gpu-memory-mib 81559 --count 9 --gpus-per-node 8", "--count 9 is not a multiple of --gpus-per-node 8"),
        ("--gpu-memory-mib 85520809984 --count 1", "it is in MiB"),
        ("--gpu-memory-mib 81559", "--count"),
        ("--snapshot /nonexistent.yaml", "/nonexistent.yaml"),
        ("--check /nonexistent.yaml", "/nonexistent.yaml"),
    ] {
        let finished = plan(arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments}: {}", finished.stdout);
        assert!(finished.stderr.contains(error), "{arguments}: {}", finished.stderr);
    }
}

#[test]
fn an_object_that_is_there_twice_is_not_planned_for_twice() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/time-slicing.yaml");
    let twice = plan(&format!("--snapshot {file} --snapshot {file}"));
    assert_eq!(twice.status.code(), Some(2), "{}", twice.stdout);
    assert!(twice.stderr.contains("is there twice, the first time in"), "{}", twice.stderr);
}

#[test]
fn a_demand_without_a_place_exits_1_and_is_named() {
    let finished = plan("--gpu-memory-mib 24576 --count 2 --gpus-per-node 2 --demand 40Gi,4Gi");
    assert_eq!(finished.status.code(), Some(1));
    let line = "--demand 40Gi: 41680Mi is more than a GPU has for pods, 23870Mi";
    assert!(finished.stdout.contains(line), "{}", finished.stdout);
}

#[test]
fn hostile_names_reach_neither_the_terminal_nor_a_shell() {
    let node = |name: &str, mib: u32| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{nvidia.com/gpu.memory: '{mib}', \
             nvidia.com/gpu.count: '1'}}\nstatus: {{capacity: {{nvidia.com/gpu: '1'}}}}\n---\n"
        )
    };
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: \"p\\e[31m\\nx\\u202E\", annotations: {vramguard.dev/vram: \
               1Gi}}\nspec: {containers: [{name: m, resources: {limits: {nvidia.com/gpu: 1}}}]}\n";
    let folder = tempfile::tempdir().expect("a folder");
    // Two nodes that need different configs, so that their names are in commands.
    let snapshot = |name: &str| format!("{}{}{pod}", node(name, 24_576), node("b", 81_559));
    std::fs::write(folder.path().join("s.yaml"), snapshot("a")).expect("a file");
    for format in ["table", "yaml", "json"] {
        let script = format!("vramguard plan --snapshot s.yaml --output {format}");
        let output = shell(folder.path(), &script).expect_success();
        assert!(!output.contains('\u{1b}') && output.contains("--overwrite a "), "{output:?}");
        assert!(format != "table" || !output.contains('\u{202e}'), "{output:?}");
    }
    std::fs::write(folder.path().join("s.yaml"), snapshot("\"a'; touch x #\\e[31m\"")).expect("a file");
    let finished = shell(folder.path(), "vramguard plan --snapshot s.yaml");
    assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(2), ""));
    let error = r#"s.yaml:1: metadata.name: "a'; touch x #\u{1b}[31m" is no name of a node"#;
    assert!(finished.stderr.contains(error), "{}", finished.stderr);
}

/// It printed commands that apply a ConfigMap in which nothing is shared.
#[test]
fn without_a_demand_there_is_nothing_to_apply_and_the_plan_says_so() {
    for format in ["table", "yaml", "json"] {
        let finished = plan(&format!("--gpu-memory-mib 81559 --count 1 --output {format}"));
        assert_eq!(finished.status.code(), Some(1), "{format}: {}", finished.stdout);
        assert!(
            !finished.stdout.contains("kubectl") && !finished.stdout.contains("ConfigMap\n"),
            "{}",
            finished.stdout
        );
        let said = finished.stdout.contains("There is no demand to plan for");
        assert!(said || finished.stdout.contains("\"commands\": []"), "{}", finished.stdout);
    }
}

#[test]
fn several_forms_of_a_plan_go_to_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!("vramguard plan {EIGHT} --demand 8Gi --output yaml=map.yaml -o json=plan.json -o table");
    let table = shell(folder.path(), &script).expect_success();
    assert!(
        table.contains(
            "vramguard plan --gpu-memory-mib 81559 --count 16 --gpus-per-node 8 --demand 8Gi --output yaml |"
        )
    );
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a file");
    assert!(read("map.yaml").contains("kind: ConfigMap") && !read("map.yaml").contains("kubectl apply"));
    let json: Value = serde_json::from_str(&read("plan.json")).expect("JSON");
    assert!(json["commands"][0].as_str().expect("a text").ends_with("kubectl apply -f -"), "{json}");
}
