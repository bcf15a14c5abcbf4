//! SARIF 2.1.0 for code scanning: one rule for each reason, one result for each finding.
//!
//! GitHub refuses a whole file for one result without a file and a line. The object of a finding that was read from a
//! cluster is therefore also given as the address `KIND/NAMESPACE/NAME` under the base `CLUSTER`, line 1.
//! Fingerprints are the ids of findings, so that an alert lives on while its numbers change. What could not be read is
//! a notification of the run.

use serde_json::{Map, Value, json};

use super::baseline::{key, new_ids};
use super::document::{Finding, Report, Severity};
use super::text::{clean, object, words};

/// The largest number of results of one run that GitHub takes. A notification says how many there are.
const MAX_RESULTS: usize = 25_000;

/// The name of the base of addresses of objects in a cluster.
const CLUSTER: &str = "CLUSTER";

/// Renders the findings as SARIF.
pub(super) fn render(report: &Report) -> String {
    let new = new_ids(report);
    let mut reasons: Vec<(&str, Severity)> = Vec::new();
    let mut results = Vec::new();
    for finding in report.findings.iter().take(MAX_RESULTS) {
        let known = reasons.iter().position(|(reason, _)| *reason == finding.reason);
        let index = known.unwrap_or_else(|| {
            reasons.push((&finding.reason, finding.severity));
            reasons.len() - 1
        });
        let mut result = result(finding, index);
        if let Some(new) = &new {
            let state = if new.contains(&key(finding)) { "new" } else { "unchanged" };
            result["baselineState"] = state.into();
        }
        results.push(result);
    }
    let rules: Vec<Value> = reasons.into_iter().map(|(reason, severity)| rule(reason, severity)).collect();
    let (name, version) = program(&report.generated_by);
    let driver = json!({ "name": name, "version": version, "rules": rules });
    let base = json!({ CLUSTER: { "description": { "text": message("The cluster; an address under it is an object and no file.") } } });
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": driver },
            "automationDetails": { "id": category(&report.cluster) },
            "invocations": [invocation(report)],
            "originalUriBaseIds": base,
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    let mut text = serde_json::to_string_pretty(&log).expect("a value is JSON");
    text.push('\n');
    text
}

/// The category of the alerts. Those of one cluster take the place of earlier ones of the same cluster only; GitHub takes
/// what is before the last slash.
fn category(cluster: &str) -> String {
    if cluster.is_empty() { "vramguard-audit/".to_owned() } else { format!("vramguard-audit/{}/", clean(cluster)) }
}

/// Name and version of a program, from a text such as `vramguard 0.1.0`.
fn program(generated_by: &str) -> (String, String) {
    let text = clean(generated_by);
    match text.split_once(' ') {
        Some((name, version)) => (name.to_owned(), version.to_owned()),
        None => ("vramguard".to_owned(), "unknown".to_owned()),
    }
}

fn invocation(report: &Report) -> Value {
    let mut notifications: Vec<Value> = report
        .gaps
        .iter()
        .map(|gap| json!({ "level": "warning", "message": { "text": message(&format!("not read: {}: {}", gap.what, gap.why)) } }))
        .collect();
    if report.findings.len() > MAX_RESULTS {
        let text = format!("{} findings are left out; the JSON report has all", report.findings.len() - MAX_RESULTS);
        notifications.push(json!({ "level": "warning", "message": { "text": text } }));
    }
    let mut invocation = json!({ "executionSuccessful": true, "toolExecutionNotifications": notifications });
    // The format is a subset of RFC 3339; another text would make the file invalid.
    if report.generated_at.parse::<jiff::Timestamp>().is_ok() {
        invocation["endTimeUtc"] = report.generated_at.clone().into();
    }
    invocation
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Deny => "error",
        Severity::Warn => "warning",
        Severity::Info => "note",
    }
}

fn rule(reason: &str, severity: Severity) -> Value {
    let id = clean(reason);
    let title = words(reason);
    json!({
        "id": id,
        "name": id,
        "shortDescription": { "text": message(&title) },
        "fullDescription": { "text": message(&format!("{title}. docs/audit.md says what each reason means and what to do.")) },
        "help": {
            "text": format!("See {id} in docs/audit.md of vramguard. The message of each result ends in what to do."),
        },
        "defaultConfiguration": { "level": level(severity) },
        "properties": { "tags": ["gpu-memory", "kubernetes"] },
    })
}

fn result(finding: &Finding, rule: usize) -> Value {
    let mut text = finding.message.clone();
    if !finding.remedy.is_empty() {
        text.push_str(&format!(". Remedy: {}", finding.remedy));
    }
    let mut properties = Map::new();
    let facts = [("container", &finding.container), ("node", &finding.node)];
    properties.extend(facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact.clone()?.into()))));
    if finding.pods > 0 {
        properties.insert("pods".to_owned(), finding.pods.into());
    }
    properties.extend(finding.numbers.iter().map(|(name, number)| (name.clone(), (*number).into())));
    json!({
        "ruleId": clean(&finding.reason),
        "ruleIndex": rule,
        "level": level(finding.severity),
        "message": { "text": message(&text) },
        "locations": [location(finding)],
        "partialFingerprints": { "vramguardFindingId/v1": key(finding) },
        "properties": properties,
    })
}

fn location(finding: &Finding) -> Value {
    let (artifact, line) = match &finding.source {
        Some(source) => (json!({ "uri": address(&source.file) }), source.line.max(1)),
        None => {
            let parts = [&finding.kind, &finding.namespace, &finding.name];
            let parts: Vec<String> =
                parts.into_iter().filter(|part| !part.is_empty()).map(|part| encoded(part, "")).collect();
            (json!({ "uri": parts.join("/"), "uriBaseId": CLUSTER }), 1)
        }
    };
    let name = format!("{}/{}", clean(&finding.kind), object(finding));
    json!({
        "physicalLocation": { "artifactLocation": artifact, "region": { "startLine": line } },
        "logicalLocations": [{ "name": clean(&finding.name), "fullyQualifiedName": name, "kind": "resource" }],
    })
}

/// The address of a file: relative to the root of the repository, or absolute.
fn address(file: &str) -> String {
    let path = encoded(file.trim_start_matches("./"), "/");
    if file.starts_with('/') { format!("file://{path}") } else { path }
}

/// Escapes all characters by RFC 3986 but unreserved ones and those of `kept`.
fn encoded(text: &str, kept: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || kept.contains(c) {
            encoded.push(c);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A text for a message: clean, and without links. Brackets would make one, and a backslash escapes them.
fn message(text: &str) -> String {
    let text = clean(text);
    text.replace('\\', r"\\").replace('[', r"\[").replace(']', r"\]")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{compared, sample};
    use super::*;

    fn log(report: &Report) -> Value {
        serde_json::from_str(&render(report)).expect("valid JSON")
    }

    #[test]
    fn the_sample_as_sarif() {
        insta::assert_snapshot!(render(&sample()));
    }

    #[test]
    fn each_result_has_a_rule_a_place_and_a_fingerprint() {
        let log = log(&sample());
        let run = &log["runs"][0];
        let results = run["results"].as_array().expect("results");
        assert_eq!(results.len(), sample().findings.len());
        for result in results {
            let index = usize::try_from(result["ruleIndex"].as_u64().expect("an index")).expect("a small index");
            assert_eq!(run["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);
            let place = &result["locations"][0]["physicalLocation"];
            assert!(place["region"]["startLine"].as_u64() >= Some(1));
            let address = place["artifactLocation"]["uri"].as_str().expect("an address");
            assert!(!address.is_empty() && address.bytes().all(|byte| byte.is_ascii_graphic()), "{address}");
            assert!(!address.contains(['<', '>', '"', '|', '`', '\\', ':']), "{address}");
            assert_eq!(result["partialFingerprints"]["vramguardFindingId/v1"].as_str().map(str::len), Some(16));
        }
        let file = &results[2]["locations"][0]["physicalLocation"];
        assert_eq!(file["artifactLocation"], json!({ "uri": "deploy/agents.yaml" }));
        assert_eq!(file["region"]["startLine"], 12);
    }

    #[test]
    fn a_text_makes_no_link() {
        let mut report = sample();
        report.findings[0].message = r"see [the fix](https://example.org) \[x](1)".into();
        report.findings[0].remedy.clear();
        let log = log(&report);
        assert_eq!(log["runs"][0]["results"][0]["message"]["text"], r"see \[the fix\](https://example.org) \\\[x\](1)");
    }

    #[test]
    fn results_say_whether_the_baseline_has_them() {
        let log = log(&compared());
        let results = log["runs"][0]["results"].as_array().expect("results");
        let states: Vec<&str> =
            results.iter().map(|result| result["baselineState"].as_str().expect("a state")).collect();
        assert_eq!(states, ["unchanged", "unchanged", "new", "unchanged", "unchanged", "unchanged", "unchanged"]);
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let mut report = sample();
        let finding = report.findings[0].clone();
        report.findings = vec![finding; MAX_RESULTS + 3];
        let log = log(&report);
        let run = &log["runs"][0];
        assert_eq!(run["results"].as_array().map(Vec::len), Some(MAX_RESULTS));
        let notifications = run["invocations"][0]["toolExecutionNotifications"].as_array().expect("notifications");
        assert_eq!(notifications[1]["message"]["text"], "3 findings are left out; the JSON report has all");
    }

    #[test]
    fn a_file_is_addressed_as_its_repository_does() {
        assert_eq!(address("./deploy/a b.yaml"), "deploy/a%20b.yaml");
        assert_eq!(address("/tmp/x.yaml"), "file:///tmp/x.yaml");
        assert_eq!(address("javascript:alert(1)"), "javascript%3Aalert%281%29");
    }
}
