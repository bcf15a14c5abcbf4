//! [`GpuIndex`]: where a GPU or a MIG device is on its node. Owns the notation for people, and when an index identifies.

use std::fmt;

use super::GpuId;

/// Index of a GPU on its node, and of a MIG device on its GPU, both as NVML counts.
///
/// It is for people and for an order. MIG devices come and go, so only the UUID identifies one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuIndex {
    /// Index of the GPU, or of the GPU that the MIG device is a part of; in the order of `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    pub gpu: u32,
    /// Index of the MIG device on its GPU; `None` for a GPU, and for a MIG device whose source does not tell it.
    pub mig: Option<u32>,
}

impl GpuIndex {
    /// Whether `id` is the index of a GPU that has this index, and `uuid` if that is known. The index of a GPU names none of
    /// its MIG devices, also where their source does not tell their own index.
    pub fn names(self, uuid: Option<&str>, id: &GpuId) -> bool {
        let is_mig = self.mig.is_some() || uuid.is_some_and(|uuid| uuid.starts_with("MIG-"));
        !is_mig && *id == GpuId::Index(self.gpu)
    }
}

impl From<u32> for GpuIndex {
    /// Makes the index of a GPU.
    fn from(gpu: u32) -> GpuIndex {
        GpuIndex { gpu, mig: None }
    }
}

/// `0` for a GPU and `0:1` for a MIG device, as NVIDIA's device plugin and container runtime write them.
impl fmt::Display for GpuIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mig {
            None => write!(f, "{}", self.gpu),
            Some(mig) => write!(f, "{}:{mig}", self.gpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::gpu::Gpu;
    use crate::capacity::steering::GpuRoom;
    use crate::capacity::vram::{Balance, Vram};

    #[test]
    fn the_index_of_a_gpu_names_none_of_its_mig_devices() {
        let (gpu, first) = (GpuIndex::from(0), GpuIndex { gpu: 0, mig: Some(0) });
        assert!(gpu.names(None, &GpuId::Index(0)) && !gpu.names(None, &GpuId::Index(1)));
        assert!(!first.names(None, &GpuId::Index(0)));
        // A DCGM exporter tells no index of a MIG device.
        let exported = |uuid: &str| Gpu { id: GpuId::from(uuid), ..Gpu::of_size(0, Vram::ZERO) };
        assert!(exported("GPU-a").has_id(&GpuId::Index(0)));
        assert!(!exported("MIG-a").has_id(&GpuId::Index(0)) && exported("MIG-a").has_id(&"MIG-a".into()));
        let room = |uuid: &str| GpuRoom { uuid: uuid.into(), index: 0.into(), room: Balance::from(Vram::ZERO) };
        assert!(room("GPU-a").has_id(&GpuId::Index(0)));
        assert!(!room("MIG-a").has_id(&GpuId::Index(0)) && room("MIG-a").has_id(&"MIG-a".into()));
    }

    #[test]
    fn indices_are_written_and_ordered_as_nvml_counts() {
        let mig = |gpu, mig| GpuIndex { gpu, mig: Some(mig) };
        let mut all = [mig(1, 0), GpuIndex::from(2), mig(0, 10), mig(0, 9)];
        all.sort();
        assert_eq!(all.map(|index| index.to_string()), ["0:9", "0:10", "1:0", "2"]);
    }
}
