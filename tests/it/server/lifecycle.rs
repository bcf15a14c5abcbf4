//! Start, invalid input, and stop of a server.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use hyper::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{Client, Verdict, connect};
use crate::support::test_server::{BINARY, PATIENCE, POLICIES, ServerFiles, TestServer, pod, review};
use crate::support::{Finished, Process, eventually, run, within, write};

fn exits(command: &mut Command, code: i32) -> Finished {
    let finished = run(command, PATIENCE);
    assert_eq!(finished.status.code(), Some(code), "{}{}", finished.stderr, finished.stdout);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

#[test]
fn a_policy_that_cannot_be_read_ends_it_with_file_line_and_field() {
    for (from, to, said) in [
        ("mode: Enforce", "mode: Sometimes", "bad.yaml:4: spec.mode"),
        ("mode: Enforce", "moods: Enforce", "bad.yaml:4: spec"),
        ("required: true", "required: perhaps", "bad.yaml:9: spec.declaration.required"),
        ("required: true", "min: 8", "bad.yaml:"),
        ("namespace: lab", "labels: {}", "bad.yaml:5: metadata.namespace"),
        ("kind: ClusterVramPolicy", "kind: Policy", "bad.yaml:1: kind"),
        ("spec: {mode: Enforce}", "spec: {mode: Enforce", "bad.yaml:"),
        ("mode: Enforce", "mode: Enforce, headroom: {percent: 101}", "spec.headroom"),
    ] {
        let files = ServerFiles::new();
        write(&files.policies().join("policies.yaml"), "");
        let bad = POLICIES.replace(from, to);
        assert_ne!(bad, POLICIES, "{from}");
        write(&files.policies().join("bad.yaml"), bad);
        let stderr = exits(&mut files.command(), 2).stderr;
        assert!(stderr.contains(said), "{to}: {stderr}");
        assert!(stderr.contains(&files.policies().display().to_string()), "which folder: {stderr}");
    }
}

#[test]
fn all_errors_of_all_policy_files_are_told_at_once() {
    let files = ServerFiles::new();
    write(&files.policies().join("a.yaml"), POLICIES.replace("Enforce", "A"));
    write(&files.policies().join("b.yaml"), POLICIES.replace("true", "b"));
    let stderr = exits(&mut files.command(), 2).stderr;
    assert!(stderr.contains("a.yaml:4:") && stderr.contains("b.yaml:9:"), "{stderr}");
}

#[test]
fn input_that_is_not_there_or_not_readable_ends_it_with_code_2() {
    let files = ServerFiles::new();
    let snapshot = std::fs::read_to_string(files.snapshot()).expect("it was just written");
    let file = |name: &str, text: &str| {
        let path = files.folder().join(name);
        write(&path, text);
        path.display().to_string()
    };
    let same = file("same.yaml", &snapshot);
    let twice = file("twice.yaml", &snapshot.replace("l40s-0", "h100-0"));
    let broken = file("broken.yaml", "kind: Node\nmetadata: {name: [\n");
    let binary = files.folder().join("binary.yaml");
    write(&binary, [0xff, 0xfe, 0x00, 0x80]);
    let binary = binary.display().to_string();
    for (flags, said) in [
        (vec!["--policies", "/nonexistent/policies"], "/nonexistent/policies"),
        (vec!["--snapshot", "/nonexistent/cluster.yaml"], "/nonexistent/cluster.yaml"),
        (vec!["--snapshot", &same], "h100-0 is there twice"),
        (vec!["--snapshot", &twice], "h100-0 is there twice"),
        (vec!["--snapshot", &broken], "broken.yaml:"),
        (vec!["--snapshot", &binary], "binary.yaml"),
        (vec!["--no-such-flag"], "--no-such-flag"),
        (vec!["--drain", "soon"], "--drain"),
        (vec!["--kubeconfig", "x"], "--kubeconfig"),
        (vec!["--log-format", "xml"], "xml"),
    ] {
        let mut command = Command::new(BINARY);
        let given: Vec<String> = match flags[0] {
            "--policies" => files.arguments().into_iter().filter(|given| !given.contains("policies")).collect(),
            "--drain" => files.arguments().into_iter().take(10).collect(),
            _ => files.arguments(),
        };
        command.arg("serve").args(given).args(&flags);
        let stderr = exits(&mut command, 2).stderr;
        assert!(stderr.contains(said), "{flags:?}: {stderr}");
    }
    for listen in ["127.0.0.1", "localhost:99999", ":8443"] {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--cert-dir", "x", "--listen", listen]);
        assert!(exits(&mut command, 2).stderr.contains("--listen"), "{listen}");
    }
    assert!(exits(Command::new(BINARY).arg("serve"), 2).stderr.contains("--cert-dir"));
    exits(Command::new(BINARY).arg("no-such-command"), 2);
    exits(&mut Command::new(BINARY), 2);
}

#[test]
fn a_port_in_use_ends_it_with_code_1_and_the_address() {
    let files = ServerFiles::new();
    for port in [files.https, files.http] {
        let _taken = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let stderr = exits(&mut files.command(), 1).stderr;
        assert!(stderr.contains(&format!("127.0.0.1:{port}")), "{stderr}");
    }
}

#[tokio::test]
async fn flags_can_be_given_by_environment_variables() {
    let files = ServerFiles::new();
    let address = |port: u16| format!("127.0.0.1:{port}");
    let process = Process::new("vramguard", BINARY.as_ref(), files.folder())
        .arg("serve")
        .env("VRAMGUARD_SNAPSHOT", files.snapshot())
        .env("VRAMGUARD_POLICIES", files.policies())
        .env("VRAMGUARD_CERT_DIR", files.certificates())
        .env("VRAMGUARD_SELF_SIGNED", "true")
        .env("VRAMGUARD_LISTEN", address(files.https))
        .env("VRAMGUARD_METRICS_LISTEN", address(files.http))
        .env("VRAMGUARD_DRAIN", "0")
        .env("VRAMGUARD_LOG_FORMAT", "json");
    let mut server = TestServer { process, files };
    server.process.start();
    server.ready().await;
    let verdict = server.client().await.verdict(&pod("lab", json!({}))).await;
    assert_eq!(verdict, Verdict::Denied("VramUndeclared".into()));
    assert_eq!(server.process.terminate(Duration::from_secs(10)).code(), Some(0));
    for line in server.log().lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["message"].is_string() && entry["level"].is_string(), "{line}");
    }
}

#[test]
fn a_switch_that_is_off_in_the_environment_is_off() {
    let files = ServerFiles::new();
    let _taken = TcpListener::bind(("127.0.0.1", files.https)).expect("a free port");
    let mut command = files.command();
    exits(command.env("VRAMGUARD_SELF_SIGNED", "false"), 1);
    assert!(!files.certificates().join("tls.crt").exists());
    // A switch that is off neither requires nor excludes another flag.
    let listen = format!("127.0.0.1:{}", files.https);
    let mut command = Command::new(BINARY);
    command.args(["serve", "--cert-secret", "x", "--listen", &listen]);
    let stderr = exits(command.env("VRAMGUARD_SELF_SIGNED", "false"), 1).stderr;
    assert!(stderr.contains(&listen), "{stderr}");
}

#[tokio::test]
async fn a_restart_keeps_the_certificate_that_it_made() {
    let mut server = TestServer::start().await;
    let ca = server.ca();
    assert_eq!(server.process.terminate(Duration::from_secs(10)).code(), Some(0));
    server.process.start();
    server.ready().await;
    assert_eq!(server.ca(), ca);
}

/// A review of which only the head and half of the body are sent; [`InFlight::finish`] sends the rest.
struct InFlight {
    stream: crate::support::client::Stream,
    rest: String,
}

impl InFlight {
    async fn start(server: &TestServer) -> InFlight {
        let body = review(&pod("lab", json!({}))).to_string();
        let (half, rest) = body.split_at(body.len() / 2);
        let mut stream = connect(server.files.https, &server.ca(), "http/1.1").await.expect("a connection");
        let length = body.len();
        let head = format!("POST /validate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {length}\r\n\r\n{half}");
        stream.write_all(head.as_bytes()).await.expect("half a request");
        stream.flush().await.expect("half a request");
        InFlight { stream, rest: rest.to_owned() }
    }

    async fn finish(mut self) -> String {
        self.stream.write_all(self.rest.as_bytes()).await.expect("the other half");
        self.stream.flush().await.expect("the other half");
        let mut answer = Vec::new();
        let reading = within(PATIENCE, self.stream.read_to_end(&mut answer)).await;
        reading.expect("the server closes").expect("in an orderly way");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn a_server_told_to_stop_is_unready_first_then_finishes_what_is_in_flight_and_exits_0() {
    let mut server = TestServer::start().await;
    let mut idle = [server.client().await, server.client().await];
    let denied = Verdict::Denied("VramUndeclared".into());
    assert_eq!(idle[0].verdict(&pod("lab", json!({}))).await, denied);
    let idle_http2 = Client::connect(server.files.https, &server.ca(), "h2").await.expect("a connection");
    let in_flight = InFlight::start(&server).await;
    server.tell_to_stop();
    eventually("the server to be unready", Duration::from_secs(5), async || {
        let answer = server.plain("/readyz");
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        Ok(())
    })
    .await;
    // Clients that do not know yet are served, on old and new connections.
    assert_eq!(idle[1].verdict(&pod("lab", json!({}))).await, denied);
    assert_eq!(server.client().await.verdict(&pod("lab", json!({}))).await, denied);
    server.process.expect_running();
    assert!(server.plain("/healthz").starts_with("HTTP/1.1 200"));

    eventually("the server to stop listening", PATIENCE, async || {
        let connected = TcpStream::connect(("127.0.0.1", server.files.https)).await;
        ensure!(connected.is_err());
        Ok(())
    })
    .await;
    server.process.expect_running();
    let answer = in_flight.finish().await;
    let status = StatusCode::OK.as_str();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    assert!(answer.contains("VramUndeclared"), "{answer}");
    let ended = eventually("the server to end", Duration::from_secs(5), async || {
        let status = server.process.exit_status();
        status.ok_or_else(|| anyhow::anyhow!("it runs{}", server.process.log_tail()))
    })
    .await;
    assert_eq!(ended.code(), Some(0), "{}", server.process.log_tail());
    assert!(!server.log().contains("in flight"), "{}", server.log());
    drop((idle, idle_http2));
}

#[tokio::test]
async fn a_server_that_nobody_uses_stops_within_its_drain() {
    let mut server = TestServer::start().await;
    let ended = server.process.terminate(Duration::from_secs(5));
    assert_eq!(ended.code(), Some(0), "{}", server.process.log_tail());
}
