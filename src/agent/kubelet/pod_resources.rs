//! Client of the kubelet's PodResources API. Owns which calls are made; the answers are passed on as they come.

use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use super::KubeletDirectory;
use super::messages::{AllocatableResourcesResponse, Empty, ListPodResourcesResponse};
use super::rpc;

/// Client of the PodResources API of one kubelet.
#[derive(Clone, Debug)]
pub struct PodResourcesClient {
    channel: Channel,
}

impl PodResourcesClient {
    /// Makes a client, which connects at its first call. It must be made inside a runtime.
    pub fn new(kubelet: &KubeletDirectory) -> PodResourcesClient {
        PodResourcesClient { channel: rpc::channel(kubelet.pod_resources_socket()) }
    }

    /// Lists the pods that the kubelet runs or is admitting, with the devices of their containers.
    ///
    /// # Errors
    /// The kubelet cannot be reached, answers with an error, or does not answer before the deadline.
    pub async fn list(&self, deadline: Duration) -> Result<ListPodResourcesResponse, Status> {
        rpc::unary(&self.channel, "/v1.PodResourcesLister/List", Empty {}, deadline).await
    }

    /// Lists the healthy devices that are registered with the kubelet.
    ///
    /// # Errors
    /// As [`PodResourcesClient::list`].
    pub async fn allocatable(&self, deadline: Duration) -> Result<AllocatableResourcesResponse, Status> {
        rpc::unary(&self.channel, "/v1.PodResourcesLister/GetAllocatableResources", Empty {}, deadline).await
    }
}
