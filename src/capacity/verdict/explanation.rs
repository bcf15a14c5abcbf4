//! What `vramguard explain` says about the containers of a pod and about nodes. Owns these sentences; the facts are
//! found by [`crate::capacity::admission`] and [`crate::capacity::candidates`].

use std::fmt;

use super::{count, cut, quoted};
use crate::capacity::gpu::Resource;
use crate::capacity::node::presence::Doubt;
use crate::capacity::pod::placement::{KeptOff, Operator, Requirement, UNSCHEDULABLE};
use crate::capacity::pod::{Declarations, PodName};
use crate::capacity::policy::Mode;
use crate::capacity::vram::Vram;
use crate::keys;

/// The note that an explanation knows no nodes.
pub const NO_CLUSTER: &str = "no cluster was given: GPU resources count as shared, and no node is asked; --snapshot FILE \
                              gives one (kubectl get nodes,pods,gpuledgers -A -o yaml)";

/// The note that no policy document was given.
pub const NO_POLICY: &str = "no policy document was given, so the defaults are in force, and nothing is enforced; \
                             --policies DIR reads some";

/// Why a node without any GPU takes no pod. It continues a sentence that begins with the nodes.
pub const NO_GPU_AT_ALL: &str = "had no GPU";

/// The note that the pod that is asked about is one of the cluster's.
pub fn exists_already(pod: &PodName) -> String {
    format!(
        "pod {pod} is in the cluster already: it is left out there, so that it does not count twice, and explained as if it \
         were created now"
    )
}

/// The note that the pod declares memory for another tool.
pub fn not_for_us(container: Option<&str>, key: &str, text: &str, tool: &str) -> String {
    let whose = container.map_or_else(String::new, |container| format!("container {container:?}: "));
    format!(
        "{whose}{key}: {} is for {tool} and does not count here; `vramguard convert` writes the declaration that does",
        quoted(text)
    )
}

/// The note that pods hold memory by records of HAMi, which an explanation does not read.
pub fn hami_not_read(pods: usize) -> String {
    format!(
        "HAMi allocated GPU memory to {} of this cluster: here they count as pods without a declaration, and HAMi's own \
         record of GPUs and amounts is not read; `vramguard audit` reads it",
        count(pods, "pod")
    )
}

/// The note that a node counts as one whose agent does not steer, although its agent last said that it does.
pub fn not_steered(node: &str, doubt: &Doubt) -> String {
    format!("node {node} is not steered: {doubt}")
}

/// The note that so many further nodes are not steered for such a reason.
pub fn more_not_steered(nodes: usize) -> String {
    format!("not steered for such a reason either: {}, which vramguard preflight names", count(nodes, "more node"))
}

/// The note that a pod is not held back under modes Audit and Off.
pub fn not_held_back(mode: Mode) -> String {
    format!(
        "under mode {mode} nothing is injected and nothing is refused; the answers about nodes hold once the mode is Enforce"
    )
}

/// Whether a container counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counts {
    /// It requests one replica of a guarded resource, so its demand counts.
    Guarded(Resource),
    /// It requests several of a guarded resource, which must be whole GPUs.
    Several(Resource, u64),
    /// It requests a GPU resource that is not guarded: each GPU goes to one container, or no node is known to share it.
    Unguarded(Resource),
    /// It requests no GPU.
    WithoutGpu,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Counts::Guarded(resource) => write!(f, "requests 1 {resource}, whose GPUs are shared"),
            Counts::Several(resource, count) => {
                write!(f, "requests {count} {resource}: whole GPUs, on nodes that do not share them")
            }
            Counts::Unguarded(resource) => write!(f, "requests {resource}, and no node is known to share its GPUs"),
            Counts::WithoutGpu => f.write_str("requests no GPU"),
        }
    }
}

/// Where a declared amount comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `vramguard.dev/vram.<container>`.
    Container,
    /// `vramguard.dev/vram`.
    Pod,
    /// `vramguard.dev/model`, and the policy's catalogue.
    Model,
    /// KAI's annotations.
    Foreign,
    /// `declaration.default` of the policy.
    Default,
}

/// Where a declared amount is written, in words.
pub fn source(source: Source, container: &str, declarations: &Declarations) -> String {
    match source {
        Source::Container => format!("annotation {}{}", keys::VRAM_OF, cut(container)),
        Source::Pod => format!("annotation {}", keys::VRAM),
        Source::Model => {
            let name = declarations.model.as_deref().unwrap_or_default();
            format!("annotation {}: {}, from the policy's models", keys::MODEL, quoted(name))
        }
        Source::Foreign => {
            let written = declarations.foreign.get(container).into_iter().flatten();
            let keys: Vec<&str> = written.map(|written| cut(&written.key)).collect();
            format!("annotation {}", keys.join(" and "))
        }
        Source::Default => "declaration.default of the policy".to_owned(),
    }
}

/// Why a node can never take a pod as both are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsuitable<'a> {
    /// The pod may not be placed there.
    KeptOff(KeptOff<'a>),
    /// No GPU there is large enough for it, even when empty.
    TooSmall {
        /// Demand of the pod, in MiB.
        demand: Vram,
        /// The largest demand of one pod that the node takes, in MiB.
        most: Vram,
    },
}

impl Unsuitable<'_> {
    /// The reason without what differs from node to node. It continues a sentence that begins with a number of nodes.
    pub fn countable(&self) -> String {
        match self {
            Unsuitable::KeptOff(KeptOff::NodeName(node)) => {
                format!("node(s) were not {}, which spec.nodeName names", quoted(node))
            }
            Unsuitable::KeptOff(KeptOff::Selector { key, value }) => {
                format!(
                    "node(s) lacked the label {}, which the nodeSelector requires",
                    quoted(&format!("{key}: {value}"))
                )
            }
            Unsuitable::KeptOff(KeptOff::Affinity) => {
                "node(s) matched no term of the required node affinity".to_owned()
            }
            Unsuitable::KeptOff(KeptOff::Taint(taint)) if taint.key == UNSCHEDULABLE => {
                "node(s) were cordoned (unschedulable)".to_owned()
            }
            Unsuitable::KeptOff(KeptOff::Taint(taint)) => {
                format!(
                    "node(s) had the taint {}, which the pod does not tolerate",
                    quoted(&format!("{}:{}", taint.key, taint.effect))
                )
            }
            Unsuitable::TooSmall { demand, .. } => {
                format!("node(s) give less than {demand} to one pod, even when empty")
            }
        }
    }
}

/// The message for one node. It continues a sentence that begins with `node "name"`.
impl fmt::Display for Unsuitable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsuitable::KeptOff(KeptOff::NodeName(node)) => {
                write!(f, "is not {}, which spec.nodeName names", quoted(node))
            }
            Unsuitable::KeptOff(KeptOff::Selector { key, value }) => {
                write!(f, "lacks the label {}, which the nodeSelector requires", quoted(&format!("{key}: {value}")))
            }
            Unsuitable::KeptOff(KeptOff::Affinity) => f.write_str("matches no term of the required node affinity"),
            Unsuitable::KeptOff(KeptOff::Taint(taint)) if taint.key == UNSCHEDULABLE => {
                f.write_str("is cordoned (unschedulable)")
            }
            Unsuitable::KeptOff(KeptOff::Taint(taint)) => {
                let taint = quoted(&format!("{}={}:{}", taint.key, taint.value, taint.effect));
                write!(f, "has the taint {taint}, which the pod does not tolerate")
            }
            Unsuitable::TooSmall { demand, most } => {
                write!(f, "gives at most {most} to one pod, even when empty, and {demand} is demanded")
            }
        }
    }
}

/// A requirement on a label, in words: `the label x is absent`.
pub fn requirement(requirement: &Requirement) -> String {
    let Requirement { key, operator, values } = requirement;
    let (label, values) = (format!("the label {key}"), values.join(", "));
    match operator {
        Operator::In => format!("{label} is one of {values}"),
        Operator::NotIn => format!("{label} is none of {values}"),
        Operator::Exists => format!("{label} is present"),
        Operator::DoesNotExist => format!("{label} is absent"),
        Operator::Gt => format!("{label} is above {values}"),
        Operator::Lt => format!("{label} is below {values}"),
        Operator::Unrecognised => format!("{label} is compared in an unknown way with {values}"),
    }
}
