//! The kubelet's device checkpoint → the devices of each container. Owns the format of the file
//! `kubelet_internal_checkpoint`.
//!
//! It says what the PodResources API does not: the devices of init containers that have ended, and uids of pods. The
//! kubelet writes it after each allocation, so it is complete when the kubelet asks about the next container.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::capacity::gpu::Resource;
use crate::capacity::name::{Name, PodUid};

/// The devices that the kubelet has allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// One entry for each container and resource, in the order of the file.
    pub entries: Vec<CheckpointEntry>,
    /// Ids of the devices that are registered with the kubelet, by resource.
    pub registered: BTreeMap<Resource, Vec<String>>,
}

/// The devices of one resource that one container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// The pod.
    pub pod: PodUid,
    /// Name of the container.
    pub container: Name,
    /// The resource.
    pub resource: Resource,
    /// Ids of the devices: `GPU-<uuid>`, or `GPU-<uuid>::<n>` for a replica. Sorted.
    pub devices: Vec<String>,
}

/// A checkpoint that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no device checkpoint: {field}: {why}")]
pub struct CheckpointError {
    /// Path of the field.
    pub field: String,
    /// The problem with the field.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
}

/// Go writes an empty list or map as `null`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    /// By NUMA node; -1 for devices without one.
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<BTreeMap<String, Option<Vec<String>>>>,
}

impl Checkpoint {
    /// Parses the content of the file. The checksum is not verified: the kubelet does that, and it is no signature.
    ///
    /// # Errors
    /// The text is no checkpoint of the format that kubelets since 1.20 write.
    pub fn parse(text: &[u8]) -> Result<Checkpoint, CheckpointError> {
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let file: File = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| CheckpointError { field: error.path().to_string(), why: error.inner().to_string() })?;
        let entry = |entry: Entry| {
            let devices = entry.device_ids.unwrap_or_default().into_values().flatten().flatten();
            let mut devices: Vec<String> = devices.collect();
            devices.sort();
            CheckpointEntry {
                pod: PodUid::from(entry.pod_uid),
                container: entry.container_name.into(),
                resource: Resource(entry.resource_name.into()),
                devices,
            }
        };
        let registered = file.data.registered_devices.unwrap_or_default();
        let registered =
            registered.into_iter().map(|(resource, ids)| (Resource(resource.into()), ids.unwrap_or_default()));
        Ok(Checkpoint {
            entries: file.data.pod_device_entries.unwrap_or_default().into_iter().map(entry).collect(),
            registered: registered.collect(),
        })
    }

    /// The entries of one resource.
    pub fn of<'c>(&'c self, resource: &'c Resource) -> impl Iterator<Item = &'c CheckpointEntry> {
        self.entries.iter().filter(move |entry| entry.resource == *resource)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by kubelet 1.35 for one container with two replicas.
    const WRITTEN: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"0b5e5f4e-5a0a-4c0f-9d0c-0f6a4f0f9f01",
        "ContainerName":"main","ResourceName":"nvidia.com/gpu",
        "DeviceIDs":{"-1":["GPU-b::1"],"0":["GPU-a::3"]},"AllocResp":"CgQKAmFi"}],
        "RegisteredDevices":{"nvidia.com/gpu":["GPU-a::3","GPU-b::1"],"nvidia.com/mig-1g.5gb":null}},
        "Checksum":2745162453}"#;

    #[test]
    fn devices_of_all_numa_nodes_are_one_list() {
        let checkpoint = Checkpoint::parse(WRITTEN.as_bytes()).unwrap();
        let gpu = Resource("nvidia.com/gpu".into());
        let entry = CheckpointEntry {
            pod: PodUid::from("0b5e5f4e-5a0a-4c0f-9d0c-0f6a4f0f9f01".to_owned()),
            container: "main".into(),
            resource: gpu.clone(),
            devices: vec!["GPU-a::3".to_owned(), "GPU-b::1".to_owned()],
        };
        assert_eq!(checkpoint.of(&gpu).collect::<Vec<_>>(), [&entry]);
        assert_eq!(checkpoint.registered[&gpu].len(), 2);
        assert_eq!(checkpoint.of(&Resource("nvidia.com/mig-1g.5gb".into())).count(), 0);
    }

    #[test]
    fn a_checkpoint_before_the_first_allocation_is_empty() {
        let text = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{"nvidia.com/gpu":["a"]}},"Checksum":1}"#;
        let checkpoint = Checkpoint::parse(text.as_bytes()).unwrap();
        assert!(checkpoint.entries.is_empty());
        assert_eq!(checkpoint.registered.len(), 1);
    }

    #[test]
    fn a_list_of_ids_without_numa_nodes_is_named_as_unreadable() {
        // The format of kubelets before 1.20.
        let text = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"c","ResourceName":"r",
            "DeviceIDs":["a"]}],"RegisteredDevices":{}},"Checksum":1}"#;
        let error = Checkpoint::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.field, "Data.PodDeviceEntries[0].DeviceIDs");
        for text in ["", "{}", "[]", r#"{"Data":{"PodDeviceEntries":[{}]}}"#] {
            assert!(Checkpoint::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
