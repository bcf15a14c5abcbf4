//! Client certificates: the server accepts those of its `--client-ca` with a name in `--client-name`.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;

use crate::support::client::{Client, Presented, Verdict};
use crate::support::test_server::{PATIENCE, ServerFiles, TestServer, pod, review};
use crate::support::{Authority, eventually, write};

/// A server that accepts clients of this CA with these names, and the file of the CA.
async fn server(ca: &Authority, names: &[&str]) -> (TestServer, PathBuf) {
    let files = ServerFiles::new();
    let file = files.folder().join("clients.crt");
    write(&file, &ca.certificate);
    let path = file.display().to_string();
    let mut flags = vec!["--self-signed", "--client-ca", &path];
    names.iter().for_each(|name| flags.extend(["--client-name", name]));
    let mut server = files.server(&flags);
    server.process.start();
    server.ready().await;
    (server, file)
}

/// Sends a review with this certificate, or without one.
async fn ask(server: &TestServer, presented: Option<&Presented>) -> anyhow::Result<Verdict> {
    let mut client = Client::connect_with(server.files.https, &server.ca(), "http/1.1", presented).await?;
    // In TLS 1.3 the first read of a client shows the refusal.
    let body = review(&pod("lab", json!({}))).to_string();
    let (status, answer) = client.post("/validate/pods", body).await?;
    ensure!(status.is_success(), "{status}");
    ensure!(String::from_utf8_lossy(&answer).contains("VramUndeclared"), "{answer:?}");
    Ok(Verdict::Denied("VramUndeclared".into()))
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_ca_gets_no_answer_and_is_logged_at_times() {
    let (ca, other) = (Authority::new("clients"), Authority::new("others"));
    let (server, _) = server(&ca, &[]).await;
    ask(&server, Some(&ca.sign("anybody"))).await.expect("an answer");
    for presented in [None, Some(&other.sign("anybody"))] {
        assert!(ask(&server, presented).await.is_err());
    }
    for _ in 0..20 {
        assert!(ask(&server, None).await.is_err());
    }
    // The client sees the end of its connection before the server has counted and logged why.
    eventually("22 refused clients to be counted", PATIENCE, async || {
        let counted = server.metric("vramguard_refused_clients_total");
        ensure!(counted == Some(22.0), "{counted:?}");
        Ok(())
    })
    .await;
    // The server counts a refused client before it logs why.
    let log = eventually("the refusal to be logged", PATIENCE, async || {
        let log = server.log();
        ensure!(log.contains("client refused"), "{log}");
        Ok(log)
    })
    .await;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("client refused")).collect();
    assert!(lines[0].contains("it presents no certificate"), "{lines:?}");
    assert!(lines.len() < 10, "a line stands for many: {lines:?}");
    server.expect_ready(); // probes use the other port
}

#[tokio::test]
async fn of_the_certificates_of_a_ca_the_named_ones_are_let_in() {
    let ca = Authority::new("clients");
    let (server, _) = server(&ca, &["kube-apiserver", "kube-scheduler"]).await;
    ask(&server, Some(&ca.sign("kube-apiserver"))).await.expect("an answer");
    ask(&server, Some(&ca.sign("kube-scheduler"))).await.expect("an answer");
    assert!(ask(&server, Some(&ca.sign("tenant"))).await.is_err());
    let expected =
        r#"its certificate is made out to "tenant", and --client-name lists "kube-apiserver", "kube-scheduler""#;
    // The client sees the end of its connection before the server has logged why.
    eventually("the refusal to be logged", PATIENCE, async || {
        let log = server.log();
        ensure!(log.contains(expected), "{log}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_changed_ca_is_followed_and_a_broken_one_leaves_the_last_good_one() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let (server, file) = server(&first, &[]).await;
    let (of_first, of_second) = (first.sign("a"), second.sign("b"));
    ask(&server, Some(&of_first)).await.expect("an answer");
    write(&file, "half a certificate");
    eventually("the broken bundle to be said", PATIENCE, async || {
        ensure!(server.log().contains("the last good CA of clients stays"));
        Ok(())
    })
    .await;
    ask(&server, Some(&of_first)).await.expect("an answer");
    write(&file, [second.certificate.as_str(), &first.certificate].concat());
    eventually("both CAs to be trusted", PATIENCE, async || ask(&server, Some(&of_second)).await).await;
    ask(&server, Some(&of_first)).await.expect("an answer");
    write(&file, &second.certificate);
    eventually("the first CA to be forgotten", PATIENCE, async || {
        ensure!(ask(&server, Some(&of_first)).await.is_err(), "it is let in");
        Ok(())
    })
    .await;
}

#[test]
fn a_server_does_not_start_with_a_ca_that_it_cannot_read() {
    let files = ServerFiles::new();
    let mut command = files.command();
    command.args(["--self-signed", "--client-ca", "/nonexistent/ca.crt"]);
    let finished = crate::support::run(&mut command, PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert!(finished.stderr.contains("/nonexistent/ca.crt"), "{finished:?}");
}
