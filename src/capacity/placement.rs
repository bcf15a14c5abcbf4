//! Which node a pod may land on, by what the two objects say: nodeName, nodeSelector, required node affinity, taints and
//! tolerations, unschedulable. Not CPU and memory: that is kube-scheduler's work, and an answer that says "room" where
//! the scheduler finds no CPU only makes a pod wait that would have been refused.

use std::collections::BTreeMap;

use super::name::Name;
use super::sharing::Labels;
use super::vram::Vram;
use crate::keys;

/// What a pod demands of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// `spec.nodeName`, if the pod comes with one.
    pub node_name: Option<String>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity: any one term suffices. `None` where there is none; an empty list matches nothing.
    pub required: Option<Vec<Term>>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// `spec.priority`, 0 where unset.
    pub priority: i32,
    /// Whether it may preempt pods of lower priority.
    pub preemption: Preemption,
}

/// `spec.preemptionPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// Pods of lower priority make room.
    #[default]
    LowerPriority,
    /// It waits.
    Never,
}

/// One term of a required node affinity: all of it must hold. A term without any requirement matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// On labels.
    pub labels: Vec<Requirement>,
    /// On fields; the API knows `metadata.name` only.
    pub fields: Vec<Requirement>,
}

/// One requirement of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// Label or field.
    pub key: String,
    /// How its value is compared.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
}

/// `operator` of a node selector requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// Present and one of the values.
    In,
    /// Absent or none of the values.
    NotIn,
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present, a number above the one value.
    Gt,
    /// Present, a number below the one value.
    Lt,
    /// One this version does not know: matches nothing.
    Unrecognised,
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Taint key; `None` tolerates every key (with `Exists`).
    pub key: Option<String>,
    /// Value it must equal; `None` with operator `Exists`.
    pub value: Option<String>,
    /// Effect; `None` tolerates every effect.
    pub effect: Option<String>,
}

/// What a node says about who may land on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Labels.
    pub labels: Labels,
    /// Taints that keep pods away (`NoSchedule`, `NoExecute`); `spec.unschedulable` shows as the taint it stands for.
    pub taints: Vec<Taint>,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, empty where unset.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Taint that stands for `spec.unschedulable`.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

impl Placement {
    /// Of a pod of which it is not known where it may land: no node is ruled out.
    pub fn anywhere(priority: i32, preemption: Preemption) -> Placement {
        let tolerations = vec![Toleration { key: None, value: None, effect: None }];
        Placement { tolerations, priority, preemption, ..Placement::default() }
    }

    /// Whether the pod may land on the node of that name.
    pub fn allows(&self, node: &str, site: &Site) -> bool {
        if let Some(name) = &self.node_name {
            return name == node;
        }
        self.node_selector.iter().all(|(key, value)| site.labels.get(key).is_some_and(|label| label == value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(node, site)))
            && site.taints.iter().all(|taint| self.tolerations.iter().any(|toleration| toleration.covers(taint)))
    }

    /// Whether every way to place the pod requires `key` to be none of `values`.
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

    /// Whether no way to place the pod leads to a node on which, by its label, one pod can never get so much.
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

    fn requires_everywhere(&self, is_it: impl Fn(&Requirement) -> bool) -> bool {
        self.required.as_ref().is_some_and(|terms| {
            terms.iter().filter(|term| !term.is_empty()).all(|term| term.labels.iter().any(&is_it))
        })
    }
}

/// What the label has to be above on a node for a pod with that demand, in MiB.
fn below(demand: Vram) -> i64 {
    i64::try_from(demand.mib()).map_or(i64::MAX, |mib| mib - 1)
}

impl Term {
    /// Without any requirement: it matches no node.
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    fn holds(&self, node: &str, site: &Site) -> bool {
        let field = |key: &str| (key == "metadata.name").then_some(node);
        let label = |key: &str| site.labels.get(key).map(Name::as_str);
        !self.is_empty()
            && self.labels.iter().all(|requirement| requirement.is_ours() || requirement.holds(label(&requirement.key)))
            && self.fields.iter().all(|requirement| requirement.holds(field(&requirement.key)))
    }
}

impl Requirement {
    /// What one pod can get on a node is known better than from the label that was made of it; and a node where that is too
    /// little is to be named with the figure, not passed over.
    fn is_ours(&self) -> bool {
        self.key == keys::POD_MAX_MIB
    }

    /// What `Gt` and `Lt` compare with.
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

pub use affinity::{Affinity, NewTerm, NodeNeeds};

#[cfg(test)]
mod tests;
