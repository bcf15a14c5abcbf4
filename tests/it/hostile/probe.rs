//! Somebody who asks for good reviews while others attack, and writes down how long each took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinHandle;

use crate::server::client::Client;

/// Between two reviews.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest timeout of the webhook configurations: an answer after that is none.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// What was asked so far.
pub struct Probe {
    stop: Arc<AtomicBool>,
    asked: JoinHandle<Vec<Result<Duration, String>>>,
}

/// How long good reviews took.
#[derive(Debug)]
pub struct Latencies {
    pub median: Duration,
    pub worst: Duration,
    pub count: usize,
    /// Reviews without an answer in time, and why.
    pub unanswered: Vec<String>,
}

/// Who asks, over which way.
pub enum Asker {
    /// The port itself, over a connection that is kept open.
    Port { port: u16, ca: String, body: String, client: Option<Client> },
    /// The API server, which asks in turn: a pod of this namespace on a dry run.
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
                    // It was closed for another one while it was idle: API servers ask again over a new one too.
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

/// Creates a pod through the API server, on a dry run; what comes back.
pub async fn dry_run(client: &kube::Client, namespace: &str, pod: String) -> anyhow::Result<String> {
    let request = hyper::Request::post(format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"))
        .header("content-type", "application/json")
        .body(pod.into_bytes())?;
    Ok(client.request_text(request).await?)
}

impl Probe {
    /// Asks again and again.
    pub fn start(mut asker: Asker) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
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
                tokio::time::sleep(PAUSE).await;
            }
            asked
        });
        Probe { stop, asked }
    }

    /// Stops asking.
    pub async fn stop(self) -> Latencies {
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
