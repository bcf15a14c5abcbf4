//! Time from the deletion of a pod on a full node to the binding of the waiting pod, both seen by one watch.
//!
//! A sample begins when the back-off of the waiting pod is over.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinSet;

use super::cluster::{FiguresCluster, Workload};
use super::sample::percentile;
use super::times;
use crate::support::stream::{Seen, follow};

/// Longer than kube-scheduler's back-off after a first attempt, which is 1 s.
const BACK_OFF: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Bound(String),
    Unschedulable(String),
    Gone(String),
}

/// Measures all samples and prints the results.
pub(super) async fn measure(workload: Workload) {
    let samples = times("VRAMGUARD_SAMPLES", 100);
    // Each pod demands 8,912 MiB, so a GPU of 23,870 MiB holds two.
    let gpus = if workload == Workload::Steered { 2 } else { 1 };
    let full = 2 * gpus as usize;
    let cluster = FiguresCluster::start(vec![workload.node(0, gpus, 4, 24_576)]).await;
    let pods: Api<Pod> = Api::namespaced(cluster.plane.client(), workload.name());
    let (mut steps, _watch) = watch(pods.clone());
    let create = async |number: usize| {
        let pod = serde_json::from_value(workload.pod(&name(number), "8Gi")).expect("a pod");
        pods.create(&PostParams::default(), &pod).await.expect("it is admitted");
    };
    for number in 0..full {
        create(number).await;
        until(&mut steps, Step::Bound(name(number))).await;
    }
    let mut took = Vec::new();
    for number in 0..samples {
        let waits = number + full;
        create(waits).await;
        until(&mut steps, Step::Unschedulable(name(waits))).await;
        tokio::time::sleep(BACK_OFF).await; // part of the scenario: the back-off cannot be observed
        pods.delete(&name(number), &DeleteParams::default().grace_period(0)).await.expect("it is there");
        let gone = until(&mut steps, Step::Gone(name(number))).await;
        let bound = until(&mut steps, Step::Bound(name(waits))).await;
        took.push((bound - gone).as_secs_f64() * 1e3);
    }
    let (_, refused) = cluster.bindings();
    let of = |percent| percentile(&took, percent);
    println!(
        "freed → bound on a {} node, {samples} samples: p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, longest {:.0} ms; {refused} \
         bindings refused",
        workload.name(),
        of(50),
        of(90),
        of(99),
        of(100)
    );
}

fn name(number: usize) -> String {
    format!("p-{number}")
}

fn watch(pods: Api<Pod>) -> (UnboundedReceiver<(Step, Instant)>, JoinSet<()>) {
    let (tell, told) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(follow(pods, move |seen| {
        let step = match seen {
            Seen::All(..) => None,
            Seen::Now(pod, _) if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) => {
                pod.metadata.name.map(Step::Bound)
            }
            Seen::Now(pod, _) => is_unschedulable(&pod).then_some(pod.metadata.name).flatten().map(Step::Unschedulable),
            Seen::Gone(pod, _) => pod.metadata.name.map(Step::Gone),
        };
        if let Some(step) = step {
            // The receiver is gone once the measurement is over.
            _ = tell.send((step, Instant::now()));
        }
    }));
    (told, tasks)
}

fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable"))
}

/// The time at which `wanted` was seen; earlier steps are dropped.
async fn until(steps: &mut UnboundedReceiver<(Step, Instant)>, wanted: Step) -> Instant {
    let seen = tokio::time::timeout(PATIENCE, async {
        loop {
            let (step, at) = steps.recv().await.expect("the watch goes on");
            if step == wanted {
                return at;
            }
        }
    });
    seen.await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {wanted:?}"))
}
