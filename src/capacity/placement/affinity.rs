//! What vramguard adds to the required node affinity of a pod, and how it finds its own again. Owns both directions, so that a
//! pod that was copied from another one is told apart from one whose author wrote something.
//!
//! Terms are alternatives, so each of the author's terms has to hold together with one of ours:
//!
//! ```text
//! author: zone=a | zone=b      ours: no label | label > N
//! result: zone=a & no label | zone=b & no label | zone=a & label > N | zone=b & label > N
//! ```
//!
//! Our requirements are taken out first. Without that each copy of a copy with a larger demand doubles the terms, and one with a
//! smaller demand keeps the bound of its original.

use super::{Operator, Placement, Requirement, Term, below};
use crate::capacity::vram::Vram;
use crate::keys;

/// What a guarded pod asks of the labels of its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeNeeds {
    /// That they do not say that the node shares its GPUs.
    pub avoid_shared: bool,
    /// That one pod can get that much there.
    pub room_for: Option<Vram>,
}

/// What the required node affinity of a pod has to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// None at all: all that was required was ours.
    Nothing,
    /// These terms in place of those it has that require anything.
    Terms(Vec<NewTerm>),
}

/// A term of the affinity to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTerm {
    /// Position of the term that it is made of; `None` where nothing of the author's is in it.
    pub from: Option<usize>,
    /// Positions of the requirements on labels to take out of that term, ascending.
    pub without: Vec<usize>,
    /// Requirements on labels to add.
    pub with: Vec<Requirement>,
}

/// A term as its author wrote it.
#[derive(Default)]
struct Base {
    /// Where it is; `None` where it is no term of the author's.
    from: Option<usize>,
    /// Positions of our requirements in it.
    without: Vec<usize>,
    /// What it is without them.
    rest: Term,
}

impl NodeNeeds {
    /// The lists of requirements of which one has to hold.
    fn alternatives(&self) -> Vec<Vec<Requirement>> {
        let requirement = |key: &str, operator, values: &[&str]| Requirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let values = [keys::SHARING_TIME_SLICING, keys::SHARING_MPS];
        let unshared = self.avoid_shared.then(|| requirement(keys::GFD_SHARING, Operator::NotIn, &values));
        let Some(request) = self.room_for else { return vec![unshared.into_iter().collect()] };
        // Where there is no label, kube-scheduler's sum says it. This one first, because Karpenter tries the first term first,
        // and knows of no label on nodes that it has yet to make.
        let unlabelled = requirement(keys::POD_MAX_MIB, Operator::DoesNotExist, &[]);
        let large = requirement(keys::POD_MAX_MIB, Operator::Gt, &[&below(request).to_string()]);
        [unlabelled, large].map(|either| unshared.iter().cloned().chain([either]).collect()).into()
    }
}

impl Placement {
    /// What the pod's required node affinity has to become to say what it needs; `None` where it says so already, and where it
    /// matches no node whatever is added.
    pub fn affinity_for(&self, needs: &NodeNeeds) -> Option<Affinity> {
        let alternatives = needs.alternatives();
        let nothing_needed = alternatives.iter().all(Vec::is_empty);
        let Some(terms) = &self.required else {
            let terms = || alternatives.into_iter().map(|with| NewTerm { from: None, without: Vec::new(), with });
            return (!nothing_needed).then(|| Affinity::Terms(terms().collect()));
        };
        // A term without a requirement matches no node; with one more it would match some.
        let matching = || terms.iter().enumerate().filter(|(_, term)| !term.is_empty());
        matching().next()?;
        let mut bases: Vec<Base> = Vec::new();
        for (index, term) in matching() {
            let (without, rest) = term.without_ours();
            if bases.iter().all(|known| known.rest != rest) {
                bases.push(Base { from: Some(index), without, rest });
            }
        }
        // One alternative that only our requirement kept from matching every node makes the others needless.
        let unconstrained = bases.iter().any(|base| base.rest.is_empty());
        if unconstrained && nothing_needed {
            return Some(Affinity::Nothing);
        }
        if unconstrained {
            bases = vec![Base::default()];
        }
        let wanted = || alternatives.iter().flat_map(|with| bases.iter().map(move |base| (base, with)));
        let mut is: Vec<Term> = matching().map(|(_, term)| term.sorted()).collect();
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
            with: with.clone(),
        };
        Some(Affinity::Terms(wanted().map(new).collect()))
    }

    /// Whether required node affinity names our label.
    pub fn requires_our_label(&self) -> bool {
        self.required.iter().flatten().flat_map(|term| &term.labels).any(Requirement::is_ours)
    }

    /// Whether the nodeSelector names our label.
    pub fn selects_our_label(&self) -> bool {
        self.node_selector.contains_key(keys::POD_MAX_MIB)
    }
}

impl Term {
    /// Where our requirements are in it, and what it is without them.
    fn without_ours(&self) -> (Vec<usize>, Term) {
        let ours = self.labels.iter().enumerate().filter(|(_, requirement)| requirement.is_ours());
        let labels = self.labels.iter().filter(|requirement| !requirement.is_ours()).cloned().collect();
        (ours.map(|(index, _)| index).collect(), Term { labels, fields: self.fields.clone() })
    }

    fn and(&self, with: &[Requirement]) -> Term {
        Term { labels: self.labels.iter().chain(with).cloned().collect(), fields: self.fields.clone() }
    }

    /// In an order that does not depend on how it was written.
    fn sorted(&self) -> Term {
        let mut sorted = self.clone();
        sorted.labels.sort();
        sorted.fields.sort();
        sorted
    }
}
