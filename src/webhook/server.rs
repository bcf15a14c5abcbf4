//! The listener: TLS 1.3, HTTP/1.1 and HTTP/2, a cap on connections, a deadline for everything a client may be slow at, and
//! a drain. Owns sockets; what is served on them is given to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::metrics::Metrics;
use crate::tls::CertificateStore;

/// For a TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// For the first request line and headers on a connection.
const FIRST_HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// For later ones. Longer than the 90 s after which API servers close idle connections: were it the other way round, a
/// review could meet a connection that is just being closed, and fail.
const IDLE_DEADLINE: Duration = Duration::from_secs(120);
/// After which a connection is closed between two requests, so that replicas that are new get their share, and nobody keeps a
/// place for ever.
const MAX_AGE: Duration = Duration::from_secs(600);
/// More than any number of API servers opens; a connection costs some tens of KiB.
const MAX_CONNECTIONS: usize = 1024;
/// For requests in flight when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);

/// What a listener needs.
pub struct Server {
    /// Where it listens.
    pub listener: TcpListener,
    /// What it serves with.
    pub certificates: Arc<CertificateStore>,
    /// Counts connections.
    pub metrics: Arc<Metrics>,
}

/// TLS 1.3 with the certificate of the moment, for each connection anew.
pub fn tls(certificates: Arc<CertificateStore>) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is compiled in")?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Server {
    /// Serves until `stop`, then finishes what is in flight.
    pub async fn serve(self, routes: Router, stop: CancellationToken) -> anyhow::Result<()> {
        let acceptor = TlsAcceptor::from(tls(self.certificates)?);
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut running = JoinSet::new();
        loop {
            // A place is taken before a connection is: beyond the cap, clients wait in the kernel's queue.
            let place = tokio::select! {
                place = connections.clone().acquire_owned() => place.expect("the semaphore is never closed"),
                () = stop.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of file descriptors, say. Accepting again at once would only spin.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connection =
                Connection { acceptor: acceptor.clone(), routes: routes.clone(), metrics: self.metrics.clone(), place };
            running.spawn(connection.run(socket, stop.clone()));
            while running.try_join_next().is_some() {}
        }
        drop(self.listener);
        let drained = tokio::time::timeout(DRAIN_DEADLINE, async { while running.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!("stopped with requests in flight after {}s", DRAIN_DEADLINE.as_secs());
        }
        Ok(())
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    routes: Router,
    metrics: Arc<Metrics>,
    place: OwnedSemaphorePermit,
}

impl Connection {
    async fn run(self, socket: TcpStream, stop: CancellationToken) {
        let _place = self.place;
        let _ = socket.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, self.acceptor.accept(socket)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!("handshake failed: {error}"),
            Err(_) => return tracing::debug!("handshake timed out"),
        };
        self.metrics.connections.inc();
        let asked = Arc::new(AtomicBool::new(false));
        let service = hyper::service::service_fn({
            let (routes, asked) = (self.routes, asked.clone());
            move |request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                routes.clone().oneshot(request)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE).keep_alive(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(IDLE_DEADLINE / 4))
            .max_concurrent_streams(128);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let stop = stop.cancelled();
        let mut stop = std::pin::pin!(stop);
        let mut finished = tokio::select! {
            finished = connection.as_mut() => Some(finished),
            () = &mut stop => None,
            () = tokio::time::sleep(FIRST_HEADER_DEADLINE) => None,
        };
        if finished.is_none() && asked.load(Ordering::Relaxed) {
            tokio::select! {
                ended = connection.as_mut() => finished = Some(ended),
                () = &mut stop => {}
                () = tokio::time::sleep(MAX_AGE) => {}
            }
            if finished.is_none() {
                connection.as_mut().graceful_shutdown();
                finished = tokio::time::timeout(DRAIN_DEADLINE, connection).await.ok();
            }
        }
        let finished = finished.unwrap_or(Ok(()));
        if let Err(error) = finished {
            tracing::debug!("connection failed: {error}");
        }
        self.metrics.connections.dec();
    }
}
