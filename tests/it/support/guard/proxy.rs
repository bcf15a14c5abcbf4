//! Owns one port in front of several servers, like a Service in front of its endpoints.
//!
//! A new connection goes to the next ready server; a server that refuses it is skipped. A server that is not ready for a
//! second leaves the rotation. Open connections stay with their server, as in a cluster, even if it hangs.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most connections at once, more than the API server opens to one host.
const CONNECTIONS: usize = 1024;
const PROBE_PERIOD: Duration = Duration::from_secs(1);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);

/// A server behind the proxy.
pub(super) struct Endpoint {
    /// Port for reviews.
    pub https: u16,
    /// Port for readiness.
    pub http: u16,
    ready: AtomicBool,
}

/// The port. Drop closes it and all connections through it.
pub(super) struct Proxy {
    endpoints: Arc<Vec<Endpoint>>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on `port`. `servers` are the ports for reviews and readiness of each server.
    pub(super) async fn start(port: u16, servers: &[(u16, u16)]) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
        let endpoint = |&(https, http): &(u16, u16)| Endpoint { https, http, ready: AtomicBool::new(false) };
        let endpoints: Arc<Vec<Endpoint>> = Arc::new(servers.iter().map(endpoint).collect());
        let mut tasks = JoinSet::new();
        for index in 0..endpoints.len() {
            tasks.spawn(probe(endpoints.clone(), index));
        }
        tasks.spawn(accept(listener, endpoints.clone()));
        Proxy { endpoints, _tasks: tasks }
    }

    /// Whether each server is in rotation.
    pub(super) fn ready(&self) -> Vec<bool> {
        self.endpoints.iter().map(|endpoint| endpoint.ready.load(Ordering::Relaxed)).collect()
    }
}

/// Probes one endpoint and updates the rotation.
async fn probe(endpoints: Arc<Vec<Endpoint>>, index: usize) {
    let endpoint = &endpoints[index];
    let mut period = tokio::time::interval(PROBE_PERIOD);
    loop {
        period.tick().await;
        let ready = timeout(PROBE_DEADLINE, is_ready(endpoint.http)).await.unwrap_or(false);
        endpoint.ready.store(ready, Ordering::Relaxed);
    }
}

async fn is_ready(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}

async fn accept(listener: TcpListener, endpoints: Arc<Vec<Endpoint>>) {
    let (next, places) = (AtomicUsize::new(0), Arc::new(Semaphore::new(CONNECTIONS)));
    let mut connections = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let Ok((mut client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // out of file descriptors, for example: between two attempts
            continue;
        };
        while connections.try_join_next().is_some() {}
        let (endpoints, first) = (endpoints.clone(), next.fetch_add(1, Ordering::Relaxed));
        connections.spawn(async move {
            let _place = place;
            // Without a server in rotation the connection is closed, as with a Service without endpoints.
            if let Some(mut server) = connect(&endpoints, first).await {
                // Either side may end the connection, also with an error.
                _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

async fn connect(endpoints: &[Endpoint], first: usize) -> Option<TcpStream> {
    for offset in 0..endpoints.len() {
        let endpoint = &endpoints[(first + offset) % endpoints.len()];
        if !endpoint.ready.load(Ordering::Relaxed) {
            continue;
        }
        let address = (Ipv4Addr::LOCALHOST, endpoint.https);
        if let Ok(Ok(stream)) = timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
            _ = stream.set_nodelay(true);
            return Some(stream);
        }
    }
    None
}
