//! Placement: which nodes a pod may be placed on, decided from the pod and the node alone.
//!
//! Owns nodeName, nodeSelector, required node affinity, taints and tolerations, and unschedulable. CPU and memory are
//! kube-scheduler's. If kube-scheduler finds no CPU on a node that has room here, a pod waits that would otherwise be
//! refused, and nothing worse happens.

use std::collections::BTreeMap;

use crate::capacity::list::Labels;
use crate::capacity::name::Name;
use crate::capacity::vram::Vram;
use crate::keys;

/// A pod's constraints on its node, and its priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// `spec.nodeName`, if the pod is created with one.
    pub node_name: Option<String>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Terms of the required node affinity, of which one must match; `None` if there is no such affinity.
    ///
    /// An empty list matches no node.
    pub required: Option<Vec<Term>>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// `spec.priority`, 0 if unset.
    pub priority: i32,
    /// Whether the pod may preempt pods of lower priority.
    pub preemption: Preemption,
    /// The pool that the pod asked for itself, if it was rerouted.
    pub own_pool: Option<OwnPool>,
}

/// `spec.preemptionPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// The pod may preempt pods of lower priority.
    #[default]
    LowerPriority,
    /// The pod waits and preempts none.
    Never,
}

/// One term of a required node affinity: all its requirements must hold.
///
/// A term without requirements matches no node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// Requirements on labels.
    pub labels: Vec<Requirement>,
    /// Requirements on fields; the API supports `metadata.name` only.
    pub fields: Vec<Requirement>,
}

/// One requirement of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// Key of the label, or path of the field.
    pub key: String,
    /// How the value is compared.
    pub operator: Operator,
    /// Values that it is compared with.
    pub values: Vec<String>,
}

/// `operator` of a node selector requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// The value is present and listed.
    In,
    /// The value is absent or not listed.
    NotIn,
    /// The value is present.
    Exists,
    /// The value is absent.
    DoesNotExist,
    /// The value is a number above the one listed.
    Gt,
    /// The value is a number below the one listed.
    Lt,
    /// An operator that this version does not know. It matches nothing.
    Unrecognised,
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Key of the taint; `None` tolerates every key (with `Exists`).
    pub key: Option<String>,
    /// Value that the taint must have; `None` with operator `Exists`.
    pub value: Option<String>,
    /// Effect of the taint; `None` tolerates every effect.
    pub effect: Option<String>,
}

/// Labels and taints of a node, which decide which pods may be placed on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeProfile {
    /// Labels.
    pub labels: Labels,
    /// Taints that keep pods off (`NoSchedule`, `NoExecute`); `spec.unschedulable` is included as its taint.
    pub taints: Vec<Taint>,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, empty if unset.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Why a pod may not be placed on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptOff<'p> {
    /// `spec.nodeName` names another node, this one.
    NodeName(&'p str),
    /// The node lacks a label of the nodeSelector.
    Selector {
        /// Key of the label.
        key: &'p str,
        /// Value that is required.
        value: &'p str,
    },
    /// No term of the required node affinity matches.
    Affinity,
    /// The pod does not tolerate this taint.
    Taint(&'p Taint),
}

/// Key of the taint that represents `spec.unschedulable`.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Most comparisons of texts for one answer, unless [`MIN_NODES_COMPARED`] nodes need more.
const COMPARISONS: usize = 1_000_000;

/// Nodes that are compared with a pod in any case.
const MIN_NODES_COMPARED: usize = 128;

impl Placement {
    /// The placement of a pod whose constraints are not known: no node is ruled out.
    pub fn anywhere(priority: i32, preemption: Preemption) -> Placement {
        let tolerations = vec![Toleration { key: None, value: None, effect: None }];
        Placement { tolerations, priority, preemption, ..Placement::default() }
    }

    /// Whether the pod may be placed on this node.
    ///
    /// A pod with `spec.nodeName` may be placed on that node, whatever its selectors and tolerations.
    pub fn allows(&self, node: &str, profile: &NodeProfile) -> bool {
        self.kept_off(node, profile).is_none()
    }

    /// Why the pod may not be placed on this node; `None` if it may.
    pub fn kept_off<'p>(&'p self, node: &str, profile: &'p NodeProfile) -> Option<KeptOff<'p>> {
        if let Some(name) = &self.node_name {
            return (name != node).then_some(KeptOff::NodeName(name));
        }
        let differs = |(key, value): &(&String, &String)| {
            profile.labels.get(key.as_str()).is_none_or(|label| label != value.as_str())
        };
        if let Some((key, value)) = self.node_selector.iter().find(differs) {
            return Some(KeptOff::Selector { key, value });
        }
        if !self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(node, profile))) {
            return Some(KeptOff::Affinity);
        }
        let covered = |taint: &&Taint| self.tolerations.iter().any(|toleration| toleration.covers(taint));
        profile.taints.iter().find(|taint| !covered(taint)).map(KeptOff::Taint)
    }

    /// How many nodes are compared with the pod for one answer.
    ///
    /// For pods as people write them, that is all nodes of any cluster. A tenant can write thousands of values, and the
    /// snapshot of the cluster is locked while each node is compared with them.
    pub fn max_nodes_compared(&self) -> usize {
        let requirements = self.required.iter().flatten().flat_map(|term| term.labels.iter().chain(&term.fields));
        let required: usize = requirements.map(|requirement| 1 + requirement.values.len()).sum();
        (COMPARISONS / (1 + self.node_selector.len() + self.tolerations.len() + required)).max(MIN_NODES_COMPARED)
    }

    /// Whether the pod can only be placed on nodes where `key` has none of `values`.
    pub fn excludes_everywhere(&self, key: &str, values: &[&str]) -> bool {
        let excluded = |requirement: &Requirement| {
            requirement.key == key
                && match requirement.operator {
                    Operator::NotIn => values.iter().all(|value| requirement.values.iter().any(|v| v == value)),
                    Operator::In => !requirement.values.iter().any(|v| values.contains(&v.as_str())),
                    Operator::DoesNotExist => true,
                    Operator::Exists | Operator::Gt | Operator::Lt | Operator::Unrecognised => false,
                }
        };
        let selected = self.node_selector.get(key).is_some_and(|value| !values.contains(&value.as_str()));
        selected || self.requires_everywhere(excluded)
    }

    /// Whether the required affinity excludes every node whose label `pod-max-mib` is below `demand`.
    pub fn fits_pod_max(&self, demand: Vram) -> bool {
        self.requires_everywhere(|requirement| {
            requirement.is_ours()
                && match requirement.operator {
                    Operator::DoesNotExist => true,
                    Operator::Gt => requirement.bound().is_some_and(|bound| bound >= below(demand)),
                    Operator::In | Operator::NotIn | Operator::Exists | Operator::Lt | Operator::Unrecognised => false,
                }
        })
    }

    /// Whether each term that can match a node has a requirement on labels for which `is_it` holds.
    fn requires_everywhere(&self, is_it: impl Fn(&Requirement) -> bool) -> bool {
        self.required.as_ref().is_some_and(|terms| {
            terms.iter().filter(|term| !term.is_empty()).all(|term| term.labels.iter().any(&is_it))
        })
    }
}

/// The bound that the label of a node must exceed for a pod with that demand, in MiB.
fn below(demand: Vram) -> i64 {
    i64::try_from(demand.mib()).map_or(i64::MAX, |mib| mib - 1)
}

impl Term {
    /// Whether the term has no requirement, and therefore matches no node.
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether all requirements hold on the node. Requirements on our own label count as met.
    fn holds(&self, node: &str, profile: &NodeProfile) -> bool {
        let field = |key: &str| (key == "metadata.name").then_some(node);
        let label = |key: &str| profile.labels.get(key).map(Name::as_str);
        !self.is_empty()
            && self.labels.iter().all(|requirement| requirement.is_ours() || requirement.holds(label(&requirement.key)))
            && self.fields.iter().all(|requirement| requirement.holds(field(&requirement.key)))
    }
}

impl Requirement {
    /// Whether the requirement is on our own label, `pod-max-mib`.
    ///
    /// The label is derived from what one pod can get on the node, and that is known here without it. A node with too
    /// little must be named in the message with its amount, not left out.
    fn is_ours(&self) -> bool {
        self.key == keys::POD_MAX_MIB
    }

    /// The number that `Gt` and `Lt` compare with.
    fn bound(&self) -> Option<i64> {
        self.values.first()?.parse().ok()
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let compare = |holds: fn(i64, i64) -> bool| {
            let value = value.and_then(|v| v.parse::<i64>().ok());
            value.zip(self.bound()).is_some_and(|(value, bound)| holds(value, bound))
        };
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compare(|value, bound| value > bound),
            Operator::Lt => compare(|value, bound| value < bound),
            Operator::Unrecognised => false,
        }
    }
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        self.effect.as_ref().is_none_or(|effect| *effect == taint.effect)
            && self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

mod affinity;
mod reroute;

pub use affinity::{Affinity, NewTerm, NodeNeeds};
pub use reroute::{
    FallbackPool, MAX_ALTERNATIVES, MAX_REQUIREMENTS, MAX_VALUES, OwnPool, Preference, Reroute, TooManyAlternatives,
};

#[cfg(test)]
mod tests;
