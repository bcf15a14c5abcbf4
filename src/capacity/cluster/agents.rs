//! The pods in which agents run. Owns which reports of agents they are compared with, and that a node is accounted for
//! again when its agent's pod changes; what a pod means for a report is decided in [`crate::capacity::node::presence`].

use std::collections::BTreeMap;

use super::Cluster;
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::name::PodUid;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::presence::{AgentPod, Doubt};

/// The pods in which agents run, by uid: about one for each node with GPUs.
#[derive(Clone, Debug, Default)]
pub(super) struct Agents {
    pods: BTreeMap<PodUid, AgentPod>,
    known: Known,
}

/// Which of these pods are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    /// Those that were applied. Others may exist.
    #[default]
    Given,
    /// All of the cluster.
    All,
    /// None, and every claim counts.
    Ignored,
}

impl Agents {
    /// Why the claim to steer in the report of a node's agent does not count; `None` if it does, or if there is no such claim.
    pub(super) fn doubt(&self, node: &str, content: &LedgerContent) -> Option<Doubt> {
        let inventory = content.inventory.as_ref()?;
        let claims = inventory.allocation_policy == AllocationPolicy::Steered;
        let named = inventory.pod.as_ref().filter(|_| claims)?;
        let seen = self.pods.get(&named.uid);
        match self.known {
            Known::Ignored => None,
            Known::Given if seen.is_none() => None,
            Known::Given | Known::All => named.doubt(node, seen),
        }
    }
}

impl Cluster {
    /// Declares that all pods of agents are applied here, from the beginning. A report that names a pod which is not here
    /// then claims nothing. Without it, as for files that may lack pods, such a report counts.
    pub fn follow_agent_pods(&mut self) {
        self.agents.known = Known::All;
        let nodes: Vec<String> = self.nodes.keys().cloned().collect();
        nodes.iter().for_each(|node| self.doubt_again(node));
    }

    /// Takes over the pods of agents of another cluster. Call it before any ledger is applied.
    pub fn copy_agent_pods(&mut self, other: &Cluster) {
        self.agents = other.agents.clone();
    }

    /// Declares that the claims of agents are not compared with their pods. It is for an agent, which knows that it steers: its
    /// own pod may be deleted already while the kubelet still asks it.
    pub fn ignore_agent_pods(&mut self) {
        self.agents.known = Known::Ignored;
    }

    /// Records a pod in which an agent runs. Idempotent.
    pub fn apply_agent_pod(&mut self, uid: &PodUid, pod: AgentPod) {
        if self.agents.known == Known::Ignored || self.agents.pods.get(uid) == Some(&pod) {
            return;
        }
        let node = pod.node.clone();
        let before = self.agents.pods.insert(uid.clone(), pod);
        self.doubt_again(&node);
        if let Some(before) = before.filter(|before| before.node != node) {
            self.doubt_again(&before.node);
        }
    }

    /// Records that a pod ended or is gone, if it is one in which an agent ran.
    pub fn delete_agent_pod(&mut self, uid: &PodUid) {
        if let Some(pod) = self.agents.pods.remove(uid) {
            self.doubt_again(&pod.node);
        }
    }

    /// The pods in which agents run.
    pub fn agent_pods(&self) -> impl Iterator<Item = &PodUid> {
        self.agents.pods.keys()
    }

    /// Whether an agent runs in a pod, as far as it was applied here.
    pub fn is_agent_pod(&self, uid: &PodUid) -> bool {
        self.agents.pods.contains_key(uid)
    }

    /// Judges the claim of a node's agent again.
    fn doubt_again(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let doubt = node.ledger.content().and_then(|content| self.agents.doubt(name, content));
        if node.ledger.set_doubt(doubt) {
            self.account(name, true);
        }
    }
}

#[cfg(test)]
mod tests;
