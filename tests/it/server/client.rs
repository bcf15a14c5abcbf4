//! Clients: one that the API server could be, and the raw stream below it for those that misbehave.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::site::{PATIENCE, review};
use crate::support::within;

pub type Stream = TlsStream<TcpStream>;

/// A client's certificate and key, in PEM.
pub struct Presented {
    pub certificate: String,
    pub key: String,
}

/// Connects with TLS 1.3, trusting this CA alone, and insists on the protocol.
pub async fn connect(port: u16, ca: &str, protocol: &str) -> anyhow::Result<Stream> {
    connect_with(port, ca, protocol, None).await
}

async fn connect_with(port: u16, ca: &str, protocol: &str, presented: Option<&Presented>) -> anyhow::Result<Stream> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    let builder = builder().with_root_certificates(roots);
    let mut config = match presented {
        None => builder.with_no_client_auth(),
        Some(Presented { certificate, key }) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
        }
    };
    config.alpn_protocols = vec![protocol.into()];
    let stream = handshake(port, config).await?;
    let chosen = stream.get_ref().1.alpn_protocol();
    ensure!(chosen == Some(protocol.as_bytes()), "the server chose {chosen:?}, not {protocol}");
    Ok(stream)
}

/// The certificate that a new connection is served with, whoever signed it and however old it is.
pub async fn served_certificate(port: u16) -> anyhow::Result<CertificateDer<'static>> {
    let verifier = Arc::new(Anyone);
    let config = builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let stream = handshake(port, config).await?;
    let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
    Ok(chain.first().context("no certificate")?.clone().into_owned())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is compiled in")
}

async fn handshake(port: u16, config: ClientConfig) -> anyhow::Result<Stream> {
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let connecting = async {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    };
    Ok(within(PATIENCE, connecting).await.context("no handshake in time")??)
}

/// Verifies nothing.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// One open connection.
pub enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    /// `protocol` is `http/1.1` or `h2`.
    pub async fn connect(port: u16, ca: &str, protocol: &str) -> anyhow::Result<Client> {
        Client::connect_with(port, ca, protocol, None).await
    }

    /// As [`Client::connect`], presenting a certificate.
    pub async fn connect_with(
        port: u16,
        ca: &str,
        protocol: &str,
        presented: Option<&Presented>,
    ) -> anyhow::Result<Client> {
        let stream = TokioIo::new(connect_with(port, ca, protocol, presented).await?);
        if protocol == "h2" {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            return Ok(Client::Http2(sender));
        }
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Client::Http1(sender))
    }

    /// Sends any request; what comes back, whatever its status.
    pub async fn send(&mut self, method: Method, path: &str, body: Body) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = |uri: String| {
            Request::builder()
                .method(method)
                .uri(uri)
                .header("host", "webhook")
                .header("content-type", "application/json")
                .body(body)
        };
        let answering = async {
            let (response, version): (Response<_>, _) = match self {
                Client::Http1(sender) => {
                    sender.ready().await?;
                    (sender.send_request(request(path.to_owned())?).await?, Version::HTTP_11)
                }
                Client::Http2(sender) => {
                    sender.ready().await?;
                    let uri = format!("https://webhook{path}");
                    (sender.send_request(request(uri)?).await?, Version::HTTP_2)
                }
            };
            ensure!(response.version() == version, "answered over {:?}", response.version());
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        within(PATIENCE, answering).await.context("no answer in time")?
    }

    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send(Method::POST, path, whole(body)).await
    }

    /// Asks for a review; its `response`, which is known to belong to the request.
    pub async fn ask(&mut self, path: &str, review: &Value) -> Value {
        let (status, body) = self.post(path, review.to_string()).await.expect("an answer");
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, StatusCode::OK, "{text}");
        let mut answer: Value = serde_json::from_slice(&body).expect("an answer is JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1", "{text}");
        assert_eq!(answer["kind"], "AdmissionReview", "{text}");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"], "{text}");
        answer["response"].take()
    }

    /// Whether a pod may be created, reason included.
    pub async fn verdict(&mut self, pod: &Value) -> Verdict {
        let response = self.ask("/validate/pods", &review(pod)).await;
        match response["allowed"].as_bool().expect("a verdict") {
            true => Verdict::Allowed,
            false => Verdict::Denied(response["status"]["reason"].as_str().expect("a reason").to_owned()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Denied(String),
}

/// A body that is there at once.
pub fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

/// A body that ends before it is whole: its beginning, and then nothing for longer than anyone waits.
pub fn stalling(beginning: impl Into<Bytes>) -> Body {
    use futures::StreamExt;
    let frame = hyper::body::Frame::data(beginning.into());
    let frames = futures::stream::iter([Ok(frame)]).chain(futures::stream::pending());
    http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(frames))
}

/// The operations of a response; `None` where it has none.
pub fn patch_of(response: &Value) -> Option<json_patch::Patch> {
    let text = response.get("patch")?.as_str().expect("a patch is a string");
    assert_eq!(response["patchType"], "JSONPatch");
    let operations = BASE64_STANDARD.decode(text).expect("a patch is base64");
    Some(serde_json::from_slice(&operations).expect("a patch is an RFC 6902 document"))
}

/// Time between two steps of a client that trickles.
pub const TRICKLE: Duration = Duration::from_millis(400);
