//! What the kubelet tells about devices: the replicas that it may give, and the containers that have them. Owns when it
//! is asked, which is after a pod of the node changed and now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::kubelet::KubeletDirectory;
use super::kubelet::messages::ListPodResourcesResponse;
use super::kubelet::pod_resources::PodResourcesClient;
use super::node::Node;
use crate::capacity::gpu::Resource;
use crate::capacity::observation::policy::Devices;
use crate::capacity::observation::replicas::{Replicas, uuid_of};
use crate::keys;

/// Time limit of a call to the kubelet, which holds its locks for 344 ms under load at most.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest time between two calls.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a change of a pod, in which further changes are collected.
const GATHER: Duration = Duration::from_millis(250);

/// Asks the kubelet until cancelled.
pub(super) async fn follow(kubelet: KubeletDirectory, node: Arc<Node>) {
    let client = PodResourcesClient::new(&kubelet);
    let mut refused = false;
    loop {
        let next = Instant::now() + INTERVAL;
        match ask(&client).await {
            Ok((replicas, listed)) => {
                node.update(|state| {
                    state.observer.offered(replicas);
                    let devices = devices(&listed, |namespace, name| {
                        state.observer.owners.named(namespace, name).map(|pod| pod.uid.clone())
                    });
                    state.observer.allocated(devices);
                    (state.kubelet, state.kubelet_answered) = (Ok(()), true);
                });
                if std::mem::take(&mut refused) {
                    tracing::info!("the kubelet answers again");
                }
            }
            Err(status) => {
                let why = format!("{}: {}", kubelet.pod_resources_socket().display(), status.message());
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!("the kubelet cannot be asked for its devices: {why}; trying again");
                }
                node.update(|state| state.kubelet = Err(why));
                infer(&node);
            }
        }
        if timeout_at(next, node.pods_changed.notified()).await.is_ok() {
            sleep(GATHER).await;
        } else {
            sleep_until(next).await;
        }
    }
}

async fn ask(client: &PodResourcesClient) -> Result<(Replicas, ListPodResourcesResponse), tonic::Status> {
    let allocatable = client.allocatable(DEADLINE).await?;
    let listed = client.list(DEADLINE).await?;
    let devices = allocatable.devices.iter().filter(|devices| keys::is_gpu_resource(&devices.resource_name));
    let devices =
        devices.flat_map(|devices| devices.device_ids.iter().map(|id| (devices.resource_name.as_str(), id.as_str())));
    Ok((Replicas::of_devices(devices), listed))
}

/// The GPU of each replica of each container. A pod that the API has not shown yet has no uid, and is found at the next
/// call: its arrival is a change.
fn devices(
    listed: &ListPodResourcesResponse,
    uid: impl Fn(&str, &str) -> Option<crate::capacity::name::PodUid>,
) -> Devices {
    let mut found = Devices::new();
    for pod in &listed.pod_resources {
        let Some(uid) = uid(&pod.namespace, &pod.name) else { continue };
        for container in &pod.containers {
            let of_gpus = container.devices.iter().filter(|devices| keys::is_gpu_resource(&devices.resource_name));
            let gpus: Vec<_> = of_gpus.flat_map(|devices| &devices.device_ids).map(|id| uuid_of(id).into()).collect();
            if !gpus.is_empty() {
                found.insert((uid.clone(), container.name.as_str().into()), gpus);
            }
        }
    }
    found
}

/// Infers the replicas from the node's capacity, as long as the kubelet has never answered.
fn infer(node: &Node) {
    node.update(|state| {
        if state.kubelet_answered {
            return;
        }
        let capacity: &BTreeMap<Resource, u64> = &state.capacity;
        let capacity: Vec<(Resource, u64)> = capacity.iter().map(|(name, count)| (name.clone(), *count)).collect();
        if let Some(replicas) = Replicas::inferred(&capacity, &state.observer.gpus()) {
            state.observer.offered(replicas);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::kubelet::messages::{ContainerDevices, ContainerResources, PodResources};
    use super::*;

    fn container(name: &str, devices: &[(&str, &[&str])]) -> ContainerResources {
        let of = |(resource, ids): &(&str, &[&str])| ContainerDevices {
            resource_name: (*resource).to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: None,
        };
        ContainerResources { name: name.to_owned(), devices: devices.iter().map(of).collect() }
    }

    #[test]
    fn the_gpu_of_a_container_is_the_part_of_its_device_before_the_replica() {
        let containers = vec![
            container("main", &[("nvidia.com/gpu", &["GPU-a::7"])]),
            container("two", &[("nvidia.com/gpu", &["GPU-a::1"]), ("nvidia.com/gpu", &["GPU-b::0"])]),
            container("nic", &[("rdma/hca", &["mlx5_0"])]),
        ];
        let pod = |name: &str| PodResources {
            name: name.to_owned(),
            namespace: "ml".to_owned(),
            containers: containers.clone(),
        };
        let listed = ListPodResourcesResponse { pod_resources: vec![pod("llm"), pod("not-seen-yet")] };
        let found = devices(&listed, |namespace, name| (namespace == "ml" && name == "llm").then(|| "u".into()));
        let found: Vec<String> = found.iter().map(|((uid, name), gpus)| format!("{uid} {name} {gpus:?}")).collect();
        assert_eq!(found, [r#"u main ["GPU-a"]"#, r#"u two ["GPU-a", "GPU-b"]"#]);
    }
}
