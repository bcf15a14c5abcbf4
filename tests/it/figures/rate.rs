//! Pods per second from the first one's creation to the last one's binding, with the guard and without it, in turn on one
//! control plane. Without it pods carry from the start what the guard would have injected, so that kube-scheduler has the same
//! work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::sample::{cpu, median};
use super::site::{Site, Workload};
use super::times;
use crate::chaos::stream::{Seen, follow};
use crate::support::{ClientLimits, Component, Process};

/// Pods of a round: three times what kube-scheduler's client may send in one burst.
const PODS: usize = 300;
/// Requests in flight while pods are created.
const AT_ONCE: usize = 16;
/// For a round of [`PODS`]; kube-scheduler's limit alone makes it four seconds.
const PATIENCE: Duration = Duration::from_secs(300);
/// Until kube-scheduler's client has its whole burst again.
const REFILL: Duration = Duration::from_secs(3);
/// 4,696 MiB demanded.
const VRAM: &str = "4Gi";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    With,
    Without,
}

/// What one round of one workload showed.
struct Round {
    pods_per_second: f64,
    /// CPU milliseconds a pod, by process.
    cpu: BTreeMap<&'static str, f64>,
    /// Requests to the API server a pod, by verb and resource.
    requests: BTreeMap<String, f64>,
    /// Bindings that the guard refused.
    refused: u64,
}

/// Measures and prints.
pub async fn measure(limits: ClientLimits) {
    let rounds = times("VRAMGUARD_ROUNDS", 5);
    let workloads = Workload::chosen();
    let nodes = times("VRAMGUARD_NODES", 10);
    let pinned = (0..nodes).map(|number| Workload::Pinned.node(number, 4, 16, 81_920));
    let slot = (0..nodes).map(|number| Workload::Slot.node(number, 4, 16, 81_920));
    let single = (0..20).map(|number| Workload::Single.node(number, 1, 32, 143_771));
    let plain = (0..10).map(|number| Workload::Plain.node(number, 0, 0, 0));
    let mut site = Site::start(pinned.chain(slot).chain(single).chain(plain).collect()).await;
    let scheduler = match limits {
        ClientLimits::Default => None,
        ClientLimits::Raised => {
            site.plane.stop_component(Component::Scheduler);
            let mut scheduler = site.plane.scheduler_with(limits);
            scheduler.start();
            Some(scheduler)
        }
    };
    let mut templates = BTreeMap::new();
    for workload in workloads.iter().copied() {
        templates.insert((workload, Side::With), workload.pod("x", VRAM));
        templates.insert((workload, Side::Without), as_admitted(&site, workload).await);
        // Not counted: caches and connections are made.
        round(&site, scheduler.as_ref(), workload, Side::With, &templates).await;
    }
    let mut seen: BTreeMap<(Workload, Side), Vec<Round>> = BTreeMap::new();
    let mut now = Side::With;
    for number in 0..rounds {
        // The side that ended a round begins the next one: nothing that grows with time favours one of them.
        for side in [now, other(now)] {
            if side != now {
                turn(&mut site, side).await;
                now = side;
            }
            for workload in workloads.iter().copied() {
                let round = round(&site, scheduler.as_ref(), workload, side, &templates).await;
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

async fn turn(site: &mut Site, side: Side) {
    match side {
        Side::With => site.with_guard().await,
        Side::Without => site.without_guard().await,
    }
}

/// The pod that becomes of a workload's pod when the guard is there.
async fn as_admitted(site: &Site, workload: Workload) -> Value {
    let pods: Api<Pod> = Api::namespaced(site.plane.client(), workload.name());
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
    site: &Site,
    scheduler: Option<&Process>,
    workload: Workload,
    side: Side,
    templates: &BTreeMap<(Workload, Side), Value>,
) -> Round {
    tokio::time::sleep(REFILL).await;
    let asked = || match side {
        Side::With => site.bindings(),
        Side::Without => (0, 0),
    };
    let requests_before = requests(site).await;
    let (cpu_before, asked_before) = (cpu_times(site, scheduler), asked());
    let took = burst(&site.plane.client(), workload, &templates[&(workload, side)]).await;
    let (cpu_after, asked_after) = (cpu_times(site, scheduler), asked());
    let requests_after = requests(site).await;
    if side == Side::With {
        let asked = asked_after.0 - asked_before.0;
        assert!(asked >= PODS as u64, "the guard was asked about {asked} of {PODS} bindings");
    }
    site.clear(workload).await;
    site.plane.expect_running();
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

/// Requests that the API server has answered so far, by verb, resource and status code.
async fn requests(site: &Site) -> BTreeMap<String, f64> {
    let metrics = site.plane.kubectl(&["get", "--raw", "/metrics"]).await.expect_success();
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

fn cpu_times(site: &Site, scheduler: Option<&Process>) -> BTreeMap<&'static str, Duration> {
    let scheduler = scheduler.map_or_else(|| site.plane.pid(Component::Scheduler), Process::pid);
    let processes = [
        ("etcd", site.plane.pid(Component::Etcd)),
        ("apiserver", site.plane.pid(Component::ApiServer)),
        ("scheduler", scheduler),
        ("kwok", site.plane.pid(Component::Kwok)),
        ("vramguard", site.guard.server.pid()),
    ];
    processes.into_iter().filter_map(|(name, pid)| Some((name, cpu(pid?)))).collect()
}

/// Creates [`PODS`] and waits until the last of them is bound; returns how long that took.
async fn burst(client: &Client, workload: Workload, template: &Value) -> Duration {
    let pods: Api<Pod> = Api::namespaced(client.clone(), workload.name());
    let (tell, mut told) = mpsc::unbounded_channel();
    let watched = pods.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut bound = BTreeSet::new();
        follow(watched, |seen| {
            if let Seen::Now(pod, _) = seen
                && pod.spec.is_some_and(|spec| spec.node_name.is_some())
                && bound.insert(pod.metadata.name)
            {
                // Nobody listens any more once all are bound.
                _ = tell.send(Instant::now());
            }
        })
        .await;
    });
    // The list of the watch, which is empty, comes before the first pod.
    tokio::time::sleep(Duration::from_millis(500)).await;
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
