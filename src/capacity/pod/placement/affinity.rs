//! The required node affinity that vramguard adds to a pod, and how it finds its own requirements again.
//!
//! Owns both directions, so that a pod that was copied from another one is distinguished from one whose author wrote
//! requirements.
//!
//! Terms are alternatives, so each term of the author is combined with each of ours:
//!
//! ```text
//! author: zone=a | zone=b      ours: no label | label > N
//! result: zone=a & no label | zone=b & no label | zone=a & label > N | zone=b & label > N
//! ```
//!
//! Our requirements are removed first. Otherwise each copy of a copy with a larger demand would double the terms, and a
//! copy with a smaller demand would keep the bound of its original.

use super::{Operator, Placement, Requirement, Reroute, Term, below};
use crate::capacity::vram::Vram;
use crate::keys;

/// What a guarded pod requires of the labels of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeNeeds {
    /// Whether nodes whose label reports shared GPUs are excluded.
    pub avoid_shared: bool,
    /// The demand that one pod must be able to get there; `None` if nothing is required.
    pub pod_max_at_least: Option<Vram>,
}

/// The required node affinity that a pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// No affinity: all requirements that the pod has are ours.
    Nothing,
    /// These terms, in place of all terms of the pod that have requirements.
    Terms(Vec<NewTerm>),
}

/// One term of the new affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTerm {
    /// Index of the pod's term that it is based on; `None` if it contains nothing of the author's.
    pub from: Option<usize>,
    /// Indices of the requirements on labels to remove from that term, ascending.
    pub without: Vec<usize>,
    /// Requirements on labels to add.
    pub with: Vec<Requirement>,
}

/// An alternative for the nodes of a pod before our requirements are added: a term as its author wrote it, or one that
/// leads to a further pool.
#[derive(Default)]
pub(super) struct Base {
    /// Index of the term that it is based on; `None` if it contains nothing of the author's terms.
    pub from: Option<usize>,
    /// Indices of the requirements of that term to remove, ascending.
    pub without: Vec<usize>,
    /// Requirements to add, which name a pool.
    pub with: Vec<Requirement>,
    /// The term that results.
    pub rest: Term,
}

impl NodeNeeds {
    /// Lists of requirements, of which one list must hold.
    fn alternatives(&self) -> Vec<Vec<Requirement>> {
        let requirement = |key: &str, operator, values: &[&str]| Requirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let values = [keys::SHARING_TIME_SLICING, keys::SHARING_MPS];
        let unshared = self.avoid_shared.then(|| requirement(keys::GFD_SHARING, Operator::NotIn, &values));
        let Some(request) = self.pod_max_at_least else { return vec![unshared.into_iter().collect()] };
        // On a node without the label, kube-scheduler's sum bounds the pod. This list comes first, because Karpenter
        // tries the first term first and does not know the label on nodes that it has yet to create.
        let unlabelled = requirement(keys::POD_MAX_MIB, Operator::DoesNotExist, &[]);
        let large = requirement(keys::POD_MAX_MIB, Operator::Gt, &[&below(request).to_string()]);
        [unlabelled, large].map(|either| unshared.iter().cloned().chain([either]).collect()).into()
    }
}

impl Placement {
    /// The required node affinity with which the pod meets `needs` and is rerouted.
    ///
    /// It is `None` if the pod needs no change, or if its affinity matches no node whatever is added.
    pub fn affinity_for(&self, needs: &NodeNeeds, reroute: Option<&Reroute>) -> Option<Affinity> {
        let alternatives = needs.alternatives();
        let nothing_needed = alternatives.iter().all(Vec::is_empty);
        // A term without requirements matches no node. With one requirement added, it would match some.
        let matching = || self.required.iter().flatten().filter(|term| !term.is_empty());
        if self.required.is_some() {
            matching().next()?;
        }
        let mut bases = self.bases(reroute);
        // In a term that has only our requirements, the author requires nothing, so the other terms are needless.
        let unconstrained = bases.iter().any(|base| base.rest.is_empty());
        if unconstrained && nothing_needed {
            return self.required.as_ref().map(|_| Affinity::Nothing);
        }
        if unconstrained {
            bases = vec![Base::default()];
        }
        let wanted = || alternatives.iter().flat_map(|with| bases.iter().map(move |base| (base, with)));
        let mut is: Vec<Term> = matching().map(Term::sorted).collect();
        let mut should_be: Vec<Term> = wanted().map(|(base, with)| base.rest.and(with).sorted()).collect();
        for terms in [&mut is, &mut should_be] {
            terms.sort();
            terms.dedup();
        }
        if is == should_be {
            return None;
        }
        let new = |(base, with): (&Base, &Vec<Requirement>)| NewTerm {
            from: base.from,
            without: base.without.clone(),
            with: base.with.iter().chain(with).cloned().collect(),
        };
        Some(Affinity::Terms(wanted().map(new).collect()))
    }

    /// The alternatives for the nodes of the pod, each once. A pod without required affinity has one without
    /// requirements, unless it is rerouted.
    pub(super) fn bases(&self, reroute: Option<&Reroute>) -> Vec<Base> {
        let mut bases: Vec<Base> = Vec::new();
        let mut add = |from, without: Vec<usize>, rest: Term| {
            let alternatives = match reroute {
                Some(reroute) => reroute.bases(self, from, &without, &rest),
                None => vec![Base { from, without, with: Vec::new(), rest }],
            };
            for base in alternatives {
                if bases.iter().all(|known| known.rest != base.rest) {
                    bases.push(base);
                }
            }
        };
        let Some(terms) = &self.required else {
            add(None, Vec::new(), Term::default());
            return bases;
        };
        for (index, term) in terms.iter().enumerate().filter(|(_, term)| !term.is_empty()) {
            let (without, rest) = term.without_ours();
            add(Some(index), without, rest);
        }
        bases
    }

    /// The placement without the nodes whose label reports shared GPUs.
    #[must_use]
    pub fn kept_off_shared(&self) -> Placement {
        let needs = NodeNeeds { avoid_shared: true, pod_max_at_least: None };
        let unshared = needs.alternatives().concat();
        let terms = match &self.required {
            Some(terms) => terms.iter().filter(|term| !term.is_empty()).map(|term| term.and(&unshared)).collect(),
            None => vec![Term { labels: unshared, fields: Vec::new() }],
        };
        Placement { required: Some(terms), ..self.clone() }
    }

    /// Whether the required node affinity has a requirement on our label.
    pub fn requires_our_label(&self) -> bool {
        self.required.iter().flatten().flat_map(|term| &term.labels).any(Requirement::is_ours)
    }

    /// Whether the nodeSelector names our label.
    pub fn selects_our_label(&self) -> bool {
        self.node_selector.contains_key(keys::POD_MAX_MIB)
    }
}

impl Term {
    /// Indices of our requirements in the term, and the term without them.
    pub(super) fn without_ours(&self) -> (Vec<usize>, Term) {
        let ours = self.labels.iter().enumerate().filter(|(_, requirement)| requirement.is_ours());
        let labels = self.labels.iter().filter(|requirement| !requirement.is_ours()).cloned().collect();
        (ours.map(|(index, _)| index).collect(), Term { labels, fields: self.fields.clone() })
    }

    /// The term with requirements on labels added.
    pub(super) fn and(&self, with: &[Requirement]) -> Term {
        Term { labels: self.labels.iter().chain(with).cloned().collect(), fields: self.fields.clone() }
    }

    /// The term in an order that does not depend on how it was written.
    fn sorted(&self) -> Term {
        let mut sorted = self.clone();
        sorted.labels.sort();
        sorted.fields.sort();
        sorted
    }
}
