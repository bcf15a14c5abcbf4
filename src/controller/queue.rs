//! The work queue of nodes: which are due, which are in progress, and which are retried at what time. Owns the order;
//! time is an argument, and the caller does the work.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// A queue of nodes. Each node is in progress at most once, so that the later of two writes is based on the later
/// state. A node that failed waits without delaying others, and so does a node whose work hangs.
#[derive(Debug)]
pub(super) struct WorkQueue {
    places: usize,
    due: BTreeSet<String>,
    in_hand: BTreeSet<String>,
    again: BTreeMap<String, Instant>,
}

impl WorkQueue {
    /// Creates an empty queue. At most `places` nodes are in progress at a time.
    pub(super) fn new(places: usize) -> WorkQueue {
        WorkQueue { places, due: BTreeSet::new(), in_hand: BTreeSet::new(), again: BTreeMap::new() }
    }

    /// Makes nodes due, except those that wait for a retry.
    pub(super) fn add(&mut self, nodes: BTreeSet<String>) {
        self.due.extend(nodes);
    }

    /// Takes the nodes to start now. They are in progress until [`ended`](Self::ended).
    pub(super) fn take(&mut self, now: Instant) -> Vec<String> {
        self.due.extend(self.again.extract_if(.., |_, at| *at <= now).map(|(name, _)| name));
        let WorkQueue { places, due, in_hand, again } = self;
        let free = |name: &String| !in_hand.contains(name) && !again.contains_key(name);
        let taken: Vec<String> = due.iter().filter(|name| free(name)).take(*places - in_hand.len()).cloned().collect();
        for name in &taken {
            due.remove(name);
            in_hand.insert(name.clone());
        }
        taken
    }

    /// Ends the work on a node. With `retry`, the node is due at that time and not before, whatever changes.
    pub(super) fn ended(&mut self, name: String, retry: Option<Instant>) {
        self.in_hand.remove(&name);
        self.again.extend(retry.map(|at| (name, at)));
    }

    /// When the next retry is due.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.again.values().min().copied()
    }
}

#[cfg(test)]
mod tests;
