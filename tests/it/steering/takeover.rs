//! Steering of a device plugin that registers with the kubelet, on a kubelet that keeps two registrations of a resource.
//!
//! `just takeover` runs these tests: the kubelet of all other tests is older, and is not taken over.

use std::time::Duration;

use super::node::SteeredNode;
use super::seen::Outcome;
use super::wanted::Wanted;
use super::{A, B, burst};
use crate::support::{assets, eventually, pause};

/// A node whose device plugin registers with the kubelet, and whose agent takes it over.
async fn start() -> Option<SteeredNode> {
    assert!(assets::other_kubelet().is_some(), "`just takeover` builds the kubelet for this test, and names it");
    let node = SteeredNode::start_with(&["--preferred-allocation"], &["--takeover"]).await?;
    println!("kubelet {}", node.kubelet_version().await);
    Some(node)
}

/// Pods that the plugin alone would put on one GPU each in turn, all of them on one GPU.
fn pods(name: &str, count: usize, gpu: &'static str) -> Vec<Wanted> {
    (0..count).map(|n| Wanted::pod(&format!("{name}-{n}"), gpu)).collect()
}

/// What the agent did, and for how long the plugin chose.
fn figures(node: &SteeredNode) -> String {
    let mut ms = node.between("the device plugin is gone", "registered with the kubelet");
    ms.sort_by(f64::total_cmp);
    format!("{}; from the end of the plugin's connection to the next registration: {ms:.0?} ms", node.figures())
}

fn of(outcomes: &[Outcome], wanted: fn(&Outcome) -> bool) -> usize {
    outcomes.iter().filter(|outcome| wanted(outcome)).count()
}

/// Creates pods, and asserts that each is on its GPU. An answer without the ledger excuses none: a kubelet that asks the
/// device plugin would be excused as well.
async fn are_steered(node: &SteeredNode, pods: &[Wanted]) {
    node.create(pods).await;
    let outcomes = node.outcomes(pods).await;
    let placed = of(&outcomes, |outcome| *outcome == Outcome::Placed);
    assert_eq!(placed, pods.len(), "{outcomes:?}{}", node.logs());
    println!("{placed} of {} pods on the GPU that is reserved", pods.len());
}

/// Waits until the agent has registered again, which the log tells and the report a moment later.
async fn steers_again(node: &mut SteeredNode, what: &str, before: usize) {
    eventually("another registration of the agent", Duration::from_secs(60), async || {
        anyhow::ensure!(node.registrations() > before, "{}", node.logs());
        Ok(())
    })
    .await;
    node.ready().await;
    node.steers().await;
    println!("{what}: the agent registered again");
}

#[tokio::test]
#[ignore = "it needs a newer kubelet; `just takeover` builds and runs it"]
async fn a_device_plugin_without_a_change_is_steered_through_all_restarts() {
    let Some(mut node) = start().await else { return };
    let mut all = burst("first", 8);
    all.push(Wanted::pod("two", A).with_app("second"));
    all.push(Wanted::pod("sidecar", B).with_init("proxy", true));
    all.push(Wanted::pod("init", B).with_init("fetch", false));
    are_steered(&node, &all).await;

    // Killed, the agent is missed by no pod: the kubelet asks the plugin.
    node.lose_agent();
    let alone = pods("alone", 2, A);
    node.create(&alone[..1]).await;
    pause(Duration::from_secs(1)).await;
    node.create(&alone[1..]).await;
    node.running(&alone).await;
    println!("2 of 2 pods run that were created right after a kill of the agent and 1 s later");
    node.start_agent();
    node.steers().await;
    are_steered(&node, &pods("again", 4, A)).await;

    // Each start of the plugin makes it the newest.
    for (round, away) in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(5)].into_iter().enumerate() {
        let before = node.registrations();
        node.restart_device_plugin(away).await;
        steers_again(&mut node, &format!("the plugin was away for {away:?}"), before).await;
        are_steered(&node, &pods(&format!("plugin-{round}"), 3, B)).await;
    }

    let before = node.registrations();
    node.restart_kubelet().await;
    steers_again(&mut node, "the kubelet started again", before).await;
    are_steered(&node, &pods("kubelet", 4, A)).await;

    // Told to stop, the agent says so before it ends.
    node.stop_agent();
    let report = node.report().await.expect("a ledger");
    assert_eq!(report["notSteered"], "the agent has stopped", "{report}");
    let unsteered = pods("unsteered", 2, B);
    node.create(&unsteered).await;
    node.running(&unsteered).await;
    node.start_agent();
    node.steers().await;
    are_steered(&node, &pods("last", 4, B)).await;
    println!("{}", figures(&node));
}

#[tokio::test]
#[ignore = "it needs a newer kubelet; `just takeover` builds and runs it"]
async fn pods_larger_than_a_slot_run_without_a_change_of_the_device_plugin() {
    assert!(assets::other_kubelet().is_some(), "`just takeover` builds the kubelet for this test, and names it");
    super::guarded::runs_pods_larger_than_a_slot(&["--preferred-allocation"], &["--takeover"]).await;
}

#[tokio::test]
async fn a_kubelet_that_would_drop_the_device_plugin_is_not_taken_over() {
    if assets::other_kubelet().is_some() {
        return println!("skipped: this is for the pinned kubelet, which is too old for a takeover");
    }
    let Some(node) = SteeredNode::launch(&["--preferred-allocation"], &["--takeover"]).await else { return };
    let version = node.kubelet_version().await;
    let minor = version.rsplit_once('.').map_or(version.as_str(), |(minor, _)| minor);
    eventually("the reason", Duration::from_secs(60), async || {
        let report = node.report().await?;
        let why = report["notSteered"].as_str().unwrap_or_default();
        anyhow::ensure!(
            why.contains(&format!("the kubelet is {minor}, and only v1.37 or newer")),
            "{report}{}",
            node.logs()
        );
        Ok(())
    })
    .await;
    assert_eq!(node.registrations(), 0, "{}", node.logs());
    let pods = pods("plain", 1, A);
    node.create(&pods).await;
    node.running(&pods).await;
}

/// Pods arrive all the time while something ends. Only those that the kubelet admits in the moment of a kill of the agent may
/// be rejected, and those on another GPU are counted: a moment of the plugin's own choice cannot be avoided.
#[tokio::test]
#[ignore = "it needs a newer kubelet; `just takeover` builds and runs it"]
async fn pods_that_arrive_during_restarts_run() {
    let Some(mut node) = start().await else { return };
    for (what, round) in ["agent killed", "plugin killed", "agent killed", "plugin killed"].into_iter().zip(0..) {
        let pods = pods(&format!("r{round}"), 8, if round % 2 == 0 { A } else { B });
        node.create(&pods[..2]).await;
        match what {
            "agent killed" => super::node::kill_agent(&mut node),
            _ => super::node::kill_device_plugin(&mut node),
        }
        for pod in pods[2..].chunks(2) {
            node.create(pod).await;
            pause(Duration::from_millis(150)).await;
        }
        let outcomes = node.outcomes(&pods).await;
        let rejected = of(&outcomes, |outcome| matches!(outcome, Outcome::Rejected(_)));
        let other = of(&outcomes, |outcome| matches!(outcome, Outcome::Elsewhere(_)));
        println!("{what}: {} on their GPU, {other} on the other, {rejected} rejected", 8 - rejected - other);
        let messages = node.rejections(&pods).await;
        messages.iter().for_each(|message| println!("  {message}"));
        // A call that is open, and one that the kubelet makes before it has noticed the end, break off.
        let allowed = if what == "agent killed" { &messages[..messages.len().min(2)] } else { &[] };
        assert!(
            messages.len() == allowed.len() && allowed.iter().all(|message| message.contains("rpc")),
            "{}",
            node.logs()
        );
        node.ready().await;
        node.steers().await;
        node.delete(&pods).await;
    }
    are_steered(&node, &pods("end", 4, A)).await;
    println!("{}", figures(&node));
}
