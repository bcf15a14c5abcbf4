//! Owns the arithmetic of the promise a second time, from its description, in code that shares nothing with the product.
//!
//! Time and resource versions are arguments. At each version the checker tests whether a GPU is overcommitted:
//!
//! | allocation policy | pods that hold a GPU |
//! |---|---|
//! | single | every pod of the node |
//! | steered | the containers that the plugin gave it; until then, those whose annotation names it |
//! | distributed, packed | the containers that the device plugin put there, as the stand-in reports |
//! | unverified | the worst case: the largest containers of the node, as many as a GPU has replicas |
//!
//! It also finds steered pods without a GPU, pods that were created without their request, nodes that publish less than is
//! bound to them, and pods that wait although they fit.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};

use super::hardware::{AllocationPolicy, Hardware, uuid};
use super::view::{NodeView, PodView};
use crate::support::stream::Seen;

/// Kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A GPU is overcommitted.
    Overcommitted,
    /// A bound container on a steered node names no GPU of its node.
    NoGpu,
    /// The request of a guarded pod is not its declaration plus its CUDA context.
    WrongRequest,
    /// A node publishes less than is bound to it.
    BelowBound,
}

/// One violation, from its first version to its last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub kind: Kind,
    pub node: String,
    /// UUID of the GPU; `worst` under unverified allocation policy; the pod for kinds that have no GPU.
    pub gpu: String,
    /// First version of the violation, and milliseconds since the start of the run.
    pub from: (u64, u64),
    /// First version after the violation, and milliseconds; `None` while it lasts.
    pub to: Option<(u64, u64)>,
    pub held_mib: u64,
    pub limit_mib: u64,
    /// Name and MiB of each pod that holds VRAM there.
    pub pods: Vec<(String, u64)>,
}

impl Finding {
    /// Duration in milliseconds, up to `now` if the violation lasts.
    pub(super) fn lasted(&self, now: u64) -> u64 {
        self.to.map_or(now, |(_, at)| at) - self.from.1
    }
}

/// The GPU that the device plugin gave a container. The node had seen pods up to `version` at that time.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    pub version: u64,
    pub uid: String,
    pub container: String,
    pub gpu: String,
}

type Key = (Kind, String, String);

/// The state of the cluster and all findings.
#[derive(Debug, Default)]
pub(super) struct Checker {
    version: u64,
    nodes: BTreeMap<String, NodeView>,
    /// Pods by uid.
    pods: BTreeMap<String, PodView>,
    placed: BTreeMap<(String, String), String>,
    /// Placements for a version of pods that this checker has not seen.
    early: Vec<Placement>,
    open: BTreeMap<Key, usize>,
    findings: Vec<Finding>,
    /// Number of checks of a node.
    pub looks: u64,
    /// Time of the last creation, binding or end of a pod, in milliseconds since the start of the run.
    pub moved: u64,
}

/// The pods that hold one GPU.
struct Holdings {
    gpu: String,
    limit: u64,
    /// Pod name and MiB of each container.
    held: Vec<(String, u64)>,
}

impl Holdings {
    fn sum(&self) -> u64 {
        self.held.iter().map(|(_, mib)| mib).sum()
    }
}

impl Checker {
    /// Applies a step of the stream of pods.
    pub(super) fn see_pods(&mut self, seen: Seen<Pod>, now: u64) {
        match seen {
            Seen::All(pods, version) => {
                let uids: BTreeSet<String> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
                let gone: Vec<String> = self.pods.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
                self.version = self.version.max(version);
                gone.iter().for_each(|uid| self.remove(uid, now));
                pods.iter().for_each(|pod| self.apply(pod, now));
            }
            Seen::Now(pod, version) => {
                self.version = version;
                self.apply(&pod, now);
            }
            Seen::Gone(pod, version) => {
                self.version = version;
                self.remove(pod.metadata.uid.as_deref().expect("a pod has a uid"), now);
            }
        }
        let (ready, early) = std::mem::take(&mut self.early).into_iter().partition(|p| p.version <= self.version);
        self.early = early;
        let ready: Vec<Placement> = ready;
        ready.into_iter().for_each(|placement| self.place(placement, now));
    }

    /// Applies a step of the stream of nodes.
    pub(super) fn see_nodes(&mut self, seen: Seen<Node>, now: u64) {
        let (nodes, version) = match seen {
            Seen::All(nodes, version) => (nodes, version),
            Seen::Now(node, version) => (vec![node], version),
            Seen::Gone(node, _) => {
                self.nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
                return;
            }
        };
        for (name, view) in nodes.iter().filter_map(NodeView::of) {
            self.nodes.insert(name.clone(), view);
            self.look_at(&name, version, now);
        }
    }

    /// Applies a placement of the device plugin.
    pub(super) fn place(&mut self, placement: Placement, now: u64) {
        if placement.version > self.version {
            self.early.push(placement);
            return;
        }
        // The pod has ended and holds nothing.
        let Some(pod) = self.pods.get(&placement.uid) else { return };
        let node = pod.node.clone();
        self.placed.insert((placement.uid, placement.container), placement.gpu);
        node.iter().for_each(|node| self.look_at(node, self.version, now));
    }

    fn apply(&mut self, pod: &Pod, now: u64) {
        let view = PodView::of(pod);
        if view.ended {
            self.remove(&view.uid, now);
            return;
        }
        let before = self.pods.insert(view.uid.clone(), view.clone());
        if before.as_ref().is_none_or(|before| before.node != view.node) {
            self.moved = now;
        }
        if before.is_none() && view.demand() != view.expected {
            let pods = vec![(view.name.clone(), view.demand().unwrap_or(0))];
            let limit_mib = view.expected.unwrap_or(0);
            let (node, gpu, from) = (String::new(), view.name.clone(), (self.version, now));
            let held_mib = view.demand().unwrap_or(0);
            let kind = Kind::WrongRequest;
            self.findings.push(Finding { kind, node, gpu, from, to: None, held_mib, limit_mib, pods });
        }
        if let Some(node) = view.node {
            self.look_at(&node, self.version, now);
        }
    }

    fn remove(&mut self, uid: &str, now: u64) {
        self.placed.retain(|(placed, _), _| placed != uid);
        if let Some(pod) = self.pods.remove(uid) {
            self.moved = now;
            pod.node.iter().for_each(|node| self.look_at(node, self.version, now));
        }
    }

    fn on(&self, node: &str) -> impl Iterator<Item = (&String, &PodView)> {
        self.pods.iter().filter(move |(_, pod)| pod.node.as_deref() == Some(node))
    }

    /// Checks a node, and opens and closes findings.
    fn look_at(&mut self, node: &str, version: u64, now: u64) {
        self.looks += 1;
        let Some(view) = self.nodes.get(node) else { return };
        let wrong = self.wrong_on(node, view);
        let ended: Vec<Key> =
            self.open.keys().filter(|key| key.1 == node && !wrong.iter().any(|w| w.0 == **key)).cloned().collect();
        for key in ended {
            let index = self.open.remove(&key).expect("its key was just listed");
            self.findings[index].to = Some((version, now));
        }
        for (key, held_mib, limit_mib, pods) in wrong {
            match self.open.get(&key) {
                Some(index) if self.findings[*index].held_mib < held_mib => {
                    let finding = &mut self.findings[*index];
                    (finding.held_mib, finding.limit_mib, finding.pods) = (held_mib, limit_mib, pods);
                }
                Some(_) => {}
                None => {
                    self.open.insert(key.clone(), self.findings.len());
                    let (kind, node, gpu) = key;
                    let from = (version, now);
                    self.findings.push(Finding { kind, node, gpu, from, to: None, held_mib, limit_mib, pods });
                }
            }
        }
    }

    #[allow(clippy::type_complexity)] // the parts of a finding
    fn wrong_on(&self, node: &str, view: &NodeView) -> Vec<(Key, u64, u64, Vec<(String, u64)>)> {
        let mut wrong = Vec::new();
        for holdings in self.holdings(node, &view.hardware) {
            if holdings.sum() > holdings.limit {
                let key = (Kind::Overcommitted, node.to_owned(), holdings.gpu.clone());
                wrong.push((key, holdings.sum(), holdings.limit, holdings.held));
            }
        }
        let uuids: Vec<String> = (0..view.hardware.sizes.len()).map(|index| uuid(node, index)).collect();
        for (_, pod) in self.on(node).filter(|_| view.hardware.allocation_policy == AllocationPolicy::Steered) {
            let unnamed = |c: &&super::view::GpuContainer| !c.gpu.as_ref().is_some_and(|g| uuids.contains(g));
            for container in pod.containers.iter().filter(unnamed) {
                let key = (Kind::NoGpu, node.to_owned(), format!("{}/{}", pod.name, container.name));
                wrong.push((key, 0, 0, vec![(pod.name.clone(), container.mib.unwrap_or(0))]));
            }
        }
        let bound: Vec<(String, u64)> =
            self.on(node).filter_map(|(_, pod)| Some((pod.name.clone(), pod.demand()?))).collect();
        let sum: u64 = bound.iter().map(|(_, mib)| mib).sum();
        if sum > view.published.unwrap_or(0) {
            let key = (Kind::BelowBound, node.to_owned(), String::new());
            wrong.push((key, sum, view.published.unwrap_or(0), bound));
        }
        wrong
    }

    /// Holders and allocatable of each GPU, or of the worst GPU under unverified allocation policy.
    fn holdings(&self, node: &str, hardware: &Hardware) -> Vec<Holdings> {
        let containers = || {
            self.on(node).flat_map(|(uid, pod)| {
                pod.containers.iter().map(move |c| (uid, pod, c, (pod.name.clone(), c.mib.unwrap_or(0))))
            })
        };
        let limits = hardware.sizes.iter().copied().map(allocatable);
        if hardware.allocation_policy == AllocationPolicy::Unverified {
            let mut held: Vec<(String, u64)> = containers().map(|(.., held)| held).collect();
            held.sort_by_key(|(_, mib)| std::cmp::Reverse(*mib));
            held.truncate(usize::try_from(hardware.replicas).expect("a few"));
            let limit = limits.min().expect("a node has GPUs");
            return vec![Holdings { gpu: "worst".to_owned(), limit, held }];
        }
        let holdings = |(index, limit): (usize, u64)| {
            let gpu = uuid(node, index);
            let is_here = |uid: &String, container: &super::view::GpuContainer| {
                let given = || self.placed.get(&(uid.clone(), container.name.clone()));
                match hardware.allocation_policy {
                    AllocationPolicy::Single => true,
                    AllocationPolicy::Steered => given().or(container.gpu.as_ref()) == Some(&gpu),
                    AllocationPolicy::Distributed | AllocationPolicy::Packed => given() == Some(&gpu),
                    AllocationPolicy::Unverified => unreachable!("answered above"),
                }
            };
            let held = containers().filter(|(uid, _, container, _)| is_here(uid, container)).map(|(.., held)| held);
            Holdings { held: held.collect(), gpu, limit }
        };
        limits.enumerate().map(holdings).collect()
    }

    /// All findings, also the closed ones.
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The findings that last.
    pub(super) fn open(&self) -> impl Iterator<Item = &Finding> {
        self.open.values().map(|index| &self.findings[*index])
    }

    /// The nodes of the test, by name.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&String, &NodeView)> {
        self.nodes.iter()
    }

    /// Number of bound and of waiting pods.
    pub(super) fn counts(&self) -> (usize, usize) {
        let bound = self.pods.values().filter(|pod| pod.node.is_some()).count();
        (bound, self.pods.len() - bound)
    }

    /// Pods that wait although they fit, each with a node.
    pub(super) fn fitting(&self) -> Vec<(String, String)> {
        let waits = |pod: &&PodView| pod.node.is_none() && !pod.leaving;
        let pods = self.pods.values().filter(waits);
        let place = |pod: &PodView| {
            let mut nodes = self.nodes.iter();
            nodes.find(|(name, node)| self.has_room(name, node, pod)).map(|(name, _)| (pod.name.clone(), name.clone()))
        };
        pods.filter_map(place).collect()
    }

    fn has_room(&self, name: &str, node: &NodeView, pod: &PodView) -> bool {
        let (Some(demand), [_]) = (pod.demand(), pod.containers.as_slice()) else {
            return false; // whether a pod with several GPU containers fits depends on their order
        };
        let hardware = &node.hardware;
        let selected = pod.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        let taken: usize = self.on(name).map(|(_, pod)| pod.containers.len()).sum();
        let replicas = usize::try_from(hardware.replicas).expect("a few");
        if !selected || taken >= replicas * hardware.sizes.len() {
            return false;
        }
        let mut holdings = self.holdings(name, hardware);
        let fits = |holdings: &Holdings| holdings.sum() + demand <= holdings.limit;
        match hardware.allocation_policy {
            AllocationPolicy::Single => fits(&holdings[0]),
            AllocationPolicy::Steered => holdings.iter().any(|gpu| gpu.held.len() < replicas && fits(gpu)),
            AllocationPolicy::Unverified => {
                let worst = &mut holdings[0];
                worst.held.truncate(replicas - 1);
                demand <= worst.limit / hardware.replicas && fits(worst)
            }
            // While no pod is larger than a slot, each free replica is a slot.
            AllocationPolicy::Packed => {
                let smallest = holdings.iter().map(|gpu| gpu.limit).min().expect("a node has GPUs");
                let slot = smallest / hardware.replicas;
                demand <= slot && holdings.iter().flat_map(|gpu| &gpu.held).all(|(_, mib)| *mib <= slot)
            }
            // Other pods may leave before this one gets its GPU, so it must fit on each GPU that may then be next.
            AllocationPolicy::Distributed => {
                let counts: Vec<usize> = holdings.iter().map(|gpu| gpu.held.len()).collect();
                // A pod with several containers leaves with all of them, which this check does not model.
                let plain = self.on(name).all(|(_, pod)| pod.containers.len() == 1);
                let fits_after_departures = |index: usize| {
                    let mut held: Vec<u64> = holdings[index].held.iter().map(|(_, mib)| *mib).collect();
                    held.sort_by_key(|mib| std::cmp::Reverse(*mib));
                    let others = counts.iter().enumerate().filter(|(other, _)| *other != index);
                    let fewest = others.map(|(_, count)| *count).min().unwrap_or(replicas);
                    (0..=held.len()).all(|staying| {
                        let next = staying < replicas && staying <= fewest;
                        !next || held[..staying].iter().sum::<u64>() + demand <= holdings[index].limit
                    })
                };
                plain && counts.iter().sum::<usize>() == taken && (0..counts.len()).all(fits_after_departures)
            }
        }
    }
}

/// Allocatable MiB of a GPU: its total minus the larger of 256 MiB and 1 %, rounded up.
fn allocatable(total: u64) -> u64 {
    total - total.div_ceil(100).max(256)
}

#[cfg(test)]
mod tests;
