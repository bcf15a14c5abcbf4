//! Steering on a real kubelet and containerd: the agent between them and the test device plugin.
//!
//! There is no binding guard in this file. The test itself reserves the GPU of each pod in the ledger, and binds the pod.
//! Whether a pod is on its GPU is read from the kubelet's checkpoint, without vramguard. `guarded` has a whole cluster.
//!
//! The tests print a reason and pass if the host cannot run a kubelet.

mod guarded;
mod node;
mod process;

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
        assert_eq!(*outcome, expected, "{}{}", pod.name, node.logs());
    }
    let environment = node.environment("plain-3").await;
    assert_eq!(environment["NVIDIA_VISIBLE_DEVICES"], A);

    let answers = node.answers();
    // 17 containers, that of the pod for another node among them. The kubelet does not ask for the app container that uses
    // the devices of its init container.
    assert_eq!(answers.len(), 16, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.fallback.is_empty()), "{answers:?}");
}

#[tokio::test]
async fn restarts_of_all_three_put_no_pod_on_another_gpu() {
    let Some(mut node) = SteeredNode::start().await else { return };
    let keepers = burst("keeper", 4);
    node.create(&keepers).await;
    assert!(node.outcomes(&keepers).await.iter().all(|outcome| *outcome == Outcome::Placed), "{}", node.logs());

    let mut all = keepers;
    for (round, disturb) in [node::kill_agent, node::kill_device_plugin].into_iter().enumerate() {
        let pods = burst(&format!("round-{round}"), 4);
        node.create(&pods[..2]).await;
        disturb(&mut node);
        node.create(&pods[2..]).await;
        all.extend(pods);
        let outcomes = node.outcomes(&all).await;
        assert!(outcomes.iter().all(Outcome::is_right), "{outcomes:?}{}", node.logs());
        node.ready().await;
    }
    node.restart_kubelet().await;
    let pods = burst("after", 4);
    node.create(&pods).await;
    let outcomes = node.outcomes(&pods).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Placed), "{outcomes:?}{}", node.logs());

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
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Placed), "{outcomes:?}{}", node.logs());
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
        // Without the API server, the agent may not know the reservation of a pod that the kubelet knows already, and on a
        // machine that is too busy, an answer is late. Each such answer says so.
        let answers = node.answers();
        let excused = |pod: &Wanted| {
            let of_pod = format!("ml/{}/", pod.name);
            // The caller of an answer that was late is not known.
            let late = answers.iter().any(|answer| answer.caller.is_empty() && !answer.fallback.is_empty());
            late || answers.iter().any(|answer| answer.caller.starts_with(&of_pod) && !answer.fallback.is_empty())
        };
        let is_right = |(pod, outcome): (&Wanted, &Outcome)| outcome.is_right() || excused(pod);
        let all_right = pods.iter().zip(&outcomes).all(is_right);
        assert!(all_right, "round {round}, {fault:?}: {outcomes:?}{}", node.logs());
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
