//! What somebody can do who reaches the ports, and somebody who may create pods and no more.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::AsyncWriteExt;

use super::probe::dry_run;
use super::shapes;
use crate::guard::get;
use crate::server::client::{Client, connect};

/// How large the largest reviews are: the API server takes 3 MiB.
const LARGE: usize = 2_900 << 10;
/// As large as small ones may be.
const SMALL: usize = 250 << 10;

/// Whom to attack.
#[derive(Clone)]
pub struct Target {
    pub https: u16,
    pub http: u16,
    pub ca: String,
    /// A namespace in mode Enforce.
    pub namespace: String,
}

impl Target {
    /// Sends bodies at once, each over a connection of its own. What is answered is nobody's business here.
    async fn post_all(&self, bodies: impl IntoIterator<Item = Vec<u8>>) {
        let post = async |body: Vec<u8>| {
            if let Ok(mut client) = Client::connect(self.https, &self.ca, "http/1.1").await {
                _ = client.post("/validate/pods", body).await;
            }
        };
        join_all(bodies.into_iter().map(post)).await;
    }

    /// Large reviews of each shape at once, of the first one `count`, of the others `others`.
    pub async fn large_reviews(&self, count: usize, others: usize) {
        let counts = std::iter::once(count).chain(std::iter::repeat(others));
        for ((_, body), count) in shapes::reviews(&self.namespace, LARGE).into_iter().zip(counts) {
            self.post_all((0..count).map(|_| body.clone())).await;
        }
    }

    /// Reviews of each shape that pass as small ones, that many at once.
    pub async fn small_reviews(&self, count: usize) {
        for (_, body) in shapes::reviews(&self.namespace, SMALL) {
            self.post_all((0..count).map(|_| body.clone())).await;
        }
    }

    /// Bodies that are claimed and do not come, and bodies that come a byte at a time; new ones for those that are cut off.
    pub async fn slow_bodies(&self, bytes: &[usize], within: Duration) {
        let slow = async |length: usize| {
            loop {
                let Ok(mut stream) = connect(self.https, &self.ca, "http/1.1").await else { continue };
                let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: webhook\r\nContent-Length: {length}\r\n\r\n");
                while stream.write_all(head.as_bytes()).await.is_ok() && stream.flush().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let all = join_all(bytes.iter().map(|length| slow(*length)));
        _ = tokio::time::timeout(within, all).await;
    }

    /// Connections over which one request went, and which are held.
    pub async fn idle_connections(&self, count: usize, within: Duration) {
        let hold = async || {
            let mut client = Client::connect(self.https, &self.ca, "http/1.1").await.ok()?;
            _ = client.send(hyper::Method::GET, "/", crate::server::client::whole("")).await;
            Some(client)
        };
        let mut held = Vec::new();
        while held.len() < count {
            held.extend(join_all((0..50).map(|_| hold())).await);
        }
        tokio::time::sleep(within).await;
    }

    /// Scrapes at once, again and again.
    pub async fn scrapes(&self, count: usize, within: Duration) {
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

/// Large pods through the API server, by a user who may create pods and no more.
pub async fn large_pods(tenant: &kube::Client, namespace: &str, count: usize) {
    let pod = shapes::pod(namespace, LARGE);
    join_all((0..count).map(|_| dry_run(tenant, namespace, pod.clone()))).await;
}
