//! [`Guarded`]: the GPU resources that are guarded, because a node shares them or configuration names them. Owns how
//! long a resource stays guarded after its last node stopped sharing it. Pods have no influence: the request of a
//! tenant guards nothing.
//!
//! ```text
//!              a node shares it                    the last such node is gone
//!   unguarded ─────────────────▶ guarded ──────────────────────────────────────▶ lingering
//!       ▲                         │   ▲                                          │     │
//!       │  its last node now has  │   └────────── a node shares it ──────────────┘     │
//!       ├─ exclusive GPUs ────────┘                                                    │
//!       └──────────────────────────────── LINGER is over ──────────────────────────────┘
//! ```
//!
//! A node that shared the resource and no longer states how counts like one that shares it: its GPUs are most likely
//! still shared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::NodeFacts;
use crate::capacity::gpu::{Pool, Resource, Sharing};
use crate::capacity::name::Name;
use crate::capacity::time::Moment;
use crate::keys;

/// How long a resource stays guarded after the last node that shared it is gone. Nodes are replaced, and pods created
/// in between would land unaccounted.
pub const LINGER: Duration = Duration::from_secs(600);

/// The sources that guard each resource.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    /// Resources that configuration guards, independent of nodes.
    always: BTreeSet<Resource>,
    /// The nodes that share each resource.
    sharing: BTreeMap<Resource, BTreeSet<String>>,
    /// The subset of `sharing` whose label `nvidia.com/gpu.sharing-strategy` does not state it. A node affinity on that
    /// label cannot keep pods off these nodes.
    unlabelled: BTreeMap<Resource, BTreeSet<String>>,
    /// The nodes that do not state whether they share each resource.
    unstated: BTreeMap<Resource, BTreeSet<String>>,
    /// The nodes that shared each resource and no longer state it. Labels vanish while GPU Feature Discovery is
    /// replaced.
    silent: BTreeMap<Resource, BTreeSet<String>>,
    /// The moment until which each resource lingers; `None` until the first tick sets it.
    lingering: BTreeMap<Resource, Option<Moment>>,
}

impl Guarded {
    pub(super) fn new(always: BTreeSet<Resource>) -> Guarded {
        Guarded { always, ..Guarded::default() }
    }

    pub(super) fn always(&self) -> &BTreeSet<Resource> {
        &self.always
    }

    pub(super) fn set_always(&mut self, always: BTreeSet<Resource>) {
        self.always = always;
    }

    pub(super) fn contains(&self, resource: &Resource) -> bool {
        self.sharing.contains_key(resource)
            || self.always.contains(resource)
            || self.silent.contains_key(resource)
            || self.lingering.contains_key(resource)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sharing.is_empty() && self.always.is_empty() && self.silent.is_empty() && self.lingering.is_empty()
    }

    pub(super) fn all(&self) -> BTreeSet<Resource> {
        let known = self.sharing.keys().chain(&self.always);
        known.chain(self.silent.keys()).chain(self.lingering.keys()).cloned().collect()
    }

    /// Nodes that share a resource although their label does not state it.
    pub(super) fn unlabelled(&self, resource: &Resource) -> impl Iterator<Item = &str> {
        self.unlabelled.get(resource).into_iter().flatten().map(String::as_str)
    }

    /// Nodes that do not state whether they share a resource.
    pub(super) fn unstated(&self, resource: &Resource) -> impl Iterator<Item = &str> {
        self.unstated.get(resource).into_iter().flatten().map(String::as_str)
    }

    /// Records the current facts of a node whose previous pools are `before`. Returns the resources that became guarded
    /// or unguarded.
    pub(super) fn note(&mut self, node: &str, before: &[Pool], facts: &NodeFacts) -> BTreeSet<Resource> {
        let resources: BTreeSet<&Resource> = before.iter().chain(&facts.pools).map(|pool| &pool.resource).collect();
        let guarded_before: Vec<bool> = resources.iter().map(|resource| self.contains(resource)).collect();
        let labelled = matches!(
            facts.profile.labels.get(keys::GFD_SHARING).map(Name::as_str),
            Some(keys::SHARING_TIME_SLICING | keys::SHARING_MPS)
        );
        for resource in &resources {
            let sharing = facts.pools.iter().find(|pool| pool.resource == **resource).map(|pool| pool.sharing);
            let shared = sharing.is_some_and(Sharing::is_shared);
            let is_in = |nodes: &BTreeMap<Resource, BTreeSet<String>>| {
                nodes.get(*resource).is_some_and(|nodes| nodes.contains(node))
            };
            let stopped = !shared && (is_in(&self.sharing) || is_in(&self.silent));
            set(&mut self.silent, resource, node, stopped && sharing == Some(Sharing::Unstated));
            set(&mut self.sharing, resource, node, shared);
            set(&mut self.unlabelled, resource, node, shared && !labelled);
            // The labels that state whether a MIG device is shared are not read yet.
            set(&mut self.unstated, resource, node, sharing == Some(Sharing::Unstated) && !resource.is_mig());
            if shared {
                self.lingering.remove(*resource);
            } else if stopped && sharing.is_none() && !self.sharing.contains_key(resource) {
                self.lingering.insert((*resource).clone(), None);
            }
        }
        let changed = resources.iter().zip(guarded_before);
        changed.filter(|(resource, before)| self.contains(resource) != *before).map(|(r, _)| (*r).clone()).collect()
    }

    /// Records that a node is seen for the first time. Returns the resources that became guarded.
    ///
    /// A resource becomes guarded if the node advertises VRAM and does not state how its GPUs are shared. Only
    /// vramguard writes that amount, so the node shared its GPUs earlier, and its labels vanished unobserved.
    pub(super) fn remember(&mut self, node: &str, facts: &NodeFacts) -> BTreeSet<Resource> {
        if !facts.advertises_vram || facts.pools.iter().any(|pool| pool.sharing.is_shared()) {
            return BTreeSet::new();
        }
        let unexplained = |pool: &&Pool| pool.sharing == Sharing::Unstated && !pool.resource.is_mig();
        let resources: Vec<&Resource> = facts.pools.iter().filter(unexplained).map(|pool| &pool.resource).collect();
        let new = resources.iter().filter(|resource| !self.contains(resource)).map(|r| (*r).clone()).collect();
        for resource in resources {
            set(&mut self.silent, resource, node, true);
        }
        new
    }

    /// Ends the lingering of resources whose time is over. Returns the resources that are no longer guarded.
    pub(super) fn tick(&mut self, now: Moment) -> BTreeSet<Resource> {
        let mut over = BTreeSet::new();
        for (resource, until) in &mut self.lingering {
            if *until.get_or_insert(now.after(LINGER)) <= now {
                over.insert(resource.clone());
            }
        }
        self.lingering.retain(|resource, _| !over.contains(resource));
        over.retain(|resource| !self.contains(resource));
        over
    }
}

/// Adds a node to the set of a resource, or removes it.
fn set(nodes_of: &mut BTreeMap<Resource, BTreeSet<String>>, resource: &Resource, node: &str, is_in: bool) {
    if is_in {
        nodes_of.entry(resource.clone()).or_default().insert(node.to_owned());
    } else if let Some(nodes) = nodes_of.get_mut(resource) {
        nodes.remove(node);
        if nodes.is_empty() {
            nodes_of.remove(resource);
        }
    }
}
