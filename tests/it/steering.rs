//! Steering on a real kubelet and containerd: the agent between them and the test device plugin.
//!
//! There is no binding guard in this file. The test itself reserves the GPU of each pod in the ledger, and binds the pod.
//! It reads the GPU of a pod from the kubelet's PodResources API and checkpoint, and judges by itself.
//!
//! | module | owns |
//! |---|---|
//! | `wanted` | the pods, their demands and reservations |
//! | `node` | the node, and what is done to it |
//! | `process` | the agent |
//! | `seen` | what the kubelet says of a pod |
//! | `excuse` | which pods may be on another GPU, by an answer of the agent |
//! | `oracle` | the sum of what PodResources lists on each GPU |
//! | `storm` | bursts of pods with mixed demands under random faults |
//! | `guarded`, `presence` | tests with a binding guard: a whole cluster |
//! | `takeover` | tests on a newer kubelet |
//!
//! The tests print a reason and pass if the host cannot run a kubelet.

mod excuse;
mod guarded;
mod node;
mod oracle;
mod presence;
mod process;
mod seen;
mod storm;
mod takeover;
mod wanted;

use node::SteeredNode;
use wanted::Wanted;

const A: &str = "GPU-00000000-0000-4000-8000-000000000000";
const B: &str = "GPU-00000001-0000-4000-8000-000000000001";

/// The UUID of a GPU of the node, by its index: those of the test device plugin.
fn uuid(gpu: u32) -> String {
    format!("GPU-{gpu:08x}-0000-4000-8000-{gpu:012x}")
}

/// Pods with one GPU container each, three of four on one GPU.
fn burst(name: &str, pods: usize) -> Vec<Wanted> {
    let gpu = |n: usize| if n % 4 == 3 { A } else { B };
    (0..pods).map(|n| Wanted::pod(&format!("{name}-{n}"), gpu(n))).collect()
}

#[tokio::test]
async fn every_container_is_on_the_gpu_that_is_reserved_for_its_pod() {
    let Some(node) = SteeredNode::start().await else { return };
    let mut pods = burst("plain", 6);
    pods.push(Wanted::pod("two", A).with_app("second"));
    pods.push(Wanted::pod("sidecar", B).with_init("proxy", true));
    pods.push(Wanted::pod("init", B).with_init("fetch", false));
    pods.push(Wanted::pod("elsewhere", A).for_another_node());
    pods.extend(burst("more", 4));
    node.create(&pods).await;
    let outcomes = node.outcomes(&pods).await;
    assert!(node.are_placed(&pods, &outcomes), "{outcomes:?}{}", node.logs());
    let environment = node.environment("plain-3").await;
    assert_eq!(environment["NVIDIA_VISIBLE_DEVICES"], A);

    let answers = node.answers();
    // 17 containers, that of the pod for another node among them. The kubelet does not ask for the app container that uses
    // the devices of its init container.
    assert_eq!(answers.len(), 16, "{answers:?}");
    let by_ledger = answers.iter().filter(|answer| answer.fallback.is_empty()).count();
    assert!(by_ledger > 8, "a busy machine may make some late, and not most of them: {answers:?}");
}

#[tokio::test]
async fn restarts_of_all_three_put_no_pod_on_another_gpu() {
    let Some(mut node) = SteeredNode::start().await else { return };
    let keepers = burst("keeper", 4);
    node.create(&keepers).await;
    let outcomes = node.outcomes(&keepers).await;
    assert!(node.are_placed(&keepers, &outcomes), "{outcomes:?}{}", node.logs());

    let mut all = keepers;
    for (round, disturb) in [node::kill_agent, node::kill_device_plugin].into_iter().enumerate() {
        let pods = burst(&format!("round-{round}"), 4);
        node.create(&pods[..2]).await;
        disturb(&mut node);
        node.create(&pods[2..]).await;
        all.extend(pods);
        let outcomes = node.outcomes(&all).await;
        assert!(node.are_right(&all, &outcomes), "{outcomes:?}{}", node.logs());
        node.ready().await;
    }
    node.restart_kubelet().await;
    let pods = burst("after", 4);
    node.create(&pods).await;
    let outcomes = node.outcomes(&pods).await;
    assert!(node.are_placed(&pods, &outcomes), "{outcomes:?}{}", node.logs());

    // An agent that is told to stop leaves the node its devices, and takes them over again.
    node.stop_agent();
    let unsteered = burst("unsteered", 2);
    node.create(&unsteered).await;
    node.running(&unsteered).await;
    node.start_agent();
    node.steers().await;
    let pods = burst("again", 4);
    node.create(&pods).await;
    let outcomes = node.outcomes(&pods).await;
    assert!(node.are_placed(&pods, &outcomes), "{outcomes:?}{}", node.logs());
}

/// The long form: bursts of 20 pods with mixed demands under random faults. It prints what it saw.
/// `VRAMGUARD_SEED` repeats a run.
#[tokio::test]
#[ignore = "some minutes on two cores; `just steering` runs it"]
async fn long_bursts_under_random_kills_put_no_pod_on_another_gpu_and_overcommit_none() {
    storm::run().await;
}
