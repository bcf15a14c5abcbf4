//! Answers to filter requests: those of kube-scheduler, and invalid ones.

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::support::client::{Client, Verdict};
use crate::support::test_server::{TestServer, pod};

const PATH: &str = "/scheduler/filter";
const EXTENDER: &[&str] = &["--scheduler-extender"];

/// A mutated pod with this request.
fn requesting(vram: &str) -> Value {
    let mut pod = pod("team", json!({}));
    let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": vram });
    pod["metadata"]["uid"] = json!("7f7b1c7e-6ee5-4d5c-8f0e-000000000001");
    pod["spec"]["containers"][0]["resources"] = json!({ "limits": resources, "requests": resources });
    pod
}

async fn ask(client: &mut Client, question: &Value) -> Value {
    let (status, body) = client.post(PATH, question.to_string()).await.expect("an answer");
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).expect("an answer is JSON")
}

#[tokio::test]
async fn each_node_passes_or_fails_with_a_reason_over_http_1_and_http_2() {
    let server = TestServer::start_with(EXTENDER).await;
    for protocol in ["http/1.1", "h2"] {
        let mut client = Client::connect(server.files.https, &server.ca(), protocol).await.expect("a connection");
        let nodes = json!(["l40s-0", "h100-0", "cpu-0"]);
        let question = json!({ "Pod": requesting("12000Mi"), "Nodes": null, "NodeNames": nodes });
        let failed = json!({
            "l40s-0": "node(s) had no room for 12000Mi on one GPU (slot accounting)",
            "cpu-0": "node(s) had no nvidia.com/gpu that is accounted for",
        });
        let expected = json!({
            "Nodes": null,
            "NodeNames": ["h100-0"],
            "FailedNodes": failed,
            "FailedAndUnresolvableNodes": failed,
            "Error": "",
        });
        assert_eq!(ask(&mut client, &question).await, expected, "over {protocol}");
        let other_case = json!({ "pod": requesting("12000Mi"), "nodenames": nodes });
        assert_eq!(ask(&mut client, &other_case).await, expected, "over {protocol}");
    }
}

#[tokio::test]
async fn a_pod_without_a_request_passes_everywhere() {
    let server = TestServer::start_with(EXTENDER).await;
    let mut client = server.client().await;
    let nodes = json!(["l40s-0", "h100-0", "cpu-0"]);
    for pod in [pod("team", json!({ "vramguard.dev/vram": "8Gi" })), json!({ "metadata": { "name": "web" } })] {
        let answer = ask(&mut client, &json!({ "Pod": pod, "NodeNames": nodes })).await;
        assert_eq!(answer["NodeNames"], nodes, "{pod}");
        assert_eq!(answer["FailedNodes"], json!({}), "{pod}");
    }
}

#[tokio::test]
async fn who_sends_whole_nodes_gets_those_back_that_pass() {
    let server = TestServer::start_with(EXTENDER).await;
    let node = |name: &str| json!({ "metadata": { "name": name, "labels": { "a": "b" } }, "status": { "images": [] } });
    let nodes = json!({ "metadata": {}, "items": [node("l40s-0"), node("h100-0")] });
    let question = json!({ "Pod": requesting("12000Mi"), "Nodes": nodes, "NodeNames": null });
    let answer = ask(&mut server.client().await, &question).await;
    assert_eq!(answer["Nodes"], json!({ "items": [node("h100-0")] }));
    assert_eq!(answer["NodeNames"], Value::Null);
    assert!(answer["FailedNodes"]["l40s-0"].is_string(), "{answer}");
}

#[tokio::test]
async fn questions_are_counted_and_timed() {
    let server = TestServer::start_with(EXTENDER).await;
    let mut client = server.client().await;
    for vram in ["12000Mi", "12000Mi", "200Gi"] {
        ask(&mut client, &json!({ "Pod": requesting(vram), "NodeNames": ["l40s-0", "h100-0"] })).await;
    }
    let counted = |verdict: &str, reason: &str| {
        let labels = format!(r#"webhook="filter",verdict="{verdict}",reason="{reason}",namespace="team""#);
        server.metric(&format!("vramguard_reviews_total{{{labels}}}"))
    };
    assert_eq!(counted("allowed", ""), Some(2.0));
    assert_eq!(counted("denied", "VramShortfall"), Some(1.0));
    assert_eq!(server.metric(r#"vramguard_review_duration_seconds_count{webhook="filter"}"#), Some(3.0));
}

#[tokio::test]
async fn a_body_that_is_no_question_gets_400_and_is_repeated_nowhere() {
    let marker = "hunter2marker";
    let server = TestServer::start_with(EXTENDER).await;
    let valid = json!({ "Pod": pod(marker, json!({})), "NodeNames": [marker] });
    let text = valid.to_string();
    let deep = format!("{{\"Pod\":{{\"{marker}\":{}", "[".repeat(100_000));
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("garbage", format!("\0{marker}\u{7f}").into_bytes()),
        ("not UTF-8", [b"{\"Pod\":{},\"NodeNames\":[\"", marker.as_bytes(), b"\xff\"]}"].concat()),
        ("null", b"null".to_vec()),
        ("a list", json!([valid]).to_string().into_bytes()),
        ("a pod", pod(marker, json!({})).to_string().into_bytes()),
        ("no pod", json!({ "NodeNames": [marker] }).to_string().into_bytes()),
        ("no nodes", json!({ "Pod": pod(marker, json!({})) }).to_string().into_bytes()),
        ("both lists", json!({ "Pod": {}, "NodeNames": [marker], "Nodes": { "items": [] } }).to_string().into_bytes()),
        ("names that are a string", json!({ "Pod": {}, "NodeNames": marker }).to_string().into_bytes()),
        ("a node without a name", json!({ "Pod": {}, "Nodes": { "items": [{ marker: 1 }] } }).to_string().into_bytes()),
        ("half of it", text.as_bytes()[..text.len() / 2].to_vec()),
        ("two of them", text.repeat(2).into_bytes()),
        ("deep lists", deep.into_bytes()),
    ];
    let sent = bodies.len();
    let mut client = server.client().await;
    for (name, body) in bodies {
        let (status, answer) = client.post(PATH, body).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}: {answer}");
        assert!(answer.contains("line ") && !answer.contains(marker), "{name}: {answer}");
        assert!(answer.len() < 200, "{name}: {answer}");
    }
    let mut larger = text.into_bytes();
    larger.resize((8 << 20) + 1, b' ');
    let (status, _) = client.post(PATH, larger).await.expect("an answer");
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

    // Nodes with invalid names are answered like unknown nodes.
    let strange =
        json!({ "Pod": requesting("1Gi"), "NodeNames": ["", "a\"b\\c\nd", "ü", "../..", "h100-0", "h100-0"] });
    let answer = ask(&mut server.client().await, &strange).await;
    assert_eq!(answer["NodeNames"], json!(["h100-0", "h100-0"]), "{answer}");
    assert_eq!(server.metric("vramguard_refused_bodies_total"), Some(sent as f64));
    assert!(!server.log().contains(marker) && !server.plain("/metrics").contains(marker));
    assert_eq!(
        server.client().await.verdict(&pod("lab", json!({}))).await,
        Verdict::Denied("VramUndeclared".into()),
        "and reviews go on"
    );
}
