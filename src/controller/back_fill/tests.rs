//! Pods and nodes must not wait for pods whose write hangs.

use std::convert::Infallible;
use std::num::NonZeroU32;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::capacity::gpu::{AllocationPolicy, Contents, Gpu, Resource, Sharing};
use crate::capacity::node::holder::{Amount, Part};
use crate::capacity::pod::PodName;
use crate::capacity::pod::demand::Role;
use crate::capacity::vram::Vram;

/// An API server that has every pod, and never answers a write to a pod whose name begins with `hangs`.
fn api_server(written: Arc<Mutex<BTreeSet<String>>>) -> Client {
    let answer = move |request: Request<kube::client::Body>| {
        let written = written.clone();
        async move {
            let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            if request.method() == Method::PATCH {
                if name.starts_with("hangs") {
                    std::future::pending::<()>().await;
                }
                written.lock().insert(name.clone());
            }
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "ml", "uid": name },
                "spec": { "containers": [{ "name": "main", "resources": { "limits": { "nvidia.com/gpu": "1" } } }] },
            });
            Ok::<_, Infallible>(Response::new(Body::from(pod.to_string())))
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

fn lacking(names: &[String]) -> Vec<MissingAnnotations> {
    let resource = Resource("nvidia.com/gpu".into());
    let gpus = vec![Gpu::of_size(0, Vram::from_mib(24_576))];
    let pool = Pool {
        resource: resource.clone(),
        sharing: Sharing::TimeSlicing,
        contents: Ok(Contents { gpus, replicas: NonZeroU32::new(4).unwrap() }),
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: false,
        tells_processes: false,
    };
    let request = Vram::from_mib(5720);
    let part = Part { container: "main".into(), role: Role::App, amount: Amount::Requested(request), gpu: None };
    let holder = |name: &str| Holder {
        name: PodName { namespace: "ml".into(), name: name.into() },
        request: Some(request),
        parts: vec![part.clone()].into(),
        gpus: vec![(resource.clone(), 1)].into(),
        label_at_least: None,
        needs_label: false,
        priority: 0,
        starting: None,
        bound: None,
        annotated: false,
    };
    let pools: Arc<[Pool]> = [pool].into();
    let of = |name: &String| MissingAnnotations {
        uid: PodUid::from(name.clone()),
        holder: holder(name),
        gpu: Some(GpuId::Index(0)),
        pools: pools.clone(),
    };
    names.iter().map(of).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

#[tokio::test]
async fn pods_whose_write_hangs_keep_nobody_waiting_while_there_are_turns() {
    let written = Arc::default();
    let mut back_fills = BackFills::new(api_server(Arc::clone(&written)));
    assert!(back_fills.begin("gpu-0", lacking(&names("hangs", PARALLEL - 1))));
    assert!(back_fills.begin("gpu-0", lacking(&names("here", 20))));
    assert!(back_fills.begin("gpu-1", lacking(&names("there", 20))));
    eventually("the others are written", || written.lock().len() == 40).await;
    assert_eq!(back_fills.failed(), BTreeSet::new());
}

#[tokio::test]
async fn pods_whose_write_hangs_give_their_turn_back_and_their_node_is_looked_at_again() {
    let written = Arc::default();
    let deadline = Duration::from_millis(100);
    let mut back_fills = BackFills { deadline, ..BackFills::new(api_server(Arc::clone(&written))) };
    let hang = names("hangs", PARALLEL);
    assert!(back_fills.begin("gpu-0", lacking(&hang)));
    assert!(back_fills.begin("gpu-1", lacking(&names("here", 20))));
    eventually("the others are written", || written.lock().len() == 20).await;
    let mut failed = BTreeSet::new();
    eventually("nothing is in hand", || {
        failed.append(&mut back_fills.failed());
        back_fills.in_hand.is_empty()
    })
    .await;
    assert_eq!(failed, BTreeSet::from(["gpu-0".to_owned()]));
    assert!(back_fills.begin("gpu-0", lacking(&hang)), "they can be taken in hand again");
    assert_eq!(back_fills.in_hand.len(), PARALLEL);
}

#[tokio::test]
async fn a_pod_is_in_hand_once_and_no_more_pods_than_there_is_place_for() {
    let mut back_fills = BackFills::new(api_server(Arc::default()));
    let hang = names("hangs", MAX_IN_HAND);
    assert!(back_fills.begin("gpu-0", lacking(&hang)));
    assert!(back_fills.begin("gpu-0", lacking(&hang)), "each of them is in hand already");
    assert_eq!(back_fills.tasks.len(), MAX_IN_HAND);
    assert!(!back_fills.begin("gpu-1", lacking(&names("here", 1))));
}
