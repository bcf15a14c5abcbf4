//! Owns clients of a server: one that behaves like the API server, and the raw TLS stream for clients that misbehave.

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

use super::test_server::{PATIENCE, review};
use super::within;

pub(crate) type Stream = TlsStream<TcpStream>;

/// Certificate and key of a client, in PEM.
pub(crate) struct Presented {
    pub certificate: String,
    pub key: String,
}

/// Connects with TLS 1.3 to a server of this CA, with this ALPN protocol.
pub(crate) async fn connect(port: u16, ca: &str, protocol: &str) -> anyhow::Result<Stream> {
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

/// The certificate that the server presents to a new connection. It is not verified.
pub(crate) async fn served_certificate(port: u16) -> anyhow::Result<CertificateDer<'static>> {
    let verifier = Arc::new(NoVerifier);
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

/// Accepts every certificate.
#[derive(Debug)]
struct NoVerifier;

impl ServerCertVerifier for NoVerifier {
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
pub(crate) enum Client {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    /// Connects to a server of this CA. `protocol` is `http/1.1` or `h2`.
    pub(crate) async fn connect(port: u16, ca: &str, protocol: &str) -> anyhow::Result<Client> {
        Client::connect_with(port, ca, protocol, None).await
    }

    /// As [`Client::connect`], with a client certificate.
    pub(crate) async fn connect_with(
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

    /// Sends a request, and returns status and body of the answer.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Body) -> anyhow::Result<(StatusCode, Bytes)> {
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

    pub(crate) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send(Method::POST, path, whole(body)).await
    }

    /// Sends a review, checks that the answer belongs to it, and returns its `response`.
    pub(crate) async fn ask(&mut self, path: &str, review: &Value) -> Value {
        let (status, body) = self.post(path, review.to_string()).await.expect("an answer");
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, StatusCode::OK, "{text}");
        let mut answer: Value = serde_json::from_slice(&body).expect("an answer is JSON");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1", "{text}");
        assert_eq!(answer["kind"], "AdmissionReview", "{text}");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"], "{text}");
        answer["response"].take()
    }

    /// The verdict of `/validate/pods` on the creation of a pod.
    pub(crate) async fn verdict(&mut self, pod: &Value) -> Verdict {
        let response = self.ask("/validate/pods", &review(pod)).await;
        match response["allowed"].as_bool().expect("a verdict") {
            true => Verdict::Allowed,
            false => Verdict::Denied(response["status"]["reason"].as_str().expect("a reason").to_owned()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    Denied(String),
}

/// A complete body.
pub(crate) fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

/// A body that sends its beginning and then stalls forever.
pub(crate) fn stalling(beginning: impl Into<Bytes>) -> Body {
    use futures::StreamExt;
    let frame = hyper::body::Frame::data(beginning.into());
    let frames = futures::stream::iter([Ok(frame)]).chain(futures::stream::pending());
    http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(frames))
}

/// The patch of a response, if it has one.
pub(crate) fn patch_of(response: &Value) -> Option<json_patch::Patch> {
    let text = response.get("patch")?.as_str().expect("a patch is a string");
    assert_eq!(response["patchType"], "JSONPatch");
    let operations = BASE64_STANDARD.decode(text).expect("a patch is base64");
    Some(serde_json::from_slice(&operations).expect("a patch is an RFC 6902 document"))
}

/// Time between two writes of a slow client.
pub(crate) const TRICKLE: Duration = Duration::from_millis(400);
