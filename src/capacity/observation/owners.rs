//! [`Owners`]: from the cgroup of a process to the pod and container that it belongs to. Owns how long a pod that is not
//! in the API counts as arriving or departed; [`crate::k8s::cgroup`] reads the cgroup.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Owner, finding};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::pod::{Container, Pod, PodName};
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;
use crate::keys;

/// How long a pod that was never seen in the API counts as arriving. The kubelet learns of a pod from the same watch as
/// the agent, and starts its containers later; this covers a watch that is renewed.
pub const ARRIVAL: Duration = Duration::from_secs(30);
/// How long departed pods are remembered: longer than a process outlives its pod, unless it hangs in the driver.
const REMEMBER: Duration = Duration::from_secs(3600);
/// The largest number of pods that are remembered without being in the API. A kubelet runs some hundred.
const MAX_REMEMBERED: usize = 4096;

/// A pod of this node, as the API describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LivePod {
    /// Uid in the API.
    pub uid: PodUid,
    /// Uid in the names of cgroups. It differs for a static pod, whose object in the API only mirrors it.
    pub cgroup_uid: PodUid,
    /// Namespace and name.
    pub name: PodName,
    /// Its containers.
    pub containers: Vec<LiveContainer>,
}

/// A container of a [`LivePod`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveContainer {
    /// Name, unique in the pod.
    pub name: Name,
    /// Id that the container runtime gave its present instance, without the name of the runtime; `None` before it runs.
    pub id: Option<Name>,
    /// What it counts with: its request for `vramguard.dev/vram`, or its declaration and the overhead of its processes.
    /// `None` if it declares nothing.
    pub demand: Option<Vram>,
    /// Whether its pod declares something for it. If not, its request is a slot or a default of the policy.
    pub declares: bool,
    /// The part of the demand that is for CUDA contexts, not for what the container allocates.
    pub overhead: Vram,
    /// The annotation that declares its VRAM, or that would.
    pub annotation: Name,
}

impl LiveContainer {
    /// What a node agent needs to know of a container. `overhead` is what each process takes in addition
    /// to what it declares.
    pub fn of(pod: &Pod, container: &Container, id: Option<Name>, overhead: Vram) -> LiveContainer {
        let declarations = &pod.declarations;
        let processes = declarations.processes.as_ref().and_then(|processes| processes.as_ref().ok()).copied();
        let overhead = finding::overhead(overhead, processes);
        let is_only = pod.containers.iter().filter(|other| !other.gpus.is_empty()).count() <= 1;
        let written = declarations
            .containers
            .get(&container.name)
            .or_else(|| declarations.pod.as_ref().filter(|_| is_only && !container.gpus.is_empty()))
            .or_else(|| declarations.foreign.get(&container.name).and_then(|written| written.first()));
        let declared = written.and_then(|written| written.amount.as_ref().ok());
        let counted = container.vram_request.counted().filter(|request| !request.is_zero());
        let annotation = if is_only { keys::VRAM.to_owned() } else { format!("{}{}", keys::VRAM_OF, container.name) };
        LiveContainer {
            name: container.name.as_str().into(),
            id,
            demand: counted.or_else(|| declared.map(|declared| declared.plus(overhead).min(Vram::MAX))),
            declares: written.is_some() || declarations.model.is_some(),
            overhead,
            annotation: annotation.into(),
        }
    }
}

/// The pods of one node, and those that left a moment ago.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    live: BTreeMap<PodUid, LivePod>,
    /// Since when these pods are gone from the API, by the uid of their cgroups.
    departed: BTreeMap<PodUid, Moment>,
    /// When a process of these pods was first seen, by the uid of their cgroups. The API has not shown the pods.
    arriving: BTreeMap<PodUid, Moment>,
    /// Whether the pods were listed. Before that, every pod may be arriving.
    listed: bool,
}

impl Owners {
    /// Records a pod that is on this node.
    pub fn apply(&mut self, pod: LivePod) {
        self.departed.remove(&pod.cgroup_uid);
        self.arriving.remove(&pod.cgroup_uid);
        self.live.insert(pod.cgroup_uid.clone(), pod);
    }

    /// Records that a pod is gone from the API.
    pub fn remove(&mut self, uid: &PodUid, now: Moment) {
        let gone = self.live.iter().find(|(_, pod)| pod.uid == *uid).map(|(cgroup, _)| cgroup.clone());
        if let Some(cgroup) = gone {
            self.live.remove(&cgroup);
            self.departed.insert(cgroup, now);
        }
        self.forget(now);
    }

    /// Records a complete list: pods that are not in it are gone.
    pub fn reset(&mut self, pods: Vec<LivePod>, now: Moment) {
        let before = std::mem::take(&mut self.live);
        pods.into_iter().for_each(|pod| self.apply(pod));
        self.departed.extend(before.into_keys().filter(|uid| !self.live.contains_key(uid)).map(|uid| (uid, now)));
        self.listed = true;
        self.forget(now);
    }

    /// Whether the pods of the node have been listed.
    pub fn are_listed(&self) -> bool {
        self.listed
    }

    /// The pods of the node.
    pub fn pods(&self) -> impl Iterator<Item = &LivePod> {
        self.live.values()
    }

    /// The pod of this uid in the API.
    pub fn pod(&self, uid: &PodUid) -> Option<&LivePod> {
        // Only a static pod has another uid in its cgroups.
        self.live.get(uid).filter(|pod| pod.uid == *uid).or_else(|| self.live.values().find(|pod| pod.uid == *uid))
    }

    /// The pod of this name.
    pub fn named(&self, namespace: &str, name: &str) -> Option<&LivePod> {
        self.live.values().find(|pod| pod.name.namespace == *namespace && pod.name.name == *name)
    }

    /// The owner of a process, from its cgroup: the uid of the pod and the id of the container, or `None` if the cgroup
    /// is that of no pod.
    pub fn owner(&mut self, cgroup: Option<(PodUid, &str)>, now: Moment) -> Owner {
        let Some((uid, id)) = cgroup else { return Owner::Outside };
        if let Some(pod) = self.live.get(&uid) {
            let named = pod.containers.iter().find(|container| container.id.as_deref() == Some(id));
            let container = match (named, pod.containers.as_slice()) {
                (Some(container), _) => container.name.clone(),
                // The status may lag behind a restart of the only container.
                (None, [only]) => only.name.clone(),
                (None, _) => Name::default(),
            };
            return Owner::Container { pod: pod.uid.clone(), container };
        }
        if self.departed.contains_key(&uid) {
            return Owner::Departed(uid);
        }
        if !self.arriving.contains_key(&uid) {
            self.forget(now);
            self.arriving.insert(uid.clone(), now);
        }
        let since = self.arriving.get(&uid).copied().unwrap_or(now);
        if !self.listed || now < since.after(ARRIVAL) { Owner::Arriving(uid) } else { Owner::Departed(uid) }
    }

    /// Drops what is older than [`REMEMBER`], and the oldest of more than [`MAX_REMEMBERED`].
    fn forget(&mut self, now: Moment) {
        for remembered in [&mut self.departed, &mut self.arriving] {
            remembered.retain(|_, since| now < since.after(REMEMBER));
            while remembered.len() > MAX_REMEMBERED {
                let oldest = remembered.iter().min_by_key(|(_, since)| **since).map(|(uid, _)| uid.clone());
                oldest.and_then(|uid| remembered.remove(&uid));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Moment = Moment(1_000_000);

    fn pod(uid: &str, cgroup: &str, containers: &[(&str, Option<&str>)]) -> LivePod {
        let container = |(name, id): &(&str, Option<&str>)| LiveContainer {
            declares: true,
            name: (*name).into(),
            id: id.map(Name::from),
            demand: None,
            overhead: Vram::ZERO,
            annotation: Name::default(),
        };
        let name = PodName { namespace: "ml".into(), name: uid.into() };
        let containers = containers.iter().map(container).collect();
        LivePod { uid: uid.into(), cgroup_uid: cgroup.into(), name, containers }
    }

    fn container(pod: &str, container: &str) -> Owner {
        Owner::Container { pod: pod.into(), container: container.into() }
    }

    #[test]
    fn a_process_belongs_to_the_container_whose_id_its_cgroup_names() {
        let mut owners = Owners::default();
        owners.reset(vec![pod("a", "a", &[("main", Some("c1")), ("side", Some("c2"))])], AT);
        assert_eq!(owners.owner(Some(("a".into(), "c2")), AT), container("a", "side"));
        assert_eq!(owners.owner(Some(("a".into(), "c9")), AT), container("a", ""), "one of two, not known which");
        assert_eq!(owners.owner(None, AT), Owner::Outside);
    }

    #[test]
    fn the_only_container_of_a_pod_is_known_before_its_id_is() {
        let mut owners = Owners::default();
        owners.reset(vec![pod("a", "a", &[("main", None)])], AT);
        assert_eq!(owners.owner(Some(("a".into(), "c1")), AT), container("a", "main"));
    }

    #[test]
    fn a_static_pod_is_found_by_the_uid_of_its_cgroup_and_named_by_that_of_its_mirror() {
        let mut owners = Owners::default();
        owners.reset(vec![pod("mirror", "static", &[("main", Some("c1"))])], AT);
        assert_eq!(owners.owner(Some(("static".into(), "c1")), AT), container("mirror", "main"));
        assert_eq!(owners.pod(&"mirror".into()).map(|pod| pod.cgroup_uid.clone()), Some("static".into()));
        owners.remove(&"mirror".into(), AT);
        assert_eq!(owners.owner(Some(("static".into(), "c1")), AT), Owner::Departed("static".into()));
    }

    #[test]
    fn a_pod_that_the_api_has_not_shown_yet_is_arriving_and_later_counts_as_departed() {
        let mut owners = Owners::default();
        let late = AT.after(ARRIVAL).after(ARRIVAL);
        assert_eq!(owners.owner(Some(("a".into(), "c")), AT), Owner::Arriving("a".into()));
        assert_eq!(owners.owner(Some(("a".into(), "c")), late), Owner::Arriving("a".into()), "nothing is listed yet");
        owners.reset(Vec::new(), late);
        assert_eq!(owners.owner(Some(("a".into(), "c")), late), Owner::Departed("a".into()));
        assert_eq!(owners.owner(Some(("b".into(), "c")), late), Owner::Arriving("b".into()));
        owners.apply(pod("b", "b", &[("main", None)]));
        assert_eq!(owners.owner(Some(("b".into(), "c")), late), container("b", "main"));
    }

    #[test]
    fn a_pod_that_left_is_departed_at_once_whether_deleted_or_missing_in_a_list() {
        let mut owners = Owners::default();
        owners.reset(vec![pod("a", "a", &[("main", None)]), pod("b", "b", &[("main", None)])], AT);
        owners.remove(&"a".into(), AT);
        owners.reset(Vec::new(), AT);
        for uid in ["a", "b"] {
            assert_eq!(owners.owner(Some((uid.into(), "c")), AT), Owner::Departed(uid.into()));
        }
    }

    #[test]
    fn what_is_remembered_of_pods_is_bounded() {
        let mut owners = Owners::default();
        owners.reset(Vec::new(), AT);
        for number in 0..i64::try_from(MAX_REMEMBERED).unwrap() + 100 {
            let uid = format!("pod-{number}");
            owners.owner(Some((PodUid::from(uid), "c")), Moment(AT.0 + number));
        }
        assert!(owners.arriving.len() <= MAX_REMEMBERED + 1, "{}", owners.arriving.len());
        owners.owner(Some(("last".into(), "c")), AT.after(REMEMBER).after(REMEMBER));
        assert_eq!(owners.arriving.len(), 1);
    }
}
