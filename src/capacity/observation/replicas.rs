//! [`Replicas`]: which GPUs are behind which resource, and how many replicas each has. Owns how that follows from the ids
//! of devices that the kubelet knows, and from the capacity of a node where the kubelet cannot be asked.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::capacity::gpu::Resource;
use crate::capacity::name::Name;

/// What separates the UUID of a GPU from the number of its replica in the id of a device.
const SEPARATOR: &str = "::";

/// The number of replicas of each GPU, by resource and UUID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas(BTreeMap<Resource, BTreeMap<Name, NonZeroU32>>);

/// The UUID of the GPU in the id of a device: `GPU-…::7`, or `GPU-…` if it is not shared.
pub fn uuid_of(device: &str) -> &str {
    device.split_once(SEPARATOR).map_or(device, |(uuid, _)| uuid)
}

impl Replicas {
    /// Counts devices by the UUID in their ids, as a kubelet lists them.
    pub fn of_devices<'d>(devices: impl IntoIterator<Item = (&'d str, &'d str)>) -> Replicas {
        let mut replicas = Replicas::default();
        for (resource, device) in devices {
            let of = replicas.0.entry(Resource(resource.into())).or_default();
            let uuid = uuid_of(device);
            match of.get_mut(uuid) {
                Some(count) => *count = count.saturating_add(1),
                None => drop(of.insert(uuid.into(), NonZeroU32::MIN)),
            }
        }
        replicas
    }

    /// Infers replicas from the capacity of a node with one GPU resource: as many of each of its GPUs. `None` if there
    /// are several resources, or if they do not divide evenly.
    pub fn inferred(capacity: &[(Resource, u64)], gpus: &[Name]) -> Option<Replicas> {
        let [(resource, total)] = capacity else { return None };
        let count = u64::try_from(gpus.len()).ok().filter(|count| *count > 0)?;
        let each = NonZeroU32::new(u32::try_from(total / count).ok()?)?;
        let of = gpus.iter().map(|gpu| (gpu.clone(), each)).collect();
        (u64::from(each.get()) * count == *total).then(|| Replicas(BTreeMap::from([(resource.clone(), of)])))
    }

    /// Each GPU behind each resource, with its replicas.
    pub fn iter(&self) -> impl Iterator<Item = (&Resource, &Name, NonZeroU32)> {
        self.0.iter().flat_map(|(resource, of)| of.iter().map(move |(uuid, count)| (resource, uuid, *count)))
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Resource, Name, NonZeroU32)> for Replicas {
    fn from_iter<I: IntoIterator<Item = (Resource, Name, NonZeroU32)>>(replicas: I) -> Replicas {
        let mut made = Replicas::default();
        for (resource, uuid, count) in replicas {
            made.0.entry(resource).or_default().insert(uuid, count);
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(replicas: &Replicas) -> Vec<String> {
        replicas.iter().map(|(resource, uuid, count)| format!("{resource} {uuid} {count}")).collect()
    }

    #[test]
    fn replicas_are_counted_by_the_uuid_before_their_number() {
        let devices = [
            ("nvidia.com/gpu", "GPU-a::0"),
            ("nvidia.com/gpu", "GPU-a::1"),
            ("nvidia.com/gpu", "GPU-b::0"),
            ("nvidia.com/gpu", "GPU-b::1"),
            ("nvidia.com/mig-1g.10gb", "MIG-c"),
        ];
        let replicas = Replicas::of_devices(devices);
        assert_eq!(
            listed(&replicas),
            ["nvidia.com/gpu GPU-a 2", "nvidia.com/gpu GPU-b 2", "nvidia.com/mig-1g.10gb MIG-c 1"]
        );
    }

    #[test]
    fn replicas_follow_from_a_capacity_that_divides_evenly_among_the_gpus() {
        let gpu = || Resource("nvidia.com/gpu".into());
        let gpus = ["GPU-a".into(), "GPU-b".into()];
        let inferred = Replicas::inferred(&[(gpu(), 8)], &gpus).unwrap();
        assert_eq!(listed(&inferred), ["nvidia.com/gpu GPU-a 4", "nvidia.com/gpu GPU-b 4"]);
        for (capacity, gpus) in [
            (vec![(gpu(), 7)], &gpus[..]),
            (vec![(gpu(), 0)], &gpus[..]),
            (vec![(gpu(), 8)], &[]),
            (vec![], &gpus[..]),
            (vec![(gpu(), 4), (Resource("nvidia.com/gpu.shared".into()), 4)], &gpus[..]),
        ] {
            assert_eq!(Replicas::inferred(&capacity, gpus), None, "{capacity:?}");
        }
    }
}
