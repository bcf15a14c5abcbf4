//! The HTTPS listener: TLS 1.3, HTTP/1.1 and HTTP/2, with bounded buffers, a time limit for every step of a client, and
//! a drain.
//!
//! Owns sockets. The caller passes the routes, and `connections` chooses the connection that has to close for another
//! one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::connections::{Admitted, Caps, Connections, Place};
use crate::metrics::Metrics;
use crate::tls::CertificateStore;
use crate::tls::clients::{self, Clients};

/// Time limit for a TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Time limit for the first request line and its headers on a connection.
const FIRST_HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Time limit for later request lines and headers, and so for idle connections.
///
/// It is longer than the 90 s after which API servers close idle connections. Otherwise an API server could send a
/// review on a connection that this server is closing, and the review would fail.
const IDLE_DEADLINE: Duration = Duration::from_secs(120);
/// Age at which a connection is closed between two requests.
///
/// Clients then connect again, which gives new replicas their share, and no client keeps a place for ever.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Bounds on connections. A connection costs some tens of KiB.
///
/// `open` is more than the API servers of a cluster open. `unproven` is more than they open when all of them start
/// calling at the same time.
const CAPS: Caps = Caps { open: 1024, unproven: 768 };
/// Time limit for a connection that has to close for another one: enough to finish sending an answer.
const CLOSE_DEADLINE: Duration = Duration::from_millis(250);
/// Size of the buffers of an HTTP/1 connection, in bytes. The headers of a request have to fit.
const BUFFER: usize = 32 << 10;
/// Flow-control window of one HTTP/2 stream, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
/// Flow-control window of one HTTP/2 connection, in bytes.
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Largest header list of one HTTP/2 request, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// Concurrent requests on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Minimum time between two log lines about refused clients. Refusals in between are counted.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// Time limit for requests in flight when the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);

/// An HTTPS server that is ready to run.
pub struct Server {
    /// Socket that it listens on.
    pub listener: TcpListener,
    /// Source of the serving certificate.
    pub certificates: Arc<CertificateStore>,
    /// Clients that may connect. `None` means any client.
    pub clients: Option<Arc<Clients>>,
    /// Metrics, which count connections and refused clients.
    pub metrics: Arc<Metrics>,
}

/// Configures TLS 1.3. Each new connection uses the certificate that is current at that moment.
///
/// # Errors
///
/// If the crypto provider does not support TLS 1.3.
pub fn tls(certificates: Arc<CertificateStore>, clients: Option<Arc<Clients>>) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is compiled in")?;
    let mut config = match clients {
        Some(clients) => {
            let mut config = builder.with_client_cert_verifier(clients).with_cert_resolver(certificates);
            // A resumed session would not be verified again, for instance after the CA has changed.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
        None => builder.with_no_client_auth().with_cert_resolver(certificates),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Server {
    /// Serves the routes until `stop` is cancelled, then finishes requests in flight within a time limit.
    ///
    /// # Errors
    ///
    /// If TLS cannot be configured.
    pub async fn serve(self, routes: Router, stop: CancellationToken) -> anyhow::Result<()> {
        let acceptor = TlsAcceptor::from(tls(self.certificates, self.clients)?);
        let connections = Arc::new(Connections::new(CAPS));
        let refusals = Arc::new(Refusals::default());
        let mut running = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = async { connections.room().await; self.listener.accept().await } => accepted,
                () = stop.cancelled() => break,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The process may be out of file descriptors. Accepting again at once would be a busy loop.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Admitted { place, displaced } = connections.admit(peer.ip());
            if displaced {
                self.metrics.displaced_connections.inc();
            }
            let connection = Connection {
                acceptor: acceptor.clone(),
                routes: routes.clone(),
                metrics: self.metrics.clone(),
                refusals: refusals.clone(),
                place: Arc::new(place),
                peer,
            };
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
    refusals: Arc<Refusals>,
    place: Arc<Place>,
    peer: SocketAddr,
}

impl Connection {
    async fn run(self, socket: TcpStream, stop: CancellationToken) {
        let _ = socket.set_nodelay(true);
        let close_requested = self.place.close_requested();
        let Some(stream) = close_requested.run_until_cancelled(self.handshake(socket)).await.flatten() else { return };
        self.metrics.connections.inc();
        let place = self.place.clone();
        let service = hyper::service::service_fn({
            let routes = self.routes;
            move |mut request: Request<Incoming>| {
                let exchange = Arc::new(place.exchange());
                request.extensions_mut().insert(exchange.clone());
                let answer = routes.clone().oneshot(request);
                async move {
                    let answer = answer.await;
                    drop(exchange);
                    answer
                }
            }
        });
        let builder = protocols();
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut ends = Ends { stop, close_requested };
        let mut finished = tokio::select! {
            finished = connection.as_mut() => Some(finished),
            _ = ends.wait() => None,
            () = tokio::time::sleep(FIRST_HEADER_DEADLINE) => None,
        };
        if finished.is_none() && self.place.is_proven() {
            let mut deadline = DRAIN_DEADLINE;
            tokio::select! {
                ended = connection.as_mut() => finished = Some(ended),
                left = ends.wait() => deadline = left,
                () = tokio::time::sleep(MAX_AGE) => {}
            }
            if finished.is_none() {
                connection.as_mut().graceful_shutdown();
                finished = tokio::time::timeout(deadline, connection).await.ok();
            }
        }
        let finished = finished.unwrap_or(Ok(()));
        if let Err(error) = finished {
            tracing::debug!("connection failed: {error}");
        }
        self.metrics.connections.dec();
    }

    async fn handshake(&self, socket: TcpStream) -> Option<TlsStream<TcpStream>> {
        match tokio::time::timeout(HANDSHAKE_DEADLINE, self.acceptor.accept(socket)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => match clients::refusal(&error) {
                Some(why) => {
                    self.metrics.refused_clients.inc();
                    self.refusals.say(self.peer, &why);
                }
                None => tracing::debug!("handshake failed: {error}"),
            },
            Err(_) => tracing::debug!("handshake timed out"),
        }
        None
    }
}

/// The two reasons for which this side ends a connection.
struct Ends {
    stop: CancellationToken,
    close_requested: CancellationToken,
}

impl Ends {
    /// Waits for one of them. Returns the time limit for requests in flight.
    async fn wait(&mut self) -> Duration {
        tokio::select! {
            () = self.stop.cancelled() => DRAIN_DEADLINE,
            () = self.close_requested.cancelled() => CLOSE_DEADLINE,
        }
    }
}

fn protocols() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_DEADLINE).max_buf_size(BUFFER).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(IDLE_DEADLINE / 4))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS);
    builder
}

/// Rate-limited log of clients that are refused for their certificate, because any client can cause such lines.
#[derive(Debug, Default)]
struct Refusals {
    /// Time of the last line, and the number of refusals since.
    since: Mutex<Option<(Instant, u64)>>,
}

impl Refusals {
    fn say(&self, peer: SocketAddr, why: &dyn std::fmt::Display) {
        let mut since = self.since.lock();
        let more = match &mut *since {
            Some((last, more)) if last.elapsed() < REFUSALS_EVERY => {
                *more += 1;
                return;
            }
            Some((_, more)) => *more,
            None => 0,
        };
        *since = Some((Instant::now(), 0));
        drop(since);
        tracing::warn!(%peer, more, "client refused: {why}");
    }
}
