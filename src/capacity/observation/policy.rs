//! [`PolicyCheck`]: whether the device plugin chooses GPUs as its configuration says. Owns how placements that are seen
//! confirm or contradict an allocation policy.
//!
//! A placement tells something only if the two policies would have chosen differently: if the GPUs with a free replica had
//! different numbers of taken ones. One placement against the policy is enough to trust none until the agent restarts,
//! because a wrong prediction overcommits a GPU.

use std::collections::BTreeMap;

use super::containers::ContainerKey;
use super::replicas::Replicas;
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::name::Name;

/// Placements that must confirm a policy that the plugin's configuration names.
const CONFIRMATIONS: u32 = 1;
/// Placements that must confirm a policy that nobody names.
const CONFIRMATIONS_UNNAMED: u32 = 8;

/// The GPU of each replica of each container, by UUID.
pub type Devices = BTreeMap<ContainerKey, Vec<Name>>;

/// What the placements on a node tell about the allocation policy of its device plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyCheck {
    /// The policy in the plugin's configuration.
    named: Option<AllocationPolicy>,
    /// The policy that was named last, also if none is now.
    last_named: Option<AllocationPolicy>,
    before: Option<Devices>,
    distributed: u32,
    packed: u32,
    neither: u32,
}

impl PolicyCheck {
    /// Starts a check of the policy that the plugin's configuration names.
    pub fn new(named: Option<AllocationPolicy>) -> PolicyCheck {
        PolicyCheck { named, last_named: named, ..PolicyCheck::default() }
    }

    /// Takes over what the plugin's configuration names now. A plugin under another policy makes other placements, so those
    /// that contradict the new name are forgotten. If the same name comes back, they are not.
    pub fn rename(&mut self, named: Option<AllocationPolicy>) {
        self.named = named;
        let Some(policy) = named else { return };
        let seen = match (self.distributed, self.packed, self.neither) {
            (_, 0, 0) => Some(AllocationPolicy::Distributed),
            (0, _, 0) => Some(AllocationPolicy::Packed),
            _ => None,
        };
        let nothing = (self.distributed, self.packed, self.neither) == (0, 0, 0);
        if self.last_named != Some(policy) && !nothing && seen != Some(policy) {
            (self.distributed, self.packed, self.neither) = (0, 0, 0);
        }
        self.last_named = named;
    }

    /// Takes the present devices into account. Only a single new replica since the last call tells something: the order
    /// of several is not known.
    pub fn observe(&mut self, devices: &Devices, replicas: &Replicas) {
        let Some(before) = self.before.replace(devices.clone()) else { return };
        let mut new = devices.iter().filter(|(key, _)| !before.contains_key(*key));
        let (Some((_, gpus)), None) = (new.next(), new.next()) else { return };
        let [chosen] = gpus.as_slice() else { return };
        // A container that ended in the same interval may have freed its replica before or after.
        if before.keys().any(|key| !devices.contains_key(key)) {
            return;
        }
        let pool = replicas.iter().find(|(_, uuid, _)| *uuid == chosen).map(|(resource, ..)| resource);
        let of_pool = replicas.iter().filter(|(resource, ..)| pool == Some(*resource));
        let taken = |uuid: &Name| before.values().flatten().filter(|other| *other == uuid).count();
        let open = of_pool.map(|(_, uuid, count)| (uuid, taken(uuid), count.get() as usize));
        let open: Vec<(&Name, usize)> =
            open.filter(|(_, taken, count)| taken < count).map(|(uuid, taken, _)| (uuid, taken)).collect();
        let (Some(least), Some(most)) = (open.iter().map(|gpu| gpu.1).min(), open.iter().map(|gpu| gpu.1).max()) else {
            return;
        };
        let at = taken(chosen);
        if least == most {
            return;
        }
        let counter = match at {
            at if at == least => &mut self.distributed,
            at if at == most => &mut self.packed,
            _ => &mut self.neither,
        };
        *counter = counter.saturating_add(1);
    }

    /// The policy that the placements confirm.
    pub fn verified(&self) -> AllocationPolicy {
        let (policy, seen) = match (self.distributed, self.packed, self.neither) {
            (seen, 0, 0) => (AllocationPolicy::Distributed, seen),
            (0, seen, 0) => (AllocationPolicy::Packed, seen),
            _ => return AllocationPolicy::Unverified,
        };
        let enough = match self.named {
            Some(named) if named == policy => CONFIRMATIONS,
            Some(_) => return AllocationPolicy::Unverified,
            None => CONFIRMATIONS_UNNAMED,
        };
        if seen >= enough { policy } else { AllocationPolicy::Unverified }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas() -> Replicas {
        let devices = (0..8_usize).map(|number| format!("GPU-{}::{}", ["a", "b"][number % 2], number / 2));
        let devices: Vec<String> = devices.collect();
        Replicas::of_devices(devices.iter().map(|device| ("nvidia.com/gpu", device.as_str())))
    }

    /// Places containers one after the other on these GPUs.
    fn placed(check: &mut PolicyCheck, gpus: &[&str]) -> AllocationPolicy {
        let mut devices = check.before.clone().unwrap_or_default();
        check.observe(&devices, &replicas());
        for gpu in gpus {
            let name = format!("pod-{}", devices.len());
            devices.insert((name.as_str().into(), "main".into()), vec![(*gpu).into()]);
            check.observe(&devices, &replicas());
        }
        check.verified()
    }

    #[test]
    fn a_named_policy_is_verified_by_a_placement_that_the_other_one_would_not_have_made() {
        let mut check = PolicyCheck::new(Some(AllocationPolicy::Distributed));
        assert_eq!(placed(&mut check, &["GPU-a"]), AllocationPolicy::Unverified, "both were empty");
        assert_eq!(placed(&mut check, &["GPU-b"]), AllocationPolicy::Distributed);
    }

    #[test]
    fn one_placement_against_the_policy_ends_the_trust() {
        let mut check = PolicyCheck::new(Some(AllocationPolicy::Distributed));
        assert_eq!(placed(&mut check, &["GPU-a", "GPU-a"]), AllocationPolicy::Unverified);
        assert_eq!(placed(&mut check, &["GPU-b", "GPU-b", "GPU-a"]), AllocationPolicy::Unverified);
    }

    #[test]
    fn a_policy_that_nobody_names_needs_more_placements() {
        let mut check = PolicyCheck::new(None);
        let mut devices = Devices::new();
        // Each round starts from an uneven node: one replica of GPU-a is taken.
        for round in 0..CONFIRMATIONS_UNNAMED {
            assert_eq!(check.verified(), AllocationPolicy::Unverified, "{round}");
            devices.insert(("first".into(), "main".into()), vec!["GPU-a".into()]);
            check.before = Some(devices.clone());
            devices.insert(("second".into(), "main".into()), vec!["GPU-a".into()]);
            check.observe(&devices, &replicas());
            devices.clear();
        }
        assert_eq!(check.verified(), AllocationPolicy::Packed);
    }

    #[test]
    fn a_configuration_that_names_another_policy_is_verified_by_what_is_placed_from_then_on() {
        let (distributed, packed) = (Some(AllocationPolicy::Distributed), Some(AllocationPolicy::Packed));
        let mut check = PolicyCheck::new(distributed);
        assert_eq!(placed(&mut check, &["GPU-a", "GPU-b"]), AllocationPolicy::Distributed);
        check.rename(packed);
        assert_eq!(check.verified(), AllocationPolicy::Unverified, "what was placed tells nothing of it");
        // Even again: the next one tells nothing, and the one after it does.
        assert_eq!(placed(&mut check, &["GPU-b"]), AllocationPolicy::Unverified);
        assert_eq!(placed(&mut check, &["GPU-b"]), AllocationPolicy::Packed);
        check.rename(distributed);
        assert_eq!(placed(&mut check, &["GPU-b"]), AllocationPolicy::Unverified, "the plugin still packs");
        assert_eq!(placed(&mut check, &["GPU-a"]), AllocationPolicy::Unverified, "one of each: nothing is trusted");
    }

    #[test]
    fn a_name_that_comes_back_brings_no_trust_back() {
        let distributed = Some(AllocationPolicy::Distributed);
        let mut check = PolicyCheck::new(distributed);
        assert_eq!(placed(&mut check, &["GPU-a", "GPU-a"]), AllocationPolicy::Unverified, "against the policy");
        for named in [None, distributed] {
            check.rename(named);
            assert_eq!(placed(&mut check, &["GPU-b"]), AllocationPolicy::Unverified, "{named:?}");
        }
    }

    #[test]
    fn a_name_that_is_read_late_counts_with_what_was_seen_before() {
        let mut check = PolicyCheck::new(None);
        assert_eq!(placed(&mut check, &["GPU-a", "GPU-b"]), AllocationPolicy::Unverified, "one is too few");
        check.rename(Some(AllocationPolicy::Distributed));
        assert_eq!(check.verified(), AllocationPolicy::Distributed);
        check.rename(None);
        assert_eq!(check.verified(), AllocationPolicy::Unverified, "nobody names it any more");
    }

    #[test]
    fn placements_whose_order_is_not_known_tell_nothing() {
        let mut check = PolicyCheck::new(Some(AllocationPolicy::Packed));
        check.observe(&Devices::new(), &replicas());
        let two = [("x", "GPU-a"), ("y", "GPU-a"), ("z", "GPU-b")];
        let two = two.map(|(pod, gpu)| ((pod.into(), "main".into()), vec![gpu.into()]));
        check.observe(&Devices::from(two), &replicas());
        assert_eq!(
            check,
            PolicyCheck { before: check.before.clone(), ..PolicyCheck::new(Some(AllocationPolicy::Packed)) }
        );
    }
}
