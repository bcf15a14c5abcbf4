//! The storm: bursts of pods with mixed demands on a real node with several GPUs, while parts of the node are killed.
//!
//! All that is random follows from `VRAMGUARD_SEED`: pods, demands, GPUs, faults and their times. What the kubelet does at
//! the time of a fault depends on the machine, and a pod stays for another round only if it was placed.
//!
//! The test is its own binding guard. By a sum of its own it promises no more of a GPU than fits. It fills each GPU to the
//! last MiB, so that a pod on another GPU exceeds that one. [`super::oracle`] adds up what PodResources lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::node::SteeredNode;
use super::oracle::Oracle;
use super::process::DRIVER_RESERVE_MIB;
use super::seen::Outcome;
use super::uuid;
use super::wanted::Wanted;
use crate::chaos::seed::{Chance, seed};
use crate::support::pause;

const ROUNDS: usize = 14;
const BURST: usize = 20;
const GPUS: u32 = 4;
const REPLICAS: u64 = 12;
/// What pods can be given of one GPU of 24 GiB, in MiB: all but what the driver keeps, and the headroom of 256 MiB.
const ALLOCATABLE: u64 = 24_576 - DRIVER_RESERVE_MIB - 256;
/// The share of one replica. Without steering, no larger pod could be promised a GPU of this node.
const SLOT: u64 = ALLOCATABLE / REPLICAS;
/// A demand for which there is always room, in MiB.
const SMALL: u64 = 200;
/// What larger demands leave free on each GPU, in MiB: room for a whole burst of pods with two small containers.
const SPARE: u64 = BURST as u64 * 2 * SMALL / GPUS as u64;
/// The largest number of pods that answers may excuse in a whole storm: one in twenty.
const MOST_EXCUSED: usize = ROUNDS * BURST / 20;

/// What a pod consists of.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Plain,
    TwoContainers,
    Sidecar,
    Init,
    /// The kubelet rejects it after it has allocated its device.
    AnotherNode,
}

const EACH_KIND: [Kind; 5] = [Kind::Plain, Kind::TwoContainers, Kind::Sidecar, Kind::Init, Kind::AnotherNode];

impl Kind {
    /// A pod without a GPU.
    fn pod(self, name: &str) -> Wanted {
        let pod = Wanted::pod(name, "");
        match self {
            Kind::Plain => pod,
            Kind::TwoContainers => pod.with_app("second"),
            Kind::Sidecar => pod.with_init("proxy", true),
            Kind::Init => pod.with_init("fetch", false),
            Kind::AnotherNode => pod.for_another_node(),
        }
    }
}

/// What happens in the middle of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillAgent,
    KillDevicePlugin,
    KillKubelet,
    KillContainerd,
    HangAgent,
    HangApiServer,
}

const FAULTS: [Fault; 6] = [
    Fault::KillAgent,
    Fault::KillDevicePlugin,
    Fault::KillKubelet,
    Fault::KillContainerd,
    Fault::HangAgent,
    Fault::HangApiServer,
];

/// A run, and what it has seen.
struct Storm {
    node: SteeredNode,
    pods: Chance,
    faults: Chance,
    /// Faults that have not happened since each has happened equally often.
    due: Vec<Fault>,
    /// Pods that exist, so each holds what it was promised.
    live: Vec<Wanted>,
    oracle: Oracle,
    excused: BTreeSet<String>,
    happened: BTreeMap<Fault, usize>,
    /// Pods by the outcome in their first round.
    outcomes: BTreeMap<String, usize>,
    /// Pods of earlier rounds that a later fault made the kubelet reject.
    lost: usize,
    larger_than_a_slot: usize,
    /// Times at which a GPU was exceeded only because of excused pods.
    exceeded_by_excused: usize,
}

/// Runs a storm, and prints what it saw.
pub(super) async fn run() {
    let (seed, start) = (seed(), Instant::now());
    let Some(node) = SteeredNode::start_of(GPUS, u32::try_from(REPLICAS).expect("a small number")).await else {
        return;
    };
    let mut storm = Storm {
        node,
        pods: Chance::of(seed, "pods"),
        faults: Chance::of(seed, "faults"),
        due: Vec::new(),
        live: Vec::new(),
        oracle: Oracle::new(ALLOCATABLE),
        excused: BTreeSet::new(),
        happened: BTreeMap::new(),
        outcomes: BTreeMap::new(),
        lost: 0,
        larger_than_a_slot: 0,
        exceeded_by_excused: 0,
    };
    for round in 0..ROUNDS {
        storm.round(round).await;
    }
    println!("VRAMGUARD_SEED={seed}: {}", storm.figures(start.elapsed()));
    storm.has_shown_something();
}

impl Storm {
    /// One burst under faults, and the verdict on all pods that exist.
    async fn round(&mut self, round: usize) {
        let burst = burst(&mut self.pods, &format!("b{round}"), &self.live);
        self.larger_than_a_slot += burst.iter().filter(|pod| pod.mib() > SLOT).count();
        self.oracle.expect(&burst);
        let kept = self.live.len();
        let mut faults = Vec::new();
        let mut rest = burst.as_slice();
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(rest.len().min(random(&mut self.faults, 4, 12)));
            self.node.create(chunk).await;
            self.live.extend_from_slice(chunk);
            rest = later;
            pause(milliseconds(&mut self.faults, 0, 500)).await; // so that the fault meets another moment
            if self.faults.percent(70) {
                faults.push(self.inflict().await);
            }
        }
        let outcomes = self.node.observed_outcomes(&self.live, |listed| self.oracle.sample(listed)).await;
        let what = format!("round {round}, faults [{}]", faults.join(", "));
        self.judge(&what, kept, &outcomes);
        self.leave(kept, &outcomes).await;
        self.node.ready().await;
        self.node.steers().await;
    }

    /// Inflicts a fault, and says which.
    async fn inflict(&mut self) -> String {
        if self.due.is_empty() {
            self.due = FAULTS.to_vec();
            self.faults.shuffle(&mut self.due);
        }
        let fault = self.due.pop().expect("it was filled");
        *self.happened.entry(fault).or_default() += 1;
        let (node, time) = (&mut self.node, milliseconds(&mut self.faults, 0, 2_000));
        match fault {
            Fault::KillAgent => {
                node.lose_agent();
                pause(time).await;
                node.start_agent();
            }
            Fault::KillDevicePlugin => node.restart_device_plugin(time).await,
            Fault::KillKubelet => node.kill_kubelet(time).await,
            Fault::KillContainerd => {
                node.kill_runtime();
                // It is started again within 0.2 s, and only then there is a process to kill.
                pause(time.max(Duration::from_millis(500))).await;
            }
            Fault::HangAgent => node.hang_agent(time).await,
            Fault::HangApiServer => node.hang_api_server(2 * time).await,
        }
        format!("{fault:?} for {time:.1?}")
    }

    /// Asserts that each pod is on its GPU and that no GPU is exceeded, but for pods that an answer excuses. The first
    /// `kept` pods are of earlier rounds.
    fn judge(&mut self, what: &str, kept: usize, outcomes: &[Outcome]) {
        let excused = self.node.excused(outcomes);
        let wrong = self.live.iter().zip(outcomes);
        let wrong = wrong.filter(|(pod, outcome)| !outcome.is_right(pod) && !excused.contains(&pod.name));
        let wrong: Vec<_> = wrong.map(|(pod, outcome)| (&pod.name, &pod.gpu, outcome)).collect();
        let fallbacks = || self.node.answers().into_iter().filter(|answer| !answer.fallback.is_empty());
        assert!(wrong.is_empty(), "{what}: {wrong:#?}{:#?}{}", fallbacks().collect::<Vec<_>>(), self.node.logs());
        let (exceeded, by_excused) = self.oracle.verdict(&excused);
        assert!(exceeded.is_empty(), "{what}: more than {ALLOCATABLE} MiB: {exceeded:#?}{}", self.node.logs());
        by_excused.iter().for_each(|(gpu, holders)| println!("{gpu} is exceeded by excused pods: {holders:?}"));
        self.exceeded_by_excused += by_excused.len();
        println!("{what}: {:?}, {kept} of earlier rounds, excused: {excused:?}", counted(&outcomes[kept..]));
        for (outcome, count) in counted(&outcomes[kept..]) {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.lost += outcomes[..kept].iter().filter(|outcome| matches!(outcome, Outcome::Rejected(_))).count();
        self.excused.extend(excused);
    }

    /// Deletes all pods but some that are on their GPU. Those that stay hold at most half of a GPU.
    async fn leave(&mut self, kept: usize, outcomes: &[Outcome]) {
        let (mut stay, mut leave): (Vec<Wanted>, Vec<Wanted>) = (Vec::new(), Vec::new());
        for (place, (pod, outcome)) in std::mem::take(&mut self.live).into_iter().zip(outcomes).enumerate() {
            let half = room(&stay, &pod.gpu).0 >= ALLOCATABLE / 2 + pod.mib();
            // A pod leaves after two rounds, so that the bursts stay mixed.
            let stays = self.pods.percent(30) && place >= kept && *outcome == Outcome::Placed && half;
            if stays { &mut stay } else { &mut leave }.push(pod);
        }
        self.node.delete(&leave).await;
        self.live = stay;
    }

    fn figures(&self, took: Duration) -> String {
        let faults: usize = self.happened.values().sum();
        let mut text = format!(
            "{} pods, {} of them larger than a slot of {SLOT} MiB: {:?}; {} were lost in a later round\n",
            ROUNDS * BURST,
            self.larger_than_a_slot,
            self.outcomes,
            self.lost
        );
        let mut line = |line: String| writeln!(text, "{line}").expect("a text takes all");
        line(format!("{faults} faults: {:?}", self.happened));
        line(format!(
            "{} of at most {MOST_EXCUSED} pods excused by an answer: {:?}; a GPU exceeded by them {} times",
            self.excused.len(),
            self.excused,
            self.exceeded_by_excused
        ));
        let Oracle { fullest, samples, .. } = &self.oracle;
        line(format!(
            "the fullest GPU without them held {fullest} of {ALLOCATABLE} MiB, in {samples} lists of PodResources"
        ));
        line(self.node.figures());
        line(format!("{:.0} s", took.as_secs_f64()));
        text
    }

    /// Asserts that the run could have failed: pods were placed, GPUs were full, and each fault happened.
    fn has_shown_something(&self) {
        let of = |outcome: &str| self.outcomes.get(outcome).copied().unwrap_or_default();
        assert!(self.excused.len() <= MOST_EXCUSED, "{:?}", self.excused);
        assert!(of("placed") >= ROUNDS * BURST / 2, "{:?}", self.outcomes);
        assert!(of("rejected: NodeAffinity") > 0, "{:?}", self.outcomes);
        assert!(self.larger_than_a_slot >= ROUNDS, "{} pods are larger than a slot", self.larger_than_a_slot);
        assert!(self.oracle.fullest >= ALLOCATABLE * 9 / 10, "no GPU held more than {} MiB", self.oracle.fullest);
        assert!(FAULTS.iter().all(|fault| self.happened.contains_key(fault)), "{:?}", self.happened);
    }
}

/// The number of pods by outcome.
fn counted(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let name = match outcome {
            Outcome::Placed => "placed".to_owned(),
            Outcome::Rejected(why) => format!("rejected: {why}"),
            Outcome::Elsewhere(_) => "elsewhere".to_owned(),
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// A burst of pods that fit next to those that exist.
fn burst(chance: &mut Chance, name: &str, live: &[Wanted]) -> Vec<Wanted> {
    let mut kinds = EACH_KIND.to_vec();
    while kinds.len() < BURST {
        kinds.push(if chance.percent(60) { Kind::Plain } else { *chance.pick(&EACH_KIND) });
    }
    chance.shuffle(&mut kinds);
    let mut all = live.to_vec();
    for (n, kind) in kinds.into_iter().enumerate() {
        let pod = kind.pod(&format!("{name}-{n}")).demanding(|| demand(chance));
        let pod = promise(chance, pod, &all);
        all.push(pod);
    }
    for gpu in gpus() {
        let rest = room(&all, &gpu).0;
        let mut new = all[live.len()..].iter_mut().rev();
        if let Some(pod) = new.find(|pod| pod.gpu == gpu && !pod.another_node) {
            pod.grow(rest);
        }
    }
    for gpu in gpus() {
        let pods = || all.iter().filter(|pod| pod.gpu == gpu);
        assert!(
            pods().map(Wanted::mib).sum::<u64>() <= ALLOCATABLE,
            "promised of {gpu}: {:#?}",
            pods().collect::<Vec<_>>()
        );
        assert!(
            pods().map(Wanted::devices).sum::<u64>() <= REPLICAS,
            "promised of {gpu}: {:#?}",
            pods().collect::<Vec<_>>()
        );
    }
    all.split_off(live.len())
}

/// Gives the pod a GPU that has room for it. A pod that is too large for all of them becomes smaller.
fn promise(chance: &mut Chance, mut pod: Wanted, taken: &[Wanted]) -> Wanted {
    loop {
        let small = pod.containers.iter().all(|container| container.mib <= Some(SMALL));
        let spare = if small { 0 } else { SPARE };
        let fits = |gpu: &String| {
            let (mib, devices) = room(taken, gpu);
            mib >= pod.mib() + spare && devices >= pod.devices()
        };
        let fitting: Vec<String> = gpus().filter(fits).collect();
        if !fitting.is_empty() {
            pod.gpu = chance.pick(&fitting).clone();
            return pod;
        }
        assert!(!small, "no room for {pod:?} next to {taken:#?}");
        for container in &mut pod.containers {
            container.mib = container.mib.map(|mib| (mib / 2).max(SMALL));
        }
    }
}

/// What is not promised of a GPU: MiB and devices.
fn room(taken: &[Wanted], gpu: &str) -> (u64, u64) {
    let there = || taken.iter().filter(|pod| pod.gpu == gpu);
    (ALLOCATABLE - there().map(Wanted::mib).sum::<u64>(), REPLICAS - there().map(Wanted::devices).sum::<u64>())
}

fn gpus() -> impl Iterator<Item = String> {
    (0..GPUS).map(uuid)
}

/// The demand of a container, in MiB. Four of ten are larger than a slot.
fn demand(chance: &mut Chance) -> u64 {
    match chance.between(1, 10) {
        1..=3 => chance.between(SMALL, 900),
        4..=6 => chance.between(900, SLOT),
        _ => chance.between(SLOT + 1, 9_000),
    }
}

fn random(chance: &mut Chance, low: u64, high: u64) -> usize {
    usize::try_from(chance.between(low, high)).expect("a small number")
}

fn milliseconds(chance: &mut Chance, low: u64, high: u64) -> Duration {
    Duration::from_millis(chance.between(low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_of_any_seed_fit_fill_gpus_and_hold_each_kind() {
        for seed in 0..200 {
            let mut chance = Chance::of(seed, "pods");
            let mut live: Vec<Wanted> = Vec::new();
            for round in 0..4 {
                let pods = burst(&mut chance, &format!("b{round}"), &live);
                assert_eq!(pods.len(), BURST);
                assert!(pods.iter().any(|pod| pod.mib() > SLOT), "{pods:#?}");
                assert!(pods.iter().any(|pod| pod.another_node) && pods.iter().any(|pod| pod.containers.len() == 2));
                live.extend(pods);
                let is_full = |gpu: &String| room(&live, gpu).0 == 0;
                assert!(gpus().filter(is_full).count() >= 2, "seed {seed}: no pod on another GPU would exceed it");
                live.retain(|_| chance.percent(30));
                let mut held: BTreeMap<String, u64> = BTreeMap::new();
                live.retain(|pod| {
                    let held = held.entry(pod.gpu.clone()).or_default();
                    *held += pod.mib();
                    *held <= ALLOCATABLE / 2
                });
            }
        }
    }

    #[test]
    fn a_pod_that_grows_holds_that_much_more() {
        let demands = |pod: &Wanted| pod.containers.iter().map(|container| container.mib).collect::<Vec<_>>();
        let mut pod = Wanted::pod("p", "A").with_init("fetch", false).with_init("proxy", true).demanding(|| 30);
        assert_eq!((pod.mib(), pod.devices()), (60, 2));
        pod.grow(40);
        assert_eq!((pod.mib(), demands(&pod)), (100, vec![Some(30), Some(30), Some(70)]));
        let mut pod = Wanted::pod("p", "A").with_app("second").demanding(|| 30);
        pod.grow(40);
        assert_eq!((pod.mib(), demands(&pod)), (100, vec![Some(70), Some(30)]));
    }
}
