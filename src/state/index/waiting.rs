//! Unschedulable pods that request VRAM, within bounds. Owns the bounds on their memory: a tenant may create
//! any number of pods with a megabyte of affinity each, which must not exhaust the memory of the guard.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::admission::makeup::Makeup;
use crate::capacity::gpu::Resource;
use crate::capacity::name::PodUid;

use crate::capacity::pod::placement::{OwnPool, Placement, Requirement};
use crate::capacity::pod::{Pod, PodName};
use crate::capacity::vram::Vram;
use crate::k8s::object::PodObject;
use crate::k8s::pod;

/// Pods that are kept. At 50 events a second, further pods could not be sent an event for many minutes.
pub(super) const MAX_KEPT: usize = 20_000;
/// Bytes of the node selector, affinity and tolerations that are kept of one pod. Usual ones have some hundreds.
pub(super) const MAX_PLACEMENT: usize = 4 << 10;
/// Bytes of the placements of all kept pods together.
pub(super) const MAX_PLACEMENTS: usize = 8 << 20;
/// Bytes that a string takes in addition to its characters.
const TEXT: usize = 40;

/// An unschedulable pod that requests VRAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Namespace and name.
    pub name: PodName,
    /// The pod's demand.
    pub demand: Vram,
    /// The GPU resource that the pod requests.
    pub resource: Resource,
    /// Where the pod may land. If its placement is not kept, any node.
    pub placement: Placement,
    /// Whether `placement` is the pod's own.
    pub landing: PlacementKept,
    /// Declared amount and processes that explain the demand; `None` if no single sum explains it.
    pub makeup: Option<Makeup>,
}

/// Whether the placement of a waiting pod is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementKept {
    /// `placement` is the pod's own.
    Yes,
    /// The placement is not kept: it, or all kept placements together, would exceed a bound.
    Dropped,
}

/// All waiting pods, by uid.
#[derive(Debug, Default)]
pub struct WaitingPods {
    kept: BTreeMap<PodUid, Waiting>,
    /// Uids of the pods past [`MAX_KEPT`]. When such a pod is seen again and there is room, it moves to `kept`.
    counted: BTreeSet<PodUid>,
    /// Bytes of the placements in `kept`.
    bytes: usize,
}

impl WaitingPods {
    /// Adds a waiting pod. How much of it is kept depends on the pods that are kept already.
    pub fn insert(&mut self, uid: PodUid, mut waiting: Waiting) {
        self.remove(&uid);
        if self.kept.len() >= MAX_KEPT {
            self.counted.insert(uid);
            return;
        }
        let size = size(&waiting.placement);
        if size > MAX_PLACEMENT || self.bytes + size > MAX_PLACEMENTS {
            let Placement { priority, preemption, .. } = waiting.placement;
            waiting.placement = Placement::anywhere(priority, preemption);
            waiting.landing = PlacementKept::Dropped;
        }
        self.bytes += bytes(&waiting);
        self.kept.insert(uid, waiting);
    }

    /// Removes a pod that waits no longer.
    pub fn remove(&mut self, uid: &PodUid) {
        self.counted.remove(uid);
        if let Some(waiting) = self.kept.remove(uid) {
            self.bytes -= bytes(&waiting);
        }
    }

    /// Removes a pod and returns what was kept of it.
    pub fn take(&mut self, uid: &PodUid) -> Option<Waiting> {
        let taken = self.kept.get(uid).cloned();
        self.remove(uid);
        taken
    }

    /// Keeps only the pods that `waits` accepts.
    pub fn retain(&mut self, waits: impl Fn(&PodUid) -> bool) {
        self.counted.retain(&waits);
        self.kept.retain(|uid, _| waits(uid));
        self.bytes = self.kept.values().map(bytes).sum();
    }

    /// The waiting pod with this uid, if it is kept.
    pub fn get(&self, uid: &PodUid) -> Option<&Waiting> {
        self.kept.get(uid)
    }

    /// Whether a pod waits, kept or only counted.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.kept.contains_key(uid) || self.counted.contains(uid)
    }

    /// The pods that are kept.
    pub fn iter(&self) -> impl Iterator<Item = (&PodUid, &Waiting)> {
        self.kept.iter()
    }

    /// Whether no pod is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Number of pods that are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Number of waiting pods that are only counted.
    pub fn not_kept(&self) -> usize {
        self.counted.len()
    }
}

/// The waiting pod of an object; `None` unless it is unschedulable and requests VRAM and a GPU.
pub(super) fn of(object: &PodObject) -> Option<Waiting> {
    if !pod::is_unschedulable(object) {
        return None;
    }
    requesting(object)
}

/// What a pod requests, and where; `None` unless it requests VRAM and a GPU.
pub(super) fn requesting(object: &PodObject) -> Option<Waiting> {
    let pod = pod::translate(object, None, None);
    let makeup = Makeup::of(&pod);
    let demand = pod.requested()?;
    let Pod { name, containers, placement, .. } = pod;
    let (resource, _) = containers.into_iter().find_map(|container| container.gpus.into_iter().next())?;
    let landing = PlacementKept::Yes;
    Some(Waiting { name, demand, resource, placement, landing, makeup })
}

/// Bytes of a pod that count towards [`MAX_PLACEMENTS`]. The substitute for a placement that is too long counts as 0:
/// it is equally small for all pods.
fn bytes(waiting: &Waiting) -> usize {
    match waiting.landing {
        PlacementKept::Yes => size(&waiting.placement),
        PlacementKept::Dropped => 0,
    }
}

/// Bytes that a placement takes, approximately.
fn size(placement: &Placement) -> usize {
    let text = |text: &String| text.len() + TEXT;
    let requirement = |r: &Requirement| text(&r.key) + r.values.iter().map(text).sum::<usize>() + TEXT;
    let terms = placement.required.iter().flatten();
    let terms = terms.map(|term| TEXT + term.labels.iter().chain(&term.fields).map(requirement).sum::<usize>());
    let tolerations = placement.tolerations.iter();
    let tolerations =
        tolerations.map(|t| 2 * TEXT + [&t.key, &t.value, &t.effect].into_iter().flatten().map(text).sum::<usize>());
    let selectors = placement.node_selector.iter().map(|(key, value)| text(key) + text(value));
    let own = placement.own_pool.as_ref().map_or(0, OwnPool::size);
    terms.sum::<usize>() + tolerations.sum::<usize>() + selectors.sum::<usize>() + own * TEXT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::pod::placement::{NodeProfile, Preemption, Taint};

    fn waiting(label: &str) -> Waiting {
        let mut placement = Placement { priority: 7, preemption: Preemption::Never, ..Placement::default() };
        placement.node_selector.insert("zone".into(), label.into());
        Waiting {
            name: PodName { namespace: "ml".into(), name: "llm".into() },
            demand: Vram::from_mib(1),
            resource: Resource("nvidia.com/gpu".into()),
            placement,
            landing: PlacementKept::Yes,
            makeup: None,
        }
    }

    fn uid(number: usize) -> PodUid {
        PodUid::from(format!("{number}"))
    }

    #[test]
    fn a_placement_that_is_too_long_gives_way_to_one_that_allows_every_node() {
        let mut pods = WaitingPods::default();
        pods.insert(uid(1), waiting(&"x".repeat(MAX_PLACEMENT)));
        let kept = pods.get(&uid(1)).unwrap();
        assert_eq!((kept.landing, kept.placement.priority), (PlacementKept::Dropped, 7));
        assert_eq!(kept.placement.preemption, Preemption::Never);
        let taint = Taint { key: "gpu".into(), value: "yes".into(), effect: "NoSchedule".into() };
        assert!(kept.placement.allows("n", &NodeProfile { taints: vec![taint], ..NodeProfile::default() }));
        pods.insert(uid(2), waiting("a"));
        assert_eq!(pods.get(&uid(2)).unwrap(), &waiting("a"));
    }

    #[test]
    fn two_hundred_waiting_pods_of_a_mebibyte_keep_little() {
        let mut pods = WaitingPods::default();
        for number in 0..200 {
            pods.insert(uid(number), waiting(&"x".repeat(1 << 20)));
        }
        assert_eq!(pods.len(), 200);
        assert!(pods.bytes < 200 * MAX_PLACEMENT, "{} bytes", pods.bytes);
    }

    #[test]
    fn placements_and_pods_are_kept_up_to_a_bound_and_counted_past_it() {
        let mut pods = WaitingPods::default();
        for number in 0..MAX_KEPT + 3 {
            pods.insert(uid(number), waiting(&"x".repeat(1000)));
        }
        assert_eq!((pods.len(), pods.not_kept()), (MAX_KEPT, 3));
        assert!(pods.bytes <= MAX_PLACEMENTS);
        assert!(pods.iter().any(|(_, waiting)| waiting.landing == PlacementKept::Dropped));
        assert!(pods.contains(&uid(MAX_KEPT + 2)) && pods.get(&uid(MAX_KEPT + 2)).is_none());
        pods.remove(&uid(MAX_KEPT + 2));
        pods.remove(&uid(0));
        pods.insert(uid(MAX_KEPT + 1), waiting("a"));
        assert_eq!((pods.len(), pods.not_kept()), (MAX_KEPT, 1));
        pods.retain(|_| false);
        assert_eq!((pods.len(), pods.not_kept(), pods.bytes), (0, 0, 0));
    }

    #[test]
    fn a_pod_that_is_seen_again_counts_once() {
        let mut pods = WaitingPods::default();
        pods.insert(uid(1), waiting("a"));
        let bytes = pods.bytes;
        pods.insert(uid(1), waiting("a"));
        assert_eq!((pods.len(), pods.bytes), (1, bytes));
    }
}
