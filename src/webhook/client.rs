//! A client that calls the webhook like the API server: HTTP/1.1 over TLS 1.3 on one connection that stays open.
//!
//! The demo, tests and benchmarks use it; `serve` does not.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::body::Bytes;
use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// One open connection.
#[derive(Debug)]
pub struct ReviewClient {
    sender: SendRequest<Full<Bytes>>,
}

impl ReviewClient {
    /// Connects, and trusts only the CAs in `ca` (PEM).
    ///
    /// # Errors
    ///
    /// If `ca` is not PEM, or the TCP, TLS or HTTP handshake fails.
    pub async fn connect(address: SocketAddr, ca: &str) -> anyhow::Result<ReviewClient> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(certificate.context("the CA is not PEM")?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(ReviewClient { sender })
    }

    /// Sends a body, and returns the status and body of the response.
    ///
    /// # Errors
    ///
    /// If the connection fails. A status other than 2xx is not an error.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<(StatusCode, Bytes)> {
        self.sender.ready().await?;
        let request = Request::post(path)
            .header(header::HOST, "webhook")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.into()))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}
