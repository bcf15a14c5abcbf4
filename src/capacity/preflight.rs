//! Whether a node can be steered, and what is missing. Owns the conditions; [`crate::k8s::preflight`] reads from objects
//! what they are decided by.

use std::fmt;

use super::gpu::{Accounting, Sharing};
use super::node::presence::Doubt;
use super::pod::PodName;
use super::steering::takeover::Takeover;

/// The first version of NVIDIA's device plugin that can register with another process than the kubelet.
const FIRST_PLUGIN: (u32, u32) = (0, 17);

/// What is known of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// How each of its GPU resources is shared and counted. Without any, the node has no GPU.
    pub pools: Vec<(Sharing, Accounting)>,
    /// Major and minor version of its kubelet; `None` if the node does not tell it.
    pub kubelet: Option<(u32, u32)>,
    /// Pods of NVIDIA's device plugin on the node.
    pub plugins: Vec<Plugin>,
    /// Pods of an agent on the node.
    pub agents: Vec<Agent>,
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

/// What a pod of an agent was told to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// Whether it steers.
    pub steers: bool,
    /// Whether it also takes over a device plugin that registers with the kubelet.
    pub takes_over: bool,
}

/// What a report says about steering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Whether the report is too old to count.
    pub stale: bool,
    /// Why the agent does not steer.
    pub not_steered: Option<String>,
    /// Why its claim to steer does not count; `None` if it does, or if there is none.
    pub doubt: Option<Doubt>,
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
    /// The same on a node whose kubelet, of this version, lets an agent take over the device plugin.
    AgentThatTakesOver((u32, u32)),
    /// The device plugin registers with an agent, and none runs on the node.
    AgentOfPlugin(PodName),
    /// The agent observes only.
    Steer,
    /// The same on a node whose kubelet, of this version, lets an agent take over the device plugin.
    SteerAndTakeOver((u32, u32)),
    /// The agent does not take over the device plugin, which registers with a kubelet of this version that would allow it.
    Takeover(PodName, (u32, u32)),
    /// The agent would take over the device plugin, which the kubelet does not allow.
    Kubelet(PodName, Takeover),
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
    /// The agent said that it steers, and no longer runs.
    Doubted(Doubt),
    /// All that can be seen from here is in place.
    NotYet,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Agent => write!(f, "no agent runs on it: apply deploy/agent-steering/"),
            Missing::AgentThatTakesOver((major, minor)) => write!(
                f,
                "no agent runs on it: apply deploy/agent-takeover/. Its kubelet v{major}.{minor} needs no change of the device \
                 plugin"
            ),
            Missing::Takeover(plugin, (major, minor)) => write!(
                f,
                "the device plugin {plugin} registers with the kubelet: apply deploy/agent-takeover/, which kubelet \
                 v{major}.{minor} allows, or set its KUBELET_SOCKET"
            ),
            Missing::Kubelet(plugin, why) => {
                write!(
                    f,
                    "the device plugin {plugin} registers with the kubelet, and its agent cannot take it over: {why}"
                )
            }
            Missing::AgentOfPlugin(plugin) => write!(
                f,
                "the device plugin {plugin} registers with an agent and none runs on the node, so it has no GPUs: apply \
                 deploy/agent-steering/, or unset the plugin's KUBELET_SOCKET"
            ),
            Missing::Steer => {
                write!(f, "its agent only observes: apply deploy/agent-steering/ in place of deploy/agent/")
            }
            Missing::SteerAndTakeOver((major, minor)) => write!(
                f,
                "its agent only observes: apply deploy/agent-takeover/ in place of deploy/agent/. Its kubelet \
                 v{major}.{minor} needs no change of the device plugin"
            ),
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
            Missing::Doubted(doubt) => {
                write!(f, "{doubt}: wait for the report of the agent that follows, or read its log")
            }
            Missing::NotYet => write!(f, "all is in place, and the agent has not reported yet that it steers"),
        }
    }
}

impl Candidate {
    /// Whether an agent that is told to may take over a device plugin.
    fn takeover(&self) -> Takeover {
        Takeover::of(self.kubelet)
    }

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
        let waits_for_agent = missing.iter().any(|missing| matches!(missing, Missing::AgentOfPlugin(_)));
        if !self.is_steering() && !waits_for_agent {
            let registers_with_kubelet = self.plugins.iter().any(|plugin| plugin.socket.is_none());
            missing.insert(
                0,
                match self.kubelet.filter(|_| self.takeover().is_allowed() && registers_with_kubelet) {
                    Some(version) if !self.agents.is_empty() => Missing::SteerAndTakeOver(version),
                    Some(version) => Missing::AgentThatTakesOver(version),
                    None if !self.agents.is_empty() => Missing::Steer,
                    None => Missing::Agent,
                },
            );
        }
        if missing.is_empty() {
            missing.push(match &self.report {
                None => Missing::Report,
                Some(report) if report.stale => Missing::Stale,
                Some(Reported { doubt: Some(doubt), .. }) => Missing::Doubted(doubt.clone()),
                Some(report) => report.not_steered.clone().map_or(Missing::NotYet, Missing::Reported),
            });
        }
        Some(Readiness::Missing(missing))
    }

    fn is_steering(&self) -> bool {
        self.agents.iter().any(|agent| agent.steers)
    }

    fn of_plugin(&self, plugin: &Plugin, socket: &str) -> Option<Missing> {
        let pod = plugin.pod.clone();
        if let (None, Some(kubelet), true) = (&plugin.socket, self.kubelet, self.takeover().is_allowed()) {
            // A plugin of any version can be taken over. Without a steering agent, that alone is missing.
            let steers_only = self.is_steering() && !self.agents.iter().any(|agent| agent.takes_over);
            return steers_only.then_some(Missing::Takeover(pod, kubelet));
        }
        match (plugin.version, &plugin.socket) {
            (Some(version), _) if version < FIRST_PLUGIN => Some(Missing::Version(pod, version)),
            (_, None) if self.agents.iter().any(|agent| agent.takes_over) => {
                Some(Missing::Kubelet(pod, self.takeover()))
            }
            (_, None) => Some(Missing::Variable(pod)),
            (_, Some(its)) if its != socket => Some(Missing::OtherSocket(pod, its.clone())),
            (_, Some(_)) => (!self.is_steering()).then_some(Missing::AgentOfPlugin(pod)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::node::presence::Absence;

    const STEERS: Agent = Agent { steers: true, takes_over: false };
    const TAKES_OVER: Agent = Agent { steers: true, takes_over: true };
    const OBSERVES: Agent = Agent { steers: false, takes_over: false };
    const SOCKET: &str = "/var/lib/kubelet/device-plugins/vramguard.sock";

    fn name() -> PodName {
        PodName { namespace: "gpu".into(), name: "plugin".into() }
    }

    /// A node on which all is in place.
    fn ready() -> Candidate {
        Candidate {
            pools: vec![(Sharing::TimeSlicing, Accounting::Slot)],
            plugins: vec![Plugin { pod: name(), version: Some((0, 18)), socket: Some(SOCKET.to_owned()) }],
            agents: vec![STEERS],
            kubelet: Some((1, 36)),
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
        assert_eq!(missing(|node| node.agents = vec![OBSERVES]), [Missing::AgentOfPlugin(name())]);
        let unset = |agents: Vec<Agent>| {
            missing(|node| {
                node.agents = agents;
                node.plugins[0].socket = None;
            })
        };
        assert_eq!(unset(Vec::new()), [Missing::Agent, Missing::Variable(name())]);
        assert_eq!(unset(vec![OBSERVES]), [Missing::Steer, Missing::Variable(name())]);
        assert_eq!(unset(vec![STEERS]), [Missing::Variable(name())]);
        assert_eq!(missing(|node| node.plugins.clear()), [Missing::Plugin]);
        assert_eq!(plugin(|plugin| plugin.version = Some((0, 16))), [Missing::Version(name(), (0, 16))]);
        let other = || "/elsewhere.sock".to_owned();
        assert_eq!(plugin(|plugin| plugin.socket = Some(other())), [Missing::OtherSocket(name(), other())]);
        assert_eq!(missing(|node| node.report = None), [Missing::Report]);
        let report = |stale, why: Option<&str>| {
            Some(Reported { stale, not_steered: why.map(str::to_owned), ..Reported::default() })
        };
        assert_eq!(missing(|node| node.report = report(true, None)), [Missing::Stale]);
        assert_eq!(missing(|node| node.report = report(false, Some("why"))), [Missing::Reported("why".to_owned())]);
        let doubt = Doubt { pod: name(), why: Absence::Deleting };
        let doubted = |node: &mut Candidate| node.report.as_mut().expect("a report").doubt = Some(doubt.clone());
        assert_eq!(missing(doubted), [Missing::Doubted(doubt.clone())]);
        assert_eq!(missing(|_| {}), [Missing::NotYet]);
        assert_eq!(plugin(|plugin| plugin.version = None), [Missing::NotYet], "a digest tells no version");
    }

    #[test]
    fn a_device_plugin_that_registers_with_the_kubelet_can_be_taken_over_from_kubelet_1_37_on() {
        let unset = |kubelet, agents: &[Agent], version| {
            missing(|node| {
                (node.kubelet, node.agents) = (kubelet, agents.to_vec());
                (node.plugins[0].socket, node.plugins[0].version) = (None, Some(version));
            })
        };
        let (old, new, plugin) = (Some((1, 36)), Some((1, 37)), (0, 18));
        assert_eq!(unset(new, &[TAKES_OVER], plugin), [Missing::NotYet], "nothing of the plugin is missing");
        assert_eq!(unset(new, &[TAKES_OVER], (0, 14)), [Missing::NotYet], "its version does not matter");
        assert_eq!(unset(new, &[STEERS], plugin), [Missing::Takeover(name(), (1, 37))]);
        assert_eq!(unset(new, &[], plugin), [Missing::AgentThatTakesOver((1, 37))]);
        assert_eq!(unset(new, &[OBSERVES], plugin), [Missing::SteerAndTakeOver((1, 37))]);
        assert_eq!(unset(old, &[OBSERVES], plugin), [Missing::Steer, Missing::Variable(name())]);
        assert_eq!(unset(old, &[TAKES_OVER], plugin), [Missing::Kubelet(name(), Takeover::TooOld((1, 36)))]);
        assert_eq!(unset(None, &[TAKES_OVER], plugin), [Missing::Kubelet(name(), Takeover::VersionUnknown)]);
        assert_eq!(unset(old, &[TAKES_OVER], (0, 14)), [Missing::Version(name(), (0, 14))]);
        assert_eq!(unset(old, &[], plugin), [Missing::Agent, Missing::Variable(name())]);
        // A plugin with the variable needs no takeover.
        assert_eq!(missing(|node| node.agents = vec![TAKES_OVER]), [Missing::NotYet]);
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
