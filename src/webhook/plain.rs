//! The plain port, of probes and scrapes. Owns its connections: few at a time, none of them for long. A port full of sleepers
//! would leave no file and no memory for reviews, and probes that find no place would have the server started again.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::connections::{Caps, Connections, Place};

/// For a request line and headers, and so between two requests too.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// For a connection as a whole. Scrapers that keep theirs open open another.
const DEADLINE: Duration = Duration::from_secs(60);
/// Probes and some scrapers.
const CAPS: Caps = Caps { open: 64, unproven: 64 };
/// What is read ahead and held back on a connection; headers have to fit.
const BUFFER: usize = 16 << 10;

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, routes: Router) {
    let connections = Arc::new(Connections::new(CAPS));
    loop {
        connections.room().await;
        let Ok((socket, peer)) = listener.accept().await else {
            // Out of file descriptors, say. Accepting again at once would only spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let place = connections.admit(peer.ip()).place;
        tokio::spawn(tokio::time::timeout(DEADLINE, connection(socket, routes.clone(), place)));
    }
}

async fn connection(socket: TcpStream, routes: Router, place: Place) {
    let told_to_close = place.told_to_close();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let exchange = place.exchange();
        let answer = routes.clone().oneshot(request);
        async move {
            exchange.received(); // nothing here has a body
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
    _ = told_to_close.run_until_cancelled(connection).await;
}
