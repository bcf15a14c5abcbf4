//! Which GPU resources are guarded: those that a node shares, and those that configuration names. Owns how long a resource
//! stays guarded after the last node stopped saying so. Pods have no say: a tenant's request guards nothing.
//!
//! ```text
//!              a node shares it                    the last such node is gone
//!   unguarded ─────────────────▶ guarded ──────────────────────────────────────▶ lingering
//!       ▲                         │   ▲                                          │     │
//!       │ its last node says that │   └────────── a node shares it ──────────────┘     │
//!       ├─ its GPUs are exclusive ┘                                                    │
//!       └──────────────────────────────── LINGER is over ──────────────────────────────┘
//! ```
//!
//! A node that shared it and says nothing any more counts like one that shares it: its GPUs are most likely shared still.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::NodeFacts;
use crate::capacity::gpu::{Pool, Resource, Sharing};
use crate::capacity::moment::Moment;
use crate::capacity::name::Name;
use crate::keys;

/// How long a resource stays guarded when the last node that shared it is gone: nodes are replaced, and pods created meanwhile
/// would land unaccounted.
pub const LINGER: Duration = Duration::from_secs(600);

/// What is known of each resource.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    /// By configuration, whatever nodes say.
    always: BTreeSet<Resource>,
    /// The nodes that share each resource.
    sharing: BTreeMap<Resource, BTreeSet<String>>,
    /// Those of them whose label does not say so: pods cannot be kept off them by it.
    unlabelled: BTreeMap<Resource, BTreeSet<String>>,
    /// The nodes that do not say whether they share a resource.
    unstated: BTreeMap<Resource, BTreeSet<String>>,
    /// The nodes that shared a resource and do not say so any more. Labels vanish while GPU Feature Discovery is replaced.
    silent: BTreeMap<Resource, BTreeSet<String>>,
    /// Guarded until then; `None` until time passes for the first time.
    lingering: BTreeMap<Resource, Option<Moment>>,
}

impl Guarded {
    pub fn new(always: BTreeSet<Resource>) -> Guarded {
        Guarded { always, ..Guarded::default() }
    }

    pub fn always(&self) -> &BTreeSet<Resource> {
        &self.always
    }

    pub fn set_always(&mut self, always: BTreeSet<Resource>) {
        self.always = always;
    }

    pub fn contains(&self, resource: &Resource) -> bool {
        self.sharing.contains_key(resource)
            || self.always.contains(resource)
            || self.silent.contains_key(resource)
            || self.lingering.contains_key(resource)
    }

    pub fn is_empty(&self) -> bool {
        self.sharing.is_empty() && self.always.is_empty() && self.silent.is_empty() && self.lingering.is_empty()
    }

    pub fn all(&self) -> BTreeSet<Resource> {
        let known = self.sharing.keys().chain(&self.always);
        known.chain(self.silent.keys()).chain(self.lingering.keys()).cloned().collect()
    }

    /// Nodes that share a resource although their label does not say so.
    pub fn unlabelled(&self, resource: &Resource) -> impl Iterator<Item = &str> {
        self.unlabelled.get(resource).into_iter().flatten().map(String::as_str)
    }

    /// Nodes that do not say whether they share a resource.
    pub fn unstated(&self, resource: &Resource) -> impl Iterator<Item = &str> {
        self.unstated.get(resource).into_iter().flatten().map(String::as_str)
    }

    /// A node has these facts now, and had those pools before. Returns the resources that became guarded or unguarded.
    pub fn note(&mut self, node: &str, before: &[Pool], facts: &NodeFacts) -> BTreeSet<Resource> {
        let resources: BTreeSet<&Resource> = before.iter().chain(&facts.pools).map(|pool| &pool.resource).collect();
        let guarded_before: Vec<bool> = resources.iter().map(|resource| self.contains(resource)).collect();
        let labelled = matches!(
            facts.site.labels.get(keys::GFD_SHARING).map(Name::as_str),
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
            // That a MIG device is shared is said by labels that are not read yet.
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

    /// A node is seen for the first time, and it carries a number that vramguard wrote although nothing says how its GPUs are
    /// shared: its labels vanished while nobody looked. Returns the resources that became guarded.
    pub fn remember(&mut self, node: &str, facts: &NodeFacts) -> BTreeSet<Resource> {
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

    /// Time passes. Returns the resources that are guarded no longer.
    pub fn tick(&mut self, now: Moment) -> BTreeSet<Resource> {
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

/// Puts a node into the set of a resource, or takes it out.
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
