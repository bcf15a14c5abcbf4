//! [`Containers`]: what each container of a node uses, has used at most, and since when it computes nothing. Owns the
//! history of a container from its first process to the end of its pod.

use std::collections::{BTreeMap, BTreeSet};

use super::{Listing, Look, Owner};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// What one container uses of the GPUs of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Memory that its processes use now; `None` if the driver does not tell for one of them.
    pub used: Option<Vram>,
    /// The most that it has used.
    pub peak: Vram,
    /// Since when none of its processes computes; `None` if one does, or if the driver does not tell.
    pub idle_since: Option<Moment>,
    /// When it was first seen.
    pub first: Moment,
    /// How many times it has computed and then been idle; `None` if it was never seen to compute.
    pub cycles: Option<u64>,
    /// The GPU on which it uses most.
    pub gpu: Name,
}

/// A container: the uid of its pod, and its name.
pub type ContainerKey = (PodUid, Name);

/// The containers that have been seen on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    seen: BTreeMap<ContainerKey, Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    current: Use,
    /// Memory on each GPU.
    on: BTreeMap<Name, Option<Vram>>,
}

/// The processes of one container in one look.
#[derive(Default)]
struct Found {
    on: BTreeMap<Name, Option<Vram>>,
    busy: Vec<Option<bool>>,
}

impl Containers {
    /// Restores what an earlier run of the agent reported of a container. This run may have seen the container already:
    /// then the earlier history goes before what was seen since.
    pub fn restore(&mut self, key: ContainerKey, earlier: Use) {
        let on = BTreeMap::from([(earlier.gpu.clone(), earlier.used)]);
        match self.seen.get_mut(&key) {
            Some(Seen { current, .. }) => current.continues(&earlier),
            None => drop(self.seen.insert(key, Seen { current: earlier, on })),
        }
    }

    /// Takes a look into account. On a GPU whose processes could not be read, the containers keep their last values. On one
    /// whose source does not tell processes, their history stays, and their use is unknown.
    pub fn observe(&mut self, look: &Look) {
        let mut found: BTreeMap<ContainerKey, Found> = BTreeMap::new();
        let mut unread: BTreeSet<&Name> = BTreeSet::new();
        let mut told = true;
        for gpu in &look.gpus {
            let processes = match &gpu.processes {
                Listing::Listed(processes) => processes,
                Listing::Unreadable(_) => {
                    unread.insert(&gpu.uuid);
                    continue;
                }
                Listing::NotTold => {
                    told = false;
                    continue;
                }
            };
            for process in processes {
                let Owner::Container { pod, container } = &process.owner else { continue };
                let of = found.entry((pod.clone(), container.clone())).or_default();
                let sum = of.on.entry(gpu.uuid.clone()).or_insert(Some(Vram::ZERO));
                *sum = sum.zip(process.memory).map(|(sum, memory)| sum.plus(memory));
                of.busy.push(process.busy);
            }
        }
        for (key, seen) in &mut self.seen {
            let of = found.entry(key.clone()).or_default();
            let kept = seen.on.iter().filter(|(gpu, _)| unread.contains(gpu));
            of.on.extend(kept.map(|(gpu, memory)| (gpu.clone(), *memory)));
            // This includes the GPUs that the source no longer lists.
            for gpu in seen.on.keys().filter(|_| !told) {
                of.on.entry(gpu.clone()).or_insert(None);
            }
        }
        for (key, found) in found {
            let seen = self.seen.entry(key).or_insert_with(|| Seen::new(look.at));
            seen.update(found, !unread.is_empty(), look.at);
        }
    }

    /// Drops the containers for which `keep` returns false: those of pods that are gone.
    pub fn retain(&mut self, keep: impl Fn(&ContainerKey) -> bool) {
        self.seen.retain(|key, _| keep(key));
    }

    /// What each container uses, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ContainerKey, &Use)> {
        self.seen.iter().map(|(key, seen)| (key, &seen.current))
    }
}

impl Use {
    /// What stays of it where the source does not tell processes: the past, of which the peak of a container that declares
    /// nothing counts.
    pub(super) fn past(self) -> Use {
        Use { used: None, idle_since: None, ..self }
    }

    /// What counts of it after a time in which nobody saw the container: its peak. How long and under which load it was seen
    /// begins anew, at `now`.
    pub(super) fn interrupted(self, now: Moment) -> Use {
        Use { first: now, cycles: None, ..self.past() }
    }

    /// Puts the history of an earlier run before this one.
    fn continues(&mut self, earlier: &Use) {
        self.peak = self.peak.max(earlier.peak);
        self.first = self.first.min(earlier.first);
        self.idle_since = self.idle_since.map(|since| earlier.idle_since.map_or(since, |before| before.min(since)));
        self.cycles = match (earlier.cycles, self.cycles) {
            (Some(before), Some(since)) => Some(before.saturating_add(since)),
            (before, since) => before.or(since),
        };
    }
}

impl Seen {
    fn new(at: Moment) -> Seen {
        let current =
            Use { used: None, peak: Vram::ZERO, idle_since: None, first: at, cycles: None, gpu: Name::default() };
        Seen { current, on: BTreeMap::new() }
    }

    fn update(&mut self, found: Found, partly_read: bool, at: Moment) {
        let known: Option<Vec<Vram>> = found.on.values().copied().collect();
        self.current.used = known.map(|amounts| amounts.into_iter().sum());
        self.current.peak = self.current.peak.max(self.current.used.unwrap_or(Vram::ZERO));
        if let Some((gpu, _)) = found.on.iter().max_by_key(|(_, memory)| **memory) {
            self.current.gpu = gpu.clone();
        }
        let idle = !partly_read && !found.busy.is_empty() && found.busy.iter().all(|busy| *busy == Some(false));
        let was_idle = self.current.idle_since.is_some();
        self.current.idle_since = match self.current.idle_since {
            _ if found.busy.contains(&Some(true)) => None,
            // A reading that failed does not make the container busy.
            Some(since) if partly_read || !found.busy.is_empty() => Some(since),
            None if idle => Some(at),
            _ => None,
        };
        let became_idle = !was_idle && self.current.idle_since.is_some();
        self.current.cycles = match self.current.cycles {
            None => found.busy.contains(&Some(true)).then_some(0),
            Some(cycles) if became_idle => Some(cycles.saturating_add(1)),
            Some(cycles) => Some(cycles),
        };
        self.on = found.on;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::observation::{GpuLook, GpuMemory, Process};
    use crate::capacity::verdict::Unreadable;

    fn mib(mib: u64) -> Vram {
        Vram::from_mib(mib)
    }

    fn key() -> ContainerKey {
        ("a".into(), "main".into())
    }

    fn process(memory: Option<u64>, busy: Option<bool>) -> Process {
        let owner = Owner::Container { pod: "a".into(), container: "main".into() };
        Process { owner, memory: memory.map(mib), busy }
    }

    fn gpu(index: u32, processes: Result<Vec<Process>, Unreadable>) -> GpuLook {
        let memory = Ok(GpuMemory { total: mib(24_576), reserved: Some(mib(450)), used: mib(0) });
        let processes = processes.into();
        GpuLook { uuid: format!("GPU-{index}").into(), index: index.into(), mig: false, mps: false, memory, processes }
    }

    fn observe(containers: &mut Containers, at: i64, gpus: Vec<GpuLook>) -> Use {
        containers.observe(&Look { at: Moment(at), gpus });
        containers.iter().find(|(seen, _)| **seen == key()).map(|(_, seen)| seen.clone()).expect("it was seen")
    }

    #[test]
    fn a_container_uses_the_sum_of_its_processes_on_all_gpus_and_is_on_the_fullest() {
        let mut containers = Containers::default();
        let two = vec![process(Some(100), None), process(Some(200), None)];
        let seen = observe(&mut containers, 0, vec![gpu(0, Ok(two)), gpu(1, Ok(vec![process(Some(400), None)]))]);
        assert_eq!((seen.used, seen.gpu.as_str()), (Some(mib(700)), "GPU-1"));
    }

    #[test]
    fn a_peak_stays_and_the_present_use_follows() {
        let mut containers = Containers::default();
        observe(&mut containers, 0, vec![gpu(0, Ok(vec![process(Some(900), None)]))]);
        let seen = observe(&mut containers, 1, vec![gpu(0, Ok(vec![process(Some(300), None)]))]);
        assert_eq!((seen.used, seen.peak), (Some(mib(300)), mib(900)));
        let seen = observe(&mut containers, 2, vec![gpu(0, Ok(vec![]))]);
        assert_eq!((seen.used, seen.peak, seen.first), (Some(mib(0)), mib(900), Moment(0)));
        containers.retain(|_| false);
        assert_eq!(containers.iter().count(), 0);
    }

    #[test]
    fn a_container_is_idle_from_the_first_look_in_which_none_of_its_processes_computes() {
        let mut containers = Containers::default();
        let busy =
            |states: &[bool]| vec![gpu(0, Ok(states.iter().map(|busy| process(Some(1), Some(*busy))).collect()))];
        assert_eq!(observe(&mut containers, 0, busy(&[true, false])).idle_since, None);
        assert_eq!(observe(&mut containers, 1, busy(&[false, false])).idle_since, Some(Moment(1)));
        assert_eq!(observe(&mut containers, 9, busy(&[false, false])).idle_since, Some(Moment(1)));
        assert_eq!(observe(&mut containers, 10, busy(&[true, false])).idle_since, None);
    }

    #[test]
    fn a_driver_that_does_not_tell_makes_nobody_idle() {
        let mut containers = Containers::default();
        for busy in [None, Some(false)] {
            let look = vec![gpu(0, Ok(vec![process(Some(1), busy), process(Some(1), None)]))];
            assert_eq!(observe(&mut containers, 0, look).idle_since, None);
        }
    }

    #[test]
    fn an_unreadable_gpu_keeps_the_last_use_of_its_containers() {
        let mut containers = Containers::default();
        let idle = vec![gpu(0, Ok(vec![process(Some(900), Some(false))]))];
        let before = observe(&mut containers, 0, idle);
        let after = observe(&mut containers, 5, vec![gpu(0, Err(Unreadable::Lost))]);
        assert_eq!(after, before);
    }

    #[test]
    fn a_source_that_does_not_tell_processes_leaves_the_peak_and_makes_the_use_unknown() {
        let mut containers = Containers::default();
        let idle = vec![gpu(0, Ok(vec![process(Some(900), Some(true))])), gpu(1, Ok(vec![]))];
        observe(&mut containers, 0, idle);
        observe(&mut containers, 1, vec![gpu(0, Ok(vec![process(Some(900), Some(false))]))]);
        let before = observe(&mut containers, 2, vec![gpu(0, Ok(vec![process(Some(800), Some(false))]))]);
        assert_eq!((before.used, before.idle_since), (Some(mib(800)), Some(Moment(1))));
        let not_told = |index| vec![GpuLook { processes: Listing::NotTold, ..gpu(index, Ok(vec![])) }];
        for (at, listed) in [(5, 0), (6, 0), (7, 1)] {
            let after = observe(&mut containers, at, not_told(listed));
            assert_eq!(after, Use { used: None, idle_since: None, ..before.clone() });
        }
    }

    #[test]
    fn memory_that_the_driver_does_not_tell_is_unknown_and_not_zero() {
        let mut containers = Containers::default();
        let look = vec![gpu(0, Ok(vec![process(Some(100), None), process(None, None)]))];
        assert_eq!(observe(&mut containers, 0, look).used, None);
    }

    #[test]
    fn an_earlier_run_is_continued() {
        let mut containers = Containers::default();
        let earlier = Use {
            used: Some(mib(5)),
            peak: mib(900),
            idle_since: Some(Moment(3)),
            first: Moment(1),
            cycles: Some(2),
            gpu: "GPU-0".into(),
        };
        containers.restore(key(), earlier.clone());
        let seen = observe(&mut containers, 10, vec![gpu(0, Ok(vec![process(Some(300), Some(false))]))]);
        assert_eq!((seen.peak, seen.idle_since, seen.first), (mib(900), Some(Moment(3)), Moment(1)));
        // The first look may come before the ledger was read.
        let mut containers = Containers::default();
        observe(&mut containers, 10, vec![gpu(0, Ok(vec![process(Some(300), Some(true))]))]);
        containers.restore(key(), earlier);
        let seen = observe(&mut containers, 11, vec![gpu(0, Ok(vec![process(Some(300), Some(false))]))]);
        assert_eq!((seen.used, seen.peak, seen.first), (Some(mib(300)), mib(900), Moment(1)), "a peak never falls");
        assert_eq!((seen.idle_since, seen.cycles), (Some(Moment(11)), Some(3)));
    }

    #[test]
    fn a_cycle_ends_when_a_container_that_has_computed_is_idle() {
        let mut containers = Containers::default();
        let cycles = |containers: &mut Containers, at: i64, busy: Option<bool>| {
            observe(containers, at, vec![gpu(0, Ok(vec![process(Some(1), busy)]))]).cycles
        };
        let seen = [None, Some(false), Some(true), Some(true), Some(false), Some(false), Some(true), None, Some(false)];
        let counted: Vec<Option<u64>> = (0..).zip(seen).map(|(at, busy)| cycles(&mut containers, at, busy)).collect();
        let expected = [None, None, Some(0), Some(0), Some(1), Some(1), Some(1), Some(1), Some(2)];
        assert_eq!(counted, expected, "loading a model is no load cycle");
    }
}
