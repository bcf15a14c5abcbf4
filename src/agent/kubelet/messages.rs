//! Messages of the kubelet's PodResources API (`v1`) and of its device plugin API (`v1beta1`), written by hand in place
//! of generated code. Owns the fields that are read; the decoder skips the others.
//!
//! A message that is passed on must therefore be passed on as the bytes that arrived: see [`super::rpc::Raw`].

/// A message without fields.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// The answer of `v1.PodResourcesLister/List`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListPodResourcesResponse {
    /// The pods that the kubelet runs or is admitting, in no particular order.
    #[prost(message, repeated, tag = "1")]
    pub pod_resources: Vec<PodResources>,
}

/// The devices of one pod. It has no uid.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PodResources {
    /// Name of the pod.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace of the pod.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// App containers and sidecars. Init containers that end are not listed.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

/// The devices of one container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerResources {
    /// Name of the container.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The devices, in one or several entries for each resource.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
}

/// Devices of one resource.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerDevices {
    /// The resource, such as `nvidia.com/gpu`.
    #[prost(string, tag = "1")]
    pub resource_name: String,
    /// Ids that the device plugin gave them: `GPU-<uuid>`, or `GPU-<uuid>::<n>` for a replica.
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
    /// The NUMA nodes of the devices; `None` if the device plugin names none.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<NumaTopology>,
}

/// NUMA nodes of devices.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NumaTopology {
    /// The NUMA nodes.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

/// One NUMA node.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct NumaNode {
    /// Number of the NUMA node.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// The answer of `v1.PodResourcesLister/GetAllocatableResources`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AllocatableResourcesResponse {
    /// The healthy devices that are registered with the kubelet.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<ContainerDevices>,
}

/// What a device plugin tells about itself.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct DevicePluginOptions {
    /// Whether the kubelet must call `PreStartContainer` before it starts a container.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// Whether the kubelet should call `GetPreferredAllocation` before it allocates devices.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// The request of `v1beta1.Registration/Register`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegisterRequest {
    /// Version of the device plugin API: `v1beta1`.
    #[prost(string, tag = "1")]
    pub version: String,
    /// File name of the plugin's socket, in the directory of `kubelet.sock`.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// The resource that the plugin serves, such as `nvidia.com/gpu`.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// Options of the plugin.
    #[prost(message, optional, tag = "4")]
    pub options: Option<DevicePluginOptions>,
}

/// The devices of a plugin: one message of the stream `v1beta1.DevicePlugin/ListAndWatch`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListAndWatchResponse {
    /// All devices of the plugin.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// One device of a plugin.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Device {
    /// Id of the device.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `Healthy` or `Unhealthy`.
    #[prost(string, tag = "2")]
    pub health: String,
    /// NUMA nodes of the device.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<NumaTopology>,
}

/// The request of `v1beta1.DevicePlugin/GetPreferredAllocation`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PreferredAllocationRequest {
    /// One question for each container. The kubelet asks about one container at a time.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerPreferredAllocationRequest>,
}

/// Which devices a container should get.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerPreferredAllocationRequest {
    /// Ids that the kubelet may allocate.
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    /// Ids that the answer must contain, among them those of an init container whose devices are reused.
    #[prost(string, repeated, tag = "2")]
    pub must_include: Vec<String>,
    /// The number of ids in the answer, `must_include` counted.
    #[prost(int32, tag = "3")]
    pub size: i32,
}

/// Lists of device ids, one for each container.
///
/// The answer of `GetPreferredAllocation` and the request of `Allocate` have the same fields.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeviceIdLists {
    /// One list for each container.
    #[prost(message, repeated, tag = "1")]
    pub containers: Vec<DeviceIds>,
}

/// Device ids of one container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeviceIds {
    /// The ids.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
}
