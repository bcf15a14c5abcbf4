//! More connections than the cap, and more large bodies than fit into memory: neither delays a review.

use std::time::Duration;

use anyhow::ensure;
use futures::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::client::{Client, Verdict, connect};
use crate::support::eventually;
use crate::support::test_server::{PATIENCE, TestServer, pod, review};

/// Most open connections of the server.
const CAP: usize = 1024;
/// Most open connections without a request so far.
const UNPROVEN: usize = 768;
/// More than the other open files of the server: listeners, the log, policy files, and connections that are being closed.
const OTHER_FILES: usize = 100;

/// The limit on open files of this process and its children.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(usize::MAX)
}

/// Number of open files of the server.
fn files(server: &TestServer) -> usize {
    let pid = server.process.pid().expect("it runs");
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("Linux").count()
}

/// A server. Prints a reason and returns `None` if the limit on open files is too low for these tests.
async fn server() -> Option<TestServer> {
    if open_files() < 3 * CAP {
        println!("skipped: only {} files may be open", open_files());
        return None;
    }
    Some(TestServer::start().await)
}

fn denied() -> Verdict {
    Verdict::Denied("VramUndeclared".into())
}

/// Sends a review over a new connection.
async fn reviewed(server: &TestServer) {
    assert_eq!(server.client().await.verdict(&pod("lab", json!({}))).await, denied());
}

/// Opens connections and sends one review over each.
async fn hold(server: &TestServer, count: usize) -> Vec<Client> {
    let one = async || {
        let mut client = server.client().await;
        assert_eq!(client.verdict(&pod("lab", json!({}))).await, denied());
        client
    };
    let mut held = Vec::new();
    while held.len() < count {
        held.extend(join_all((0..64).map(|_| one())).await);
    }
    held
}

#[tokio::test]
async fn idle_connections_give_way_to_new_ones_and_never_grow_beyond_the_cap() {
    let Some(server) = server().await else { return };
    let mut held = hold(&server, 2 * CAP).await;
    assert!(files(&server) >= CAP / 2, "{} files", files(&server));
    assert!(files(&server) < CAP + OTHER_FILES, "{} files", files(&server));
    for _ in 0..10 {
        reviewed(&server).await;
    }
    assert!(server.metric("vramguard_displaced_connections_total") >= Some(CAP as f64));
    // The latest connections are still open.
    let last = held.last_mut().expect("there are two thousand");
    assert_eq!(last.verdict(&pod("lab", json!({}))).await, denied());
    drop(held);
    eventually("all connections to be forgotten", PATIENCE, async || {
        ensure!(files(&server) < OTHER_FILES, "{} files", files(&server));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn connections_that_say_nothing_displace_each_other_and_not_one_that_asked() {
    let Some(server) = server().await else { return };
    let mut kept = server.client().await;
    assert_eq!(kept.verdict(&pod("lab", json!({}))).await, denied());
    let port = server.files.https;
    let mut silent = Vec::new();
    while silent.len() < 2 * CAP {
        silent.extend(join_all((0..64).map(|_| TcpStream::connect(("127.0.0.1", port)))).await);
    }
    reviewed(&server).await;
    assert!(files(&server) < UNPROVEN + OTHER_FILES, "{} files", files(&server));
    assert_eq!(kept.verdict(&pod("lab", json!({}))).await, denied(), "over the connection of before");
}

#[tokio::test]
async fn a_claim_of_a_large_body_keeps_no_review_waiting() {
    let server = TestServer::start().await;
    let claim = async || {
        let mut stream = connect(server.files.https, &server.ca(), "http/1.1").await.expect("a connection");
        let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {}\r\n\r\n", 8 << 20);
        stream.write_all(head.as_bytes()).await.expect("it is read");
        stream.flush().await.expect("it is read");
        stream
    };
    let _claims = join_all((0..64).map(|_| claim())).await;
    // Regression: claims reserved memory for the whole body, so reviews waited for the deadline of each eight claims.
    let many = join_all((0..20).map(|_| reviewed(&server)));
    tokio::time::timeout(Duration::from_secs(8), many).await.expect("nobody waits for a claim");
}

#[tokio::test]
async fn half_of_each_of_many_large_bodies_keeps_no_review_waiting() {
    let server = TestServer::start().await;
    let half = async || {
        let mut stream = connect(server.files.https, &server.ca(), "http/1.1").await.expect("a connection");
        let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {}\r\n\r\n", 8 << 20);
        stream.write_all(head.as_bytes()).await.expect("it is read");
        // The server stops reading when its memory for bodies is used up, so this write may not end.
        _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&vec![b' '; 4 << 20])).await;
        stream
    };
    let halves = join_all((0..16).map(|_| half()));
    let others = async {
        for _ in 0..20 {
            tokio::time::timeout(Duration::from_secs(8), reviewed(&server)).await.expect("small ones go on");
        }
    };
    let (_halves, ()) = tokio::join!(halves, others);
    server.expect_ready();
    // The memory is released, so the server reads a large body again.
    let mut body = review(&pod("team", json!({ "vramguard.dev/vram": "8Gi" }))).to_string().into_bytes();
    body.resize(8 << 20, b' ');
    eventually("a large body to be read", PATIENCE, async || {
        let (status, _) = server.client().await.post("/mutate/pods", body.clone()).await?;
        ensure!(status.is_success(), "{status}");
        Ok(())
    })
    .await;
}
