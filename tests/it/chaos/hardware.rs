//! What a test node is made of, as its labels say: the one thing on which the stand-in for the node agent and the checker
//! agree. Labels of the test's own tell how a node hands out its GPUs and how large each is.

use std::collections::BTreeMap;

/// Label: a [`Handout`] by its name.
pub const HANDOUT: &str = "chaos.test/handout";
/// Label: MiB of each GPU, in order, with dots between; where it is missing, GPU Feature Discovery's labels hold.
pub const SIZES: &str = "chaos.test/sizes";

/// How containers come to their GPU on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Handout {
    /// There is one GPU.
    Single,
    /// As the device plugin likes, and nobody says how.
    Unverified,
    /// From the GPU with the fewest replicas taken.
    Distributed,
    /// From the GPU with the most replicas taken that has one left.
    Packed,
    /// By the annotation.
    Pinned,
}

impl Handout {
    pub const ALL: [Handout; 5] =
        [Handout::Single, Handout::Unverified, Handout::Distributed, Handout::Packed, Handout::Pinned];

    /// As the label says it, and the node agent's report.
    pub fn name(self) -> &'static str {
        match self {
            Handout::Single => "Single",
            Handout::Unverified => "Unverified",
            Handout::Distributed => "Distributed",
            Handout::Packed => "Packed",
            Handout::Pinned => "Pinned",
        }
    }
}

/// The GPUs of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    pub handout: Handout,
    /// MiB of each.
    pub sizes: Vec<u64>,
    /// Of each.
    pub replicas: u64,
}

impl Hardware {
    /// `None` for a node that is none of the test's.
    pub fn of(labels: &BTreeMap<String, String>) -> Option<Hardware> {
        let handout = labels.get(HANDOUT)?;
        let handout = Handout::ALL.into_iter().find(|known| known.name() == handout).expect("one of the names");
        let number = |label: &str| labels[label].parse::<u64>().expect("the labels of a test are numbers");
        let sizes = match labels.get(SIZES) {
            Some(sizes) => sizes.split('.').map(|size| size.parse().expect("a number of MiB")).collect(),
            None => (0..number("nvidia.com/gpu.count")).map(|_| number("nvidia.com/gpu.memory")).collect(),
        };
        Some(Hardware { handout, sizes, replicas: number("nvidia.com/gpu.replicas") })
    }
}

/// The UUID of a GPU.
pub fn uuid(node: &str, index: usize) -> String {
    let hash = node.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("GPU-{hash:08x}-0000-4000-8000-{index:012x}")
}
