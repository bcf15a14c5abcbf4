//! What a cluster promises of its GPU memory, what is wrong with it, and what mode Enforce would change. Owns which
//! findings there are; their sentences are [`crate::capacity::verdict::finding`]'s.
//!
//! An audit decides nothing by itself: it asks [`admission`](crate::capacity::admission), the
//! [`cluster`](crate::capacity::cluster) and the [`ledger`](crate::capacity::node::ledger) of each node, as the webhook
//! and the binding guard do. So a report and a refusal never disagree.

use std::collections::BTreeMap;

use self::findings::Findings;
use self::outcome::{Audit, Totals};
use self::scene::Scene;
use crate::capacity::cluster::Cluster;
use crate::capacity::name::Name;
use crate::capacity::policy::{Mode, Policies, Policy};
use crate::capacity::vram::Vram;

pub mod amounts;
mod assume;
mod devices;
mod enforced;
mod findings;
mod namespaces;
mod nodes;
pub mod outcome;
mod pods;
pub mod scene;
mod used;
mod workloads;

pub use assume::Assumption;

/// Audits a cluster as it is. Manifests without any node are judged by policy alone: their GPUs count as shared, and
/// nothing is said about room.
pub fn run(scene: &Scene) -> Audit {
    let view = View { scene, cluster: &scene.cluster, policies: &scene.policies, mode: None };
    if scene.has_nodes() {
        return view.audit();
    }
    let requested = scene.subjects.iter().flat_map(|subject| &subject.pod.containers);
    let requested = requested.flat_map(|container| container.gpus.iter().map(|(resource, _)| resource.clone()));
    let cluster = Cluster::new(*scene.policies.rules(), requested.collect());
    View { cluster: &cluster, ..view }.audit()
}

/// Audits a cluster as it would be under these assumptions.
pub fn run_assuming(scene: &Scene, assumptions: &[Assumption]) -> Audit {
    let cluster = assume::cluster(scene, assumptions);
    let mode = assumptions.iter().rev().find_map(|assumption| match assumption {
        Assumption::Mode(mode) => Some(*mode),
        Assumption::Replicas(_) | Assumption::Steered => None,
    });
    View { scene, cluster: &cluster, policies: &scene.policies, mode }.audit()
}

/// What one audit looks at: a scene, with the cluster as it is or as it is assumed.
#[derive(Clone, Copy)]
struct View<'a> {
    scene: &'a Scene,
    cluster: &'a Cluster,
    policies: &'a Policies,
    /// The mode that is assumed for every namespace that is not exempt.
    mode: Option<Mode>,
}

impl View<'_> {
    fn audit(&self) -> Audit {
        let mut findings = Findings::default();
        let policies = self.modes();
        let reassessments = pods::reassessments(self, &policies, &mut findings);
        let smallest = reassessments.smallest_waiting(self.scene);
        let (mut gpus, mut nodes) = nodes::look(self, smallest, &mut findings);
        devices::look(self, &mut gpus, &mut nodes, &mut findings);
        reassessments.fill_in(self.scene, &mut gpus, &mut nodes);
        used::look(self, &mut findings);
        let enforced = enforced::look(self, &reassessments);
        let namespaces = namespaces::look(self, &policies, &enforced, &mut findings);
        let workloads = workloads::look(self, &reassessments, &mut findings);
        let waiting = namespaces.iter().map(|namespace| namespace.waiting).sum();
        let totals = Totals::of(&gpus, &nodes, enforced.refused.len(), waiting);
        Audit { gpus, nodes, namespaces, workloads, findings: findings.sorted(), enforced, totals }
    }

    /// The policy in force by namespace, and the same in mode Enforce; `None` if the namespace is exempt.
    fn modes(&self) -> BTreeMap<Name, Option<Modes>> {
        let mut modes = BTreeMap::new();
        for subject in &self.scene.subjects {
            let namespace = &subject.pod.name.namespace;
            if !modes.contains_key(namespace) {
                modes.insert(namespace.clone(), self.policies.of(namespace).map(|policy| self.modes_of(policy)));
            }
        }
        modes
    }

    fn modes_of(&self, policy: &Policy) -> Modes {
        let mode = self.mode.unwrap_or(policy.mode);
        Modes { mode, quota: policy.quota, enforced: Policy { mode: Mode::Enforce, ..policy.clone() } }
    }
}

/// The policy of a namespace.
struct Modes {
    /// The mode in force.
    mode: Mode,
    /// Its quota.
    quota: Option<Vram>,
    /// The same policy in mode Enforce.
    enforced: Policy,
}

#[cfg(test)]
mod tests;
