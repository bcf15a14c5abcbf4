//! Which ledger waits for which.

use axum::http::Method;

use super::super::tests::{self as testing, eventually};
use super::*;

#[tokio::test]
async fn a_node_that_hangs_delays_the_ledger_of_no_other() {
    let (controller, asked) = testing::controller();
    let index = controller.index.clone();
    let _running = tokio::spawn(run(controller));
    // A node is read for its uid before its first ledger is written.
    let made = |times| asked.count(&Method::POST, "/gpuledgers") == times;
    eventually("the ledger of the other node is made", || made(1)).await;
    index.apply_pod(&testing::pod("pod", "node"));
    eventually("it is made again for a pod that came", || made(2)).await;
    assert_eq!(asked.hanging(), 1, "the one that hangs has not been given up meanwhile");
}
