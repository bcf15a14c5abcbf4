use super::lint::{Severity, lint};
use super::*;

fn config(name: &str, resources: &[(&str, u32)]) -> NamedConfig {
    NamedConfig {
        name: name.to_owned(),
        method: Method::TimeSlicing,
        rename_by_default: false,
        resources: resources.iter().map(|(name, replicas)| ((*name).to_owned(), *replicas)).collect(),
    }
}

/// Severity, line, field and text of each finding.
fn findings(text: &str) -> Vec<String> {
    let linted = lint(text).unwrap();
    let line = |f: &lint::Finding| format!("{} {} {}: {}", f.severity, f.line, f.field, f.what);
    linted.findings.iter().map(line).collect()
}

/// A bare config that shares `nvidia.com/gpu`, with this text under `sharing.timeSlicing`.
fn slicing(text: &str) -> String {
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!("version: v1\nsharing:\n  timeSlicing:\n    failRequestsGreaterThanOne: true\n{indented}")
}

#[test]
fn what_a_plan_prints_has_no_findings_and_reads_back() {
    let mps = NamedConfig { method: Method::Mps, ..config("mps", &[("nvidia.com/gpu", 2)]) };
    let renamed = NamedConfig { rename_by_default: true, ..config("renamed-4", &[("nvidia.com/mig-1g.10gb", 4)]) };
    let configs = [config(DEFAULT, &[]), config("8x80gi-r9", &[("nvidia.com/gpu", 9)]), mps, renamed];
    let text = config_map("time-slicing-config", "gpu-operator", &configs);
    let linted = lint(&text).unwrap();
    let faults: Vec<_> = linted.findings.iter().filter(|finding| finding.severity != Severity::Note).collect();
    assert_eq!(faults, [] as [&lint::Finding; 0], "{text}");
    let read: Vec<_> = linted
        .configs
        .iter()
        .map(|config| {
            let resources = config.resources.iter().map(|shared| (shared.resource.clone(), shared.replicas)).collect();
            (config.name.clone().unwrap(), config.method, resources)
        })
        .collect::<Vec<(String, Option<Method>, Vec<(String, u32)>)>>();
    let written = configs.map(|config| {
        let method = (!config.resources.is_empty()).then_some(config.method);
        (config.name, method, config.resources)
    });
    assert_eq!(read, written);
}

#[test]
fn names_that_yaml_could_misread_are_quoted() {
    let text = config_map("on", "123", &[config("1e3", &[]), config("a: b", &[("nvidia.com/mig-\"x", 2)])]);
    let value: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(value["metadata"], json!({"name": "on", "namespace": "123"}));
    assert_eq!(value["data"]["1e3"], json!("version: v1\n"));
    assert!(value["data"]["a: b"].as_str().unwrap().contains(r#"- name: "nvidia.com/mig-\"x""#));
}

#[test]
fn the_cluster_policy_names_the_config_map_and_its_default() {
    let patch = cluster_policy_patch("time-slicing-config").to_string();
    assert_eq!(patch, r#"{"spec":{"devicePlugin":{"config":{"default":"default","name":"time-slicing-config"}}}}"#);
}

#[test]
fn what_the_plugin_refuses_is_found_with_line_and_field() {
    for (text, finding) in [
        (
            slicing("resources:\n- name: nvidia.com/gpu\n  replicas: 1"),
            "refused 7 sharing.timeSlicing.resources[0].replicas: is 1; the plugin takes a whole number of at least 2; \
             leave the resource out to give each GPU to one container",
        ),
        (
            slicing("resources:\n- name: nvidia.com/gpu\n  replicas: \"4\""),
            "refused 7 sharing.timeSlicing.resources[0].replicas: is the text \"4\"; the plugin takes a whole number of \
             at least 2",
        ),
        (
            slicing("resources:\n- name: nvidia.com/gpu"),
            "refused 6 sharing.timeSlicing.resources[0].replicas: is missing; write a number of at least 2",
        ),
        (
            slicing("resources:\n- replicas: 4"),
            "refused 6 sharing.timeSlicing.resources[0].name: is missing; write nvidia.com/gpu",
        ),
        (
            slicing("resources: []"),
            "refused 5 sharing.timeSlicing.resources: lists no resource, and the plugin does not start; add one or \
             remove the section",
        ),
        (
            slicing("renameByDefault: \"yes\"\nresources:\n- {name: nvidia.com/gpu, replicas: 4}"),
            "refused 5 sharing.timeSlicing.renameByDefault: is the text \"yes\"; write true or false",
        ),
        (
            slicing("resources:\n- {name: nvidia.com/gpu, replicas: 4, devices: some}"),
            "refused 6 sharing.timeSlicing.resources[0].devices: is some; write all, or leave it out",
        ),
        (
            slicing("resources:\n- {name: nvidia.com/GPU_A, replicas: 4}"),
            "refused 6 sharing.timeSlicing.resources[0].name: is \"nvidia.com/GPU_A\"; the plugin takes nvidia.com/ and \
             at most 63 small letters, digits, points and hyphens",
        ),
        ("version: v2\n".to_owned(), "refused 1 version: is v2; write v1"),
        (
            "version: v1\nflags:\n  migStrategy: both\n".to_owned(),
            "refused 3 flags.migStrategy: is \"both\"; the plugin knows none, single, mixed",
        ),
        (
            "version: v1\nflags:\n  plugin:\n    deviceListStrategy: [envvar, cdi]\n".to_owned(),
            "refused 4 flags.plugin.deviceListStrategy: is \"cdi\"; the plugin knows envvar, volume-mounts, \
             cdi-annotations, cdi-cri",
        ),
        ("version: v1\nversion: v1\n".to_owned(), "refused 2 version: is written twice"),
    ] {
        assert_eq!(findings(&text), [finding], "{text}");
    }
}

#[test]
fn what_the_plugin_ignores_or_does_in_spite_of_the_reader_is_found() {
    for (text, finding) in [
        (
            "version: v1\nsharing:\n  timeslicing: {}\n".to_owned(),
            "ignored 3 sharing.timeslicing: is not a field of the plugin's config; did you mean timeSlicing?",
        ),
        (
            "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    - {name: gpu, replicas: 4}\n".to_owned(),
            "risky 3 sharing.timeSlicing.failRequestsGreaterThanOne: is absent, which means false: a container may ask \
             for 2 replicas and get one GPU twice; write true",
        ),
        (
            slicing("resources:\n- {name: gpu, replicas: 4}\n- {name: nvidia.com/gpu, replicas: 2}"),
            "risky 7 sharing.timeSlicing.resources[1].name: nvidia.com/gpu is listed twice; keep one entry",
        ),
        (
            slicing("resources:\n- {name: nvidia.com/gpu, replicas: 4, devices: [0, 1]}"),
            "ignored 6 sharing.timeSlicing.resources[0].devices: is not supported by the plugin yet, which shares all \
             devices; leave it out",
        ),
        (
            slicing("resources:\n- {name: nvidia.com/gpu, replicas: 4, rename: nvidia.com/gpu.mine}"),
            "ignored 6 sharing.timeSlicing.resources[0].rename: is not supported by the plugin yet, which ignores it; \
             renameByDefault is",
        ),
        (
            slicing("renameByDefault: true\nresources:\n- {name: nvidia.com/gpu, replicas: 4}"),
            "note 5 sharing.timeSlicing.renameByDefault: shared GPUs are requested as nvidia.com/gpu.shared; pods that \
             ask for nvidia.com/gpu do not get them",
        ),
        (
            slicing("resources:\n- {name: nvidia.com/h100, replicas: 4}"),
            "ignored 6 sharing.timeSlicing.resources[0].name: no device has the name nvidia.com/h100, so nothing is \
             shared by it; the plugin's own names are nvidia.com/gpu and nvidia.com/mig-<profile>",
        ),
        (
            format!(
                "flags: {{migStrategy: single}}\n{}",
                slicing("resources:\n- {name: nvidia.com/mig-1g.10gb, replicas: 4}")
            ),
            "ignored 7 sharing.timeSlicing.resources[0].name: no device has the name nvidia.com/mig-1g.10gb: \
             flags.migStrategy is not mixed",
        ),
        (
            format!(
                "{}  mps:\n    resources:\n    - {{name: nvidia.com/gpu, replicas: 4}}\n",
                slicing("resources:\n- {name: nvidia.com/gpu, replicas: 2}")
            ),
            "ignored 3 sharing.timeSlicing: is ignored, because sharing.mps is set too; keep one of the two",
        ),
    ] {
        assert_eq!(findings(&text), [finding], "{text}");
    }
}

#[test]
fn lines_of_a_config_map_are_those_of_the_file() {
    let text = "# a comment\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  default: |-\n    version: v1\n    \
                sharing:\n      timeSlicing:\n        failRequestsGreaterThanOne: true\n        resources:\n        - \
                name: nvidia.com/gpu\n          replicas: 0\n";
    assert_eq!(
        findings(text),
        ["refused 13 default: sharing.timeSlicing.resources[0].replicas: is 0; the plugin takes a whole number of at \
          least 2"]
    );
    let crlf = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(findings(&crlf), findings(text));
}

#[test]
fn what_is_no_configuration_is_an_error_with_its_line() {
    for (text, line) in [
        ("", 1),
        ("kind: Pod\n", 1),
        ("a: 1\n", 1),
        ("kind: ConfigMap\n", 1),
        ("kind: ConfigMap\ndata:\n  a: |\n    x: [\n", 4),
        ("kind: ConfigMap\ndata:\n  a: {version: v1}\n", 3),
        ("version: [\n", 1),
    ] {
        assert_eq!(lint(text).unwrap_err().0, line, "{text:?}: {:?}", lint(text));
    }
}
