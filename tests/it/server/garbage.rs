//! Answers to bodies that are no reviews, and to strange reviews. A client other than the API server may send them.

use std::cell::RefCell;

use hyper::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use crate::support::client::{Client, Verdict, patch_of};
use crate::support::test_server::{TestServer, pod, review};

/// A text in each body, which answers, log and metrics must not repeat.
const MARKER: &str = "hunter2marker";

fn no_reviews() -> Vec<(&'static str, Vec<u8>)> {
    let valid = review(&pod("team", json!({ "vramguard.dev/vram": MARKER })));
    let with = |pointer: &str, value: Value| {
        let mut review = valid.clone();
        *review.pointer_mut(pointer).expect("a place in a review") = value;
        review.to_string().into_bytes()
    };
    let text = valid.to_string();
    let mut not_utf8 = with("/request/uid", json!(format!("{MARKER}??")));
    let at = not_utf8.windows(2).position(|two| two == b"??").expect("it was just put there");
    not_utf8[at..at + 2].copy_from_slice(&[0xff, 0xc0]);
    let deep = |open: &str| format!("{{\"{MARKER}\":{}", open.repeat(100_000)).into_bytes();
    let deep_object = format!("{},\"object\":{}", &text[..text.len() - 2], "{\"spec\":".repeat(100_000));
    let deep_containers = text.replace("\"containers\":[", &format!("\"containers\":{}", "[".repeat(100_000)));
    let review_list = json!([MARKER, valid]);
    vec![
        ("empty", Vec::new()),
        ("blanks", b" \n\t ".to_vec()),
        ("garbage", format!("\0\u{1}{MARKER}\u{7f}").into_bytes()),
        ("bytes", [MARKER.as_bytes(), &[0xde, 0xad, 0xbe, 0xef, 0x00, 0xff]].concat()),
        (
            "YAML",
            format!("apiVersion: admission.k8s.io/v1\nkind: AdmissionReview\nrequest: {{uid: {MARKER}}}").into_bytes(),
        ),
        ("null", b"null".to_vec()),
        ("a number", b"17".to_vec()),
        ("a string", json!(MARKER).to_string().into_bytes()),
        ("a string of 1 MiB", json!(MARKER.repeat((1 << 20) / MARKER.len())).to_string().into_bytes()),
        ("a list", review_list.to_string().into_bytes()),
        (
            "the fields of a review as a list",
            json!(["admission.k8s.io/v1", "AdmissionReview", [MARKER]]).to_string().into_bytes(),
        ),
        ("a request as a list", with("/request", json!([MARKER]))),
        ("a Pod", valid["request"]["object"].to_string().into_bytes()),
        ("v1beta1", with("/apiVersion", json!("admission.k8s.io/v1beta1"))),
        ("a kind of the marker", with("/kind", json!(MARKER))),
        ("no request", with("/request", Value::Null)),
        ("a uid that is a number", with("/request/uid", json!(17))),
        ("an object that is a string", with("/request/object", json!(MARKER))),
        ("truncated", text.as_bytes()[..text.len() - 1].to_vec()),
        ("truncated in the middle", text.as_bytes()[..text.len() / 2].to_vec()),
        ("two reviews", text.repeat(2).into_bytes()),
        ("not UTF-8", not_utf8),
        ("deep lists", deep("[")),
        ("deep objects", deep("{\"a\":")),
        ("a deep object", deep_object.into_bytes()),
        ("deep containers", deep_containers.into_bytes()),
    ]
}

#[tokio::test]
async fn a_body_that_is_no_review_gets_400_and_is_repeated_nowhere() {
    let server = TestServer::start().await;
    let mut sent = 0.0;
    for protocol in ["http/1.1", "h2"] {
        let mut client = Client::connect(server.files.https, &server.ca(), protocol).await.expect("a connection");
        for (name, body) in no_reviews() {
            // What is wrong in a workload does not fail its review.
            let of_workloads = (name != "an object that is a string").then_some("/validate/workloads");
            for path in ["/mutate/pods", "/validate/pods"].into_iter().chain(of_workloads) {
                let (status, answer) = client.post(path, body.clone()).await.expect("an answer");
                let answer = String::from_utf8_lossy(&answer);
                assert_eq!(status, StatusCode::BAD_REQUEST, "{name}: {answer}");
                assert!(!answer.contains(MARKER) && !answer.contains("allowed"), "{name}: {answer}");
                assert!(answer.len() < 200, "{name}: {answer}");
                sent += 1.0;
            }
        }
        // The connection of all these bodies still works.
        assert_eq!(client.verdict(&pod("lab", json!({}))).await, Verdict::Denied("VramUndeclared".into()));
    }
    let log = server.log();
    assert!(log.contains("listening"), "else nothing is shown here: {log}");
    assert!(!log.contains(MARKER), "{log}");
    let metrics = server.plain("/metrics");
    assert!(!metrics.contains(MARKER), "{metrics}");
    assert_eq!(server.metric("vramguard_refused_bodies_total"), Some(sent));
}

#[tokio::test]
async fn a_body_of_more_than_8_mib_gets_413_and_one_of_8_mib_is_read() {
    let server = TestServer::shared().await;
    let mut body = review(&pod("team", json!({ "vramguard.dev/vram": "8Gi" }))).to_string().into_bytes();
    body.resize(8 << 20, b' ');
    for protocol in ["http/1.1", "h2"] {
        let connect = async || Client::connect(server.files.https, &server.ca(), protocol).await;
        let mut client = connect().await.expect("a connection");
        let (status, _) = client.post("/mutate/pods", body.clone()).await.expect("an answer");
        assert_eq!(status, StatusCode::OK, "over {protocol}");

        let larger = [body.as_slice(), b" "].concat();
        let (status, answer) = client.post("/mutate/pods", larger).await.expect("an answer");
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "over {protocol}");
        assert!(!String::from_utf8_lossy(&answer).contains("allowed"), "over {protocol}");
        let verdict = connect().await.expect("a connection").verdict(&pod("lab", json!({}))).await;
        assert_eq!(verdict, Verdict::Denied("VramUndeclared".into()), "over {protocol}");
    }
}

#[tokio::test]
async fn a_name_with_line_breaks_forges_no_line_of_the_log() {
    let server = TestServer::start().await;
    let mut pod = pod("lab", json!({}));
    pod["metadata"]["name"] = json!("x\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[2Jline");
    assert_eq!(server.client().await.verdict(&pod).await, Verdict::Denied("VramUndeclared".into()));
    let log = server.log();
    assert!(log.contains("forged"), "else nothing is shown here: {log}");
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01")), "{log}");
    assert!(!log.contains('\u{1b}'), "{log:?}");
}

/// A review with many fields, for mutation.
fn rich() -> Value {
    let mut pod = pod(
        "team",
        json!({ "vramguard.dev/vram.main": "8Gi", "vramguard.dev/processes": "2", "vramguard.dev/gpu.main": "0", "other": "x" }),
    );
    let gpu = json!({ "limits": { "nvidia.com/gpu": 1, "cpu": "500m" }, "requests": { "nvidia.com/gpu": "1" } });
    json_patch::merge(
        &mut pod["spec"],
        &json!({
            "initContainers": [
                { "name": "init", "image": "none", "resources": gpu },
                { "name": "side", "image": "none", "restartPolicy": "Always", "env": [] },
            ],
            "containers": [
                { "name": "main", "image": "none", "resources": gpu, "env": [
                    { "name": "CUDA_DEVICE_ORDER", "value": "FASTEST_FIRST" },
                    { "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                ] },
                { "name": "two", "image": "none", "resources": { "limits": { "nvidia.com/gpu": "2" } } },
                { "name": "plain", "image": "none", "env": [{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }] },
            ],
            "nodeSelector": { "a": "b" },
            "tolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" }],
            "priority": 1000,
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] },
                { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["h100-0"] }] },
            ] } } },
        }),
    );
    review(&pod)
}

/// Adds JSON pointers to all values in `value`, without itself.
pub(super) fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(list) => list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let at = format!("{at}/{key}");
        places(child, &at, found);
        found.push(at);
    }
}

/// Any JSON, often with nearly valid strings and keys.
pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let near = [
        "",
        "1",
        "-1",
        "8Gi",
        "0",
        "9223372036854775808",
        "1e400",
        "8Gi ",
        "Always",
        "\u{0}",
        "ü",
        "../..",
        "a\"b\\c\nd",
        "vramguard.dev/vram",
        "99999999999999Ti",
        "0.0000001Ki",
        "nvidia.com/gpu",
        "kube-system",
        "Exists",
        "NotIn",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        prop::sample::select(near.to_vec()).prop_map(Value::from),
    ];
    let keys = prop_oneof![
        ".{0,12}",
        prop::sample::select(vec!["name", "value", "limits", "nvidia.com/gpu", "vramguard.dev/vram", "env", "spec"])
            .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::btree_map(keys.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Sends a review to both webhooks and checks what must hold for any answer.
async fn check(client: &mut Client, review: &Value) -> Result<(), TestCaseError> {
    for path in ["/mutate/pods", "/validate/pods"] {
        let answered = client.post(path, review.to_string()).await;
        let (status, body) = answered.map_err(|error| TestCaseError::fail(format!("{path}: {error:#}")))?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status == StatusCode::BAD_REQUEST {
            prop_assert!(!text.contains("allowed"), "{}", text);
            continue;
        }
        prop_assert_eq!(status, StatusCode::OK, "{}: {}", path, text);
        let answer: Value = serde_json::from_str(&text).expect("an answer is JSON");
        let response = &answer["response"];
        prop_assert_eq!(&response["uid"], &review["request"]["uid"]);
        prop_assert!(response["allowed"].is_boolean());
        let Some(patch) = patch_of(response) else { continue };
        // The API server never sends an object that is no Pod, and a patch of one has no meaning.
        if serde_json::from_value::<Pod>(review["request"]["object"].clone()).is_err() {
            continue;
        }
        let mut patched = review.clone();
        let applied = json_patch::patch(&mut patched["request"]["object"], &patch);
        prop_assert!(applied.is_ok(), "{:?} on {}: {}", applied, review["request"]["object"], text);
        let (_, again) = client.post(path, patched.to_string()).await.expect("an answer");
        let again: Value = serde_json::from_slice(&again).expect("an answer is JSON");
        prop_assert_eq!(again["response"].get("patch"), None, "a second patch after {}", text);
    }
    Ok(())
}

#[test]
fn any_json_in_any_place_of_a_review_is_answered_or_refused() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = runtime.block_on(TestServer::shared());
    let client = RefCell::new(runtime.block_on(server.client()));
    let base = rich();
    assert!(
        patch_of(&runtime.block_on(client.borrow_mut().ask("/mutate/pods", &base))).is_some(),
        "else nothing is shown here"
    );
    let mut found = Vec::new();
    places(&base, "", &mut found);
    assert!(found.len() > 80, "{found:?}");
    let changes = prop::collection::vec((prop::sample::select(found), any_json()), 1..4);
    let config = Config { cases: 300, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    let tested = TestRunner::new(config).run(&changes, |changes| {
        let mut review = base.clone();
        for (place, value) in changes {
            // An earlier change may have removed the place.
            if let Some(at) = review.pointer_mut(&place) {
                *at = value;
            }
        }
        runtime.block_on(check(&mut client.borrow_mut(), &review))
    });
    tested.unwrap_or_else(|error| panic!("{error}"));
    let verdict = runtime.block_on(client.borrow_mut().verdict(&pod("lab", json!({}))));
    assert_eq!(verdict, Verdict::Denied("VramUndeclared".into()));
    server.expect_ready();
}
