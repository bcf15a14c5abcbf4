//! What is really used, in audits of a file with reports of node agents: current, old, unreadable, and none.

use super::*;
use crate::support::schema::violation;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/agent.yaml");

fn report() -> Value {
    let finished = audit(&["--snapshot", SNAPSHOT, "--output", "json"]);
    assert_eq!(finished.status.code(), Some(1), "a container over its declaration fails a run: {}", finished.stderr);
    json(&finished)
}

fn found<'r>(list: &'r Value, field: &str, name: &str) -> &'r Value {
    let all = list.as_array().expect("a list").iter();
    all.into_iter().find(|one| one[field] == name).unwrap_or_else(|| panic!("{name} in {list}"))
}

/// The finding of a reason about an object.
fn finding<'r>(report: &'r Value, reason: &str, name: &str) -> &'r Value {
    let all = report["findings"].as_array().expect("findings").iter();
    let mut of = all.filter(|finding| finding["reason"] == reason && finding["name"] == name);
    let one = of.next().unwrap_or_else(|| panic!("{reason} of {name}: {:?}", reasons(report)));
    assert!(of.next().is_none(), "{reason} of {name} is one finding");
    one
}

#[test]
fn what_is_used_is_next_to_what_is_held_and_neither_changes_the_other() {
    let report = report();
    let gpu = found(&report["gpus"], "node", "agent-0");
    // 8,192 + 720 and 4,096 + 720 are held; 300 outside of pods are part of what is used.
    assert_eq!((&gpu["heldMib"], &gpu["usedMib"], &gpu["outsideMib"]), (&json!(13_728), &json!(15_700), &json!(300)));
    assert!(gpu.get("stale").is_none());
    let sleeper = found(&gpu["holders"], "pod", "sleeper-0");
    // Idle since 06:30; the file is of 12:00.
    assert_eq!(
        (&sleeper["vramMib"], &sleeper["usedMib"], &sleeper["peakMib"], &sleeper["idleSeconds"], &sleeper["problem"]),
        (&json!(8_912), &json!(8_868), &json!(8_900), &json!(19_800), &json!("Idle"))
    );
    let node = found(&report["nodes"], "node", "agent-0");
    assert_eq!(node["agent"], json!({"reportedAt": "2026-11-30T12:00:00.000Z", "ageSeconds": 0}));
    // agent-0 and the GPU of agent-1 that can be read.
    assert_eq!((&report["summary"]["usedMib"], &report["summary"]["usedGpus"]), (&json!(15_700 + 9_700), &json!(2)));
}

#[test]
fn a_node_without_an_agent_has_no_used_amount_and_no_zero() {
    let report = report();
    let gpu = found(&report["gpus"], "node", "agent-5");
    assert_eq!(gpu["usedMib"], Value::Null);
    for field in ["outsideMib", "stale"] {
        assert!(gpu.get(field).is_none(), "{field}");
    }
    for field in ["usedMib", "peakMib", "idleSeconds", "problem", "stale"] {
        assert!(gpu["holders"][0].get(field).is_none(), "{field}");
    }
    assert!(found(&report["nodes"], "node", "agent-5").get("agent").is_none());
}

#[test]
fn an_old_report_is_shown_with_its_age_and_what_it_found_is_not_repeated() {
    let report = report();
    let gpu = found(&report["gpus"], "node", "agent-2");
    assert_eq!((&gpu["usedMib"], &gpu["stale"]), (&json!(8_874), &json!("reported 3 hours ago")));
    let holder = &gpu["holders"][0];
    // Idle from 04:00 to the report of 09:00: nothing is known of the time since.
    assert_eq!((&holder["idleSeconds"], &holder["stale"]), (&json!(5 * 3600), &json!("reported 3 hours ago")));
    let agent = &found(&report["nodes"], "node", "agent-2")["agent"];
    assert_eq!((&agent["ageSeconds"], &agent["stale"]), (&json!(3 * 3600), &json!("reported 3 hours ago")));
    let stale = finding(&report, "AgentStale", "agent-2");
    assert_eq!((&stale["severity"], &stale["numbers"]["ageSeconds"]), (&json!("warn"), &json!(10_800)));
    assert!(!reasons(&report).contains(&"Idle forgotten".to_owned()));
}

#[test]
fn what_cannot_be_read_is_said_with_the_reason_and_no_value_becomes_zero() {
    let report = report();
    let lost = found(&report["gpus"], "gpu", "GPU-b1");
    assert_eq!(lost["usedMib"], 8_868, "what was read last");
    assert!(lost["stale"].as_str().unwrap().contains("fell off the bus"), "{lost}");
    assert!(found(&report["gpus"], "gpu", "GPU-b0").get("stale").is_none(), "the other GPU of the node");
    assert!(!reasons(&report).contains(&"Idle on-lost".to_owned()), "what was found on a lost GPU is not current");
    let of_gpu = finding(&report, "AgentUnreadable", "agent-1")["message"].as_str().unwrap();
    assert!(of_gpu.contains("GPU-b1") && of_gpu.contains("fell off the bus"), "{of_gpu}");
    let driver = found(&report["gpus"], "node", "agent-3");
    assert!(driver["stale"].as_str().unwrap().contains("kernel module is not loaded"), "{driver}");
    let strange = finding(&report, "AgentUnreadable", "agent-4")["message"].as_str().unwrap();
    assert!(strange.contains("status.agent.containers[0].idleSince: is no RFC 3339 time"), "{strange}");
    assert_eq!(found(&report["gpus"], "node", "agent-4")["usedMib"], Value::Null);
}

#[test]
fn the_agents_findings_are_repeated_once_for_each_owner_with_its_figure_and_what_to_do() {
    let report = report();
    let idle = finding(&report, "Idle", "sleeper");
    assert_eq!((&idle["kind"], &idle["severity"], &idle["pods"]), (&json!("StatefulSet"), &json!("warn"), &json!(2)));
    let message = idle["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("pod \"ml/sleeper-0\", container \"main\" has computed nothing for 5 hours and holds 8868Mi")
            && message.ends_with("; the same of 2 pods of this owner, with 15868Mi in use together"),
        "{message}"
    );
    assert_eq!(idle["remedy"], "end it, or scale it down while nobody uses it");
    assert_eq!((&idle["numbers"]["usedMib"], &idle["numbers"]["usedTogetherMib"]), (&json!(8_868), &json!(15_868)));
    let over = finding(&report, "OverDeclaration", "taker");
    assert_eq!(
        (&over["severity"], &over["remedy"]),
        (&json!("deny"), &json!("set vramguard.dev/vram to at least 6144Mi"))
    );
    assert_eq!(finding(&report, "FarUnder", "wide")["severity"], "warn");
    assert_eq!(finding(&report, "Undeclared", "silent")["remedy"], "set vramguard.dev/vram to 832Mi");
    assert!(!report.to_string().contains("ml/ended"), "a pod that has ended is no holder and no finding");
}

#[test]
fn the_report_matches_the_schema() {
    let schema: Value =
        serde_json::from_str(include_str!("../../../docs/audit.schema.json")).expect("the schema is JSON");
    let mut report = report();
    assert_eq!(violation(&schema, &report), None);
    report["gpus"][0]["outsideMib"] = Value::from(-1);
    assert!(violation(&schema, &report).is_some());
}

/// The lines of a table from a title on.
fn section(text: &str, title: &str) -> String {
    let lines = text.lines().skip_while(|line| !line.starts_with(title)).skip(1);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_table_marks_what_is_not_current_and_shows_a_dash_for_what_is_not_known() {
    let text = audit(&["--snapshot", SNAPSHOT]).stdout;
    insta::assert_snapshot!(section(&text, "GPUS"), @"
    NODE     GPU     MODE       TOTAL  ALLOC  HELD  FREE  USED  PODS  UNDECL  HELD OF ALLOC      STATUS
    agent-1  GPU-b0  confirmed   24.0   23.3  21.3   2.0   9.5     3       1  ██████████░░  91%  ok
    agent-0  GPU-a0  exact       24.0   23.0  13.5   9.6  15.4     2       0  ██████░░░░░░  58%  ok
    agent-1  GPU-b1  confirmed   24.0   23.3   8.8  14.6  8.7*     1       0  ████░░░░░░░░  37%  ok
    agent-2  GPU-c0  exact       24.0   23.3   8.8  14.6  8.7*     1       0  ████░░░░░░░░  37%  ok
    agent-3  GPU-d0  exact       24.0   23.3   8.8  14.6  4.0*     1       0  ████░░░░░░░░  37%  ok
    agent-4  GPU-e0  exact       24.0   23.3   8.8  14.6     -     1       0  ████░░░░░░░░  37%  ok
    agent-5  0       exact       24.0   23.3   8.8  14.6     -     1       0  ████░░░░░░░░  37%  ok
    * not what is used now: agent-1 (not readable now: the GPU fell off the bus), agent-2 (reported 3 hours ago), agent-3
    (not readable now: the NVIDIA kernel module is not loaded)
    ");
    let markdown = audit(&["--snapshot", SNAPSHOT, "--output", "markdown"]).stdout;
    let rows: Vec<&str> = markdown.lines().filter(|line| line.starts_with("| `agent-")).collect();
    insta::assert_snapshot!(rows.join("\n"), @"
    | `agent-1` | 2 | confirmed | 46.6 | 30.0 | 14.6 | 18.2 (not readable now: the GPU fell off the bus) | 4 | 1 | ok |
    | `agent-0` | 1 | exact | 23.0 | 13.5 | 9.6 | 15.4 | 2 | 0 | ok |
    | `agent-2` | 1 | exact | 23.3 | 8.8 | 14.6 | 8.7 (reported 3 hours ago) | 1 | 0 | ok |
    | `agent-3` | 1 | exact | 23.3 | 8.8 | 14.6 | 4.0 (not readable now: the NVIDIA kernel module is not loaded) | 1 | 0 | ok |
    | `agent-4` | 1 | exact | 23.3 | 8.8 | 14.6 | - | 1 | 0 | ok |
    | `agent-5` | 1 | exact | 23.3 | 8.8 | 14.6 | - | 1 | 0 | ok |
    ");
}

#[test]
fn the_other_formats_list_the_findings_too() {
    for format in ["html", "sarif", "junit", "github", "policyreport"] {
        let text = audit(&["--snapshot", SNAPSHOT, "--all", "--output", format]).stdout;
        for reason in ["OverDeclaration", "FarUnder", "AgentStale"] {
            let words = match format {
                "html" => text.contains(&format!("<h3>{reason}")) || text.contains(reason),
                _ => text.contains(reason) || text.contains("Over declaration"),
            };
            assert!(words, "{reason} in {format}");
        }
    }
}
