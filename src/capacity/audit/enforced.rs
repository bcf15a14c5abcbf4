//! What mode Enforce would change for the pods that run today: who would be refused, who would wait, who would be on
//! another node.
//!
//! The pods are bound again to empty nodes, in the order in which they were bound. Each goes to its own node if it fits
//! there, else to the node with the least free that can take it.

use super::View;
use super::outcome::Enforced;
use super::pods::Reassessments;
use super::scene::{Stage, Subject};
use crate::capacity::admission::Reassessment;
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::Resource;
use crate::capacity::name::Name;
use crate::capacity::node::holder::{Amount, Holder};
use crate::capacity::pod::PodName;
use crate::capacity::pod::placement::Placement;
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// A pod that runs today.
struct Running<'a> {
    subject: &'a Subject,
    /// The node that it runs on.
    node: &'a Name,
    /// What the policy says of it; `None` in an exempt namespace.
    reassessment: Option<&'a Reassessment>,
    /// What it holds today.
    holder: &'a Holder,
}

impl Running<'_> {
    fn order(&self) -> (Option<Moment>, &PodName) {
        (self.holder.bound, &self.subject.pod.name)
    }

    /// Its resource and demand, if it is guarded; `None` if it stays as it is.
    fn guarded(&self) -> Option<(&Reassessment, &Resource, Vram)> {
        let reassessment = self.reassessment?;
        Some((reassessment, reassessment.resource.as_ref()?, reassessment.demand?))
    }
}

pub(super) fn look(view: &View<'_>, reassessments: &Reassessments) -> Enforced {
    let mut enforced = Enforced::default();
    let mut bound: Vec<Running<'_>> = Vec::new();
    for (subject, reassessment) in view.scene.subjects.iter().zip(&reassessments.all) {
        let violations =
            reassessment.as_ref().map(|reassessment| reassessment.violations.as_slice()).unwrap_or_default();
        if !violations.is_empty() && subject.stage != Stage::Template {
            enforced.refused.push((subject.pod.name.clone(), violations.to_vec()));
            continue;
        }
        let Stage::Bound(node) = &subject.stage else { continue };
        let holder = view.cluster.node(node).and_then(|seen| seen.ledger.holders().get(&subject.uid));
        // What becomes of a pod whose node was not read, or has no GPU, is not known.
        let has_gpus = view.cluster.node(node).is_some_and(|seen| !seen.facts.pools.is_empty());
        bound.extend(holder.filter(|_| has_gpus).map(|holder| Running {
            subject,
            node,
            reassessment: reassessment.as_ref(),
            holder,
        }));
    }
    bound.sort_by(|one, other| one.order().cmp(&other.order()));
    let mut cluster = empty(view);
    for running in &bound {
        place(running, &mut cluster, &mut enforced);
    }
    enforced
}

/// Binds a pod again.
fn place(running: &Running<'_>, cluster: &mut Cluster, enforced: &mut Enforced) {
    let Running { subject, node, holder, .. } = running;
    let Some((reassessment, resource, demand)) = running.guarded() else {
        return cluster.apply_pod(&subject.uid, node, (*holder).clone());
    };
    let fits_here = cluster.free_on(node, resource).is_some_and(|free| demand <= free);
    let placement = Placement { node_name: None, ..subject.pod.placement.clone() };
    let target = if fits_here {
        Some(node.to_string())
    } else {
        cluster.fitting(resource, demand, &placement).next().map(str::to_owned)
    };
    let (name, node) = (subject.pod.name.clone(), (*node).clone());
    match target {
        Some(target) => {
            cluster.apply_pod(&subject.uid, &target, admitted(holder, subject, reassessment));
            if node != target.as_str() {
                enforced.elsewhere.push((name, node, target));
            }
        }
        None => enforced.waiting.push((name, node)),
    }
}

/// The same nodes without pods.
fn empty(view: &View<'_>) -> Cluster {
    let mut cluster = Cluster::new(*view.cluster.rules(), view.cluster.guarded());
    for name in view.cluster.node_names() {
        if let Some(node) = view.cluster.node(name) {
            cluster.apply_node(name, node.facts.clone());
        }
    }
    cluster
}

/// The holder that the pod would be if the webhook had written its request.
fn admitted(holder: &Holder, subject: &Subject, reassessment: &Reassessment) -> Holder {
    let demand_of = |container: &str| {
        let position = subject.pod.containers.iter().position(|other| other.name == container)?;
        reassessment.demands.get(position).copied().flatten()
    };
    let mut parts = holder.parts.to_vec();
    for part in &mut parts {
        let demand: Option<Vram> = demand_of(&part.container);
        part.amount = demand.map_or(part.amount, Amount::Requested);
        part.gpu = None;
    }
    Holder { request: reassessment.demand, parts: parts.into(), ..holder.clone() }
}
