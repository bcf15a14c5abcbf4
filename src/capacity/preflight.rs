//! Whether a node can be steered, and what is missing. Owns the conditions; [`crate::k8s::preflight`] reads from objects
//! what they are decided by.

use std::fmt;

use super::gpu::{Accounting, Sharing};
use super::pod::PodName;

/// The first version of NVIDIA's device plugin that can register with another process than the kubelet.
const FIRST_PLUGIN: (u32, u32) = (0, 17);

/// What is known of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// How each of its GPU resources is shared and counted. Without any, the node has no GPU.
    pub pools: Vec<(Sharing, Accounting)>,
    /// Pods of NVIDIA's device plugin on the node.
    pub plugins: Vec<Plugin>,
    /// Whether each pod of an agent on the node was told to steer.
    pub agents: Vec<bool>,
    /// The report of its agent; `None` if there is none.
    pub report: Option<Reported>,
}

/// A pod of NVIDIA's device plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Namespace and name.
    pub pod: PodName,
    /// Major and minor version, from the tag of its image; `None` if the tag is no version.
    pub version: Option<(u32, u32)>,
    /// Where it registers; `None` if that is not set, and it registers with the kubelet.
    pub socket: Option<String>,
}

/// What a report says about steering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Whether the report is too old to count.
    pub stale: bool,
    /// Why the agent does not steer.
    pub not_steered: Option<String>,
}

/// Whether a node is steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is.
    Steered,
    /// There is no GPU to choose, for this reason.
    NotNeeded(&'static str),
    /// It is not, because of this.
    Missing(Vec<Missing>),
}

/// A condition of steering that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No agent runs on the node.
    Agent,
    /// The device plugin registers with an agent, and none runs on the node.
    AgentOfPlugin(PodName),
    /// The agent observes only.
    Steer,
    /// No pod of NVIDIA's device plugin runs on the node.
    Plugin,
    /// The device plugin is too old.
    Version(PodName, (u32, u32)),
    /// The device plugin registers with the kubelet.
    Variable(PodName),
    /// The device plugin registers elsewhere.
    OtherSocket(PodName, String),
    /// The agent has written no report.
    Report,
    /// The report of the agent is too old.
    Stale,
    /// The agent says why.
    Reported(String),
    /// All that can be seen from here is in place.
    NotYet,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Agent => write!(f, "no agent runs on it: apply deploy/agent-steering/"),
            Missing::AgentOfPlugin(plugin) => write!(
                f,
                "the device plugin {plugin} registers with an agent and none runs on the node, so it has no GPUs: apply \
                 deploy/agent-steering/, or unset the plugin's KUBELET_SOCKET"
            ),
            Missing::Steer => {
                write!(f, "its agent only observes: apply deploy/agent-steering/ in place of deploy/agent/")
            }
            Missing::Plugin => write!(
                f,
                "no pod of NVIDIA's device plugin runs on it. Plugins of other vendors and of managed services cannot be \
                 steered"
            ),
            Missing::Version(plugin, (major, minor)) => write!(
                f,
                "the device plugin {plugin} is v{major}.{minor}, and v{}.{} or newer is needed",
                FIRST_PLUGIN.0, FIRST_PLUGIN.1
            ),
            Missing::Variable(plugin) => {
                write!(
                    f,
                    "the device plugin {plugin} registers with the kubelet: set its KUBELET_SOCKET, after the agent runs"
                )
            }
            Missing::OtherSocket(plugin, socket) => {
                write!(f, "the device plugin {plugin} registers at {socket:?}, which is not the socket of the agent")
            }
            Missing::Report => write!(f, "its agent has not reported: read its log"),
            Missing::Stale => write!(f, "the last report of its agent is older than ten minutes: read its log"),
            Missing::Reported(why) => write!(f, "its agent says: {why}"),
            Missing::NotYet => write!(f, "all is in place, and the agent has not reported yet that it steers"),
        }
    }
}

impl Candidate {
    /// Decides; `socket` is the path at which device plugins find the agent. `None` for a node without GPUs.
    pub fn readiness(&self, socket: &str) -> Option<Readiness> {
        let not_needed = |(sharing, accounting): &(Sharing, Accounting)| match (sharing, accounting) {
            (Sharing::Mps, _) => Some("MPS limits each pod to its share of a GPU"),
            (_, Accounting::Exact) => Some("one GPU"),
            (_, Accounting::Exclusive) => Some("GPUs are not shared"),
            (_, Accounting::Steered | Accounting::Confirmed | Accounting::Slot | Accounting::Unknown) => None,
        };
        let to_choose: Vec<_> = self.pools.iter().filter(|pool| not_needed(pool).is_none()).collect();
        if to_choose.is_empty() {
            return self.pools.first().and_then(not_needed).map(Readiness::NotNeeded);
        }
        if to_choose.iter().all(|(_, accounting)| *accounting == Accounting::Steered) {
            return Some(Readiness::Steered);
        }
        let mut missing: Vec<Missing> =
            self.plugins.iter().filter_map(|plugin| self.of_plugin(plugin, socket)).collect();
        if self.plugins.is_empty() {
            missing.push(Missing::Plugin);
        }
        let steers = self.agents.contains(&true);
        if !steers && !missing.iter().any(|missing| matches!(missing, Missing::AgentOfPlugin(_))) {
            missing.insert(0, if self.agents.is_empty() { Missing::Agent } else { Missing::Steer });
        }
        if missing.is_empty() {
            missing.push(match &self.report {
                None => Missing::Report,
                Some(report) if report.stale => Missing::Stale,
                Some(report) => report.not_steered.clone().map_or(Missing::NotYet, Missing::Reported),
            });
        }
        Some(Readiness::Missing(missing))
    }

    fn of_plugin(&self, plugin: &Plugin, socket: &str) -> Option<Missing> {
        let pod = plugin.pod.clone();
        match (plugin.version, &plugin.socket) {
            (Some(version), _) if version < FIRST_PLUGIN => Some(Missing::Version(pod, version)),
            (_, None) => Some(Missing::Variable(pod)),
            (_, Some(its)) if its != socket => Some(Missing::OtherSocket(pod, its.clone())),
            (_, Some(_)) => (!self.agents.contains(&true)).then_some(Missing::AgentOfPlugin(pod)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/var/lib/kubelet/device-plugins/vramguard.sock";

    fn name() -> PodName {
        PodName { namespace: "gpu".into(), name: "plugin".into() }
    }

    /// A node on which all is in place.
    fn ready() -> Candidate {
        Candidate {
            pools: vec![(Sharing::TimeSlicing, Accounting::Slot)],
            plugins: vec![Plugin { pod: name(), version: Some((0, 18)), socket: Some(SOCKET.to_owned()) }],
            agents: vec![true],
            report: Some(Reported::default()),
        }
    }

    fn missing(change: impl FnOnce(&mut Candidate)) -> Vec<Missing> {
        let mut candidate = ready();
        change(&mut candidate);
        match candidate.readiness(SOCKET) {
            Some(Readiness::Missing(missing)) => missing,
            other => panic!("{other:?}"),
        }
    }

    fn plugin(change: impl FnOnce(&mut Plugin)) -> Vec<Missing> {
        missing(|node| change(&mut node.plugins[0]))
    }

    #[test]
    fn each_condition_that_does_not_hold_is_named() {
        assert_eq!(missing(|node| node.agents = vec![false]), [Missing::AgentOfPlugin(name())]);
        let unset = |agents: Vec<bool>| {
            missing(|node| {
                node.agents = agents;
                node.plugins[0].socket = None;
            })
        };
        assert_eq!(unset(Vec::new()), [Missing::Agent, Missing::Variable(name())]);
        assert_eq!(unset(vec![false]), [Missing::Steer, Missing::Variable(name())]);
        assert_eq!(unset(vec![true]), [Missing::Variable(name())]);
        assert_eq!(missing(|node| node.plugins.clear()), [Missing::Plugin]);
        assert_eq!(plugin(|plugin| plugin.version = Some((0, 16))), [Missing::Version(name(), (0, 16))]);
        let other = || "/elsewhere.sock".to_owned();
        assert_eq!(plugin(|plugin| plugin.socket = Some(other())), [Missing::OtherSocket(name(), other())]);
        assert_eq!(missing(|node| node.report = None), [Missing::Report]);
        let report = |stale, why: Option<&str>| Some(Reported { stale, not_steered: why.map(str::to_owned) });
        assert_eq!(missing(|node| node.report = report(true, None)), [Missing::Stale]);
        assert_eq!(missing(|node| node.report = report(false, Some("why"))), [Missing::Reported("why".to_owned())]);
        assert_eq!(missing(|_| {}), [Missing::NotYet]);
        assert_eq!(plugin(|plugin| plugin.version = None), [Missing::NotYet], "a digest tells no version");
    }

    #[test]
    fn only_a_node_with_several_shared_gpus_needs_steering() {
        let readiness = |pools: &[(Sharing, Accounting)]| {
            Candidate { pools: pools.to_vec(), ..Candidate::default() }.readiness(SOCKET)
        };
        let shared = |accounting| (Sharing::TimeSlicing, accounting);
        assert_eq!(readiness(&[]), None);
        assert_eq!(readiness(&[shared(Accounting::Steered)]), Some(Readiness::Steered));
        assert_eq!(readiness(&[shared(Accounting::Exact)]), Some(Readiness::NotNeeded("one GPU")));
        assert!(matches!(readiness(&[(Sharing::Mps, Accounting::Slot)]), Some(Readiness::NotNeeded(_))));
        assert!(matches!(readiness(&[(Sharing::Exclusive, Accounting::Exclusive)]), Some(Readiness::NotNeeded(_))));
        let both = [shared(Accounting::Steered), shared(Accounting::Slot)];
        assert!(matches!(readiness(&both), Some(Readiness::Missing(_))));
    }
}
