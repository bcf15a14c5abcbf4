//! ResourceSlices and ResourceClaims → the GPUs that several claims share. Owns the differences between the versions of
//! `resource.k8s.io`: v1 and v1beta2 have the fields of a device in the device, v1beta1 has them in `basic`
//! (kubernetes/api `resource/v1/types.go`, `resource/v1beta1/types.go`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Names, kept, typed};
use crate::capacity::audit::scene::{DeviceClaim, SharedDevice};
use crate::capacity::name::Name;
use crate::capacity::verdict::finding::Object;
use crate::capacity::vram::Vram;
use crate::k8s::object::Quantity;
use crate::k8s::quantity::{self, Bytes};
use crate::keys;

/// A driver, a pool of it, and a device in the pool.
type Key = (Name, Name, Name);

/// The slices and claims that were read.
///
/// A slice has at most 128 devices, and a claim at most 32 of them and 256 pods (kubernetes/api `resource/v1/types.go`).
/// [`super::Reader::objects`] counts both. Names have at most 253 bytes.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// The devices of each pool of each driver, with the generation of the pool.
    pools: BTreeMap<(Name, Name), (i64, Vec<SharedDevice>)>,
    claims: BTreeMap<Key, Vec<DeviceClaim>>,
}

#[derive(Deserialize)]
struct Slice {
    spec: SliceSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceSpec {
    driver: String,
    pool: Pool,
    node_name: Option<String>,
    #[serde(default)]
    devices: Option<Vec<Device>>,
}

#[derive(Deserialize)]
struct Pool {
    name: String,
    #[serde(default)]
    generation: i64,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    /// The fields of the device, in v1beta1.
    basic: Option<Basic>,
    #[serde(flatten)]
    fields: Basic,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Basic {
    allow_multiple_allocations: Option<bool>,
    node_name: Option<String>,
    capacity: Option<BTreeMap<String, Capacity>>,
}

#[derive(Deserialize)]
struct Capacity {
    value: Quantity,
}

#[derive(Deserialize)]
struct Claim {
    status: Option<ClaimStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimStatus {
    allocation: Option<Allocation>,
    #[serde(default)]
    reserved_for: Option<Vec<Consumer>>,
}

#[derive(Deserialize)]
struct Allocation {
    devices: Option<Allocated>,
}

#[derive(Deserialize)]
struct Allocated {
    #[serde(default)]
    results: Option<Vec<Allotment>>,
}

/// One entry of `results`. Its `shareID` tells several shares of a device in one claim apart, which are added up here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allotment {
    driver: String,
    pool: String,
    device: String,
    admin_access: Option<bool>,
    consumed_capacity: Option<BTreeMap<String, Quantity>>,
}

#[derive(Deserialize)]
struct Consumer {
    resource: String,
    name: String,
}

/// Consumers of a claim that the API server accepts.
const MOST_CONSUMERS: usize = 256;

/// The amount of a capacity `memory`, which belongs to the driver whether or not its domain is written; `None` if there is
/// none. `field` is its path, for the error.
fn memory<'q>(
    field: &str,
    driver: &str,
    capacity: impl IntoIterator<Item = (&'q String, &'q Quantity)>,
) -> Result<Option<Vram>, String> {
    let qualified = |key: &str| key.strip_suffix("/memory") == Some(driver);
    let Some((key, Quantity(amount))) = capacity.into_iter().find(|(key, _)| *key == "memory" || qualified(key)) else {
        return Ok(None);
    };
    let read = quantity::bytes(amount).map(Bytes::vram);
    read.map(Some).ok_or_else(|| format!("{field}.{key}: {amount:?} is not an amount of memory, as in 80Gi"))
}

impl Devices {
    pub(super) fn slice(&mut self, object: &Value, names: &mut Names) -> Result<(), String> {
        let Slice { spec } = typed(object)?;
        kept::name("spec.driver", &spec.driver)?;
        kept::name("spec.pool.name", &spec.pool.name)?;
        let (driver, pool) = (names.share(&spec.driver), names.share(&spec.pool.name));
        let slice = names.share(object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default());
        let entry = self.pools.entry((driver.clone(), pool.clone())).or_insert((spec.pool.generation, Vec::new()));
        // While a driver replaces the slices of a pool, those of the older generation are out of date.
        if spec.pool.generation < entry.0 {
            return Ok(());
        }
        if spec.pool.generation > entry.0 {
            *entry = (spec.pool.generation, Vec::new());
        }
        for device in spec.devices.into_iter().flatten() {
            kept::name("spec.devices.name", &device.name)?;
            let fields = device.basic.unwrap_or(device.fields);
            let capacity = fields.capacity.iter().flatten().map(|(name, capacity)| (name, &capacity.value));
            let memory = memory("spec.devices.capacity", &spec.driver, capacity)?;
            let is_gpu = memory.is_some() || spec.driver == keys::DRA_DRIVER;
            if fields.allow_multiple_allocations != Some(true) || !is_gpu {
                continue;
            }
            let node = spec.node_name.as_ref().or(fields.node_name.as_ref());
            kept::name("spec.devices.nodeName", node.map_or("", String::as_str))?;
            entry.1.push(SharedDevice {
                node: node.map(|node| names.share(node)),
                driver: driver.clone(),
                pool: pool.clone(),
                device: names.share(&device.name),
                slice: slice.clone(),
                memory,
                claims: Vec::new(),
            });
        }
        Ok(())
    }

    pub(super) fn claim(&mut self, id: &Object, object: &Value, names: &mut Names) -> Result<(), String> {
        let Claim { status } = typed(object)?;
        let Some(status) = status else { return Ok(()) };
        let consumers = status.reserved_for.iter().flatten().filter(|consumer| consumer.resource == "pods");
        let consumers = consumers.filter(|consumer| kept::may_be_name(&consumer.name)).take(MOST_CONSUMERS);
        let pods: Vec<Name> = consumers.map(|consumer| consumer.name.as_str().into()).collect();
        let allocated = status.allocation.and_then(|allocation| allocation.devices?.results);
        for share in allocated.into_iter().flatten().filter(|share| share.admin_access != Some(true)) {
            // A driver that charges nothing for a claim without an amount reports zero.
            let field = "status.allocation.devices.results.consumedCapacity";
            let memory = memory(field, &share.driver, share.consumed_capacity.iter().flatten())?;
            let memory = memory.filter(|memory| !memory.is_zero());
            for (field, text) in [("driver", &share.driver), ("pool", &share.pool), ("device", &share.device)] {
                kept::name(&format!("status.allocation.devices.results.{field}"), text)?;
            }
            let key = (names.share(&share.driver), names.share(&share.pool), names.share(&share.device));
            let claims = self.claims.entry(key).or_default();
            match claims.iter_mut().find(|claim| claim.namespace == id.namespace && claim.name == id.name) {
                Some(known) => known.memory = known.memory.zip(memory).map(|(one, other)| one.plus(other)),
                None => claims.push(DeviceClaim {
                    namespace: id.namespace.clone(),
                    name: id.name.clone(),
                    memory,
                    pods: pods.clone(),
                }),
            }
        }
        Ok(())
    }

    /// The shared devices with their claims.
    pub(super) fn finish(mut self) -> Vec<SharedDevice> {
        let devices = self.pools.into_values().flat_map(|(_, devices)| devices);
        let mut claimed = |device: SharedDevice| {
            let key = (device.driver.clone(), device.pool.clone(), device.device.clone());
            SharedDevice { claims: self.claims.remove(&key).unwrap_or_default(), ..device }
        };
        devices.map(&mut claimed).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::capacity::name::Name;

    /// The finding named the pool as if it were the slice.
    #[test]
    fn a_shared_device_knows_the_name_of_its_slice() {
        let device =
            json!({"name": "gpu-0", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "80Gi"}}});
        let slice = json!({"metadata": {"name": "gpu-0-gpu.nvidia.com-x7k2p"}, "spec": {"driver": "gpu.nvidia.com",
            "pool": {"name": "gpu-0"}, "devices": [device]}});
        let mut devices = Devices::default();
        devices.slice(&slice, &mut Names::default()).unwrap();
        assert_eq!(devices.finish()[0].slice.as_str(), "gpu-0-gpu.nvidia.com-x7k2p");
    }

    /// It counted as no amount, so that its device vanished and its claim held nothing.
    #[test]
    fn memory_that_cannot_be_read_is_an_error_and_never_none() {
        let id = Object { kind: Name::from("ResourceClaim"), namespace: "ml".into(), name: "c".into() };
        for amount in ["-80Gi", "NaN", "much"] {
            let device =
                json!({"name": "gpu-0", "allowMultipleAllocations": true, "capacity": {"memory": {"value": amount}}});
            let slice = json!({"spec": {"driver": "gpu.nvidia.com", "pool": {"name": "a"}, "devices": [device]}});
            let error = Devices::default().slice(&slice, &mut Names::default()).unwrap_err();
            assert!(error.starts_with("spec.devices.capacity.memory: ") && error.contains(amount), "{error}");
            let share = json!({"driver": "gpu.nvidia.com", "pool": "a", "device": "gpu-0", "consumedCapacity": {"memory": amount}});
            let claim = json!({"status": {"allocation": {"devices": {"results": [share]}}}});
            let error = Devices::default().claim(&id, &claim, &mut Names::default()).unwrap_err();
            assert!(error.contains("consumedCapacity.memory: ") && error.contains(amount), "{error}");
        }
    }
}
