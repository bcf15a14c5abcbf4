//! Client of a device plugin, and of the kubelet's registration. Owns the methods and their deadlines.
//!
//! What the kubelet and the plugin tell each other is passed on as the bytes that arrived.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::KubeletDirectory;
use super::messages::{DevicePluginOptions, Empty, RegisterRequest};
use super::rpc;

/// Time limit of calls that only ask.
const ASK: Duration = Duration::from_secs(5);
/// Time limit of an allocation. The kubelet itself has none, and admits no other pod meanwhile.
const ALLOCATE: Duration = Duration::from_secs(60);
/// Time limit of the preparation of a container: the kubelet's own.
const PRE_START: Duration = Duration::from_secs(30);

/// Paths of the methods of a device plugin.
pub mod method {
    /// Options of the plugin.
    pub const OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
    /// Stream of the plugin's devices.
    pub const LIST_AND_WATCH: &str = "/v1beta1.DevicePlugin/ListAndWatch";
    /// Which devices should be allocated.
    pub const PREFERRED: &str = "/v1beta1.DevicePlugin/GetPreferredAllocation";
    /// Allocation of devices.
    pub const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";
    /// Preparation of a container's devices.
    pub const PRE_START: &str = "/v1beta1.DevicePlugin/PreStartContainer";
}

/// Client of one device plugin.
#[derive(Clone, Debug)]
pub struct DevicePluginClient {
    channel: Channel,
}

impl DevicePluginClient {
    /// Makes a client of the plugin at a socket. It connects at its first call.
    pub fn new(socket: PathBuf) -> DevicePluginClient {
        DevicePluginClient { channel: rpc::channel(socket) }
    }

    /// The plugin's options.
    ///
    /// # Errors
    /// The plugin cannot be reached, answers with an error, or does not answer in time.
    pub async fn options(&self) -> Result<DevicePluginOptions, Status> {
        rpc::unary(&self.channel, method::OPTIONS, Empty {}, ASK).await
    }

    /// Opens the stream of the plugin's devices.
    ///
    /// # Errors
    /// As [`DevicePluginClient::options`].
    pub async fn list_and_watch(&self) -> Result<Streaming<Bytes>, Status> {
        rpc::stream_raw(&self.channel, method::LIST_AND_WATCH, Bytes::new(), ASK).await
    }

    /// Asks which devices the plugin prefers.
    ///
    /// # Errors
    /// As [`DevicePluginClient::options`]; the time limit is the caller's.
    pub async fn preferred(&self, question: Bytes, deadline: Duration) -> Result<Bytes, Status> {
        rpc::unary_raw(&self.channel, method::PREFERRED, question, deadline).await
    }

    /// Allocates devices.
    ///
    /// # Errors
    /// As [`DevicePluginClient::options`].
    pub async fn allocate(&self, question: Bytes) -> Result<Bytes, Status> {
        rpc::unary_raw(&self.channel, method::ALLOCATE, question, ALLOCATE).await
    }

    /// Prepares the devices of a container.
    ///
    /// # Errors
    /// As [`DevicePluginClient::options`].
    pub async fn pre_start(&self, question: Bytes) -> Result<Bytes, Status> {
        rpc::unary_raw(&self.channel, method::PRE_START, question, PRE_START).await
    }
}

/// Registers a device plugin with the kubelet.
///
/// # Errors
/// The kubelet cannot be reached, refuses the registration, or does not answer before the deadline.
pub async fn register(kubelet: &KubeletDirectory, plugin: RegisterRequest, deadline: Duration) -> Result<(), Status> {
    // A channel for each call: one that is kept would wait before it connects again.
    let channel = rpc::channel(kubelet.registration_socket());
    let Empty {} = rpc::unary(&channel, "/v1beta1.Registration/Register", plugin, deadline).await?;
    Ok(())
}
