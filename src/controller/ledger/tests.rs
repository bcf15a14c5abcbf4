//! The ledger of one node must not wait for that of another.

use axum::http::Method;
use serde_json::json;

use super::super::tests::{self as testing, eventually};
use super::*;

#[tokio::test]
async fn a_node_that_hangs_delays_the_ledger_of_no_other() {
    let (controller, asked) = testing::controller();
    let index = controller.index.clone();
    let _running = tokio::spawn(run(controller));
    // Before the first write of a ledger, its node is read for the uid.
    let made = |times| asked.count(&Method::POST, "/gpuledgers") == times;
    eventually("the ledger of the other node is made", || made(1)).await;
    index.apply_pod(&testing::pod("pod", "node"));
    eventually("it is made again for a pod that came", || made(2)).await;
    assert_eq!(asked.hanging(), 1, "the one that hangs has not been given up meanwhile");
}

/// The reservation was written first, so that the retry found no pod without one.
#[tokio::test]
async fn a_slip_is_reported_also_if_the_first_read_of_its_pod_fails() {
    let enforce = "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: { name: cluster }\nspec: { mode: Enforce }\n";
    let (controller, asked) = testing::controller_under(&vec![("cluster.yaml".to_owned(), enforce.to_owned())]);
    let ledger = json!({
        "apiVersion": "vramguard.dev/v1alpha1", "kind": "GpuLedger",
        "metadata": {
            "name": "node", "resourceVersion": "1", "creationTimestamp": "2026-11-29T12:00:00Z",
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "node", "uid": "node" }],
        },
        "spec": { "reservations": [] },
    });
    controller.index.apply_ledger(&serde_json::from_value(ledger).expect("a ledger"));
    let mut pod = testing::pod("pod", "node");
    let scheduled = json!([{ "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-29T12:00:01Z" }]);
    pod.status.conditions = serde_json::from_value(scheduled).expect("conditions");
    controller.index.apply_pod(&pod);
    let recorder = Recorder::new(&controller);
    let patience = Patience { request_timeout: Duration::from_secs(60), skew: Duration::from_secs(30) };
    let writes = || asked.count(&Method::PATCH, "/gpuledgers/node");

    assert!(reconcile(&controller, &recorder, &patience, "node").await.is_err(), "the read of the pod fails");
    assert_eq!((writes(), controller.metrics.slips.get()), (0, 0), "nothing is written yet");
    asked.answer_pod(testing::pod_as_json("pod", "node"));
    reconcile(&controller, &recorder, &patience, "node").await.expect("the second attempt");
    assert_eq!((writes(), controller.metrics.slips.get()), (1, 1));
}
