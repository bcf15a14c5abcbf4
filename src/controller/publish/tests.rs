//! The publication of one node must not wait for that of another.

use axum::http::Method;

use super::super::tests::{self as testing, eventually};
use super::*;

#[tokio::test]
async fn a_node_that_hangs_delays_the_number_of_no_other() {
    let (controller, asked) = testing::controller();
    let index = controller.index.clone();
    let _running = tokio::spawn(run(controller));
    let written = |times| asked.count(&Method::PATCH, "/nodes/node/status") == times;
    eventually("the other node is written", || written(1)).await;
    index.apply_pod(&testing::pod("pod", "node"));
    eventually("it is written again for a pod that came", || written(2)).await;
    assert_eq!(asked.hanging(), 1, "the one that hangs has not been given up meanwhile");
}
