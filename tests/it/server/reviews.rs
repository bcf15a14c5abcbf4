//! Answers to reviews, and the protocols, methods and paths of the port.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{Client, Verdict, patch_of, whole};
use crate::support::test_server::{PATIENCE, TestServer, pod, review};
use crate::support::within;

#[tokio::test]
async fn reviews_are_answered_over_http_1_and_http_2() {
    let server = TestServer::shared().await;
    for protocol in ["http/1.1", "h2"] {
        let mut client = Client::connect(server.files.https, &server.ca(), protocol).await.expect("a connection");
        for _ in 0..3 {
            let pod = pod("team", json!({ "vramguard.dev/vram": "8Gi" }));
            let response = client.ask("/mutate/pods", &review(&pod)).await;
            assert_eq!(response["allowed"], true, "over {protocol}");
            assert!(patch_of(&response).is_some(), "over {protocol}: {response}");
        }
        assert_eq!(client.verdict(&pod("lab", json!({}))).await, Verdict::Denied("VramUndeclared".into()));
    }
}

#[tokio::test]
async fn a_client_without_tls_1_3_is_refused_for_its_protocol_version() {
    let server = TestServer::shared().await;
    let mut hello = vec![3, 3]; // TLS 1.2
    hello.extend([7; 32]); // random
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]); // no session, two suites of TLS 1.2, no compression
    let extensions: [&[u8]; 3] = [
        &[0, 10, 0, 6, 0, 4, 0, 0x1d, 0, 0x17], // groups x25519, secp256r1
        &[0, 11, 0, 2, 1, 0],                   // uncompressed points
        &[0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1], // signatures
    ];
    let extensions = extensions.concat();
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![0x16, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
    record.extend(hello);

    let mut stream = TcpStream::connect(("127.0.0.1", server.files.https)).await.expect("a connection");
    stream.write_all(&record).await.expect("a hello");
    let mut answer = Vec::new();
    let reading = within(PATIENCE, stream.read_to_end(&mut answer)).await;
    reading.expect("the server closes").expect("in an orderly way");
    assert_eq!(answer.first(), Some(&0x15), "an alert, not a handshake: {answer:?}");
    assert_eq!(answer[5..], [2, 70], "fatal, protocol_version");
}

#[tokio::test]
async fn a_mutation_is_a_patch_that_applies_and_is_not_needed_twice() {
    let server = TestServer::shared().await;
    let mut client = server.client().await;
    let mut pod = pod("team", json!({ "vramguard.dev/vram": "8Gi" }));
    let first = client.ask("/mutate/pods", &review(&pod)).await;
    let patch = patch_of(&first).expect("a patch");
    json_patch::patch(&mut pod, &patch).expect("a patch that applies");
    let resources = &pod["spec"]["containers"][0]["resources"];
    assert_eq!(resources["limits"]["vramguard.dev/vram"], "8912Mi", "8Gi and 720Mi for CUDA");
    assert_eq!(resources["limits"], resources["requests"]);

    let second = client.ask("/mutate/pods", &review(&pod)).await;
    assert_eq!(second["allowed"], true);
    assert_eq!(second.get("patch"), None, "{second}");
    assert_eq!(second.get("patchType"), None, "{second}");
    assert_eq!(client.verdict(&pod).await, Verdict::Allowed);
}

#[tokio::test]
async fn a_pod_that_was_not_mutated_is_denied() {
    let server = TestServer::shared().await;
    let pod = pod("team", json!({ "vramguard.dev/vram": "8Gi" }));
    assert_eq!(server.client().await.verdict(&pod).await, Verdict::Denied("RequestMismatch".into()));
}

#[tokio::test]
async fn a_denial_says_code_reason_and_remedy_and_a_dry_run_gets_the_same() {
    let server = TestServer::shared().await;
    let mut client = server.client().await;
    for (annotations, code, reason, remedy) in [
        (json!({}), 403, "VramUndeclared", "vramguard.dev/vram"),
        (json!({ "vramguard.dev/vram": "10GB" }), 422, "VramUnreadable", "10GB"),
        (json!({ "vramguard.dev/vram": "0Gi" }), 422, "VramZero", "vramguard.dev/vram"),
    ] {
        let mut review = review(&pod("lab", annotations));
        let response = client.ask("/validate/pods", &review).await;
        let status = &response["status"];
        assert_eq!(response["allowed"], false, "{response}");
        assert_eq!((&status["code"], &status["reason"]), (&json!(code), &json!(reason)));
        let message = status["message"].as_str().expect("a message");
        assert!(message.contains("lab/agent") && message.contains(remedy), "{message}");
        let mutated = client.ask("/mutate/pods", &review).await;

        review["request"]["dryRun"] = json!(true);
        assert_eq!(client.ask("/validate/pods", &review).await, response);
        assert_eq!(client.ask("/mutate/pods", &review).await, mutated);
    }
}

#[tokio::test]
async fn reviews_of_anything_but_the_creation_of_a_pod_are_allowed_untouched() {
    let server = TestServer::shared().await;
    let mut client = server.client().await;
    let guarded = review(&pod("lab", json!({ "vramguard.dev/vram": "lots", "vramguard.dev/gpu.main": "0" })));
    assert!(patch_of(&client.ask("/mutate/pods", &guarded).await).is_some(), "else nothing is shown here");
    assert_eq!(client.ask("/validate/pods", &guarded).await["allowed"], false);

    let with = |changes: Value| {
        let mut review = guarded.clone();
        json_patch::merge(&mut review["request"], &changes);
        review
    };
    let resource = |group: &str, resource: &str| with(json!({ "resource": { "group": group, "resource": resource } }));
    for other in [
        with(json!({ "operation": "UPDATE", "oldObject": guarded["request"]["object"] })),
        with(json!({ "operation": "DELETE", "object": null, "oldObject": guarded["request"]["object"] })),
        with(
            json!({ "operation": "CONNECT", "subResource": "exec", "object": { "kind": "PodExecOptions", "command": ["sh"] } }),
        ),
        with(json!({ "operation": "create" })),
        with(json!({ "subResource": "status", "operation": "UPDATE" })),
        with(json!({ "subResource": "ephemeralcontainers" })),
        with(json!({ "subResource": "binding" })),
        resource("apps", "deployments"),
        resource("example.com", "pods"),
        resource("", "services"),
        with(json!({ "namespace": "kube-system" })),
        with(json!({ "namespace": "vramguard-system" })),
    ] {
        for path in ["/mutate/pods", "/validate/pods"] {
            let response = client.ask(path, &other).await;
            assert_eq!(response, json!({ "uid": other["request"]["uid"], "allowed": true }), "{path} {other}");
        }
    }
}

#[tokio::test]
async fn other_methods_get_405_and_other_paths_404() {
    let server = TestServer::shared().await;
    let body = review(&pod("team", json!({ "vramguard.dev/vram": "8Gi" }))).to_string();
    for protocol in ["http/1.1", "h2"] {
        let mut client = Client::connect(server.files.https, &server.ca(), protocol).await.expect("a connection");
        let methods = [Method::GET, Method::HEAD, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
        for method in methods {
            for path in ["/mutate/pods", "/validate/pods", "/validate/workloads"] {
                let (status, answer) = client.send(method.clone(), path, whole(body.clone())).await.expect("an answer");
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
                assert!(answer.is_empty(), "{method} {path}: {answer:?}");
            }
        }
        for path in [
            "/",
            "/report",
            "/mutate",
            "/mutate/",
            "/mutate/pods/",
            "/mutate/pods/x",
            "//mutate/pods",
            "/MUTATE/PODS",
            "/mutate/bindings",
            "/mutate/workloads",
            "/scheduler",
            "/scheduler/filter", // without --scheduler-extender
            "/scheduler/prioritize",
            "/metrics",
            "/healthz",
            "/readyz",
        ] {
            let (status, answer) = client.post(path, body.clone()).await.expect("an answer");
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
            assert!(answer.is_empty(), "{path}: {answer:?}");
        }
    }
    for path in ["/report", "/mutate/pods", "/"] {
        let answer = server.plain(path);
        assert!(answer.starts_with("HTTP/1.1 404"), "on the plain port, {path}: {answer}");
    }
}

#[tokio::test]
async fn a_review_of_3_mib_is_answered_as_a_small_one_is() {
    let server = TestServer::shared().await;
    let small = pod("team", json!({ "vramguard.dev/vram": "8Gi" }));
    let mut large = small.clone();
    for number in 0..8 {
        large["metadata"]["annotations"][format!("example.com/note-{number}")] = json!("ü\"\\\n".repeat(25_000));
    }
    let field = json!({ "manager": "kubelet", "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } } } });
    large["metadata"]["managedFields"] = Value::Array(vec![field; 20_000]);
    for protocol in ["http/1.1", "h2"] {
        let mut client = Client::connect(server.files.https, &server.ca(), protocol).await.expect("a connection");
        let review_of_large = review(&large);
        assert!(review_of_large.to_string().len() > 3 << 20, "else nothing is shown here");
        for path in ["/mutate/pods", "/validate/pods"] {
            let answer = client.ask(path, &review_of_large).await;
            assert_eq!(answer, client.ask(path, &review(&small)).await, "{path} over {protocol}");
        }
    }
}

#[tokio::test]
async fn a_node_selector_term_that_matches_no_node_is_left_as_it_is() {
    let server = TestServer::shared().await;
    let mut client = server.client().await;
    let nothing = [
        json!({}),
        json!({ "matchExpressions": [] }),
        json!({ "matchFields": [] }),
        json!({ "matchExpressions": [], "matchFields": [] }),
    ];
    for nothing in nothing {
        let zone = json!({ "matchExpressions": [{ "key": "zone", "operator": "Exists" }] });
        let mut pod = pod("team", json!({ "vramguard.dev/vram": "8Gi" }));
        let two = json!({ "nvidia.com/gpu": "2" });
        pod["spec"]["containers"][0]["resources"] = json!({ "limits": two, "requests": two });
        let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
        pod["spec"]["affinity"] = json!({
            "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [nothing, zone] } },
        });
        let patch = patch_of(&client.ask("/mutate/pods", &review(&pod)).await).expect("a patch");
        json_patch::patch(&mut pod, &patch).expect("a patch that applies");
        let terms = pod.pointer(required).expect("they were there");
        assert_eq!(terms[0], nothing, "one requirement more, and it matches some nodes");
        assert_eq!(terms[1]["matchExpressions"][1]["operator"], "NotIn", "{terms}");

        let again = client.ask("/mutate/pods", &review(&pod)).await;
        assert_eq!(again.get("patch"), None, "not needed twice: {nothing}");
        assert_eq!(client.verdict(&pod).await, Verdict::Allowed, "{nothing}");
    }
}
