//! What `vramguard recommend` says of one container. Owns the wording; [`crate::capacity::recommend`] decides what applies.

use std::fmt;
use std::time::Duration;

use super::count;
use super::observation::hours;
use crate::capacity::name::Name;
use crate::capacity::vram::Vram;

/// What to do with the declaration of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recommendation {
    /// Its declaration does not cover what it uses.
    Raise(Vram),
    /// Its declaration is much larger than what it uses.
    Lower(Vram),
    /// Its declaration fits.
    Keep,
    /// It declares nothing.
    Declare(Vram),
    /// Too little was seen of it.
    NotEnoughData(Missing),
}

impl Recommendation {
    /// The name in tables and in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Recommendation::Raise(_) => "raise",
            Recommendation::Lower(_) => "lower",
            Recommendation::Keep => "keep",
            Recommendation::Declare(_) => "declare",
            Recommendation::NotEnoughData(_) => "not enough data",
        }
    }

    /// The amount to declare, in MiB; `None` if there is nothing to change, or too little is known.
    pub fn write(&self) -> Option<Vram> {
        match self {
            Recommendation::Raise(write) | Recommendation::Lower(write) | Recommendation::Declare(write) => {
                Some(*write)
            }
            Recommendation::Keep | Recommendation::NotEnoughData(_) => None,
        }
    }
}

/// Why too little is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No pod of the workload is on a node.
    Pods,
    /// No node agent has reported on the nodes of its pods.
    Agent {
        /// The nodes.
        nodes: Vec<Name>,
    },
    /// The node agents of its pods read a source that does not tell processes.
    Processes {
        /// The nodes.
        nodes: Vec<Name>,
    },
    /// The node agents have not seen it use a GPU.
    Use,
    /// It was seen for too short a time.
    Time {
        /// For how long it was seen.
        seen: Duration,
        /// For how long it should be seen.
        of: Duration,
    },
    /// It was not seen to compute.
    Load,
}

/// Nodes that are named; the others are counted.
const NAMED: usize = 3;

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Pods => f.write_str("none of its pods runs"),
            Missing::Agent { nodes } => write!(f, "no node agent reports on {}", named(nodes)),
            Missing::Processes { nodes } => write!(
                f,
                "a DCGM exporter, which the node agent reads on {}, does not tell what a pod uses",
                named(nodes)
            ),
            Missing::Use => f.write_str("it was not seen on a GPU"),
            Missing::Time { seen, of } => write!(f, "seen for {} of {}", hours(*seen), hours(*of)),
            Missing::Load => f.write_str("it was not seen to compute, so its peak may be that of an idle container"),
        }
    }
}

fn named(nodes: &[Name]) -> String {
    let named: Vec<&str> = nodes.iter().take(NAMED).map(Name::as_str).collect();
    match nodes.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {}", named.join(", "), count(more, "other node")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_its_numbers() {
        let hour = |hours: u64| Duration::from_secs(3600 * hours);
        assert_eq!(Missing::Time { seen: hour(3), of: hour(24) }.to_string(), "seen for 3 hours of 24 hours");
        let nodes = |count: usize| Missing::Agent { nodes: (0..count).map(|n| format!("gpu-{n}").into()).collect() };
        assert_eq!(nodes(1).to_string(), "no node agent reports on gpu-0");
        assert_eq!(nodes(5).to_string(), "no node agent reports on gpu-0, gpu-1, gpu-2 and 2 other nodes");
        let blind = Missing::Processes { nodes: vec!["gpu-0".into()] };
        assert_eq!(
            blind.to_string(),
            "a DCGM exporter, which the node agent reads on gpu-0, does not tell what a pod uses"
        );
    }
}
