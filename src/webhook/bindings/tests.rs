//! When the guard reads the pod of a binding from the API server.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{Request as HttpRequest, Response as HttpResponse};
use serde_json::{Value, json};

use super::*;
use crate::capacity::gpu::Rules;
use crate::capacity::pod::PodName;

fn object(uid: &str) -> Value {
    let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8Gi" });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "llm", "namespace": "ml", "uid": uid },
        "spec": { "containers": [{ "name": "main", "resources": { "limits": resources, "requests": resources } }] },
    })
}

fn seen(object: Value) -> PodObject {
    serde_json::from_value(object).expect("a pod")
}

/// An API server with one pod, whose uid differs from the one that the watch has shown, and a counter of its calls.
fn guard() -> (BindingGuard, Arc<Mutex<usize>>) {
    let asked: Arc<Mutex<usize>> = Arc::default();
    let count = asked.clone();
    let answer = move |_: HttpRequest<kube::client::Body>| {
        *count.lock() += 1;
        async { Ok::<_, Infallible>(HttpResponse::new(Body::from(object("read").to_string()))) }
    };
    (BindingGuard::new(Client::new(tower::service_fn(answer), "default"), BTreeSet::new()), asked)
}

fn binding(name: &str, uid: Option<&str>) -> Binding {
    Binding {
        pod: PodName { namespace: "ml".into(), name: name.into() },
        uid: uid.map(PodUid::from),
        node: "gpu-0".into(),
        reserved_annotations: Vec::new(),
        binder: "system:kube-scheduler".into(),
    }
}

#[tokio::test]
async fn a_pod_that_the_watch_has_shown_is_not_read_for_a_binding_with_its_uid_and_any_other_is() {
    let (guard, asked) = guard();
    let index = Index::new(Rules::default(), Vec::new());
    index.apply_pod(&seen(object("shown")));
    let uid = async |binding: Binding| {
        let found = guard.pod(&binding, &index).await.expect("an answer").expect("a guarded pod");
        assert!(found.holder.starting.is_some());
        found.uid.to_string()
    };
    assert_eq!((uid(binding("llm", Some("shown"))).await, *asked.lock()), ("shown".into(), 0));
    // Unless uid and name match a pod of the watch, only a read shows which pod the Binding is for.
    assert_eq!((uid(binding("llm", None)).await, *asked.lock()), ("read".into(), 1));
    assert_eq!((uid(binding("other", Some("shown"))).await, *asked.lock()), ("read".into(), 2));
    assert_eq!((uid(binding("llm", Some("unknown"))).await, *asked.lock()), ("read".into(), 3));
    // Once the pod has a node, the guard uses what the API server returns now.
    let mut bound = object("shown");
    bound["spec"]["nodeName"] = json!("gpu-0");
    index.apply_pod(&seen(bound));
    assert_eq!((uid(binding("llm", Some("shown"))).await, *asked.lock()), ("read".into(), 4));
}
