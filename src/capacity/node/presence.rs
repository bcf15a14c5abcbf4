//! Whether the agent of a node still runs, which decides whether its claim to steer counts. Owns that decision; the
//! claim itself is in the [`inventory`](super::inventory), and [`crate::capacity::cluster`] keeps the pods of agents.
//!
//! A report is believed for minutes, and an agent that crashes writes no other one. The API server shows the end of its
//! container or its pod within seconds. So a report names the container that its agent runs in, by the id that the
//! container runtime gave to this one instance, and its claim counts only while the API server shows that instance
//! running. An id differs after each restart. The condition `Ready` would not do, because it follows a start and an end by
//! up to the period of a probe.

use crate::capacity::name::{Name, PodUid};
use crate::capacity::pod::PodName;

/// The pod that the agent runs in, as its report names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPod {
    /// The uid of the pod.
    pub uid: PodUid,
    /// Namespace and name, for messages.
    pub name: PodName,
    /// Id that the container runtime gave to the instance of the agent's container, without the name of the runtime;
    /// `None` if the agent has not seen it yet.
    pub container: Option<Name>,
}

/// A pod in which an agent runs, as the API server shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// The node that it is bound to.
    pub node: Name,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// The present instance of the agent's container.
    pub container: Instance,
}

/// An instance of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instance {
    /// It runs, with this id of the container runtime, without the name of the runtime.
    Running(Name),
    /// No instance runs. The reason is that of the kubelet, such as `CrashLoopBackOff`; it may be empty.
    NotRunning(Name),
}

/// Why a claim to steer does not count: which pod the report names, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The pod that the report names.
    pub pod: PodName,
    /// What is wrong with it.
    pub why: Absence,
}

/// What is wrong with the pod that a report names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The API server has no such pod of an agent.
    Gone,
    /// It is on another node.
    OtherNode(Name),
    /// Its deletion has begun.
    Deleting,
    /// The agent's container does not run, for this reason of the kubelet, which may be empty.
    NotRunning(Name),
    /// The report does not name the instance of its container yet.
    Unnamed,
    /// The container was started again after the report.
    Restarted,
}

impl NamedPod {
    /// Why the claim of a report about `node` does not count; `None` if it does. `seen` is the pod with the named uid as
    /// the API server shows it, `None` if it has none.
    pub fn doubt(&self, node: &str, seen: Option<&AgentPod>) -> Option<Doubt> {
        self.absence(node, seen).map(|why| Doubt { pod: self.name.clone(), why })
    }

    fn absence(&self, node: &str, seen: Option<&AgentPod>) -> Option<Absence> {
        let Some(seen) = seen else { return Some(Absence::Gone) };
        if seen.node != *node {
            return Some(Absence::OtherNode(seen.node.clone()));
        }
        if seen.deleting {
            return Some(Absence::Deleting);
        }
        match (&seen.container, &self.container) {
            (Instance::NotRunning(reason), _) => Some(Absence::NotRunning(reason.clone())),
            (Instance::Running(_), None) => Some(Absence::Unnamed),
            (Instance::Running(running), Some(named)) if running != named => Some(Absence::Restarted),
            (Instance::Running(_), Some(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(container: Option<&str>) -> NamedPod {
        let name = PodName { namespace: "vramguard-agent".into(), name: "agent-x".into() };
        NamedPod { uid: "u".into(), name, container: container.map(Name::from) }
    }

    fn seen(deleting: bool, container: Instance) -> AgentPod {
        AgentPod { node: "n".into(), deleting, container }
    }

    #[test]
    fn a_claim_counts_only_while_the_named_instance_runs_on_the_node() {
        let running = |id: &str| Instance::Running(id.into());
        let crashed = || Instance::NotRunning("CrashLoopBackOff".into());
        for (container, seen, wrong) in [
            (Some("c1"), Some(seen(false, running("c1"))), None),
            (Some("c1"), None, Some(Absence::Gone)),
            (None, None, Some(Absence::Gone)),
            (Some("c1"), Some(seen(true, running("c1"))), Some(Absence::Deleting)),
            (Some("c1"), Some(seen(true, crashed())), Some(Absence::Deleting)),
            (Some("c1"), Some(seen(false, crashed())), Some(Absence::NotRunning("CrashLoopBackOff".into()))),
            (None, Some(seen(false, running("c1"))), Some(Absence::Unnamed)),
            (None, Some(seen(false, Instance::NotRunning("".into()))), Some(Absence::NotRunning("".into()))),
            (Some("c1"), Some(seen(false, running("c2"))), Some(Absence::Restarted)),
        ] {
            let doubt = named(container).doubt("n", seen.as_ref());
            assert_eq!(doubt.map(|doubt| doubt.why), wrong, "{container:?} {seen:?}");
        }
        let elsewhere = named(Some("c1")).doubt("m", Some(&seen(false, running("c1"))));
        assert_eq!(elsewhere.map(|doubt| doubt.why), Some(Absence::OtherNode("n".into())));
    }
}
