//! Who may ask: clients with a certificate of the CA that the server was given, of the names that it was given.

use std::path::PathBuf;

use anyhow::ensure;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::client::{Client, Presented, Verdict};
use super::site::{PATIENCE, Server, Site, pod, write};
use crate::support::eventually;

/// A CA that signs client certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM.
    pub certificate: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    /// A certificate for a client of that common name, with its key.
    pub fn sign(&self, common_name: &str) -> Presented {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Presented { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A server that lets in clients of this CA and of these names, and the file of the CA.
async fn server(ca: &Authority, names: &[&str]) -> (Server, PathBuf) {
    let site = Site::new();
    let file = site.folder().join("clients.crt");
    write(&file, &ca.certificate);
    let path = file.display().to_string();
    let mut flags = vec!["--self-signed", "--client-ca", &path];
    names.iter().for_each(|name| flags.extend(["--client-name", name]));
    let mut server = site.server(&flags);
    server.process.start();
    server.ready().await;
    (server, file)
}

/// Asks for a review with a certificate, or without one.
async fn ask(server: &Server, presented: Option<&Presented>) -> anyhow::Result<Verdict> {
    let mut client = Client::connect_with(server.site.https, &server.ca(), "http/1.1", presented).await?;
    // In TLS 1.3 a client learns only from its first read that it was refused.
    let body = super::site::review(&pod("lab", json!({}))).to_string();
    let (status, answer) = client.post("/validate/pods", body).await?;
    ensure!(status.is_success(), "{status}");
    ensure!(String::from_utf8_lossy(&answer).contains("VramUndeclared"), "{answer:?}");
    Ok(Verdict::Denied("VramUndeclared".into()))
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_ca_gets_no_answer_and_is_said_at_times() {
    let (ca, other) = (Authority::new("clients"), Authority::new("others"));
    let (server, _) = server(&ca, &[]).await;
    ask(&server, Some(&ca.sign("anybody"))).await.expect("an answer");
    for presented in [None, Some(&other.sign("anybody"))] {
        assert!(ask(&server, presented).await.is_err());
    }
    for _ in 0..20 {
        assert!(ask(&server, None).await.is_err());
    }
    assert_eq!(server.metric("vramguard_refused_clients_total"), Some(22.0));
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("client refused")).collect();
    assert!(lines[0].contains("it presents no certificate"), "{lines:?}");
    assert!(lines.len() < 10, "a line stands for many: {lines:?}");
    server.expect_ready(); // probes come over the other port
}

#[tokio::test]
async fn of_the_certificates_of_a_ca_the_named_ones_are_let_in() {
    let ca = Authority::new("clients");
    let (server, _) = server(&ca, &["kube-apiserver", "kube-scheduler"]).await;
    ask(&server, Some(&ca.sign("kube-apiserver"))).await.expect("an answer");
    ask(&server, Some(&ca.sign("kube-scheduler"))).await.expect("an answer");
    assert!(ask(&server, Some(&ca.sign("tenant"))).await.is_err());
    let log = server.log();
    let said = r#"its certificate is made out to "tenant", and --client-name lists "kube-apiserver", "kube-scheduler""#;
    assert!(log.contains(said), "{log}");
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
    let site = Site::new();
    let mut command = site.command();
    command.args(["--self-signed", "--client-ca", "/nonexistent/ca.crt"]);
    let finished = crate::support::run(&mut command, PATIENCE);
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert!(finished.stderr.contains("/nonexistent/ca.crt"), "{finished:?}");
}
