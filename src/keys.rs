//! Every annotation, label, resource, environment and API name that vramguard reads or writes, and nothing else.
//!
//! The module imports nothing, so every tier may use it. The names are a contract with users' manifests. Tests
//! therefore repeat the literals, so that a renamed constant breaks them.

/// Prefix of all annotations, labels and resources of vramguard.
pub const PREFIX: &str = "vramguard.dev/";
/// API group of the policy documents.
pub const API_GROUP: &str = "vramguard.dev";
/// `apiVersion` of the policy documents.
pub const API_VERSION: &str = "vramguard.dev/v1alpha1";

/// Extended resource that nodes publish and pods request: a quantity of bytes with a suffix, such as `8912Mi`.
pub const VRAM_RESOURCE: &str = "vramguard.dev/vram";

// Annotations that users set.
/// VRAM declared for the only GPU container of a pod.
pub const VRAM: &str = "vramguard.dev/vram";
/// Prefix of the VRAM declared for one container; the container's name follows.
pub const VRAM_OF: &str = "vramguard.dev/vram.";
/// Name of an entry in the policy's model catalogue (`spec.models`).
pub const MODEL: &str = "vramguard.dev/model";
/// Number of CUDA processes in each GPU container (1 to 1024; 1 if absent).
pub const PROCESSES: &str = "vramguard.dev/processes";
/// LLM framework of the pod's GPU containers: a name such as `PyTorch`, or name and version, as in `PyTorch@2.11`.
pub const FRAMEWORK: &str = "vramguard.dev/framework";
/// Prefix of the LLM framework of one container, see [`FRAMEWORK`]; the container's name follows.
pub const FRAMEWORK_OF: &str = "vramguard.dev/framework.";
/// Prefix of a declaration of KAI or Run:ai; the container's name follows, then [`FOREIGN_REQUEST`] or
/// [`FOREIGN_LIMIT`].
pub const FOREIGN_OF: &str = "nvidia.com/container.";
/// Suffix of a requested amount, see [`FOREIGN_OF`].
pub const FOREIGN_REQUEST: &str = ".gpu-memory.request";
/// Suffix of a limit, see [`FOREIGN_OF`].
pub const FOREIGN_LIMIT: &str = ".gpu-memory.limit";

// LeaderWorkerSets, as their project names them.
/// API group of LeaderWorkerSets.
pub const LWS_GROUP: &str = "leaderworkerset.x-k8s.io";
/// Kind of a workload that makes its pods in groups of one leader and its workers.
pub const LWS_KIND: &str = "LeaderWorkerSet";
/// Label of each pod of a LeaderWorkerSet, with the name of the LeaderWorkerSet.
pub const LWS_NAME: &str = "leaderworkerset.sigs.k8s.io/name";

// Declarations of other GPU sharing projects, which `k8s::foreign` reads.
/// KAI: annotation with the memory of the pod's GPU in MiB.
pub const KAI_GPU_MEMORY: &str = "gpu-memory";
/// KAI: annotation with the pod's share of one GPU, between 0 and 1.
pub const KAI_GPU_FRACTION: &str = "gpu-fraction";
/// KAI: annotation with the number of GPUs that each give this share.
pub const KAI_NUM_DEVICES: &str = "gpu-fraction-num-devices";
/// KAI: annotation with the name of the container that gets the GPU; the first app container if absent.
pub const KAI_CONTAINER: &str = "gpu-fraction-container-name";
/// KAI: label with the queue of the pod.
pub const KAI_QUEUE: &str = "kai.scheduler/queue";
/// KAI: label with the group of the pods that share one GPU, and of the pod that reserves it.
pub const KAI_GROUP: &str = "runai-gpu-group";
/// KAI: annotation of a reservation pod with the UUID of its GPU, although the name says index.
pub const KAI_RESERVED_GPU: &str = "run.ai/reserve_for_gpu_index";
/// KAI: namespaces of reservation pods, now and before v0.6.
pub const KAI_RESERVATIONS: [&str; 2] = ["kai-resource-reservation", "runai-reservation"];
/// HAMi: annotation of a node with its GPUs.
pub const HAMI_REGISTERED: &str = "hami.io/node-nvidia-register";
/// HAMi: annotation of a pod with the GPU and amount of each container.
pub const HAMI_ALLOCATED: &str = "hami.io/vgpu-devices-allocated";
/// HAMi: resource with the memory of each GPU of the container, in MiB.
pub const HAMI_MEMORY: &str = "nvidia.com/gpumem";
/// HAMi: resource with the memory of each GPU of the container, in percent of the GPU.
pub const HAMI_MEMORY_PERCENTAGE: &str = "nvidia.com/gpumem-percentage";
/// HAMi: resource with the compute of each GPU of the container, in percent of the GPU.
pub const HAMI_CORES: &str = "nvidia.com/gpucores";
/// HAMi: resource with the priority of the container among those of one GPU.
pub const HAMI_PRIORITY: &str = "nvidia.com/priority";
/// HAMi: annotations with which a pod chooses GPUs by type, UUID, mode or NUMA node.
pub const HAMI_CHOICE: [&str; 6] = [
    "nvidia.com/use-gputype",
    "nvidia.com/nouse-gputype",
    "nvidia.com/use-gpuuuid",
    "nvidia.com/nouse-gpuuuid",
    "nvidia.com/vgpu-mode",
    "nvidia.com/numa-bind",
];
/// Volcano: resource with the memory of each vGPU of the container, in MiB.
pub const VOLCANO_MEMORY: &str = "volcano.sh/vgpu-memory";
/// Volcano: resource with the memory of each vGPU of the container, in percent of the GPU.
pub const VOLCANO_MEMORY_PERCENTAGE: &str = "volcano.sh/vgpu-memory-percentage";
/// Volcano: resource with the compute of each vGPU of the container, in percent of the GPU.
pub const VOLCANO_CORES: &str = "volcano.sh/vgpu-cores";
/// Volcano: resource with the number of vGPUs of the container.
pub const VOLCANO_NUMBER: &str = "volcano.sh/vgpu-number";
/// Volcano: annotation with the kind of vGPU, `hami-core` or `mig`.
pub const VOLCANO_MODE: &str = "volcano.sh/vgpu-mode";
/// Volcano before vGPUs: resource with the memory of the container's GPU, in MiB.
pub const VOLCANO_OLD_MEMORY: &str = "volcano.sh/gpu-memory";
/// Volcano before vGPUs: resource with the number of whole GPUs of the container.
pub const VOLCANO_OLD_NUMBER: &str = "volcano.sh/gpu-number";
/// gpushare of Aliyun: resource with the memory of the container's GPU, in GiB unless its device plugin is told MiB.
pub const ALIYUN_MEMORY: &str = "aliyun.com/gpu-mem";
/// gpushare of Aliyun: resource with the number of GPUs.
pub const ALIYUN_COUNT: &str = "aliyun.com/gpu-count";

/// Schedulers of these projects, which pods name in `spec.schedulerName`.
pub const OTHER_SCHEDULERS: [&str; 4] = ["hami-scheduler", "kai-scheduler", "runai-scheduler", "volcano"];

// Dynamic Resource Allocation (DRA).
/// API group of claims.
pub const DRA_GROUP: &str = "resource.k8s.io";
/// `apiVersion` of the claims that `convert` writes.
pub const DRA_VERSION: &str = "resource.k8s.io/v1";
/// DeviceClass of the full GPUs of NVIDIA's DRA driver.
pub const DRA_GPU_CLASS: &str = "gpu.nvidia.com";

// Annotations that vramguard sets, and users must not.
/// Prefix of the GPU (UUID or index) of one container; the container's name follows.
pub const GPU_OF: &str = "vramguard.dev/gpu.";
/// The pool that a rerouted pod asked for itself: requirements on labels of nodes. The mutating webhook sets it.
pub const OWN_POOL: &str = "vramguard.dev/own-pool";
/// Total memory of the pod's GPU as CUDA reports it, in MiB.
pub const GPU_TOTAL_MIB: &str = "vramguard.dev/gpu-total-mib";
/// Prefix of the fraction of the GPU's total that one container may use; the container's name follows.
pub const VRAM_FRACTION_OF: &str = "vramguard.dev/vram-fraction.";
/// Prefix of what bounds the GPU memory of one container; the container's name follows. `/mutate/pods` writes it:
/// `driver`, `allocator`, `plan` or `nothing`.
pub const BOUNDED_BY_OF: &str = "vramguard.dev/bounded-by.";
/// Bytes of the part of an annotation's key behind the slash, at most. The API server refuses a longer one.
pub const MAX_KEY: usize = 63;

/// Label of a node with several shared GPUs: the largest demand of one pod that the empty node could take, in MiB.
///
/// Pods carry a node affinity against nodes whose value is below their demand.
pub const POD_MAX_MIB: &str = "vramguard.dev/pod-max-mib";

/// Annotation of a mirror pod. It is trusted only if a user `system:node:*` creates the pod.
pub const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// Prefixes of annotations by which a pod asks the container runtime for devices (CDI).
pub const CDI_OF: [&str; 2] = ["cdi.k8s.io/", "nvidia.cdi.k8s.io/"];
/// Name of NVIDIA's driver for dynamic resource allocation (DRA).
pub const DRA_DRIVER: &str = "gpu.nvidia.com";
/// Name of [`VRAM_RESOURCE`] in a ResourceQuota.
pub const VRAM_QUOTA: &str = "requests.vramguard.dev/vram";

/// Prefix of NVIDIA's resources and labels.
pub const NVIDIA: &str = "nvidia.com/";

// Labels of GPU Feature Discovery.
/// Total memory of one GPU in MiB. The memory that the driver reserves is included.
pub const GFD_MEMORY: &str = "nvidia.com/gpu.memory";
/// Number of physical GPUs of the model that the labels describe.
pub const GFD_COUNT: &str = "nvidia.com/gpu.count";
/// Number of device-plugin replicas of each physical GPU.
pub const GFD_REPLICAS: &str = "nvidia.com/gpu.replicas";
/// Sharing strategy of the GPUs: one of the three values below.
pub const GFD_SHARING: &str = "nvidia.com/gpu.sharing-strategy";
/// [`GFD_SHARING`] of GPUs that are time-sliced.
pub const SHARING_TIME_SLICING: &str = "time-slicing";
/// [`GFD_SHARING`] of GPUs that are shared through MPS.
pub const SHARING_MPS: &str = "mps";
/// [`GFD_SHARING`] of GPUs that are not shared.
pub const SHARING_NONE: &str = "none";
/// Product name of the GPUs. It ends in [`SHARED_SUFFIX`] if they are shared under their original resource name.
pub const GFD_PRODUCT: &str = "nvidia.com/gpu.product";
/// Suffix of the product name of shared GPUs, see [`GFD_PRODUCT`].
pub const SHARED_SUFFIX: &str = "-SHARED";

/// The device plugin's default resource for GPUs, shared or not.
pub const GPU_RESOURCE: &str = "nvidia.com/gpu";
/// The device plugin's resource for shared GPUs if its configuration sets `renameByDefault`.
pub const GPU_SHARED_RESOURCE: &str = "nvidia.com/gpu.shared";
/// Prefix of the resources for MIG devices under the mixed strategy; the MIG profile follows.
pub const MIG_RESOURCE_OF: &str = "nvidia.com/mig-";

/// Label that chooses a named config of the device plugin's ConfigMap for a node.
pub const DEVICE_PLUGIN_CONFIG: &str = "nvidia.com/device-plugin.config";
/// `apiVersion` of the GPU Operator's ClusterPolicy.
pub const CLUSTER_POLICY_VERSION: &str = "nvidia.com/v1";
/// Prefix that the device plugin puts before a resource name without one; also the prefix of its MIG resources.
pub const MIG_RESOURCE_NAME_OF: &str = "mig-";

// Sockets in the kubelet's directory `device-plugins`.
/// Socket at which NVIDIA's device plugin registers with the node agent, in the kubelet's directory `device-plugins`. Its
/// path is the value of the plugin's variable `KUBELET_SOCKET`.
pub const REGISTRY_SOCKET: &str = "vramguard.sock";
/// Prefix of the sockets of NVIDIA's device plugin; the resource without `nvidia.com/` follows, then `.sock`.
pub const NVIDIA_SOCKET_OF: &str = "nvidia-";

// Environment variables of containers.
/// VRAM that the container may use itself, in MiB: the declared amount, or one slot less the overhead.
pub const ENV_VRAM_MIB: &str = "VRAMGUARD_VRAM_MIB";
/// Order in which CUDA numbers the GPUs. vramguard sets the order that NVML uses (`PCI_BUS_ID`).
pub const ENV_DEVICE_ORDER: &str = "CUDA_DEVICE_ORDER";
/// GPUs that the NVIDIA container toolkit makes visible in the container.
pub const ENV_VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// Lower bound of a container's GPU memory under a hard limit, in MiB. The NVIDIA container toolkit wants both or none.
pub const ENV_GPU_MEMORY_REQUEST: &str = "NVIDIA_GPU_MEMORY_REQUEST";
/// Hard limit of a container's GPU memory, in MiB; see [`ENV_GPU_MEMORY_REQUEST`].
pub const ENV_GPU_MEMORY_LIMIT: &str = "NVIDIA_GPU_MEMORY_LIMIT";
/// MPS: limit of the GPU memory of each client process, by device: `0=8912M`.
pub const ENV_MPS_LIMIT: &str = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT";

// Environment variables and flags of LLM frameworks.
/// PyTorch: configuration of its allocator.
pub const PYTORCH_ALLOC_CONF: &str = "PYTORCH_ALLOC_CONF";
/// PyTorch: older name of [`PYTORCH_ALLOC_CONF`], which all versions read.
pub const PYTORCH_CUDA_ALLOC_CONF: &str = "PYTORCH_CUDA_ALLOC_CONF";
/// JAX: share of the GPU that its allocator may take.
pub const XLA_CLIENT_MEM_FRACTION: &str = "XLA_CLIENT_MEM_FRACTION";
/// JAX: older name of [`XLA_CLIENT_MEM_FRACTION`], which all versions read. JAX ends if both names are set.
pub const XLA_PYTHON_CLIENT_MEM_FRACTION: &str = "XLA_PYTHON_CLIENT_MEM_FRACTION";
/// JAX: its allocator. Only its own one, the default, keeps to a share.
pub const XLA_ALLOCATOR: &str = "XLA_PYTHON_CLIENT_ALLOCATOR";
/// TGI: share of the GPU that it may take.
pub const TGI_MEMORY_FRACTION: &str = "CUDA_MEMORY_FRACTION";
/// TGI: the flag of [`TGI_MEMORY_FRACTION`].
pub const TGI_MEMORY_FRACTION_FLAG: &str = "--cuda-memory-fraction";
/// TensorFlow: whether it allocates as it needs, in place of the whole GPU at its start.
pub const TF_ALLOW_GROWTH: &str = "TF_FORCE_GPU_ALLOW_GROWTH";
/// llama.cpp: length of the context in tokens.
pub const LLAMA_CTX_SIZE: &str = "LLAMA_ARG_CTX_SIZE";
/// llama.cpp: the flag of [`LLAMA_CTX_SIZE`].
pub const LLAMA_CTX_SIZE_FLAG: &str = "--ctx-size";
/// llama.cpp: short form of [`LLAMA_CTX_SIZE_FLAG`].
pub const LLAMA_CTX_SIZE_SHORT: &str = "-c";
/// llama.cpp: number of requests that are served at once.
pub const LLAMA_N_PARALLEL: &str = "LLAMA_ARG_N_PARALLEL";
/// Ollama: length of the context in tokens.
pub const OLLAMA_CONTEXT_LENGTH: &str = "OLLAMA_CONTEXT_LENGTH";
/// Ollama: number of requests that a model serves at once.
pub const OLLAMA_NUM_PARALLEL: &str = "OLLAMA_NUM_PARALLEL";
/// Ollama: number of models that are loaded at once.
pub const OLLAMA_MAX_LOADED_MODELS: &str = "OLLAMA_MAX_LOADED_MODELS";
/// Ollama: a bound that it no longer reads.
pub const OLLAMA_MAX_VRAM: &str = "OLLAMA_MAX_VRAM";
/// vLLM: share of the GPU that it plans with.
pub const VLLM_UTILIZATION: &str = "--gpu-memory-utilization";
/// vLLM: size of its KV cache in bytes, in place of [`VLLM_UTILIZATION`].
pub const VLLM_KV_CACHE: &str = "--kv-cache-memory-bytes";
/// vLLM: a file with flags.
pub const VLLM_CONFIG: &str = "--config";
/// SGLang: size of its KV cache in tokens.
pub const SGLANG_MAX_TOKENS: &str = "--max-total-tokens";

/// The node agent: the uid of its own pod. The container that has it is the agent's, and its report names the pod.
pub const AGENT_POD_UID: &str = "VRAMGUARD_AGENT_POD_UID";
/// The node agent: the namespace of its own pod.
pub const AGENT_POD_NAMESPACE: &str = "VRAMGUARD_AGENT_POD_NAMESPACE";
/// The node agent: the name of its own pod.
pub const AGENT_POD_NAME: &str = "VRAMGUARD_AGENT_POD_NAME";

/// The environment variables that vramguard reads. It ignores every other entry of a container's environment.
pub const ENV_READ: [&str; 19] = [
    AGENT_POD_UID,
    ENV_VRAM_MIB,
    ENV_DEVICE_ORDER,
    ENV_VISIBLE_DEVICES,
    ENV_GPU_MEMORY_REQUEST,
    ENV_GPU_MEMORY_LIMIT,
    ENV_MPS_LIMIT,
    PYTORCH_ALLOC_CONF,
    PYTORCH_CUDA_ALLOC_CONF,
    XLA_CLIENT_MEM_FRACTION,
    XLA_PYTHON_CLIENT_MEM_FRACTION,
    XLA_ALLOCATOR,
    TGI_MEMORY_FRACTION,
    TF_ALLOW_GROWTH,
    LLAMA_CTX_SIZE,
    LLAMA_N_PARALLEL,
    OLLAMA_CONTEXT_LENGTH,
    OLLAMA_NUM_PARALLEL,
    OLLAMA_MAX_LOADED_MODELS,
];

/// The flags of frameworks that vramguard reads. It ignores every other argument of a container.
pub const FLAGS_READ: [&str; 6] =
    [VLLM_UTILIZATION, VLLM_KV_CACHE, VLLM_CONFIG, SGLANG_MAX_TOKENS, TGI_MEMORY_FRACTION_FLAG, LLAMA_CTX_SIZE_FLAG];

/// User name of the stock scheduler, which may bind guarded pods without being listed in the configuration.
pub const KUBE_SCHEDULER: &str = "system:kube-scheduler";

/// Namespace of the shipped manifests, in which vramguard runs. It is never guarded.
pub const NAMESPACE: &str = "vramguard-system";
/// The ConfigMap of the shipped manifests with the policy files.
pub const POLICIES: &str = "vramguard-policies";

/// Label whose value is the name of the namespace. The API server sets it on every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Whether a resource name stands for GPUs of the NVIDIA device plugin.
///
/// The webhook's `matchConditions` in `deploy/` select the same names.
pub fn is_gpu_resource(name: &str) -> bool {
    name == GPU_RESOURCE
        || is_renamed_resource(name)
        || name == GPU_SHARED_RESOURCE
        || name.starts_with(MIG_RESOURCE_OF)
}

/// Whether an operator chose this resource name for GPUs (`rename` in the device plugin's configuration).
///
/// Only `nvidia.com/gpu.NAME` and `nvidia.com/gpu-NAME` are recognised. Any other name could belong to another device.
pub fn is_renamed_resource(name: &str) -> bool {
    let rest = name.strip_prefix(GPU_RESOURCE).and_then(|rest| rest.strip_prefix(['.', '-']));
    rest.is_some_and(|rest| !rest.is_empty()) && name != GPU_SHARED_RESOURCE
}
