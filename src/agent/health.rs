//! The plain HTTP port of the agent: `/healthz`, `/readyz` and `/metrics`. Owns what ready means; the connections are
//! those of [`crate::webhook::plain`].

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::metrics::Metrics;
use super::node::{Ledger, Node};

#[derive(Clone)]
struct Health {
    node: Arc<Node>,
    metrics: Arc<Metrics>,
}

/// The routes of the plain port.
pub(super) fn routes(node: Arc<Node>, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(page))
        .with_state(Health { node, metrics })
}

/// Ready means that the agent sees its GPUs and its pods. A lost GPU is reported, and does not make the agent unready.
async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    let missing = health.node.read(|state| match &state.look {
        None => Some("the GPUs have not been read yet".to_owned()),
        Some(Err(why)) => Some(format!("the GPUs cannot be read: {why}")),
        Some(Ok(_)) if !state.observer.owners.are_listed() => {
            Some("the pods of the node have not been listed yet".to_owned())
        }
        Some(Ok(_)) if state.ledger == Ledger::Unknown => Some("the GpuLedger has not been looked for yet".to_owned()),
        Some(Ok(_)) => None,
    });
    match missing {
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn page(State(health): State<Health>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match health.metrics.page() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
