//! Every annotation, label, resource, environment and API name that vramguard reads or writes, and nothing else.
//!
//! A leaf: it imports nothing, so all tiers may use it. Tests write the literals again on purpose: a renamed constant
//! must break them, because the names are the contract with users' manifests.

/// Prefix of everything that belongs to vramguard.
pub const PREFIX: &str = "vramguard.dev/";
/// API group of the policy documents.
pub const API_GROUP: &str = "vramguard.dev";
/// `apiVersion` of the policy documents.
pub const API_VERSION: &str = "vramguard.dev/v1alpha1";

/// Extended resource that nodes publish and pods request, in bytes with a suffix.
pub const VRAM_RESOURCE: &str = "vramguard.dev/vram";

// Declared by users.
/// Declaration for the pod's one GPU container.
pub const VRAM: &str = "vramguard.dev/vram";
/// Declaration for one container: followed by its name.
pub const VRAM_OF: &str = "vramguard.dev/vram.";
/// Name of an entry of the policy's model catalogue.
pub const MODEL: &str = "vramguard.dev/model";
/// CUDA processes per GPU container.
pub const PROCESSES: &str = "vramguard.dev/processes";
/// KAI / Run:ai declaration: this, the container's name, then [`FOREIGN_REQUEST`] or [`FOREIGN_LIMIT`].
pub const FOREIGN_OF: &str = "nvidia.com/container.";
/// See [`FOREIGN_OF`].
pub const FOREIGN_REQUEST: &str = ".gpu-memory.request";
/// See [`FOREIGN_OF`].
pub const FOREIGN_LIMIT: &str = ".gpu-memory.limit";

// Set by vramguard, never by users.
/// GPU of one container (UUID or index): followed by its name.
pub const GPU_OF: &str = "vramguard.dev/gpu.";
/// What CUDA reports as the total of the pod's GPU, in MiB.
pub const GPU_TOTAL_MIB: &str = "vramguard.dev/gpu-total-mib";
/// Share of the GPU of one container: followed by its name.
pub const VRAM_FRACTION_OF: &str = "vramguard.dev/vram-fraction.";

/// Label of a node with several shared GPUs: the most that one pod can ever get there, in MiB. Pods are kept off nodes where
/// that is less than they demand.
pub const POD_MAX_MIB: &str = "vramguard.dev/pod-max-mib";

/// Marks a mirror pod; trusted only from `system:node:*`.
pub const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// Prefix of NVIDIA's resources and labels.
pub const NVIDIA: &str = "nvidia.com/";

// Labels of GPU Feature Discovery.
/// MiB of one GPU, driver-reserved memory included.
pub const GFD_MEMORY: &str = "nvidia.com/gpu.memory";
/// Physical GPUs of the labelled model.
pub const GFD_COUNT: &str = "nvidia.com/gpu.count";
/// Replicas per physical GPU.
pub const GFD_REPLICAS: &str = "nvidia.com/gpu.replicas";
/// `none`, `time-slicing` or `mps`.
pub const GFD_SHARING: &str = "nvidia.com/gpu.sharing-strategy";
/// A value of [`GFD_SHARING`].
pub const SHARING_TIME_SLICING: &str = "time-slicing";
/// A value of [`GFD_SHARING`].
pub const SHARING_MPS: &str = "mps";
/// A value of [`GFD_SHARING`].
pub const SHARING_NONE: &str = "none";
/// Product name; ends in [`SHARED_SUFFIX`] where the resource is shared under its own name.
pub const GFD_PRODUCT: &str = "nvidia.com/gpu.product";
/// See [`GFD_PRODUCT`].
pub const SHARED_SUFFIX: &str = "-SHARED";

/// The device plugin's resource for whole GPUs, shared or not.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";
/// The device plugin's resource for shared GPUs under `renameByDefault`.
pub const GPU_SHARED_RESOURCE: &str = "nvidia.com/gpu.shared";
/// MIG devices under the mixed strategy: followed by the profile.
pub const MIG_RESOURCE_OF: &str = "nvidia.com/mig-";

// Environment.
/// Declared VRAM in MiB.
pub const ENV_VRAM_MIB: &str = "VRAMGUARD_VRAM_MIB";
/// Makes CUDA number GPUs as NVML does.
pub const ENV_DEVICE_ORDER: &str = "CUDA_DEVICE_ORDER";
/// Which GPUs the NVIDIA container toolkit shows.
pub const ENV_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// The variables that vramguard has a say in. Of a container's environment no other entry is read.
pub const ENV_READ: [&str; 3] = [ENV_VRAM_MIB, ENV_DEVICE_ORDER, ENV_VISIBLE_DEVICES];

/// Label that every namespace carries with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Whether a resource name means GPUs of the NVIDIA device plugin.
///
/// The webhook's `matchConditions` in `deploy/` select the same names.
pub fn is_gpu_resource(name: &str) -> bool {
    name == GPU_RESOURCE
        || is_renamed_resource(name)
        || name == GPU_SHARED_RESOURCE
        || name.starts_with(MIG_RESOURCE_OF)
}

/// Whether a resource name is one that an operator gave to GPUs (`rename` in the device plugin's configuration):
/// `nvidia.com/gpu.NAME` or `nvidia.com/gpu-NAME`. Other names cannot be told from those of other devices.
pub fn is_renamed_resource(name: &str) -> bool {
    let rest = name.strip_prefix(GPU_RESOURCE).and_then(|rest| rest.strip_prefix(['.', '-']));
    rest.is_some_and(|rest| !rest.is_empty()) && name != GPU_SHARED_RESOURCE
}
