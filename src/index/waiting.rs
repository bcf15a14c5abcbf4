//! Pods that wait for VRAM, as far as they are kept. Owns how much of them is: a tenant may create any number of pods, each with
//! a megabyte of affinity, and none of them must cost the guard its memory.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::demand;
use crate::capacity::gpu::Resource;
use crate::capacity::ledger::PodUid;
use crate::capacity::makeup::Makeup;
use crate::capacity::placement::{Placement, Requirement};
use crate::capacity::pod::{Pod, PodName};
use crate::capacity::vram::Vram;
use crate::k8s::object::PodObject;
use crate::k8s::pod;

/// Pods that are kept. With 50 events a second, more could not be told anything for many minutes.
pub const MAX_KEPT: usize = 20_000;
/// Bytes of one pod's selectors, affinity and tolerations that are kept. Usual ones have some hundreds.
pub const MAX_PLACEMENT: usize = 4 << 10;
/// Bytes of those of all pods together.
pub const MAX_PLACEMENTS: usize = 8 << 20;
/// What a text costs beside its letters.
const TEXT: usize = 40;

/// A pod that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Namespace and name.
    pub name: PodName,
    /// What it demands.
    pub demand: Vram,
    /// Of which resource.
    pub resource: Resource,
    /// Where it may land; anywhere, where that is not kept.
    pub placement: Placement,
    /// Whether `placement` is the pod's own.
    pub landing: Landing,
    /// What the demand is made of, where its declaration says so.
    pub makeup: Option<Makeup>,
}

/// Whether it is known where a waiting pod may land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// Known.
    Kept,
    /// Not kept, because it is too long, or because those of other pods are together.
    TooLong,
}

/// All pods that wait, by uid.
#[derive(Debug, Default)]
pub struct WaitingPods {
    kept: BTreeMap<PodUid, Waiting>,
    /// Those past [`MAX_KEPT`]. One comes back into the others when it is seen again and there is room.
    counted: BTreeSet<PodUid>,
    /// What the placements of `kept` take.
    bytes: usize,
}

impl WaitingPods {
    /// A pod waits. What of it is kept depends on how much there is already.
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
            waiting.landing = Landing::TooLong;
        }
        self.bytes += bytes(&waiting);
        self.kept.insert(uid, waiting);
    }

    /// A pod waits no longer.
    pub fn remove(&mut self, uid: &PodUid) {
        self.counted.remove(uid);
        if let Some(waiting) = self.kept.remove(uid) {
            self.bytes -= bytes(&waiting);
        }
    }

    /// Only these wait still.
    pub fn retain(&mut self, waits: impl Fn(&PodUid) -> bool) {
        self.counted.retain(&waits);
        self.kept.retain(|uid, _| waits(uid));
        self.bytes = self.kept.values().map(bytes).sum();
    }

    /// One that is kept.
    pub fn get(&self, uid: &PodUid) -> Option<&Waiting> {
        self.kept.get(uid)
    }

    /// Whether a pod waits.
    pub fn contains(&self, uid: &PodUid) -> bool {
        self.kept.contains_key(uid) || self.counted.contains(uid)
    }

    /// Those that are kept.
    pub fn iter(&self) -> impl Iterator<Item = (&PodUid, &Waiting)> {
        self.kept.iter()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// How many wait and are only counted.
    pub fn not_kept(&self) -> usize {
        self.counted.len()
    }
}

/// What it waits for, if it is one that waits for VRAM.
pub fn of(object: &PodObject) -> Option<Waiting> {
    if !pod::is_unschedulable(object) {
        return None;
    }
    let pod = pod::translate(object, None, None);
    let makeup = Makeup::of(&pod);
    let Pod { name, containers, placement, .. } = pod;
    let requests = containers.iter().filter_map(|c| Some((c.role, c.vram_request.counted()?)));
    let demand = demand::of_pod(requests);
    let (resource, _) = containers.into_iter().find_map(|container| container.gpus.into_iter().next())?;
    let landing = Landing::Kept;
    (!demand.is_zero()).then_some(Waiting { name, demand, resource, placement, landing, makeup })
}

/// What counts of a pod towards [`MAX_PLACEMENTS`]. What stands in for a placement is the same small one for all.
fn bytes(waiting: &Waiting) -> usize {
    match waiting.landing {
        Landing::Kept => size(&waiting.placement),
        Landing::TooLong => 0,
    }
}

/// About how many bytes a placement takes.
fn size(placement: &Placement) -> usize {
    let text = |text: &String| text.len() + TEXT;
    let requirement = |r: &Requirement| text(&r.key) + r.values.iter().map(text).sum::<usize>() + TEXT;
    let terms = placement.required.iter().flatten();
    let terms = terms.map(|term| TEXT + term.labels.iter().chain(&term.fields).map(requirement).sum::<usize>());
    let tolerations = placement.tolerations.iter();
    let tolerations =
        tolerations.map(|t| 2 * TEXT + [&t.key, &t.value, &t.effect].into_iter().flatten().map(text).sum::<usize>());
    let selectors = placement.node_selector.iter().map(|(key, value)| text(key) + text(value));
    terms.sum::<usize>() + tolerations.sum::<usize>() + selectors.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::placement::{Preemption, Site, Taint};

    fn waiting(label: &str) -> Waiting {
        let mut placement = Placement { priority: 7, preemption: Preemption::Never, ..Placement::default() };
        placement.node_selector.insert("zone".into(), label.into());
        Waiting {
            name: PodName { namespace: "ml".into(), name: "llm".into() },
            demand: Vram::from_mib(1),
            resource: Resource("nvidia.com/gpu".into()),
            placement,
            landing: Landing::Kept,
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
        assert_eq!((kept.landing, kept.placement.priority), (Landing::TooLong, 7));
        assert_eq!(kept.placement.preemption, Preemption::Never);
        let taint = Taint { key: "gpu".into(), value: "yes".into(), effect: "NoSchedule".into() };
        assert!(kept.placement.allows("n", &Site { taints: vec![taint], ..Site::default() }));
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
        assert!(pods.iter().any(|(_, waiting)| waiting.landing == Landing::TooLong));
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
