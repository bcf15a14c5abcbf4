//! What HAMi writes about GPUs: the GPUs of a node, and the GPU and amount of each container. Owns both formats.
//!
//! - A node has the annotation `hami.io/node-nvidia-register`: a JSON list, or in older versions
//!   `UUID,count,MiB,cores,type,numa,health[,index,mode]:` for each GPU (Project-HAMi/HAMi `pkg/device/devices.go`,
//!   `MarshalNodeDevices` and `DecodeNodeDevices`).
//! - A pod has the annotation `hami.io/vgpu-devices-allocated`: `UUID,type,MiB,cores:` for each GPU of a container, `;` after
//!   each container (the same, `EncodePodSingleDevice`). Versions differ in which containers without a GPU have an entry
//!   (Project-HAMi/HAMi#991), so entries are matched in order with the containers that have one.
//!
//! What does not match is left out: its node or pod then counts as it does without HAMi. Anyone may write the annotation
//! of a pod, so it counts on nodes alone whose GPUs HAMi registered.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use serde::Deserialize;

use super::pods::OfHami;
use super::{gpu, kept};
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{AllocationPolicy, Gpu, GpuId};
use crate::capacity::name::Name;
use crate::capacity::node::holder::{Amount, Holder};
use crate::capacity::node::inventory::{Inventory, InventoryGpu};
use crate::capacity::vram::Vram;
use crate::k8s::node::MAX_GPU;
use crate::k8s::object::NodeObject;
use crate::k8s::object::bounds::MAX_CONTAINERS;
use crate::keys;

/// A GPU that HAMi registered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Device {
    id: String,
    #[serde(default)]
    index: u32,
    /// Containers that may share it.
    count: NonZeroU32,
    /// Memory in MiB, multiplied by `deviceMemoryScaling`.
    devmem: u64,
    #[serde(default)]
    mode: String,
}

/// Reads the GPUs of a node. `None` if the text is not in one of HAMi's formats, or a GPU is divided by MIG.
pub(super) fn registered(text: &str) -> Option<Vec<Device>> {
    let devices: Vec<Device> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).ok()?
    } else {
        (0..).zip(text.split(':').filter(|entry| !entry.is_empty())).map(older).collect::<Option<_>>()?
    };
    let usable = |device: &Device| device.mode != "mig" && size(device).is_some() && !device.id.is_empty();
    (!devices.is_empty() && devices.iter().all(usable)).then_some(devices)
}

fn older((position, entry): (u32, &str)) -> Option<Device> {
    let fields: Vec<&str> = entry.split(',').collect();
    let (index, mode) = match fields.len() {
        7 => (position, ""),
        9 => (fields[7].parse().ok()?, fields[8]),
        _ => return None,
    };
    let (count, devmem) = (fields[1].parse().ok()?, fields[2].parse().ok()?);
    Some(Device { id: fields[0].to_owned(), index, count, devmem, mode: mode.to_owned() })
}

fn size(device: &Device) -> Option<Vram> {
    Vram::checked_from_mib(device.devmem).filter(|size| !size.is_zero() && *size <= MAX_GPU)
}

/// Adds the pods of a node to the cluster, with the GPUs and amounts that HAMi allocated. Returns the GPUs of the node
/// as a report, in place of vramguard's own agent.
pub(super) fn settle(devices: &[Device], node: &NodeObject, pods: Vec<OfHami>, cluster: &mut Cluster) -> Inventory {
    let mut inventory = inventory(devices, node);
    for (uid, mut holder, allocated) in pods {
        let assigned = apply(&allocated, &mut holder);
        cluster.apply_pod(&uid, node.name(), holder);
        if !assigned.is_empty() {
            inventory.assigned.insert(uid, assigned.into());
        }
    }
    inventory
}

fn inventory(devices: &[Device], node: &NodeObject) -> Inventory {
    // HAMi registers more memory than a GPU has if it is told to overcommit; the label has what is there.
    let labels = node.metadata.labels.as_ref();
    let real = labels.and_then(|labels| labels.get(keys::GFD_MEMORY)?.parse().ok()).and_then(Vram::checked_from_mib);
    let real = real.filter(|real| !real.is_zero());
    let indices: BTreeSet<u32> = devices.iter().map(|device| device.index).collect();
    let are_unique = indices.len() == devices.len();
    let report = |(position, device): (u32, &Device)| {
        let registered = size(device).unwrap_or(MAX_GPU);
        let total = real.map_or(registered, |real| real.min(registered));
        let index = if are_unique { device.index } else { position };
        InventoryGpu {
            gpu: Gpu { id: GpuId::Uuid(device.id.as_str().into()), ..Gpu::of_size(index, total) },
            replicas: device.count,
        }
    };
    Inventory {
        allocation_policy: AllocationPolicy::Unverified,
        gpus: BTreeMap::from([(gpu(), (0..).zip(devices).map(report).collect())]),
        ..Inventory::default()
    }
}

/// The GPUs of each container that has any, with the amount of each.
pub(super) type Allocated = Vec<Vec<(Name, Vram)>>;

/// GPUs of one pod that are read. No node has half as many.
const MOST_GPUS: usize = 64;

/// Reads the GPUs of a pod. `None` if the text is not in HAMi's format, or longer than a pod can make it.
pub(super) fn allocated(text: &str) -> Option<Allocated> {
    if text.matches(':').count() > MOST_GPUS || text.matches(';').count() > MAX_CONTAINERS {
        return None;
    }
    let device = |entry: &str| {
        let fields: Vec<&str> = entry.split(',').collect();
        match fields.as_slice() {
            // A container without a GPU.
            ["", ..] => Some(None),
            [uuid, _, mib, _, ..] if kept::may_be_name(uuid) => {
                Some(Some(((*uuid).into(), Vram::checked_from_mib(mib.parse().ok()?)?)))
            }
            _ => None,
        }
    };
    let container = |entries: &str| -> Option<Vec<(Name, Vram)>> {
        let devices: Option<Vec<_>> = entries.split(':').filter(|entry| !entry.is_empty()).map(device).collect();
        Some(devices?.into_iter().flatten().collect())
    };
    let containers: Option<Vec<_>> = text.split(';').map(container).collect();
    Some(containers?.into_iter().filter(|devices| !devices.is_empty()).collect())
}

/// Puts what HAMi allocated into a holder. Returns the GPU of each container that has one.
fn apply(allocated: &Allocated, holder: &mut Holder) -> Vec<(Name, GpuId)> {
    let mut assigned = Vec::new();
    if allocated.len() != holder.parts.len() {
        return assigned;
    }
    for (part, devices) in holder.parts.iter_mut().zip(allocated) {
        let amount: Vram = devices.iter().map(|(_, amount)| *amount).sum();
        if matches!(part.amount, Amount::Slots(_)) && !amount.is_zero() {
            part.amount = Amount::Counted(amount);
        }
        if let [(uuid, _)] = devices.as_slice() {
            let gpu = GpuId::Uuid(uuid.clone());
            part.gpu = Some(gpu.clone());
            assigned.push((part.container.clone(), gpu));
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWER: &str = r#"[{"id":"GPU-a","count":10,"devmem":15360,"devcore":100,"type":"NVIDIA-Tesla T4","mode":"hami-core",
        "health":true},{"id":"GPU-b","index":1,"count":10,"devmem":15360,"devcore":100,"type":"NVIDIA-Tesla T4","health":true}]"#;

    #[test]
    fn the_gpus_of_a_node_are_read_in_all_three_formats() {
        let device = |id: &str, index, mode: &str| Device {
            id: id.to_owned(),
            index,
            count: NonZeroU32::new(10).unwrap(),
            devmem: 15_360,
            mode: mode.to_owned(),
        };
        assert_eq!(registered(NEWER), Some(vec![device("GPU-a", 0, "hami-core"), device("GPU-b", 1, "")]));
        let seven = "GPU-a,10,15360,100,NVIDIA-Tesla T4,0,true:GPU-b,10,15360,100,NVIDIA-Tesla T4,0,true:";
        assert_eq!(registered(seven), Some(vec![device("GPU-a", 0, ""), device("GPU-b", 1, "")]));
        let nine = "GPU-a,10,15360,100,NVIDIA-Tesla T4,0,true,3,hami-core:";
        assert_eq!(registered(nine), Some(vec![device("GPU-a", 3, "hami-core")]));
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        for text in [
            "",
            "[]",
            "[{}]",
            "GPU-a",
            "GPU-a,10,much,100,T,0,true:",
            "GPU-a,0,15360,100,T,0,true:",
            "GPU-a,10,15360,100,T,0,true,0,mig:",
            "GPU-a,10,99999999999,100,T,0,true:",
        ] {
            assert_eq!(registered(text), None, "{text:?}");
        }
        for text in ["GPU-a", "GPU-a,NVIDIA,much,0:;", "GPU-a,NVIDIA,-1,0:;"] {
            assert_eq!(allocated(text), None, "{text:?}");
        }
    }

    #[test]
    fn containers_without_a_gpu_have_no_entry_however_they_are_written() {
        let one = |uuid: &str, mib| vec![(Name::from(uuid), Vram::from_mib(mib))];
        for text in ["GPU-a,NVIDIA,1000,0:;", ";GPU-a,NVIDIA,1000,0:;;;", ",,0,0:;GPU-a,NVIDIA,1000,0:;,,0,0:;"] {
            assert_eq!(allocated(text), Some(vec![one("GPU-a", 1000)]), "{text:?}");
        }
        let two = "GPU-a,NVIDIA,1000,0:GPU-b,NVIDIA,1000,0:;GPU-a,NVIDIA,500,30:;";
        assert_eq!(allocated(two), Some(vec![[one("GPU-a", 1000), one("GPU-b", 1000)].concat(), one("GPU-a", 500)]));
    }
}
