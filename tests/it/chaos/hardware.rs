//! Owns the GPUs of a test node, read from its labels. Only this is common to the stand-in for the node agent and the checker.
//!
//! The test's own labels hold how a node allocates its GPUs, and the size of each.

use std::collections::BTreeMap;

/// Label with the name of an [`AllocationPolicy`].
pub(super) const HANDOUT: &str = "chaos.test/handout";
/// Label with the MiB of each GPU, separated by dots. Without it, the labels of GPU Feature Discovery apply.
pub(super) const SIZES: &str = "chaos.test/sizes";

/// How the device plugin of a node chooses the GPU of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AllocationPolicy {
    /// The node has one GPU.
    Single,
    /// The rule is unknown.
    Unverified,
    /// The GPU with the fewest taken replicas.
    Distributed,
    /// The GPU with the most taken replicas that has a free one.
    Packed,
    /// The GPU in the annotation: the node agent steers the device plugin.
    Steered,
}

impl AllocationPolicy {
    pub(super) const ALL: [AllocationPolicy; 5] = [
        AllocationPolicy::Single,
        AllocationPolicy::Unverified,
        AllocationPolicy::Distributed,
        AllocationPolicy::Packed,
        AllocationPolicy::Steered,
    ];

    /// Name in the label and in the node agent's report.
    pub(super) fn name(self) -> &'static str {
        match self {
            AllocationPolicy::Single => "Single",
            AllocationPolicy::Unverified => "Unverified",
            AllocationPolicy::Distributed => "Distributed",
            AllocationPolicy::Packed => "Packed",
            AllocationPolicy::Steered => "Steered",
        }
    }
}

/// The GPUs of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hardware {
    pub allocation_policy: AllocationPolicy,
    /// MiB of each GPU.
    pub sizes: Vec<u64>,
    /// Replicas of each GPU.
    pub replicas: u64,
}

impl Hardware {
    /// The GPUs in the labels of a node, if it is a node of the test.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> Option<Hardware> {
        let allocation_policy = labels.get(HANDOUT)?;
        let allocation_policy = AllocationPolicy::ALL
            .into_iter()
            .find(|known| known.name() == allocation_policy)
            .expect("one of the names");
        let number = |label: &str| labels[label].parse::<u64>().expect("the labels of a test are numbers");
        let sizes = match labels.get(SIZES) {
            Some(sizes) => sizes.split('.').map(|size| size.parse().expect("a number of MiB")).collect(),
            None => (0..number("nvidia.com/gpu.count")).map(|_| number("nvidia.com/gpu.memory")).collect(),
        };
        Some(Hardware { allocation_policy, sizes, replicas: number("nvidia.com/gpu.replicas") })
    }
}

/// UUID of a GPU.
pub(super) fn uuid(node: &str, index: usize) -> String {
    let hash = node.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("GPU-{hash:08x}-0000-4000-8000-{index:012x}")
}
