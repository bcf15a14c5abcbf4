//! The attacks of a client that reaches the ports, and of a user who may only create pods.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::AsyncWriteExt;

use super::probe::dry_run;
use super::shapes;
use crate::support::client::{Client, connect};
use crate::support::http::get;

/// Bytes of a large review. The API server accepts 3 MiB.
const LARGE: usize = 2_900 << 10;
/// Bytes of the largest review that the server treats as small.
const SMALL: usize = 250 << 10;

/// Bytes of each of the two versions in a review of a workload. The server reads reviews of up to 4 MiB.
const LARGE_VERSION: usize = 2_000 << 10;

/// The ports under attack.
#[derive(Clone)]
pub(super) struct Target {
    pub https: u16,
    pub http: u16,
    pub ca: String,
    /// A namespace with mode Enforce.
    pub namespace: String,
}

impl Target {
    /// Sends bodies concurrently, each over its own connection, and ignores the answers.
    async fn post_all(&self, path: &str, bodies: impl IntoIterator<Item = Vec<u8>>) {
        let post = async |body: Vec<u8>| {
            if let Ok(mut client) = Client::connect(self.https, &self.ca, "http/1.1").await {
                _ = client.post(path, body).await;
            }
        };
        join_all(bodies.into_iter().map(post)).await;
    }

    /// Sends large reviews concurrently: `count` of the first shape, `others` of each other shape.
    pub(super) async fn large_reviews(&self, count: usize, others: usize) {
        let counts = std::iter::once(count).chain(std::iter::repeat(others));
        for ((_, body), count) in shapes::reviews(&self.namespace, LARGE).into_iter().zip(counts) {
            self.post_all("/validate/pods", (0..count).map(|_| body.clone())).await;
        }
    }

    /// Sends large updates of workloads concurrently: `count` of the first shape, `others` of each other shape.
    pub(super) async fn large_workloads(&self, count: usize, others: usize) {
        let counts = std::iter::once(count).chain(std::iter::repeat(others));
        for (body, count) in shapes::workloads(&self.namespace, LARGE_VERSION).into_iter().zip(counts) {
            self.post_all("/validate/workloads", (0..count).map(|_| body.clone())).await;
        }
    }

    /// Sends `count` small reviews of each shape concurrently.
    pub(super) async fn small_reviews(&self, count: usize) {
        for (_, body) in shapes::reviews(&self.namespace, SMALL) {
            self.post_all("/validate/pods", (0..count).map(|_| body.clone())).await;
        }
    }

    /// Claims a body of each length and then sends it slowly. A connection that the server closes is opened again.
    pub(super) async fn slow_bodies(&self, bytes: &[usize], within: Duration) {
        let slow = async |length: usize| {
            loop {
                let Ok(mut stream) = connect(self.https, &self.ca, "http/1.1").await else { continue };
                let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {length}\r\n\r\n");
                while stream.write_all(head.as_bytes()).await.is_ok() && stream.flush().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await; // the pace of a slow client
                }
            }
        };
        let all = join_all(bytes.iter().map(|length| slow(*length)));
        _ = tokio::time::timeout(within, all).await;
    }

    /// Opens connections, sends one request over each, and keeps them open.
    pub(super) async fn idle_connections(&self, count: usize, within: Duration) {
        let hold = async || {
            let mut client = Client::connect(self.https, &self.ca, "http/1.1").await.ok()?;
            _ = client.send(hyper::Method::GET, "/", crate::support::client::whole("")).await;
            Some(client)
        };
        let mut held = Vec::new();
        while held.len() < count {
            held.extend(join_all((0..50).map(|_| hold())).await);
        }
        tokio::time::sleep(within).await; // part of the attack: the connections stay open
    }

    /// Scrapes with `count` clients until the time is over.
    pub(super) async fn scrapes(&self, count: usize, within: Duration) {
        let port = self.http;
        let end = tokio::time::Instant::now() + within;
        let scrape = async || {
            while tokio::time::Instant::now() < end {
                _ = tokio::task::spawn_blocking(move || get(port, "/metrics").len()).await;
            }
        };
        join_all((0..count).map(|_| scrape())).await;
    }
}

/// Creates large pods on a dry run through the API server, as a user who may only create pods.
pub(super) async fn large_pods(tenant: &kube::Client, namespace: &str, count: usize) {
    let pod = shapes::pod(namespace, LARGE);
    join_all((0..count).map(|_| dry_run(tenant, namespace, pod.clone()))).await;
}
