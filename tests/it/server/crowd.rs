//! More clients than there are places, and bodies larger than there is room for: none of them keeps a review waiting.

use std::time::Duration;

use anyhow::ensure;
use futures::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{Client, Verdict, connect};
use super::site::{PATIENCE, Server, pod, review};
use crate::support::eventually;

/// Connections that the server has open at once.
const CAP: usize = 1024;
/// Of those, without a request so far.
const UNPROVEN: usize = 768;
/// More than the server has open beside connections: listeners, the log, a policy file that is just being read, and
/// connections that are just being closed.
const OTHER_FILES: usize = 100;

/// How many files this process, and so its children, may have open.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(usize::MAX)
}

/// How many files the server has open.
fn files(server: &Server) -> usize {
    let pid = server.process.pid().expect("it runs");
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("Linux").count()
}

/// Answers `None` and says so where this process may not open files enough.
async fn server() -> Option<Server> {
    if open_files() < 3 * CAP {
        println!("skipped: only {} files may be open", open_files());
        return None;
    }
    Some(Server::start().await)
}

fn denied() -> Verdict {
    Verdict::Denied("VramUndeclared".into())
}

/// A review over a connection of its own.
async fn reviewed(server: &Server) {
    assert_eq!(server.client().await.verdict(&pod("lab", json!({}))).await, denied());
}

/// Opens connections over which one review went.
async fn hold(server: &Server, count: usize) -> Vec<Client> {
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
    // The last ones that came are still there.
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
    let port = server.site.https;
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
    let server = Server::start().await;
    let claim = async || {
        let mut stream = connect(server.site.https, &server.ca(), "http/1.1").await.expect("a connection");
        let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {}\r\n\r\n", 8 << 20);
        stream.write_all(head.as_bytes()).await.expect("it is read");
        stream.flush().await.expect("it is read");
        stream
    };
    let _claims = join_all((0..64).map(|_| claim())).await;
    // Before bodies took room as they arrive, this took as long as their deadline, eight at a time.
    let many = join_all((0..20).map(|_| reviewed(&server)));
    tokio::time::timeout(Duration::from_secs(8), many).await.expect("nobody waits for a claim");
}

#[tokio::test]
async fn half_of_each_of_many_large_bodies_keeps_no_review_waiting() {
    let server = Server::start().await;
    let half = async || {
        let mut stream = connect(server.site.https, &server.ca(), "http/1.1").await.expect("a connection");
        let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {}\r\n\r\n", 8 << 20);
        stream.write_all(head.as_bytes()).await.expect("it is read");
        // What there is no room for stays in the kernel's buffers, so not all of it may go out.
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
    // All of it is given back, so that a large one is read again.
    let mut body = review(&pod("team", json!({ "vramguard.dev/vram": "8Gi" }))).to_string().into_bytes();
    body.resize(8 << 20, b' ');
    eventually("a large body to be read", PATIENCE, async || {
        let (status, _) = server.client().await.post("/mutate/pods", body.clone()).await?;
        ensure!(status.is_success(), "{status}");
        Ok(())
    })
    .await;
}
