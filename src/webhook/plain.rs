//! The plain HTTP port: `/healthz`, `/readyz`, `/metrics`, and `/report` where it is asked for.
//!
//! Owns readiness and the connections of this port, which are few and short-lived. Otherwise idle connections could use
//! up the file descriptors and the memory that reviews need. They could also keep probes from connecting, and the
//! kubelet would then restart the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::connections::{Caps, Connections, Place};
use super::pieces::chunked;
use crate::metrics::Metrics;
use crate::state::index::Index;
use crate::tls::CertificateStore;

/// Scrapes whose answers are in memory at the same time. Further scrapes wait.
const SCRAPES: usize = 4;
/// Time limit for a client to read the answer to a scrape. Prometheus gives up after 10 s by default.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(10);

/// Time limit for a request line and its headers. It therefore also limits the time between two requests.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Lifetime of a connection. Scrapers that keep connections alive open a new one.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bounds on connections: enough for probes and some scrapers.
const CAPS: Caps = Caps { open: 64, unproven: 64 };
/// Size of a connection's buffers, in bytes. The headers of a request have to fit.
const BUFFER: usize = 16 << 10;

/// Serves the routes until the future is dropped.
pub async fn serve(listener: TcpListener, routes: Router) {
    let connections = Arc::new(Connections::new(CAPS));
    loop {
        connections.room().await;
        let Ok((socket, peer)) = listener.accept().await else {
            // The process may be out of file descriptors. Accepting again at once would be a busy loop.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let place = connections.admit(peer.ip()).place;
        tokio::spawn(tokio::time::timeout(DEADLINE, connection(socket, routes.clone(), place)));
    }
}

async fn connection(socket: TcpStream, routes: Router, place: Place) {
    let close_requested = place.close_requested();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let exchange = place.exchange();
        let answer = routes.clone().oneshot(request);
        async move {
            exchange.received(); // no request on this port has a body
            let answer = answer.await;
            drop(exchange);
            answer
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(socket), service);
    _ = close_requested.run_until_cancelled(connection).await;
}

/// State that the handlers of probes and scrapes share.
#[derive(Clone)]
pub struct Health {
    index: Arc<Index>,
    certificates: Arc<CertificateStore>,
    metrics: Arc<Metrics>,
    scrapes: Arc<Semaphore>,
    stopping: Arc<AtomicBool>,
    /// The HTML page of the last audit; `None` if nobody asked for it.
    report: Option<Arc<ArcSwapOption<Bytes>>>,
}

impl Health {
    /// Creates the state. `/readyz` fails once `stopping` is set.
    pub fn new(
        index: Arc<Index>,
        certificates: Arc<CertificateStore>,
        metrics: Arc<Metrics>,
        stopping: Arc<AtomicBool>,
    ) -> Health {
        let scrapes = Arc::new(Semaphore::new(SCRAPES));
        Health { index, certificates, metrics, scrapes, stopping, report: None }
    }

    /// Serves the HTML page of the last audit at `/report` too.
    #[must_use]
    pub fn with_report(self, report: Option<Arc<ArcSwapOption<Bytes>>>) -> Health {
        Health { report, ..self }
    }

    /// The routes of the plain port.
    pub fn routes(self) -> Router {
        let routes = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics));
        // The page names pods and namespaces, so it is not there unless somebody asked for it.
        let routes = if self.report.is_some() { routes.route("/report", get(report)) } else { routes };
        routes.with_state(self)
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.stopping.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if !health.index.is_synced() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "policies, nodes, pods and GpuLedgers have not been listed yet; the log says what fails\n",
        )
    } else if health.index.is_cut_off() {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has been silent for minutes\n")
    } else if health.certificates.not_after().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "there is no serving certificate yet\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn report(State(health): State<Health>) -> impl IntoResponse {
    let turn = health.scrapes.clone().acquire_owned().await.expect("the semaphore is never closed");
    match health.report.as_ref().and_then(|report| report.load_full()) {
        Some(page) => {
            let text = chunked(Bytes::clone(&page), turn, SCRAPE_DEADLINE);
            let headers = [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (headers, text).into_response()
        }
        None => {
            let why = "no report here: only the replica that leads audits, some seconds after it begins to lead; if this one leads, its \
                       log says what became of the last audit\n";
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let turn = health.scrapes.clone().acquire_owned().await.expect("the semaphore is never closed");
    match health.metrics.scrape().await {
        Ok(text) => {
            let text = chunked(text, turn, SCRAPE_DEADLINE);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
