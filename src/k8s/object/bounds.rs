//! How much of a pod is kept. Owns the bounds and the name of the first part that exceeds one; refusing such a pod is
//! `capacity::admission`'s, counting it on its node the index's.
//!
//! Kubernetes bounds an object by its bytes only (some 3 MiB in a request), and of short entries those become many times as
//! much in memory. All bounds together keep what parsing makes of a pod below some 4 MiB beside its values and texts, which
//! take no more than their JSON.

use super::{Container, NodeSelectorTerm, PodSpec, PodStatus};
use crate::capacity::pod::Excess;

/// Containers, and init containers. Pods of a dozen are rare.
pub const MAX_CONTAINERS: usize = 128;
/// Entries of a container's limits, and of its requests: one for each kind of device.
pub const MAX_RESOURCES: usize = 64;
/// Entries of one environment that set one of the variables that vramguard reads; the last of a name counts.
pub const MAX_ENV: usize = 64;
/// Annotations under our prefix or KAI's: up to five for each container with a GPU.
pub const MAX_ANNOTATIONS: usize = 256;
/// Entries of `nodeSelector`.
pub const MAX_SELECTOR: usize = 128;
/// Terms of the required node affinity.
pub const MAX_TERMS: usize = 128;
/// Requirements of a term on labels, and on fields.
pub const MAX_REQUIREMENTS: usize = 64;
/// Values of all requirements together: the nodes of a large cluster by name, three times.
pub const MAX_VALUES: usize = 16_384;
/// Tolerations.
pub const MAX_TOLERATIONS: usize = 256;
/// Conditions of a pod; Kubernetes writes six.
pub const MAX_CONDITIONS: usize = 64;
/// Bytes of a container's name, of which Kubernetes allows 63. A refusal repeats the names of all containers.
pub const MAX_NAME: usize = 253;

/// Cuts what the lists by themselves do not bound, and says what of the pod is not all here. `annotations` is the count and
/// the bound of its annotations, where they exceed it.
pub(super) fn enforce(annotations: Option<(usize, usize)>, spec: &mut PodSpec, status: &PodStatus) -> Option<Excess> {
    let mut excesses = Excesses::default();
    excesses.note(annotations, false, || "metadata.annotations".to_owned());
    for (list, containers) in [("initContainers", &mut spec.init_containers), ("containers", &mut spec.containers)] {
        excesses.note(containers.excess(), true, || format!("spec.{list}"));
        for (index, container) in containers.kept_mut().iter_mut().enumerate() {
            excesses.of_container(list, index, container);
        }
    }
    excesses.note(spec.node_selector.excess(), false, || "spec.nodeSelector".to_owned());
    excesses.note(spec.tolerations.excess(), false, || "spec.tolerations".to_owned());
    let affinity = spec.affinity.as_mut().and_then(|affinity| affinity.node_affinity.as_mut());
    if let Some(required) = affinity.and_then(|affinity| affinity.required.as_mut()) {
        let terms = &mut required.node_selector_terms;
        excesses.note(terms.excess(), false, || format!("{REQUIRED}.nodeSelectorTerms"));
        excesses.of_terms(terms.kept_mut());
    }
    excesses.note(status.conditions.excess(), false, || "status.conditions".to_owned());
    excesses.first
}

const REQUIRED: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";

/// The first excess, one that may hide a GPU before all others.
#[derive(Default)]
struct Excesses {
    first: Option<Excess>,
}

impl Excesses {
    fn note(&mut self, excess: Option<(usize, usize)>, hides_gpus: bool, field: impl FnOnce() -> String) {
        let Some((count, most)) = excess else { return };
        if self.first.as_ref().is_none_or(|first| hides_gpus && !first.hides_gpus) {
            self.first = Some(Excess { field: field(), count, most, hides_gpus });
        }
    }

    fn of_container(&mut self, list: &str, index: usize, container: &mut Container) {
        let field = |name: &str| format!("spec.{list}[{index}].{name}");
        let name = &mut container.name;
        if name.len() > MAX_NAME {
            self.note(Some((name.len(), MAX_NAME)), false, || field("name"));
            let end = (0..=MAX_NAME).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
            name.truncate(end);
            name.shrink_to_fit();
        }
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref()?.excess());
        let requests = resources.and_then(|resources| resources.requests.as_ref()?.excess());
        self.note(limits, true, || field("resources.limits"));
        self.note(requests, true, || field("resources.requests"));
        self.note(container.env.as_ref().and_then(|env| env.excess()), true, || field("env"));
    }

    fn of_terms(&mut self, terms: &mut [NodeSelectorTerm]) {
        let (mut values, mut left) = (0, MAX_VALUES);
        for (index, term) in terms.iter_mut().enumerate() {
            let lists = [("matchExpressions", &mut term.match_expressions), ("matchFields", &mut term.match_fields)];
            for (name, list) in lists {
                let Some(list) = list else { continue };
                self.note(list.excess(), false, || format!("{REQUIRED}.nodeSelectorTerms[{index}].{name}"));
                for requirement in list.kept_mut() {
                    values += requirement.values.len();
                    if requirement.values.len() > left {
                        requirement.values.truncate(left);
                    }
                    left -= requirement.values.len();
                }
            }
        }
        let excess = (values > MAX_VALUES).then_some((values, MAX_VALUES));
        self.note(excess, false, || format!("{REQUIRED} (values of all its terms)"));
    }
}

#[cfg(test)]
mod tests;
