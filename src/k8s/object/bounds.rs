//! Bounds on how much of a pod is kept. Owns the bounds and the name of the first part that exceeds one.
//! `capacity::admission` refuses such a pod, and the index counts it on its node.
//!
//! Kubernetes limits an object only by its bytes (some 3 MiB in a request), and many short entries take many times that
//! in memory. All bounds together limit the memory of a parsed pod to some 4 MiB, plus its values and texts, which take
//! no more than their JSON.

use super::{Container, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PodStatus, Quantities};
use crate::capacity::pod::Excess;
use crate::keys;

/// Containers, and also init containers. Pods with a dozen are rare.
pub const MAX_CONTAINERS: usize = 128;
/// Entries of a container's limits, and also of its requests. A container needs one for each kind of device.
pub const MAX_RESOURCES: usize = 64;
/// Entries of one environment for variables that vramguard reads. Of several with the same name, the last one counts.
pub const MAX_ENV: usize = 64;
/// Annotations with our prefix or KAI's. A container with a GPU has up to eight, two of which `/mutate` may add.
pub const MAX_ANNOTATIONS: usize = 640;
/// Entries of `nodeSelector`.
pub const MAX_SELECTOR: usize = 128;
/// Terms of the required node affinity that its author may write.
pub const MAX_TERMS: usize = 64;
/// Terms that are read: `/mutate` makes two of each term, after it has made up to [`MAX_TERMS`] of a rerouted pod's.
pub const READ_TERMS: usize = 2 * MAX_TERMS;
/// Requirements of a term on labels, and also on fields, that its author may write.
pub const MAX_REQUIREMENTS: usize = 62;
/// Requirements that are read: `/mutate` adds two on labels, and a rerouted pod has fewer.
pub const READ_REQUIREMENTS: usize = MAX_REQUIREMENTS + 2;
/// Values of all requirements together that their author may write: enough to name the nodes of a large cluster.
pub const MAX_VALUES: usize = 8192;
/// Values that are read: `/mutate` doubles them, and adds three values to each term. A rerouted pod has fewer.
pub const READ_VALUES: usize = 2 * MAX_VALUES + 3 * READ_TERMS;
/// Tolerations of a pod.
pub const MAX_TOLERATIONS: usize = 256;
/// Conditions of a pod; Kubernetes writes six.
pub const MAX_CONDITIONS: usize = 64;
/// Bytes of a container's name, of which Kubernetes allows 63. A refusal repeats the names of all containers.
pub const MAX_NAME: usize = 253;

/// Cuts the parts that the list types do not bound, and returns the first part that exceeds a bound. `annotations` is
/// the number of annotations and their bound, if they exceed it.
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
        excesses.of_terms(terms.count(), terms.kept_mut());
    }
    excesses.note(status.conditions.excess(), false, || "status.conditions".to_owned());
    excesses.first
}

const REQUIRED: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution";

/// The first excess. One that may hide a GPU takes precedence over all others.
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
        // `/mutate` adds one entry.
        let of_others =
            |list: &Quantities| over(list.count() - usize::from(list.contains_key(keys::VRAM_RESOURCE)), MAX_RESOURCES);
        let limits = resources.and_then(|resources| of_others(resources.limits.as_ref()?));
        let requests = resources.and_then(|resources| of_others(resources.requests.as_ref()?));
        self.note(limits, true, || field("resources.limits"));
        self.note(requests, true, || field("resources.requests"));
        self.note(container.env.as_ref().and_then(|env| env.excess()), true, || field("env"));
    }

    /// Counts the terms that their author wrote, so that the terms that `/mutate` added to them still pass `/validate`.
    fn of_terms(&mut self, count: usize, terms: &mut [NodeSelectorTerm]) {
        let mut values = [0, 0]; // of the author's terms, and of the second ones that `/mutate` makes of them
        let (mut seconds, mut all_values, mut left) = (0, 0, READ_VALUES);
        for (index, term) in terms.iter_mut().enumerate() {
            let expressions = term.match_expressions.iter().flatten();
            let second = expressions.clone().any(is_our_bound);
            let added = expressions.filter(|requirement| is_added(requirement)).count();
            seconds += usize::from(second);
            let lists =
                [("matchExpressions", &mut term.match_expressions, added), ("matchFields", &mut term.match_fields, 0)];
            for (name, list, added) in lists {
                let Some(list) = list else { continue };
                // Requirements that were not read are never taken for ours.
                let written = if list.excess().is_some() { list.count() } else { list.count() - added };
                self.note(over(written, MAX_REQUIREMENTS), false, || {
                    format!("{REQUIRED}.nodeSelectorTerms[{index}].{name}")
                });
                for requirement in list.kept_mut() {
                    all_values += requirement.values.len();
                    if !is_added(requirement) {
                        values[usize::from(second)] += requirement.values.len();
                    }
                    if requirement.values.len() > left {
                        requirement.values.truncate(left);
                    }
                    left -= requirement.values.len();
                }
            }
        }
        let terms = if count > READ_TERMS { count } else { seconds.max(count - seconds) };
        self.note(over(terms, MAX_TERMS), false, || format!("{REQUIRED}.nodeSelectorTerms"));
        let values = if all_values > READ_VALUES { all_values } else { values[0].max(values[1]) };
        self.note(over(values, MAX_VALUES), false, || format!("{REQUIRED} (values of all its terms)"));
    }
}

fn over(count: usize, most: usize) -> Option<(usize, usize)> {
    (count > most).then_some((count, most))
}

/// Whether a requirement is our lower bound, which `/mutate` adds to the second of the terms made of one.
fn is_our_bound(requirement: &NodeSelectorRequirement) -> bool {
    requirement.key == keys::POD_MAX_MIB && requirement.operator == "Gt"
}

/// Whether a requirement is of a kind that `/mutate` adds.
fn is_added(requirement: &NodeSelectorRequirement) -> bool {
    requirement.key == keys::POD_MAX_MIB || requirement.key == keys::GFD_SHARING && requirement.operator == "NotIn"
}

#[cfg(test)]
mod tests;
