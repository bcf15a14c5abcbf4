//! Steering on a real kubelet and containerd: the agent between them and the test device plugin.
//!
//! There is no binding guard in this file. The test itself reserves the GPU of each pod in the ledger, and binds the pod.
//! Whether a pod is on its GPU is read from the kubelet's checkpoint, without vramguard. `guarded` has a whole cluster.
//!
//! The tests print a reason and pass if the host cannot run a kubelet.

mod guarded;
mod node;
mod presence;
mod process;
mod takeover;

use std::time::Duration;

use node::{Outcome, SteeredNode, Wanted};

use crate::support::pause;

const A: &str = "GPU-00000000-0000-4000-8000-000000000000";
const B: &str = "GPU-00000001-0000-4000-8000-000000000001";

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
    for (pod, outcome) in pods.iter().zip(&outcomes) {
        // The kubelet allocates devices before it looks at the node selector.
        let expected =
            if pod.is_for_another_node() { Outcome::Rejected("NodeAffinity".into()) } else { Outcome::Placed };
        assert!(*outcome == expected || node.is_excused(pod, outcome), "{}: {outcome:?}{}", pod.name, node.logs());
    }
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

/// The long form: bursts of 20 pods under faults. It prints what it saw.
#[tokio::test]
#[ignore = "three minutes on two cores; `just steering` runs it"]
async fn long_bursts_under_random_kills_put_no_pod_on_another_gpu() {
    let Some(mut node) = SteeredNode::start().await else { return };
    let (mut placed, mut rejected, mut moved) = (0, 0, 0);
    for round in 0..14 {
        let mut pods = burst(&format!("b{round}"), 16);
        pods.push(Wanted::pod(&format!("b{round}-two"), A).with_app("second"));
        pods.push(Wanted::pod(&format!("b{round}-sidecar"), B).with_init("proxy", true));
        pods.push(Wanted::pod(&format!("b{round}-init"), A).with_init("fetch", false));
        pods.push(Wanted::pod(&format!("b{round}-elsewhere"), B).for_another_node());
        let (first, second) = pods.split_at(8);
        node.create(first).await;
        pause(Duration::from_millis(137 * round % 1_000)).await; // so that the fault meets another moment
        let fault = FAULTS[round as usize % FAULTS.len()];
        match fault {
            Fault::None => {}
            Fault::KillAgent => node::kill_agent(&mut node),
            Fault::KillDevicePlugin => node::kill_device_plugin(&mut node),
            Fault::RestartKubelet => node.restart_kubelet().await,
            Fault::KillContainerd => node.kill_runtime(),
            Fault::HangAgent => node::hang_agent(&node).await,
            Fault::HangApiServer => node.hang_api_server().await,
        }
        node.create(second).await;
        let outcomes = node.outcomes(&pods).await;
        assert!(node.are_right(&pods, &outcomes), "round {round}, {fault:?}: {outcomes:?}{}", node.logs());
        let of = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
        let counts = [
            of(|outcome| matches!(outcome, Outcome::Placed)),
            of(|outcome| matches!(outcome, Outcome::Rejected(_))),
            of(|outcome| matches!(outcome, Outcome::Elsewhere(_))),
        ];
        println!("round {round}, {fault:?}: {counts:?} placed, rejected, moved");
        (placed, rejected, moved) = (placed + counts[0], rejected + counts[1], moved + counts[2]);
        node.delete(&pods).await;
        node.ready().await;
    }
    println!("{placed} pods on their GPU, {rejected} rejected, {moved} elsewhere by an answer that said so");
    println!("{}", node.figures());
}

/// What happens in the middle of a burst.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    KillAgent,
    KillDevicePlugin,
    RestartKubelet,
    KillContainerd,
    HangAgent,
    HangApiServer,
}

const FAULTS: [Fault; 7] = [
    Fault::None,
    Fault::KillAgent,
    Fault::KillDevicePlugin,
    Fault::RestartKubelet,
    Fault::KillContainerd,
    Fault::HangAgent,
    Fault::HangApiServer,
];
