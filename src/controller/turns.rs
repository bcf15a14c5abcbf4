//! Whose turn it is: which nodes are written now, which wait, and which are tried again at what time. Owns the order;
//! time is an argument, and what is done in a turn is the caller's.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// Nodes that are due. A node is in hand once at a time, so that of two writes the later one is of the later state; one that
/// failed waits by itself, and one that hangs keeps no other node waiting.
#[derive(Debug)]
pub struct Turns {
    places: usize,
    due: BTreeSet<String>,
    in_hand: BTreeSet<String>,
    again: BTreeMap<String, Instant>,
}

impl Turns {
    /// No node is due. `places` nodes are in hand at most.
    pub fn new(places: usize) -> Turns {
        Turns { places, due: BTreeSet::new(), in_hand: BTreeSet::new(), again: BTreeMap::new() }
    }

    /// These nodes are due, unless they wait for a time.
    pub fn add(&mut self, nodes: BTreeSet<String>) {
        self.due.extend(nodes);
    }

    /// Those to begin with now; they are in hand until they [`ended`](Self::ended).
    pub fn take(&mut self, now: Instant) -> Vec<String> {
        self.due.extend(self.again.extract_if(.., |_, at| *at <= now).map(|(name, _)| name));
        let Turns { places, due, in_hand, again } = self;
        let free = |name: &String| !in_hand.contains(name) && !again.contains_key(name);
        let taken: Vec<String> = due.iter().filter(|name| free(name)).take(*places - in_hand.len()).cloned().collect();
        for name in &taken {
            due.remove(name);
            in_hand.insert(name.clone());
        }
        taken
    }

    /// A node is not in hand any more. `retry` says when it is due again, whatever happens until then.
    pub fn ended(&mut self, name: String, retry: Option<Instant>) {
        self.in_hand.remove(&name);
        self.again.extend(retry.map(|at| (name, at)));
    }

    /// When the next node that waits for a time is due.
    pub fn next_retry(&self) -> Option<Instant> {
        self.again.values().min().copied()
    }
}

#[cfg(test)]
mod tests;
