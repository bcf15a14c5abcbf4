//! Reroute: further pools of nodes that a policy opens to a pod, in addition to its own pool.
//!
//! Owns what the own pool of a pod is, and what replaces it. A pool is named by labels of its nodes. The policy's pools
//! say which labels those are; a pod's own pool is what the pod requires of them by equality (nodeSelector, or `In` in
//! its required node affinity). Only these requirements get alternatives. Everything else that the pod requires holds in
//! every pool: other labels, exclusions (`NotIn`), taints.
//!
//! ```text
//! author: product=A10 & zone=a      policy: L40S
//! result: product=A10 & zone=a | product=L40S & zone=a, the first preferred
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::affinity::Base;
use super::{NodeProfile, Operator, Placement, Requirement, Term};

/// Most alternatives that a rerouted pod gets: its own terms times the pools.
pub const MAX_ALTERNATIVES: usize = 64;

/// Most values of all alternatives of a rerouted pod together. What is read of a pod is bounded too, and what is added here
/// must stay within that.
pub const MAX_VALUES: usize = 4096;

/// Most requirements of one alternative of a rerouted pod.
pub const MAX_REQUIREMENTS: usize = 48;

/// Largest length of an [`OwnPool`] as text, in bytes.
const MAX_OWN: usize = 1024;

/// Weight with which a pod prefers its own pool, the largest that Kubernetes allows. Each fallback has half the weight of
/// the one before.
const OWN_WEIGHT: u32 = 100;

/// A pool that a policy opens to pods of other pools: the labels that its nodes have, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackPool(pub BTreeMap<String, String>);

impl FallbackPool {
    fn requirements(&self) -> Vec<Requirement> {
        self.0.iter().map(|(key, value)| equals(key, value)).collect()
    }
}

/// Displays the pool as a label selector: `nvidia.com/gpu.product=NVIDIA-L40S`.
impl fmt::Display for FallbackPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_all(f, &self.requirements())
    }
}

/// The pools that a pod asks for itself: alternatives, each a list of requirements of which all must hold.
///
/// As text it is the annotation `vramguard.dev/own-pool`, which a rerouted pod keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPool(Vec<Vec<Requirement>>);

impl OwnPool {
    /// Whether a node belongs to the pool.
    pub fn includes(&self, profile: &NodeProfile) -> bool {
        let label = |key: &str| profile.labels.get(key).map(crate::capacity::name::Name::as_str);
        self.0.iter().any(|all| all.iter().all(|requirement| requirement.holds(label(&requirement.key))))
    }

    /// Number of its keys and values.
    pub fn size(&self) -> usize {
        self.0.iter().flatten().map(|requirement| 1 + requirement.values.len()).sum()
    }

    /// Reads the text of an annotation; `None` if it is not the text of an own pool.
    pub fn parse(text: &str) -> Option<OwnPool> {
        if text.len() > MAX_OWN {
            return None;
        }
        let requirement = |text: &str| {
            let (key, values) = match (text.split_once(" in ("), text.split_once('=')) {
                (Some((key, values)), _) => (key, values.strip_suffix(')')?.split(',').collect()),
                (None, Some((key, value))) => (key, vec![value]),
                (None, None) => return None,
            };
            let values = values.into_iter().map(str::to_owned).collect();
            (!key.is_empty()).then(|| Requirement { key: key.to_owned(), operator: Operator::In, values })
        };
        let alternative = |text: &str| text.split(" and ").map(requirement).collect::<Option<Vec<_>>>();
        text.split(" or ").map(alternative).collect::<Option<_>>().map(OwnPool)
    }
}

impl fmt::Display for OwnPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, all) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { " or " })?;
            write_all(f, all)?;
        }
        Ok(())
    }
}

fn write_all(f: &mut fmt::Formatter<'_>, requirements: &[Requirement]) -> fmt::Result {
    for (index, requirement) in requirements.iter().enumerate() {
        f.write_str(if index == 0 { "" } else { " and " })?;
        match requirement.values.as_slice() {
            [value] => write!(f, "{}={value}", requirement.key)?,
            values => write!(f, "{} in ({})", requirement.key, values.join(","))?,
        }
    }
    Ok(())
}

/// How a pod is rerouted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reroute {
    /// Its own pool.
    pub own: OwnPool,
    /// Keys of the nodeSelector whose entries become requirements of the node affinity. A nodeSelector has no
    /// alternatives.
    pub moved: Vec<String>,
    /// Requirements of each further pool, in the policy's order; at least one pool.
    pub(super) fallbacks: Vec<Vec<Requirement>>,
    /// Keys of the labels that name pools.
    keys: BTreeSet<String>,
}

/// A preference of a pod for nodes, by their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Weight, 1 to 100.
    pub weight: u32,
    /// The requirements that a preferred node meets.
    pub requirements: Vec<Requirement>,
}

/// A pod is not rerouted, because it would get more than [`MAX_ALTERNATIVES`] terms, [`MAX_VALUES`] values or
/// [`MAX_REQUIREMENTS`] requirements in one term, or a too long text of its own pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyAlternatives;

impl Reroute {
    /// Its own pool first, then the further pools in their order.
    pub fn preferences(&self) -> Vec<Preference> {
        let own = self.own.0.iter().map(|requirements| (OWN_WEIGHT, requirements));
        let weights = (1..u32::BITS).map(|place| (OWN_WEIGHT >> place).max(1));
        let preference = |(weight, all): (u32, &Vec<Requirement>)| Preference { weight, requirements: all.clone() };
        let further = self.fallbacks.iter().filter(|pool| !self.own.0.contains(pool));
        own.chain(weights.zip(further)).map(preference).collect()
    }

    /// The further pools, each as a label selector.
    pub fn further(&self) -> impl Iterator<Item = String> {
        self.fallbacks.iter().map(|pool| OwnPool(vec![pool.clone()]).to_string())
    }

    /// Whether a requirement chooses a pool.
    pub fn names_pool(&self, requirement: &Requirement) -> bool {
        names_pool(requirement, &self.keys)
    }

    /// The alternatives to a term of the pod, which has the index `from` and, without our requirements, is `rest`.
    pub(super) fn bases(
        &self,
        placement: &Placement,
        from: Option<usize>,
        without: &[usize],
        rest: &Term,
    ) -> Vec<Base> {
        let moved: Vec<Requirement> = placement
            .node_selector
            .iter()
            .filter(|(key, _)| self.moved.contains(key))
            .map(|(key, value)| equals(key, value))
            .collect();
        let own = Base { from, without: without.to_vec(), rest: rest.and(&moved), with: moved };
        if own.with.is_empty() && !rest.labels.iter().any(|requirement| self.names_pool(requirement)) {
            return vec![own];
        }
        let term = from.and_then(|index| placement.required.as_ref()?.get(index));
        let labels = term.map_or(&[][..], |term| &term.labels);
        let named = labels.iter().enumerate().filter(|(_, requirement)| self.names_pool(requirement));
        let mut left_out: Vec<usize> = named.map(|(index, _)| index).chain(without.iter().copied()).collect();
        left_out.sort_unstable();
        let others = rest.labels.iter().filter(|requirement| !self.names_pool(requirement)).cloned().collect();
        let others = Term { labels: others, fields: rest.fields.clone() };
        let fallback = |with: &Vec<Requirement>| Base {
            from,
            without: left_out.clone(),
            rest: others.and(with),
            with: with.clone(),
        };
        let fallbacks = self.fallbacks.iter().map(fallback).collect::<Vec<_>>();
        [own].into_iter().chain(fallbacks).collect()
    }
}

impl Placement {
    /// How the pod is rerouted to `pools`; `None` if it is not.
    ///
    /// A pod is not rerouted if it requires nothing of the labels that name pools (then it may use them already), if it
    /// has been rerouted before, or if its affinity names nodes (`matchFields`), as that of a DaemonSet's pod does.
    ///
    /// # Errors
    /// The pod would get too many alternatives.
    pub fn reroute(&self, pools: &[FallbackPool]) -> Result<Option<Reroute>, TooManyAlternatives> {
        let keys: BTreeSet<String> = pools.iter().flat_map(|pool| pool.0.keys().cloned()).collect();
        let terms: Vec<Term> = match &self.required {
            Some(terms) => terms.iter().filter(|term| !term.is_empty()).map(|term| term.without_ours().1).collect(),
            None => vec![Term::default()],
        };
        let names_nodes = terms.iter().any(|term| !term.fields.is_empty());
        if keys.is_empty() || terms.is_empty() || names_nodes || self.node_name.is_some() || self.own_pool.is_some() {
            return Ok(None);
        }
        let moved: Vec<(&String, &String)> = self.node_selector.iter().filter(|(key, _)| keys.contains(*key)).collect();
        let own_of = |term: &Term| {
            let selected = moved.iter().map(|(key, value)| equals(key, value));
            let required = term.labels.iter().filter(|requirement| names_pool(requirement, &keys)).cloned();
            let mut own: Vec<Requirement> = selected.chain(required).collect();
            own.sort();
            own.dedup();
            own
        };
        let mut own: Vec<Vec<Requirement>> = terms.iter().map(own_of).filter(|own| !own.is_empty()).collect();
        own.sort();
        own.dedup();
        // A pod that is unconstrained by one of its terms may use all pools already.
        if own.is_empty() || moved.is_empty() && terms.iter().any(Term::is_empty) {
            return Ok(None);
        }
        let fallbacks: Vec<Vec<Requirement>> = pools.iter().map(FallbackPool::requirements).collect();
        let own = OwnPool(own);
        if terms.len().saturating_mul(1 + fallbacks.len()) > MAX_ALTERNATIVES || own.to_string().len() > MAX_OWN {
            return Err(TooManyAlternatives);
        }
        let moved = moved.into_iter().map(|(key, _)| key.clone()).collect();
        let reroute = Reroute { own, moved, fallbacks, keys };
        let alternatives = self.bases(Some(&reroute));
        let values = |base: &Base| base.rest.labels.iter().map(|requirement| requirement.values.len()).sum::<usize>();
        let is_long = |base: &Base| base.rest.labels.len() > MAX_REQUIREMENTS;
        if alternatives.iter().map(values).sum::<usize>() > MAX_VALUES || alternatives.iter().any(is_long) {
            return Err(TooManyAlternatives);
        }
        // If the further pools are its own, nothing is added.
        Ok((alternatives.len() > self.bases(None).len()).then_some(reroute))
    }

    /// The placement of the pod after it is rerouted.
    pub fn rerouted(&self, reroute: &Reroute) -> Placement {
        let mut placement = self.clone();
        placement.required = Some(self.bases(Some(reroute)).into_iter().map(|base| base.rest).collect());
        placement.node_selector.retain(|key, _| !reroute.moved.contains(key));
        placement.own_pool = Some(reroute.own.clone());
        placement
    }

    /// The placement of a rerouted pod before it has a node, without the pools that are not its own.
    #[must_use]
    pub fn within(&self, own: &OwnPool) -> Placement {
        let terms = self.required.iter().flatten().filter(|term| !term.is_empty());
        let within = terms.flat_map(|term| own.0.iter().map(|requirements| term.and(requirements)));
        Placement { node_name: None, required: Some(within.collect()), ..self.clone() }
    }
}

/// Whether a requirement chooses a pool by labels with these keys.
fn names_pool(requirement: &Requirement, keys: &BTreeSet<String>) -> bool {
    requirement.operator == Operator::In && keys.contains(&requirement.key)
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In, values: vec![value.to_owned()] }
}

#[cfg(test)]
mod tests;
