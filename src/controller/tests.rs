//! An API server for unit tests that answers for all nodes except one, for which its answers hang.

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
use crate::k8s::object::{NodeObject, PodObject};
use crate::metrics::Metrics;
use crate::state::index::Index;
use crate::state::policies::{Files, PolicyStore};

/// Name of the node whose requests are never answered.
pub(super) const HANGS: &str = "hangs";

/// The requests that the API server received.
#[derive(Default)]
pub(super) struct Asked {
    requests: Mutex<Vec<(Method, String)>>,
    hanging: AtomicUsize,
    pod: Mutex<Option<Value>>,
}

/// Counts a request that hangs, until the client cancels it.
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
    /// Number of requests with this method whose path ends with `end`.
    pub(super) fn count(&self, method: &Method, end: &str) -> usize {
        self.requests.lock().iter().filter(|(asked, path)| asked == method && path.ends_with(end)).count()
    }

    /// Sets what reads of a pod are answered with. Until then they fail with status 500.
    pub(super) fn answer_pod(&self, pod: Value) {
        *self.pod.lock() = Some(pod);
    }

    /// Number of requests that hang now.
    pub(super) fn hanging(&self) -> usize {
        self.hanging.load(Ordering::SeqCst)
    }
}

/// A controller over two nodes of two GPUs each, one of which hangs; and the requests that it sends.
pub(super) fn controller() -> (Controller, Arc<Asked>) {
    controller_under(&Vec::new())
}

/// The same, with these policy files.
pub(super) fn controller_under(policies: &Files) -> (Controller, Arc<Asked>) {
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
            if path.contains("/pods/") {
                let pod = seen.pod.lock().clone();
                let failure = json!({ "kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "etcd" });
                let status = if pod.is_some() { 200 } else { 500 };
                let body = Body::from(pod.unwrap_or(failure).to_string());
                return Ok(Response::builder().status(status).body(body).expect("a response"));
            }
            let object = json!({
                "apiVersion": "v1", "kind": "Any", "metadata": { "name": "node", "uid": "node", "resourceVersion": "1" },
            });
            Ok::<_, Infallible>(Response::new(Body::from(object.to_string())))
        }
    };
    let policies = Arc::new(PolicyStore::new(policies, "own").expect("policies that can be read"));
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
        audits: None,
    };
    (controller, asked)
}

/// A node with two GPUs, each shared by four replicas of the device plugin.
fn node(name: &str) -> NodeObject {
    let labels: Value = json!({
        "nvidia.com/gpu.memory": "24576", "nvidia.com/gpu.count": "2", "nvidia.com/gpu.replicas": "4",
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
    });
    let gpus = json!({ "nvidia.com/gpu": "8" });
    let node = json!({ "metadata": { "name": name, "uid": name, "labels": labels }, "status": { "capacity": gpus, "allocatable": gpus } });
    serde_json::from_value(node).expect("a node")
}

/// A bound pod that is larger than a slot, so that its node's published values change.
pub(super) fn pod(uid: &str, node: &str) -> PodObject {
    serde_json::from_value(pod_as_json(uid, node)).expect("a pod")
}

/// [`pod`], as the API server would send it.
pub(super) fn pod_as_json(uid: &str, node: &str) -> Value {
    let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "20Gi" });
    json!({
        "metadata": { "name": uid, "namespace": "ml", "uid": uid },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "main", "resources": { "limits": resources, "requests": resources } }],
        },
        "status": { "phase": "Running" },
    })
}

/// Waits for a condition that must not depend on the node that hangs.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..800 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 8 s: {what}");
}
