//! An API server for unit tests that answers for all nodes but one, for which it hangs.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Controller;
use crate::capacity::gpu::Rules;
use crate::index::Index;
use crate::k8s::object::{NodeObject, PodObject};
use crate::metrics::Metrics;
use crate::policies::PolicyStore;

/// Name of the node for which nothing is answered.
pub const HANGS: &str = "hangs";

/// What the API server was asked.
#[derive(Default)]
pub struct Asked {
    requests: Mutex<Vec<(Method, String)>>,
    hanging: AtomicUsize,
}

/// Counts a request that hangs, until it is given up.
struct Hanging<'a>(&'a AtomicUsize);

impl<'a> Hanging<'a> {
    fn begin(count: &'a AtomicUsize) -> Hanging<'a> {
        count.fetch_add(1, Ordering::SeqCst);
        Hanging(count)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Asked {
    /// How many requests with this method there were whose path ends so.
    pub fn count(&self, method: &Method, end: &str) -> usize {
        self.requests.lock().iter().filter(|(asked, path)| asked == method && path.ends_with(end)).count()
    }

    /// Requests that hang now.
    pub fn hanging(&self) -> usize {
        self.hanging.load(Ordering::SeqCst)
    }
}

/// A controller over two nodes of two GPUs each, one of which hangs, and what it asks.
pub fn controller() -> (Controller, Arc<Asked>) {
    let asked = Arc::new(Asked::default());
    let seen = asked.clone();
    let answer = move |request: Request<kube::client::Body>| {
        let seen = seen.clone();
        async move {
            let path = request.uri().path().to_owned();
            seen.requests.lock().push((request.method().clone(), path.clone()));
            if path.contains(HANGS) {
                let _hanging = Hanging::begin(&seen.hanging);
                std::future::pending::<()>().await;
            }
            let object = json!({
                "apiVersion": "v1", "kind": "Any", "metadata": { "name": "node", "uid": "node", "resourceVersion": "1" },
            });
            Ok::<_, Infallible>(Response::new(Body::from(object.to_string())))
        }
    };
    let policies = Arc::new(PolicyStore::new(&Vec::new(), "own").expect("the default is sound"));
    let index = Arc::new(Index::new(Rules::default(), Vec::new()));
    for name in [HANGS, "node"] {
        index.apply_node(&node(name));
    }
    let controller = Controller {
        client: Client::new(tower::service_fn(answer), "default"),
        metrics: Arc::new(Metrics::new(index.clone(), policies.clone(), Arc::default())),
        index,
        policies,
        namespace: "own".into(),
        identity: "test".into(),
        api_request_timeout: Duration::from_secs(60),
        webhook_configuration: "vramguard".into(),
        certificate: None,
    };
    (controller, asked)
}

/// Two GPUs that four pods each share.
fn node(name: &str) -> NodeObject {
    let labels: Value = json!({
        "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "2", "nvidia.com/gpu.replicas": "4",
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
    });
    let gpus = json!({ "nvidia.com/gpu": "8" });
    let node = json!({ "metadata": { "name": name, "uid": name, "labels": labels }, "status": { "capacity": gpus, "allocatable": gpus } });
    serde_json::from_value(node).expect("a node")
}

/// A pod that is bound to a node and larger than a slot, so that the node says something else.
pub fn pod(uid: &str, node: &str) -> PodObject {
    let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "20Gi" });
    let pod = json!({
        "metadata": { "name": uid, "namespace": "ml", "uid": uid },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "main", "resources": { "limits": resources, "requests": resources } }],
        },
        "status": { "phase": "Running" },
    });
    serde_json::from_value(pod).expect("a pod")
}

/// Waits for something that does not depend on the node that hangs.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..800 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 8 s: {what}");
}
