//! A pod that no node can ever take. Owns [`NeverFits`], the remedies, the explanation of a demand and their messages;
//! [`crate::capacity::cluster`] finds out whether a pod never fits.

use std::fmt;

use crate::capacity::gpu::Resource;
use crate::capacity::vram::Vram;
use crate::keys;

/// The parts that add up to a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeOf {
    /// The sum of the declared amounts of the pod's GPU containers, in MiB.
    pub declared: Vram,
    /// What the policy adds for the CUDA contexts of all processes, in MiB.
    pub overhead: Vram,
    /// The number of CUDA processes in all its GPU containers.
    pub processes: u32,
}

impl fmt::Display for MadeOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processes = usize::try_from(self.processes).unwrap_or(usize::MAX);
        write!(f, "{} declared + {} for {}", self.declared, self.overhead, count_of(processes))
    }
}

fn count_of(processes: usize) -> String {
    if processes == 1 { "1 process".to_owned() } else { format!("{processes} processes") }
}

/// A demand that no node could take, even when empty, of the nodes that the pod may land on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeverFits {
    /// The pod's demand, in MiB.
    pub demand: Vram,
    /// The GPU resource that it requests.
    pub resource: Resource,
    /// The parts of the demand; `None` if they are not known.
    pub made_of: Option<MadeOf>,
    /// The node that takes the largest demand.
    pub largest: LargestNode,
    /// What to change so that the pod fits.
    pub remedy: Remedy,
}

/// Of the nodes that a pod may land on, the one that takes the largest demand when it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargestNode {
    /// Name of the node.
    pub node: String,
    /// The largest demand of one pod that it takes when it is empty, in MiB.
    pub most: Vram,
}

/// A change with which a pod fits that never fits now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The device plugin should make fewer replicas: a whole GPU of the node holds the demand, but one slot does not.
    FewerReplicas {
        /// Name of the node.
        node: String,
        /// The number of replicas of each of its GPUs now.
        replicas: u32,
        /// The largest number of replicas with which a slot holds the demand; at 1 the GPUs are not shared.
        fits: u32,
        /// The size of a slot with that number of replicas, in MiB.
        slot: Vram,
    },
    /// The pod needs a larger GPU: even with fewer replicas, no node has a GPU that holds the demand.
    LargerGpu {
        /// The node whose smallest GPU is the largest.
        node: String,
        /// Allocatable of the smallest GPU of that node, in MiB.
        gpu: Vram,
    },
}

impl Remedy {
    /// The rank of this remedy; the highest rank is the smallest change.
    ///
    /// A remedy that leaves more replicas ranks higher, then one with a larger slot or GPU.
    pub fn rank(&self) -> (u32, Vram) {
        match self {
            Remedy::FewerReplicas { fits, slot, .. } => (*fits, *slot),
            Remedy::LargerGpu { gpu, .. } => (0, *gpu),
        }
    }
}

impl fmt::Display for NeverFits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NeverFits { demand, resource, made_of, largest: LargestNode { node, most }, remedy } = self;
        write!(f, "{demand} demanded")?;
        if let Some(made_of) = made_of {
            write!(f, " ({made_of})")?;
        }
        write!(
            f,
            ", but of the nodes that the pod may land on none takes more than {most} for one pod behind {resource}, even when empty \
             ({node:?}); {remedy}"
        )
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::FewerReplicas { node, replicas, fits: 1, slot } => write!(
                f,
                "a whole GPU of node {node:?} would hold it ({slot}): share none of its GPUs (replicas is {replicas} there), or \
                 lower {}",
                keys::VRAM
            ),
            Remedy::FewerReplicas { node, replicas, fits, slot } => write!(
                f,
                "with replicas: {fits} in place of {replicas} in the device plugin's configuration, node {node:?} would take {slot}; \
                 set that, or lower {}",
                keys::VRAM
            ),
            Remedy::LargerGpu { node, gpu } => write!(
                f,
                "the largest GPU, of node {node:?}, can be promised {gpu} in all: add a node with a larger one, or lower {}",
                keys::VRAM
            ),
        }
    }
}

/// The note of the event on a pod that never fits.
pub fn never_fits(never: &NeverFits) -> String {
    format!("fits no node as the cluster is: {never}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never(demand: u64, most: u64, remedy: Remedy) -> NeverFits {
        let mib = Vram::from_mib;
        let made_of = Some(MadeOf { declared: mib(demand - 720), overhead: mib(720), processes: 1 });
        let largest = LargestNode { node: "h0".into(), most: mib(most) };
        NeverFits { demand: mib(demand), resource: Resource("nvidia.com/gpu".into()), made_of, largest, remedy }
    }

    #[test]
    fn a_pod_that_never_fits_is_told_what_would_help() {
        let fewer =
            |fits, slot| Remedy::FewerReplicas { node: "h0".into(), replicas: 4, fits, slot: Vram::from_mib(slot) };
        insta::assert_snapshot!(never_fits(&never(31_440, 20_185, fewer(2, 40_371))), @r#"fits no node as the cluster is: 31440Mi demanded (30Gi declared + 720Mi for 1 process), but of the nodes that the pod may land on none takes more than 20185Mi for one pod behind nvidia.com/gpu, even when empty ("h0"); with replicas: 2 in place of 4 in the device plugin's configuration, node "h0" would take 40371Mi; set that, or lower vramguard.dev/vram"#);
        insta::assert_snapshot!(never(51_920, 20_185, fewer(1, 80_743)), @r#"51920Mi demanded (50Gi declared + 720Mi for 1 process), but of the nodes that the pod may land on none takes more than 20185Mi for one pod behind nvidia.com/gpu, even when empty ("h0"); a whole GPU of node "h0" would hold it (80743Mi): share none of its GPUs (replicas is 4 there), or lower vramguard.dev/vram"#);
        let larger = Remedy::LargerGpu { node: "h0".into(), gpu: Vram::from_mib(80_743) };
        insta::assert_snapshot!(never(103_120, 20_185, larger), @r#"103120Mi demanded (100Gi declared + 720Mi for 1 process), but of the nodes that the pod may land on none takes more than 20185Mi for one pod behind nvidia.com/gpu, even when empty ("h0"); the largest GPU, of node "h0", can be promised 80743Mi in all: add a node with a larger one, or lower vramguard.dev/vram"#);
    }

    #[test]
    fn processes_are_counted_in_what_a_demand_is_made_of() {
        let made_of = MadeOf { declared: Vram::from_mib(8192), overhead: Vram::from_mib(1440), processes: 2 };
        assert_eq!(made_of.to_string(), "8Gi declared + 1440Mi for 2 processes");
    }
}
