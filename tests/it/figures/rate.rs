//! Pods per second from the first creation to the last binding, with and without the guard, in turn on one control plane.
//!
//! Without the guard, pods are created with what it would have injected, so that kube-scheduler has the same work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::cluster::{FiguresCluster, Workload};
use super::sample::{cpu, median};
use super::times;
use crate::support::objects::node_of;
use crate::support::stream::{Seen, follow};
use crate::support::{ClientLimits, Component, Process, within};

/// Pods of a round: three times the burst of kube-scheduler's client.
const PODS: usize = 300;
/// Requests in flight while pods are created.
const AT_ONCE: usize = 16;
/// Limit of a round, which takes four seconds by kube-scheduler's client limit alone.
const PATIENCE: Duration = Duration::from_secs(300);
/// Time in which kube-scheduler's client regains its burst.
const REFILL: Duration = Duration::from_secs(3);
/// Declared VRAM of a pod, whose demand is 4,696 MiB.
const VRAM: &str = "4Gi";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    With,
    Without,
}

/// Measurements of one round of one workload.
struct Round {
    pods_per_second: f64,
    /// CPU milliseconds per pod, by process.
    cpu: BTreeMap<&'static str, f64>,
    /// Requests to the API server per pod, by verb and resource.
    requests: BTreeMap<String, f64>,
    /// Number of bindings that the guard refused.
    refused: u64,
}

/// Measures all rounds and prints the results.
pub(super) async fn measure(limits: ClientLimits) {
    let rounds = times("VRAMGUARD_ROUNDS", 5);
    let workloads = Workload::chosen();
    let nodes = times("VRAMGUARD_NODES", 10);
    let steered = (0..nodes).map(|number| Workload::Steered.node(number, 4, 16, 81_920));
    let slot = (0..nodes).map(|number| Workload::Slot.node(number, 4, 16, 81_920));
    let single = (0..20).map(|number| Workload::Single.node(number, 1, 32, 143_771));
    let plain = (0..10).map(|number| Workload::Plain.node(number, 0, 0, 0));
    let mut cluster = FiguresCluster::start(steered.chain(slot).chain(single).chain(plain).collect()).await;
    let scheduler = match limits {
        ClientLimits::Default => None,
        ClientLimits::Raised => {
            cluster.plane.stop_component(Component::Scheduler);
            let mut scheduler = cluster.plane.scheduler_with(limits);
            scheduler.start();
            Some(scheduler)
        }
    };
    let mut templates = BTreeMap::new();
    for workload in workloads.iter().copied() {
        templates.insert((workload, Side::With), workload.pod("x", VRAM));
        templates.insert((workload, Side::Without), as_admitted(&cluster, workload).await);
        // This round is not measured: it fills caches and opens connections.
        round(&cluster, scheduler.as_ref(), workload, Side::With, &templates).await;
    }
    let mut seen: BTreeMap<(Workload, Side), Vec<Round>> = BTreeMap::new();
    let mut now = Side::With;
    for number in 0..rounds {
        // The last side of a round is the first side of the next one, so that growth over time favours neither.
        for side in [now, other(now)] {
            if side != now {
                turn(&mut cluster, side).await;
                now = side;
            }
            for workload in workloads.iter().copied() {
                let round = round(&cluster, scheduler.as_ref(), workload, side, &templates).await;
                let rate = round.pods_per_second;
                println!("round {number} {} {side:?}: {rate:.1} pods/s, {} refused", workload.name(), round.refused);
                seen.entry((workload, side)).or_default().push(round);
            }
        }
    }
    print(limits, &workloads, &seen);
}

fn other(side: Side) -> Side {
    match side {
        Side::With => Side::Without,
        Side::Without => Side::With,
    }
}

async fn turn(cluster: &mut FiguresCluster, side: Side) {
    match side {
        Side::With => cluster.with_guard().await,
        Side::Without => cluster.without_guard().await,
    }
}

/// A pod of a workload with what the guard injects.
async fn as_admitted(cluster: &FiguresCluster, workload: Workload) -> Value {
    let pods: Api<Pod> = Api::namespaced(cluster.plane.client(), workload.name());
    let mut template = workload.pod("x", VRAM);
    let pod: Pod = serde_json::from_value(template.clone()).expect("a pod");
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let admitted = pods.create(&dry_run, &pod).await.expect("it is admitted");
    let admitted = serde_json::to_value(admitted).expect("a pod is JSON");
    let container = &admitted["spec"]["containers"][0];
    for field in ["resources", "env"] {
        if !container[field].is_null() {
            template["spec"]["containers"][0][field] = container[field].clone();
        }
    }
    let requests_vram = !container["resources"]["requests"]["vramguard.dev/vram"].is_null();
    assert_eq!(requests_vram, workload != Workload::Plain, "{container:#}");
    template
}

async fn round(
    cluster: &FiguresCluster,
    scheduler: Option<&Process>,
    workload: Workload,
    side: Side,
    templates: &BTreeMap<(Workload, Side), Value>,
) -> Round {
    tokio::time::sleep(REFILL).await; // part of the scenario: the client's burst cannot be observed
    let asked = || match side {
        Side::With => cluster.bindings(),
        Side::Without => (0, 0),
    };
    let requests_before = requests(cluster).await;
    let (cpu_before, asked_before) = (cpu_times(cluster, scheduler), asked());
    let took = burst(&cluster.plane.client(), workload, &templates[&(workload, side)]).await;
    let (cpu_after, asked_after) = (cpu_times(cluster, scheduler), asked());
    let requests_after = requests(cluster).await;
    if side == Side::With {
        let asked = asked_after.0 - asked_before.0;
        assert!(asked >= PODS as u64, "the guard was asked about {asked} of {PODS} bindings");
    }
    cluster.clear(workload).await;
    cluster.plane.expect_running();
    let used = |(name, after): (&&'static str, &Duration)| {
        (*name, (*after - cpu_before[name]).as_secs_f64() * 1e3 / PODS as f64)
    };
    let made = |(name, after): (String, f64)| {
        let before = requests_before.get(&name).copied().unwrap_or(0.0);
        (name, (after - before) / PODS as f64)
    };
    Round {
        pods_per_second: PODS as f64 / took.as_secs_f64(),
        cpu: cpu_after.iter().map(used).collect(),
        requests: requests_after.into_iter().map(made).filter(|(_, count)| *count >= 0.02).collect(),
        refused: asked_after.1 - asked_before.1,
    }
}

/// Number of requests that the API server has answered, by verb, resource and status code.
async fn requests(cluster: &FiguresCluster) -> BTreeMap<String, f64> {
    let metrics = cluster.plane.kubectl(&["get", "--raw", "/metrics"]).await.expect_success();
    let label = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let mut requests = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let of = |name| label(line, name).unwrap_or_default();
        let subresource = Some(of("subresource")).filter(|name| !name.is_empty());
        let resource = [Some(of("resource")), subresource].into_iter().flatten().collect::<Vec<_>>().join("/");
        let count: f64 = line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("a count");
        *requests.entry(format!("{} {resource} {}", of("verb"), of("code"))).or_default() += count;
    }
    requests
}

fn cpu_times(cluster: &FiguresCluster, scheduler: Option<&Process>) -> BTreeMap<&'static str, Duration> {
    let scheduler = scheduler.map_or_else(|| cluster.plane.pid(Component::Scheduler), Process::pid);
    let processes = [
        ("etcd", cluster.plane.pid(Component::Etcd)),
        ("apiserver", cluster.plane.pid(Component::ApiServer)),
        ("scheduler", scheduler),
        ("kwok", cluster.plane.pid(Component::Kwok)),
        ("vramguard", cluster.guard.server.pid()),
    ];
    processes.into_iter().filter_map(|(name, pid)| Some((name, cpu(pid?)))).collect()
}

/// Creates [`PODS`] pods, waits until all are bound, and returns the time.
async fn burst(client: &Client, workload: Workload, template: &Value) -> Duration {
    let pods: Api<Pod> = Api::namespaced(client.clone(), workload.name());
    let (tell, mut told) = mpsc::unbounded_channel();
    let (watched, listed) = (pods.clone(), Arc::new(Notify::new()));
    let has_listed = listed.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut bound = BTreeSet::new();
        follow(watched, |seen| match seen {
            Seen::All(..) => has_listed.notify_one(),
            Seen::Now(pod, _) if node_of(&pod).is_some() && bound.insert(pod.metadata.name.clone()) => {
                // The receiver is gone once all pods are bound.
                _ = tell.send(Instant::now());
            }
            Seen::Now(..) | Seen::Gone(..) => {}
        })
        .await;
    });
    // The watch starts from a list without pods, so it sees every pod from the first on.
    within(PATIENCE, listed.notified()).await.expect("the API server lists the pods");
    let start = Instant::now();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut creations = JoinSet::new();
    for number in 0..PODS {
        let mut pod: Pod = serde_json::from_value(template.clone()).expect("a pod");
        pod.metadata.name = Some(format!("p-{number}"));
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let pods = pods.clone();
        creations.spawn(async move {
            let _place = place;
            pods.create(&PostParams::default(), &pod).await.expect("it is admitted");
        });
    }
    while let Some(created) = creations.join_next().await {
        created.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
    }
    let mut last = start;
    for number in 0..PODS {
        let bound = tokio::time::timeout(PATIENCE, told.recv()).await;
        let bound = bound.unwrap_or_else(|_| panic!("{number} of {PODS} pods are bound after {:?}", start.elapsed()));
        last = bound.expect("the watch goes on");
    }
    last - start
}

fn print(limits: ClientLimits, workloads: &[Workload], seen: &BTreeMap<(Workload, Side), Vec<Round>>) {
    println!("\n{PODS} pods a round, client limits of kube-scheduler: {limits:?}");
    println!("workload  rounds  with [pods/s]  without [pods/s]  ratio of medians  ratio by round            refused");
    for workload in workloads.iter().copied() {
        let rates = |side| -> Vec<f64> { seen[&(workload, side)].iter().map(|round| round.pods_per_second).collect() };
        let (with, without) = (rates(Side::With), rates(Side::Without));
        let ratios: Vec<String> = with.iter().zip(&without).map(|(a, b)| format!("{:.2}", a / b)).collect();
        let refused: u64 = seen[&(workload, Side::With)].iter().map(|round| round.refused).sum();
        let (a, b) = (median(&with), median(&without));
        let (name, count, ratio) = (workload.name(), with.len(), a / b);
        println!("{name:8}  {count:6}  {a:13.1}  {b:16.1}  {ratio:16.2}  {:24}  {refused:7}", ratios.join(" "));
    }
    println!("\nCPU time a pod [ms], medians");
    for ((workload, side), rounds) in seen {
        let names = rounds[0].cpu.keys();
        let of = |name: &&'static str| {
            let values: Vec<f64> = rounds.iter().map(|round| round.cpu[name]).collect();
            format!("{name} {:.1}", median(&values))
        };
        println!("{:8} {:8} {}", workload.name(), format!("{side:?}"), names.map(of).collect::<Vec<_>>().join(", "));
    }
    println!("\nRequests to the API server a pod, medians");
    for ((workload, side), rounds) in seen {
        let names: BTreeSet<&String> = rounds.iter().flat_map(|round| round.requests.keys()).collect();
        let of = |name: &&String| {
            let values: Vec<f64> =
                rounds.iter().map(|round| round.requests.get(*name).copied().unwrap_or(0.0)).collect();
            format!("{name}: {:.2}", median(&values))
        };
        println!(
            "{:8} {:8} {}",
            workload.name(),
            format!("{side:?}"),
            names.iter().map(of).collect::<Vec<_>>().join(", ")
        );
    }
}
