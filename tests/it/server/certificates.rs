//! The serving certificate while its files change.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;
use vramguard::tls::{Issued, issue};

use crate::support::client::{Client, Verdict, served_certificate};
use crate::support::test_server::{PATIENCE, ServerFiles, TestServer, pod};
use crate::support::{eventually, write};

const EXPIRY: &str = "vramguard_certificate_not_after_timestamp_seconds";
/// Time of issue of an expired pair. A pair is valid for 90 days.
const LONG_AGO: &str = "2020-01-01T00:00:00Z";

/// A pair that was issued `days_ago` days ago.
fn issued(days_ago: i64) -> Issued {
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days_ago);
    issue(&["127.0.0.1".to_owned()], then).expect("a pair")
}

fn expired() -> Issued {
    issue(&["127.0.0.1".to_owned()], LONG_AGO.parse().expect("a time")).expect("a pair")
}

fn put(directory: &Path, certificate: &str, key: &str) {
    write(&directory.join("tls.crt"), certificate);
    write(&directory.join("tls.key"), key);
}

/// A server with this pair in its files.
async fn serving(pair: &Issued) -> TestServer {
    let files = ServerFiles::new();
    put(&files.certificates(), &pair.certificate, &pair.key);
    let mut server = files.server(&[]);
    server.process.start();
    server.ready().await;
    server
}

async fn serves(server: &TestServer, pair: &Issued) -> bool {
    let expected = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("PEM");
    served_certificate(server.files.https).await.expect("a handshake") == expected
}

async fn served_soon(server: &TestServer, pair: &Issued) {
    eventually("new connections to get the new certificate", PATIENCE, async || {
        ensure!(serves(server, pair).await, "another one{}", server.process.log_tail());
        Ok(())
    })
    .await;
}

/// Waits until the log has `times` refused pairs.
async fn refused(server: &TestServer, times: usize) {
    eventually("the server to refuse the pair", PATIENCE, async || {
        let seen = server.log().matches("the last good pair stays").count();
        ensure!(seen >= times, "refused {seen} times");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_broken_rotation_leaves_the_last_good_pair_being_served() {
    let (good, other) = (issued(0), issued(0));
    let server = serving(&good).await;
    let expiry = server.metric(EXPIRY);
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let old = expired();
    for (what, certificate, key) in [
        ("the key of another certificate", good.certificate.clone(), other.key.clone()),
        ("half a key", other.certificate.clone(), half(&other.key)),
        ("half a certificate", half(&other.certificate), other.key.clone()),
        ("empty files", String::new(), String::new()),
        ("garbage", "\u{1}\u{2}".repeat(5000), "\u{0}".to_owned()),
        ("a key in place of the certificate", other.key.clone(), other.key.clone()),
        ("an expired pair", old.certificate, old.key),
    ] {
        let before = server.log().matches("the last good pair stays").count();
        put(&server.files.certificates(), &certificate, &key);
        refused(&server, before + 1).await;
        assert!(serves(&server, &good).await, "{what}");
        assert_eq!(server.metric(EXPIRY), expiry, "{what}");
        server.expect_ready();
    }
    let before = server.log().matches("the last good pair stays").count();
    std::fs::remove_file(server.files.certificates().join("tls.crt")).expect("it is there");
    refused(&server, before + 1).await;
    assert!(serves(&server, &good).await, "without a file");

    put(&server.files.certificates(), &other.certificate, &other.key);
    served_soon(&server, &other).await;
}

#[tokio::test]
async fn a_new_pair_is_served_to_new_connections_while_an_old_one_goes_on() {
    let (first, second) = (issued(30), issued(0));
    let server = serving(&first).await;
    let before = server.metric(EXPIRY).expect("a pair is served");
    let mut open = Client::connect(server.files.https, &first.ca, "http/1.1").await.expect("a connection");
    let denied = Verdict::Denied("VramUndeclared".into());
    assert_eq!(open.verdict(&pod("lab", json!({}))).await, denied);

    put(&server.files.certificates(), &second.certificate, &second.key);
    served_soon(&server, &second).await;
    assert_eq!(server.metric(EXPIRY), Some(before + 30.0 * 86_400.0));
    assert_eq!(open.verdict(&pod("lab", json!({}))).await, denied);
    let mut new = Client::connect(server.files.https, &second.ca, "h2").await.expect("a connection");
    assert_eq!(new.verdict(&pod("lab", json!({}))).await, denied);
    let stale = Client::connect(server.files.https, &first.ca, "http/1.1").await;
    assert!(stale.is_err(), "the old CA still vouches for the server");
}

#[tokio::test]
async fn a_pair_behind_the_kubelets_symlinks_is_followed() {
    use std::os::unix::fs::symlink;
    let (first, second) = (issued(1), issued(0));
    let files = ServerFiles::new();
    let directory = files.certificates();
    for (version, pair) in [("..2026_1", &first), ("..2026_2", &second)] {
        std::fs::create_dir(directory.join(version)).expect("a new folder");
        put(&directory.join(version), &pair.certificate, &pair.key);
    }
    symlink("..2026_1", directory.join("..data")).expect("a link");
    for name in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{name}"), directory.join(name)).expect("a link");
    }
    let mut server = files.server(&[]);
    server.process.start();
    server.ready().await;
    assert!(serves(&server, &first).await);

    symlink("..2026_2", directory.join("..data_tmp")).expect("a link");
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("a swap");
    std::fs::remove_dir_all(directory.join("..2026_1")).expect("the kubelet cleans up");
    served_soon(&server, &second).await;
    server.expect_ready();
}

#[tokio::test]
async fn an_expired_pair_is_served_where_there_is_no_better_and_the_metric_tells() {
    let old = expired();
    let server = serving(&old).await;
    assert!(serves(&server, &old).await);
    let ended: jiff::Timestamp = LONG_AGO.parse().expect("a time");
    let ended = ended + jiff::SignedDuration::from_hours(24 * 90);
    assert_eq!(server.metric(EXPIRY), Some(ended.as_second() as f64));
    assert!(server.log().contains("has ended"), "nothing said: {}", server.log());

    let good = issued(0);
    put(&server.files.certificates(), &good.certificate, &good.key);
    served_soon(&server, &good).await;
}

#[tokio::test]
async fn a_directory_without_a_certificate_is_waited_for() {
    let files = ServerFiles::new();
    std::fs::remove_dir(files.certificates()).expect("an empty folder");
    let mut server = files.server(&[]);
    server.process.start();
    let unready = eventually("the server to say that it is not ready", PATIENCE, async || {
        server.process.expect_running();
        let answer = server.plain("/readyz");
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        Ok(answer)
    })
    .await;
    assert!(unready.contains("certificate"), "{unready}");
    assert!(server.plain("/healthz").starts_with("HTTP/1.1 200"));
    assert_eq!(server.metric(EXPIRY), None);
    assert!(served_certificate(server.files.https).await.is_err(), "there is none");

    let pair = issued(0);
    std::fs::create_dir(server.files.certificates()).expect("a new folder");
    put(&server.files.certificates(), &pair.certificate, &pair.key);
    server.ready().await;
    assert!(serves(&server, &pair).await);
    server.process.terminate(Duration::from_secs(10));
}
