//! Owns one run: a control plane, its nodes, replicas, two schedulers, the stand-ins, and the checker's verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::ensure;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::Api;
use kube::api::ListParams;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
use tokio::task::JoinSet;

use super::burst::{self, Burst};
use super::checker::{Checker, Finding, Kind};
use super::faults;
use super::hardware::AllocationPolicy;
use super::node_agent::{self, NodeAgents};
use super::seed::Chance;
use crate::support::guard::{OnOutage, Replicas, configurations_reread};
use crate::support::stream::follow;
use crate::support::{ControlPlane, Patience, Process, SECOND_SCHEDULER, eventually};

const REPLICAS: usize = 3;
/// Longer than kube-scheduler's maximum back-off for a refused pod, which is 10 s.
const BACK_OFF: Duration = Duration::from_secs(12);
/// Limit for the binding of everything that fits, after the last fault.
const SETTLING: Duration = Duration::from_secs(90);
/// Longest time for which a node may publish less than is bound, on a quiet machine. Without a leader nothing repairs it,
/// and the Lease lasts 15 s.
const REPAIR: Duration = Duration::from_secs(25);

/// Time between two samples of the machine's load.
const SAMPLE: Duration = Duration::from_millis(100);

/// Parameters of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub seed: u64,
    pub pods: u64,
    /// `failurePolicy` of the binding guard.
    pub bindings: OnOutage,
    /// Duration of the faults, each of which comes at least once; zero means no faults.
    pub faults: Duration,
}

/// A run in progress.
pub(super) struct Run {
    // Dropped in this order: the processes end before the control plane.
    plan: Plan,
    watch: Watch,
    agents: NodeAgents,
    pub replicas: Replicas,
    pub second: Mutex<Process>,
    pub plane: ControlPlane,
    _alone: AsyncMutexGuard<'static, ()>,
}

/// The checker with its own watches.
struct Watch {
    checker: Arc<Mutex<Checker>>,
    start: Instant,
    /// The machine's load since the start.
    pace: Arc<Mutex<Patience>>,
    _tasks: JoinSet<()>,
}

/// Held during a run, because two concurrent runs would only measure each other's load.
static ALONE: AsyncMutex<()> = AsyncMutex::const_new(());

fn lock<T>(checker: &Mutex<T>) -> MutexGuard<'_, T> {
    checker.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).expect("a run ends some day")
}

impl Watch {
    fn start(client: &kube::Client) -> Watch {
        let (checker, start) = (Arc::new(Mutex::new(Checker::default())), Instant::now());
        let mut tasks = JoinSet::new();
        let pods = Api::<Pod>::all(client.clone());
        tasks.spawn({
            let checker = checker.clone();
            async move { follow(pods, |seen| lock(&checker).see_pods(seen, millis(start))).await }
        });
        let nodes = Api::<Node>::all(client.clone());
        tasks.spawn({
            let checker = checker.clone();
            async move { follow(nodes, |seen| lock(&checker).see_nodes(seen, millis(start))).await }
        });
        let pace = Arc::new(Mutex::new(Patience::of(Duration::MAX)));
        let sampled = pace.clone();
        tasks.spawn(async move {
            loop {
                lock(&sampled).spent();
                tokio::time::sleep(SAMPLE).await; // the pace of the samples
            }
        });
        Watch { checker, start, pace, _tasks: tasks }
    }
}

impl Run {
    /// Starts all parts. Each node has its accounting mode when this returns.
    pub(super) async fn start(plan: Plan) -> Run {
        let alone = ALONE.lock().await;
        let plane = ControlPlane::start().await;
        for node in burst::nodes() {
            plane.add_gpu_node(&node).await;
        }
        let policies = burst::policies();
        let policies: Vec<(&str, &str)> = policies.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let binders = ["system:kube-scheduler", SECOND_SCHEDULER];
        let replicas = Replicas::start(&plane, &policies, REPLICAS, plan.bindings, &binders).await;
        burst::prepare(&plane).await;
        let mut second = plane.second_scheduler().await;
        second.start();
        let client = plane.client();
        let watch = Watch::start(&client);
        let hardware = node_agent::hardware(&client).await;
        let tell = watch.checker.clone();
        let start = watch.start;
        let agents = NodeAgents::start(&client, &hardware, Chance::of(plan.seed, "plugin"), move |placement| {
            lock(&tell).place(placement, millis(start));
        });
        let run = Run { plan, watch, agents, replicas, second: Mutex::new(second), plane, _alone: alone };
        run.accounted().await;
        run
    }

    /// Waits until every node publishes under the accounting mode of its hardware.
    async fn accounted(&self) {
        let expected = |allocation_policy: AllocationPolicy| match allocation_policy {
            AllocationPolicy::Single => "Exact",
            AllocationPolicy::Unverified | AllocationPolicy::Packed => "Slot",
            AllocationPolicy::Distributed => "Confirmed",
            AllocationPolicy::Steered => "Steered",
        };
        eventually("every node to be accounted for in its mode", Duration::from_secs(60), async || {
            self.replicas.expect_running();
            let checker = lock(&self.watch.checker);
            let mut others = checker.nodes().filter_map(|(name, node)| {
                let (seen, mode) = (node.accounted.as_deref(), expected(node.hardware.allocation_policy));
                (seen != Some(mode) || node.published.is_none()).then(|| format!("{name}: {seen:?}, not {mode}"))
            });
            match others.next() {
                None => Ok(()),
                Some(other) => {
                    anyhow::bail!("{other}, and {} more; reported by {:?}", others.count(), self.agents.reported())
                }
            }
        })
        .await;
    }

    /// Runs the workload and the faults concurrently, until both are done.
    pub(super) async fn burst(&self) {
        let Plan { seed, pods, faults: lasting, .. } = self.plan;
        let burst = Burst::of(&mut Chance::of(seed, "burst"), pods);
        println!("{}", burst.describe());
        let client = self.plane.client();
        let start = Instant::now();
        let workload = async {
            burst.create(&client).await;
            println!("created after {:?}", start.elapsed());
            tokio::time::sleep(lasting / 4).await; // part of the scenario: faults hit a full cluster
            burst.free_some(&client).await;
            println!("freed after {:?}", start.elapsed());
        };
        let faults = async {
            let log = match lasting {
                Duration::ZERO => Vec::new(),
                _ => faults::inflict(&self.plane, &self.replicas, Chance::of(seed, "faults"), lasting).await,
            };
            println!("{}", log.join("\n"));
        };
        tokio::join!(workload, faults);
    }

    /// Waits until no pod was created, bound or ended for `quiet`, counted from now.
    pub(super) async fn settle(&self, quiet: Duration, within: Duration) {
        // A restarting API server shows no changes either, so time before this call does not count.
        lock(&self.watch.checker).moved = millis(self.watch.start);
        eventually("the cluster to come to rest", within, async || {
            self.expect_running();
            let checker = lock(&self.watch.checker);
            let still = millis(self.watch.start) - checker.moved;
            ensure!(u128::from(still) >= quiet.as_millis(), "moved {still} ms ago, {:?}", checker.counts());
            Ok(())
        })
        .await;
    }

    /// Waits until the cluster is at rest and no pod waits although it fits.
    pub(super) async fn everything_that_fits_is_bound(&self) {
        self.settle(BACK_OFF, SETTLING).await;
        eventually("everything that fits to be bound", SETTLING, async || {
            self.expect_running();
            let fitting = lock(&self.watch.checker).fitting();
            ensure!(fitting.is_empty(), "{} wait although they fit: {fitting:?}", fitting.len());
            Ok(())
        })
        .await;
        let checker = lock(&self.watch.checker);
        let (bound, waiting) = checker.counts();
        println!("{bound} bound, {waiting} wait, {} looks", checker.looks);
        assert!(bound > 0, "nothing is bound at all");
    }

    /// Stops all replicas gracefully, deletes pods and lets others be bound, and starts the replicas again. Meanwhile at
    /// least one GPU is overcommitted: the schedulers alone may be lucky, so two pods are bound to one GPU on purpose.
    ///
    /// A replica leads when this returns.
    pub(super) async fn away(&self) {
        burst::create_unscheduled(&self.plane.client()).await;
        for index in 0..self.replicas.count() {
            self.replicas.terminate(index);
        }
        let deleted = burst::delete_bound(&self.plane.client(), &mut Chance::of(self.plan.seed, "away")).await;
        burst::bind_unscheduled(&self.plane.client()).await;
        self.settle(Duration::from_secs(5), Duration::from_secs(60)).await;
        println!("{deleted} bound pods deleted while nobody guards; {} overcommitted", self.overcommitted().len());
        for index in 0..self.replicas.count() {
            self.replicas.start_again(index);
        }
        self.replicas.ready().await;
        self.replicas.led(Duration::from_secs(20)).await;
    }

    /// Nodes with an overcommitted GPU.
    pub(super) fn overcommitted(&self) -> BTreeSet<String> {
        let checker = lock(&self.watch.checker);
        let overcommitted = checker.open().filter(|finding| finding.kind == Kind::Overcommitted);
        overcommitted.map(|finding| finding.node.clone()).collect()
    }

    /// Waits until the condition of each overcommitted node reports it.
    pub(super) async fn overcommit_is_reported(&self, within: Duration) {
        let start = Instant::now();
        eventually("each overcommitted node to say so", within, async || {
            let overcommitted = self.overcommitted();
            let checker = lock(&self.watch.checker);
            let silent: Vec<String> = checker
                .nodes()
                .filter(|(name, node)| {
                    overcommitted.contains(*name) && node.accounted.as_deref() != Some("Overcommitted")
                })
                .map(|(name, node)| format!("{name}: {:?}", node.accounted))
                .collect();
            ensure!(silent.is_empty(), "{} of {}: {silent:?}", silent.len(), overcommitted.len());
            Ok(())
        })
        .await;
        println!("reported after {:?}", start.elapsed());
    }

    /// Waits until bindings past the guard are counted, and events on their pods and on overcommitted nodes report them.
    pub(super) async fn slips_are_reported(&self, within: Duration) {
        let events: Api<Event> = Api::all(self.plane.client());
        eventually("events and metric to say what slipped past", within, async || {
            let events = events.list(&ListParams::default()).await?.items;
            let told = |reason: &str| -> BTreeSet<String> {
                let of_reason = events.iter().filter(|event| event.reason.as_deref() == Some(reason));
                of_reason.filter_map(|event| event.involved_object.uid.clone()).collect()
            };
            // An event on a node has the name of the node as its uid.
            let (nodes, pods) = (told("GpuOvercommitted"), told("BoundPastGuard"));
            let overcommitted = self.overcommitted();
            let silent: Vec<_> = overcommitted.difference(&nodes).collect();
            ensure!(silent.is_empty(), "{} of {}: {silent:?}", silent.len(), overcommitted.len());
            let counted = self.replicas.sum("vramguard_bindings_past_guard_total");
            ensure!(counted == pods.len() as f64, "{counted} counted, {} pods told", pods.len());
            ensure!(pods.len() >= overcommitted.len(), "{} pods on {overcommitted:?}", pods.len());
            println!("{} pods bound past the guard, {} nodes overcommitted, all said", pods.len(), overcommitted.len());
            Ok(())
        })
        .await;
    }

    /// Asserts that no GPU was overcommitted at any version, and nothing else was wrong for longer than a repair takes.
    #[track_caller]
    pub(super) fn nothing_was_wrong(&self) {
        self.print_findings();
        let now = millis(self.watch.start);
        let repair = REPAIR.mul_f64(lock(&self.watch.pace).slowness());
        let checker = lock(&self.watch.checker);
        let repaired = |finding: &&Finding| {
            finding.kind == Kind::BelowBound
                && finding.to.is_some()
                && u128::from(finding.lasted(now)) <= repair.as_millis()
        };
        let wrong: Vec<&Finding> = checker.findings().iter().filter(|finding| !repaired(finding)).collect();
        assert!(wrong.is_empty(), "{} findings, VRAMGUARD_SEED={}: {:#?}", wrong.len(), self.plan.seed, wrong[0]);
    }

    /// Number of findings of a kind.
    pub(super) fn count(&self, kind: Kind) -> usize {
        lock(&self.watch.checker).findings().iter().filter(|finding| finding.kind == kind).count()
    }

    /// Prints all findings.
    pub(super) fn print_findings(&self) {
        let now = millis(self.watch.start);
        let checker = lock(&self.watch.checker);
        let mut kinds: BTreeMap<Kind, (usize, u64)> = BTreeMap::new();
        for finding in checker.findings() {
            let entry = kinds.entry(finding.kind).or_default();
            *entry = (entry.0 + 1, entry.1.max(finding.lasted(now)));
        }
        let mut text = String::new();
        for (kind, (count, longest)) in kinds {
            _ = writeln!(text, "{kind:?}: {count}, the longest for {longest} ms");
        }
        for finding in checker.findings().iter().take(60) {
            let Finding { kind, node, gpu, from, to, held_mib, limit_mib, pods } = finding;
            let pods: Vec<String> = pods.iter().map(|(name, mib)| format!("{name} {mib}")).collect();
            let until = to.map_or("to the end".to_owned(), |(version, at)| format!("to {version} ({at} ms)"));
            let from = format!("from {} ({} ms)", from.0, from.1);
            _ = writeln!(
                text,
                "{kind:?} {node} {gpu}: {held_mib} of {limit_mib} MiB {from} {until}: {}",
                pods.join(", ")
            );
        }
        println!("{text}");
    }

    /// Removes the webhook entry for bindings.
    pub(super) async fn remove_binding_guard(&self) {
        let names = "jsonpath={.webhooks[*].name}";
        let get = ["get", "mutatingwebhookconfiguration", "vramguard", "-o", names];
        let names = self.plane.kubectl(&get).await.expect_success();
        let Some(index) = names.split(' ').position(|name| name == "bindings.vramguard.dev") else { return };
        let patch = format!(r#"[{{"op":"remove","path":"/webhooks/{index}"}}]"#);
        let patch = ["patch", "mutatingwebhookconfiguration", "vramguard", "--type=json", "-p", &patch];
        self.plane.kubectl(&patch).await.expect_success();
        configurations_reread().await;
    }

    #[track_caller]
    fn expect_running(&self) {
        self.plane.expect_running();
        self.replicas.expect_running();
        self.second.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).expect_running();
    }
}
