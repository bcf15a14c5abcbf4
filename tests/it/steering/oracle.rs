//! Owns the sum of the storm: what the containers that PodResources lists demand of each GPU.
//!
//! It uses nothing of the product.

use std::collections::{BTreeMap, BTreeSet};

use super::seen::{Devices, gpu_of};
use super::wanted::Wanted;

/// The sums of all samples of PodResources.
#[derive(Debug)]
pub(super) struct Oracle {
    /// What pods can be given of one GPU, in MiB.
    allocatable: u64,
    /// Demand by pod and container, in MiB.
    demands: BTreeMap<(String, String), u64>,
    /// The largest sum on one GPU that did not exceed it.
    pub fullest: u64,
    pub samples: usize,
    /// Each different set of holders that exceeded a GPU, since the last verdict.
    exceeded: BTreeSet<Holders>,
}

/// A GPU, and each pod that holds memory there with its MiB.
pub(super) type Holders = (String, BTreeMap<String, u64>);

impl Oracle {
    pub(super) fn new(allocatable: u64) -> Oracle {
        Oracle { allocatable, demands: BTreeMap::new(), fullest: 0, samples: 0, exceeded: BTreeSet::new() }
    }

    /// Learns the demands of pods before they are created.
    pub(super) fn expect(&mut self, pods: &[Wanted]) {
        for pod in pods {
            let demands = pod.containers.iter();
            let demands =
                demands.filter_map(|container| Some(((pod.name.clone(), container.name.clone()), container.mib?)));
            self.demands.extend(demands);
        }
    }

    /// Adds up what one answer of PodResources lists.
    ///
    /// # Panics
    /// If it lists a container without a demand.
    pub(super) fn sample(&mut self, listed: &Devices) {
        let mut gpus: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
        for (container, ids) in listed {
            let demand = self.demands.get(container);
            let demand =
                *demand.unwrap_or_else(|| panic!("PodResources lists {container:?}, which no pod of the test has"));
            // A container that is on several GPUs may hold all its memory on each.
            for gpu in ids.iter().map(|id| gpu_of(id)).collect::<BTreeSet<_>>() {
                *gpus.entry(gpu).or_default().entry(container.0.clone()).or_default() += demand;
            }
        }
        self.samples += 1;
        for (gpu, holders) in gpus {
            let sum = holders.values().sum();
            if sum > self.allocatable {
                self.exceeded.insert((gpu.to_owned(), holders));
            } else {
                self.fullest = self.fullest.max(sum);
            }
        }
    }

    /// Takes the holders that exceeded a GPU since the last call. The first list holds those that exceed it even without the
    /// excused pods, the second those that exceed it only with them.
    pub(super) fn verdict(&mut self, excused: &BTreeSet<String>) -> (Vec<Holders>, Vec<Holders>) {
        let exceeded = std::mem::take(&mut self.exceeded).into_iter();
        exceeded.partition(|(_, holders)| {
            let others = holders.iter().filter(|(pod, _)| !excused.contains(*pod));
            others.map(|(_, mib)| mib).sum::<u64>() > self.allocatable
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An oracle for GPUs of 100 MiB, and three pods. `c` has a sidecar.
    fn oracle() -> Oracle {
        let mut oracle = Oracle::new(100);
        let pods = [("a", 60), ("b", 40)].map(|(name, mib)| Wanted::pod(name, "A").demanding(|| mib));
        oracle.expect(&pods);
        oracle.expect(&[Wanted::pod("c", "A").with_init("proxy", true).demanding(|| 30)]);
        oracle
    }

    fn listed(devices: &[(&str, &str, &str)]) -> Devices {
        let one = |(pod, container, id): &(&str, &str, &str)| {
            (((*pod).to_owned(), (*container).to_owned()), BTreeSet::from([(*id).to_owned()]))
        };
        devices.iter().map(one).collect()
    }

    #[test]
    fn a_gpu_that_is_full_to_the_last_mib_is_not_exceeded() {
        let mut oracle = oracle();
        oracle.sample(&listed(&[
            ("a", "main", "A::0"),
            ("b", "main", "A::1"),
            ("c", "main", "B::0"),
            ("c", "proxy", "B::1"),
        ]));
        assert_eq!((oracle.fullest, oracle.verdict(&BTreeSet::new())), (100, (vec![], vec![])));
    }

    #[test]
    fn containers_on_the_wrong_gpu_exceed_it_and_excused_pods_count_apart() {
        let mut oracle = oracle();
        let devices = listed(&[("a", "main", "A::0"), ("c", "main", "A::1"), ("c", "proxy", "A::2")]);
        let held = ("A".to_owned(), BTreeMap::from([("a".to_owned(), 60), ("c".to_owned(), 60)]));
        oracle.sample(&devices);
        oracle.sample(&devices);
        assert_eq!(oracle.verdict(&BTreeSet::from(["b".to_owned()])), (vec![held.clone()], vec![]));
        assert_eq!(oracle.verdict(&BTreeSet::new()), (vec![], vec![]), "it was told");
        oracle.sample(&devices);
        assert_eq!(oracle.verdict(&BTreeSet::from(["c".to_owned()])), (vec![], vec![held]));
        assert_eq!(oracle.fullest, 0, "each sample exceeded the GPU");
    }
}
