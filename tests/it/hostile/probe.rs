//! A client that sends good reviews during an attack and records their latencies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinHandle;

use crate::support::client::Client;
use crate::support::eventually;

/// Time between two reviews.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest timeout of the webhook configurations. A later answer is useless to the API server.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// A running client.
pub(super) struct Probe {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    asked: JoinHandle<Vec<Result<Duration, String>>>,
}

/// Latencies of good reviews.
#[derive(Debug)]
pub(super) struct Latencies {
    pub median: Duration,
    pub worst: Duration,
    pub count: usize,
    /// Reasons of the reviews without an answer in time.
    pub unanswered: Vec<String>,
}

/// The way of a review to the server.
pub(crate) enum Asker {
    /// Directly to the port, over a connection that is kept open.
    Port { port: u16, ca: String, body: String, client: Option<Client> },
    /// Through the API server, which reviews a pod of this namespace on a dry run.
    ApiServer { client: kube::Client, namespace: String, pod: String },
}

impl Asker {
    async fn ask(&mut self) -> anyhow::Result<()> {
        match self {
            Asker::Port { port, ca, body, client } => {
                let mut connection = match client.take() {
                    Some(connection) => connection,
                    None => Client::connect(*port, ca, "http/1.1").await?,
                };
                let (status, answer) = match connection.post("/validate/pods", body.clone()).await {
                    // The server has closed the idle connection for another one. API servers retry over a new one too.
                    Err(_) => {
                        connection = Client::connect(*port, ca, "http/1.1").await?;
                        connection.post("/validate/pods", body.clone()).await?
                    }
                    answered => answered?,
                };
                ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&answer));
                *client = Some(connection);
                Ok(())
            }
            Asker::ApiServer { client, namespace, pod } => dry_run(client, namespace, pod.clone()).await.map(drop),
        }
    }
}

/// Creates a pod through the API server on a dry run, and returns the answer.
pub(super) async fn dry_run(client: &kube::Client, namespace: &str, pod: String) -> anyhow::Result<String> {
    let request = hyper::Request::post(format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"))
        .header("content-type", "application/json")
        .body(pod.into_bytes())?;
    Ok(client.request_text(request).await?)
}

impl Probe {
    /// Starts to send reviews, one after the other.
    pub(super) fn start(mut asker: Asker) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                let answered = tokio::time::timeout(TIMEOUT, asker.ask()).await;
                asked.push(match answered {
                    Ok(Ok(())) => Ok(start.elapsed()),
                    Ok(Err(error)) => Err(format!("{error:#}")),
                    Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
                });
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await; // the pace of the requests
            }
            asked
        });
        Probe { stop, count, asked }
    }

    /// Waits until the first request has ended.
    pub(super) async fn begun(&self) {
        eventually("the first good review", TIMEOUT * 2, async || {
            ensure!(self.count.load(Ordering::Relaxed) > 0, "no request has ended");
            Ok(())
        })
        .await;
    }

    /// Stops and returns the latencies.
    pub(super) async fn stop(self) -> Latencies {
        self.stop.store(true, Ordering::Relaxed);
        let asked = self.asked.await.expect("a probe does not panic");
        let count = asked.len();
        let mut took: Vec<Duration> = asked.iter().filter_map(|asked| asked.as_ref().ok().copied()).collect();
        took.sort_unstable();
        let at = |index: usize| took.get(index).copied().unwrap_or(TIMEOUT);
        Latencies {
            median: at(took.len() / 2),
            worst: at(took.len().saturating_sub(1)),
            count,
            unanswered: asked.into_iter().filter_map(Result::err).collect(),
        }
    }
}
