//! Clients that stall. The server's deadlines are 5 s for a handshake, 5 s for the first header, and 2 s for a body.

use std::time::Duration;

use futures::future::join_all;
use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Patience;
use crate::support::client::{Client, TRICKLE, Verdict, connect, stalling};
use crate::support::test_server::{PATIENCE, TestServer, pod, review};

/// Time that a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(4);
/// Limit of a review while other clients stall.
const LENIENT: Duration = Duration::from_secs(3);

/// Sends `beginning`, and then `again` once per [`TRICKLE`], until the server closes. Returns its answer and the time.
async fn stall<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, beginning: &[u8], again: &[u8]) -> (String, Patience) {
    let mut patience = Patience::of(PATIENCE);
    stream.write_all(beginning).await.expect("a beginning");
    stream.flush().await.expect("a beginning");
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match tokio::time::timeout(TRICKLE, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(count)) => answer.extend(&buffer[..count]),
            // The next read shows a failed write.
            Err(_) => _ = stream.write_all(again).await,
        }
        _ = stream.flush().await;
        assert!(!patience.is_over(), "never cut off");
    }
    (String::from_utf8_lossy(&answer).into_owned(), patience)
}

fn expect_within(what: &str, mut took: Patience, deadline: Duration) {
    let in_time = deadline / 2 < took.elapsed() && took.spent() < deadline + SLACK;
    assert!(in_time, "{what}: cut off after {took}, the deadline is {deadline:?}");
}

async fn stalls_before_the_first_request(server: &TestServer) {
    let (port, plain, ca) = (server.files.https, server.files.http, server.ca());
    let deadline = Duration::from_secs(5);
    let tcp = async |port: u16, what: &str, beginning: &[u8], again: &[u8]| {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let (_, took) = stall(stream, beginning, again).await;
        expect_within(what, took, deadline);
    };
    let tls = async |what: &str, protocol: &str, beginning: &[u8], again: &[u8]| {
        let stream = connect(port, &ca, protocol).await.expect("a connection");
        let (answer, took) = stall(stream, beginning, again).await;
        assert!(!answer.contains("allowed"), "{what}: {answer}");
        expect_within(what, took, deadline);
    };
    let half_a_header = b"POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nX-Slow: ";
    tokio::join!(
        tcp(port, "silence", b"", b""),
        tcp(port, "half a hello", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], b""),
        tcp(port, "a hello that trickles", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], b"x"),
        tcp(plain, "silence on the plain port", b"", b""),
        tcp(plain, "half a header on the plain port", b"GET /metrics HTTP/1.1\r\nX-Slow: ", b"x"),
        tls("nothing after the handshake", "http/1.1", b"", b""),
        tls("half a header", "http/1.1", half_a_header, b""),
        tls("a header that trickles", "http/1.1", half_a_header, b"x"),
        tls("nothing after the handshake, h2", "h2", b"", b""),
        tls("only the preface of h2", "h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b""),
    );
}

async fn stalls_within_a_body(server: &TestServer) {
    let (port, ca) = (server.files.https, server.ca());
    let deadline = Duration::from_secs(2);
    let body = review(&pod("team", json!({ "vramguard.dev/vram": "8Gi" }))).to_string();
    let half = &body[..body.len() / 2];
    let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {}\r\n\r\n", body.len());
    let http1 = async |what: &str, again: &[u8]| {
        let stream = connect(port, &ca, "http/1.1").await.expect("a connection");
        let (answer, took) = stall(stream, format!("{head}{half}").as_bytes(), again).await;
        assert!(answer.starts_with("HTTP/1.1 4") && !answer.contains("allowed"), "{what}: {answer}");
        expect_within(what, took, deadline);
    };
    let http2 = async {
        let mut client = Client::connect(port, &ca, "h2").await.expect("a connection");
        let patience = Patience::of(PATIENCE);
        let answered = client.send(Method::POST, "/mutate/pods", stalling(half.to_owned())).await;
        let (status, answer) = answered.expect("an answer");
        assert!(status.is_client_error(), "{status}: {answer:?}");
        expect_within("half a body over h2", patience, deadline);
    };
    tokio::join!(http1("half a body", b""), http1("a body that trickles", b" "), http2);
}

#[tokio::test]
async fn a_client_that_stalls_is_cut_off_and_holds_up_nobody() {
    let server = TestServer::start().await;
    let stalled = async {
        tokio::join!(stalls_before_the_first_request(&server), stalls_within_a_body(&server));
    };
    let others = async {
        loop {
            let mut patience = Patience::of(PATIENCE);
            let verdict = server.client().await.verdict(&pod("lab", json!({}))).await;
            assert_eq!(verdict, Verdict::Denied("VramUndeclared".into()));
            assert!(patience.spent() < LENIENT, "held up for {patience}");
            tokio::time::sleep(TRICKLE).await; // the pace of the good clients
        }
    };
    tokio::select! {
        () = stalled => {}
        () = others => unreachable!("the others go on"),
    }
    server.expect_ready();
}

#[tokio::test]
async fn one_connection_carries_many_reviews_at_once() {
    let server = TestServer::shared().await;
    let Client::Http2(sender) = Client::connect(server.files.https, &server.ca(), "h2").await.expect("a connection")
    else {
        unreachable!("h2 was asked for");
    };
    let body = review(&pod("lab", json!({}))).to_string();
    let ask = |_| {
        let (mut client, body) = (Client::Http2(sender.clone()), body.clone());
        async move { client.post("/validate/pods", body).await.expect("an answer") }
    };
    for (status, answer) in join_all((0..500).map(ask)).await {
        assert_eq!(status, StatusCode::OK);
        assert!(String::from_utf8_lossy(&answer).contains("VramUndeclared"));
    }
}
