//! How large the GPUs are that a pod may land on, and what enforces their limits. Owns the nodes by what they have in
//! common, so that a review looks at each kind of node and not at each node.

use std::collections::{BTreeMap, BTreeSet};

use super::Cluster;
use crate::capacity::gpu::{Gpu, Pool, Resource, Sharing};
use crate::capacity::pod::placement::Placement;
use crate::capacity::vram::Vram;

/// What pools of one kind have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    /// The smallest and the largest total that CUDA reports, in MiB; `None` if the GPUs are not known.
    totals: Option<(Vram, Vram)>,
    limits: Limits,
}

/// What refuses memory beyond a limit on a node, whatever the program is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limits {
    /// Nothing.
    #[default]
    None,
    /// MPS, for each process that is its client.
    Mps,
    /// The driver, for each container.
    Hard,
}

/// The GPUs that a pod may land on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landing {
    /// The smallest and the largest total that CUDA reports, in MiB. `None` if some of the GPUs are not known, or if it
    /// may land on no node.
    pub totals: Option<(Vram, Vram)>,
    /// What enforces limits on all of these nodes.
    pub limits: Limits,
}

/// The nodes by resource and kind.
#[derive(Debug, Default)]
pub(super) struct Kinds(BTreeMap<Resource, BTreeMap<Kind, BTreeSet<String>>>);

impl Kinds {
    pub(super) fn add(&mut self, pool: &Pool, node: &str) {
        let kinds = self.0.entry(pool.resource.clone()).or_default();
        kinds.entry(Kind::of(pool)).or_default().insert(node.to_owned());
    }

    pub(super) fn remove(&mut self, pool: &Pool, node: &str) {
        let Some(kinds) = self.0.get_mut(&pool.resource) else { return };
        let kind = Kind::of(pool);
        if let Some(nodes) = kinds.get_mut(&kind) {
            nodes.remove(node);
            if nodes.is_empty() {
                kinds.remove(&kind);
            }
        }
        if kinds.is_empty() {
            self.0.remove(&pool.resource);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Kind {
    fn of(pool: &Pool) -> Kind {
        let limits = match pool.sharing {
            Sharing::Mps => Limits::Mps,
            _ if pool.hard_limits => Limits::Hard,
            Sharing::Exclusive | Sharing::TimeSlicing | Sharing::UnknownMethod | Sharing::Unstated => Limits::None,
        };
        let totals = pool.contents.as_ref().ok().and_then(|contents| {
            let totals = contents.gpus.iter().map(Gpu::reported_total);
            Some((totals.clone().min()?, totals.max()?))
        });
        Kind { totals, limits }
    }
}

impl Cluster {
    /// Whether any node enforces limits of the GPUs behind a resource.
    pub fn enforces_limits(&self, resource: &Resource) -> bool {
        self.kinds.0.get(resource).is_some_and(|kinds| kinds.keys().any(|kind| kind.limits != Limits::None))
    }

    /// The GPUs behind a resource that a pod may land on.
    ///
    /// At most [`Placement::max_nodes_compared`] nodes are compared with the pod, and it may land on each further one:
    /// that makes the answer no less careful.
    pub fn landing(&self, resource: &Resource, placement: &Placement) -> Landing {
        let mut left = placement.max_nodes_compared();
        let mut may_land = |nodes: &BTreeSet<String>| {
            nodes.iter().any(|node| {
                let is_compared = left > 0;
                left = left.saturating_sub(1);
                !is_compared || self.allows(placement, node)
            })
        };
        let kinds = self.kinds.0.get(resource).into_iter().flatten();
        let mut kinds = kinds.filter(|(_, nodes)| may_land(nodes)).map(|(kind, _)| kind);
        let Some(first) = kinds.next() else { return Landing::default() };
        kinds.fold(Landing { totals: first.totals, limits: first.limits }, |landing, kind| Landing {
            totals: landing.totals.zip(kind.totals).map(|(one, other)| (one.0.min(other.0), one.1.max(other.1))),
            limits: if landing.limits == kind.limits { kind.limits } else { Limits::None },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::cluster::NodeFacts;
    use crate::capacity::gpu::Unknown;
    use crate::capacity::testing::{facts, gpu, mib, pool, rules};

    fn labelled(name: &str, pool: Pool) -> NodeFacts {
        let mut facts = facts(vec![pool]);
        facts.profile.labels = [("name".into(), name.into())].into_iter().collect();
        facts
    }

    fn on(names: &[&str]) -> Placement {
        match names {
            [] => Placement::default(),
            [name] => Placement {
                node_selector: [("name".into(), (*name).into())].into_iter().collect(),
                ..Placement::default()
            },
            _ => unreachable!("a selector names one node"),
        }
    }

    fn cluster(nodes: &[(&str, Pool)]) -> Cluster {
        let mut cluster = Cluster::new(rules(), BTreeSet::new());
        for (name, pool) in nodes {
            cluster.apply_node(name, labelled(name, pool.clone()));
        }
        cluster
    }

    fn totals(cluster: &Cluster, names: &[&str]) -> Option<(u64, u64)> {
        cluster.landing(&gpu(), &on(names)).totals.map(|(smallest, largest)| (smallest.mib(), largest.mib()))
    }

    #[test]
    fn only_the_gpus_count_that_the_pod_may_land_on() {
        let mut cluster = cluster(&[("a", pool(&[24_000], 4)), ("b", pool(&[80_000, 40_000], 4))]);
        assert_eq!(totals(&cluster, &[]), Some((24_000, 80_000)));
        assert_eq!(totals(&cluster, &["a"]), Some((24_000, 24_000)));
        assert_eq!(totals(&cluster, &["b"]), Some((40_000, 80_000)));
        assert_eq!(totals(&cluster, &["c"]), None);
        cluster.apply_node("b", labelled("b", pool(&[24_000], 4)));
        assert_eq!(totals(&cluster, &[]), Some((24_000, 24_000)), "a node that changes leaves nothing behind");
        cluster.delete_node("a");
        cluster.delete_node("b");
        assert_eq!(totals(&cluster, &[]), None);
        assert!(cluster.kinds.0.is_empty());
    }

    #[test]
    fn a_gpu_that_is_not_known_makes_the_totals_unknown_where_the_pod_may_land_on_it() {
        let why = Unknown::Unlabelled { label: "nvidia.com/gpu.memory", capacity: 4 };
        let unknown = Pool { contents: Err(why), ..pool(&[1], 4) };
        let cluster = cluster(&[("a", pool(&[24_000], 4)), ("b", unknown)]);
        assert_eq!((totals(&cluster, &[]), totals(&cluster, &["a"])), (None, Some((24_000, 24_000))));
    }

    #[test]
    fn the_total_is_what_cuda_reports() {
        let mut reserved = pool(&[81_559], 4);
        reserved.contents.as_mut().unwrap().gpus[0].driver_reserved = Some(mib(480));
        assert_eq!(totals(&cluster(&[("a", reserved)]), &[]), Some((81_079, 81_079)));
    }

    #[test]
    fn limits_hold_only_where_every_node_that_the_pod_may_land_on_enforces_them() {
        let hard = || Pool { hard_limits: true, ..pool(&[24_000], 4) };
        let mps = || Pool { sharing: Sharing::Mps, ..pool(&[24_000], 4) };
        let limits = |cluster: &Cluster, names: &[&str]| cluster.landing(&gpu(), &on(names)).limits;
        let mixed = cluster(&[("a", hard()), ("b", pool(&[24_000], 4)), ("c", mps())]);
        assert!(mixed.enforces_limits(&gpu()));
        assert_eq!(limits(&mixed, &[]), Limits::None);
        assert_eq!(limits(&mixed, &["a"]), Limits::Hard);
        assert_eq!(limits(&mixed, &["b"]), Limits::None);
        assert_eq!(limits(&mixed, &["c"]), Limits::Mps);
        assert_eq!(limits(&cluster(&[("a", hard()), ("c", mps())]), &[]), Limits::None);
        assert_eq!(limits(&cluster(&[("a", hard()), ("b", hard())]), &[]), Limits::Hard);
        assert!(!cluster(&[("b", pool(&[24_000], 4))]).enforces_limits(&gpu()));
    }
}
