//! Demands: from a container's declaration to its demand, and from containers to the pod as Kubernetes sums them.
//!
//! Owns the two sums; [`declaration`](crate::capacity::admission::declaration) decides where a declaration comes from.

use crate::capacity::vram::Vram;

/// The memory that one GPU container takes of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// What the container may use itself: the declared amount, or one slot less the overhead.
    ///
    /// It is `None` if the container counts as one slot and the overhead leaves nothing of it.
    pub declared: Option<Vram>,
    /// What is requested and summed: declared + overhead × processes, or one slot.
    pub total: Vram,
    /// What the demand is computed from.
    pub basis: Basis,
}

/// What a demand is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// A declaration, or the policy's default.
    Declared,
    /// One slot of a node, because the container declares nothing.
    Slot,
}

impl Demand {
    /// Computes declared + overhead × processes, or returns `None` above [`Vram::MAX`].
    pub fn declared(declared: Vram, overhead: Vram, processes: u32) -> Option<Demand> {
        let overhead = overhead.checked_times(u64::from(processes))?;
        let total = Vram::checked_from_mib(declared.plus(overhead).mib())?;
        Some(Demand { declared: Some(declared), total, basis: Basis::Declared })
    }

    /// The demand of a container that declares nothing: one slot, overhead included.
    ///
    /// Such a container may use the memory that its replica represents.
    pub fn of_slot(slot: Vram, overhead: Vram, processes: u32) -> Demand {
        let declared = overhead
            .checked_times(u64::from(processes))
            .map(|overhead| slot.minus(overhead).free())
            .filter(|declared| !declared.is_zero());
        Demand { declared, total: slot, basis: Basis::Slot }
    }

    /// What of the demand is overhead; `None` if that is larger than any memory.
    pub fn overhead(&self, per_process: Vram, processes: u32) -> Option<Vram> {
        if self.basis == Basis::Declared {
            return self.declared.map(|declared| self.total.minus(declared).free());
        }
        per_process.checked_times(u64::from(processes))
    }
}

/// When a container of a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// An init container, which ends before the next container starts.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// An app container, which runs together with the others after all init containers.
    App,
}

/// The demand of a pod, as Kubernetes computes it.
///
/// It is the larger of two: all app containers and sidecars together, and each init container with the sidecars started
/// before it. `containers` are in start order: init containers and sidecars as listed, then app containers.
pub fn of_pod(containers: impl IntoIterator<Item = (Role, Vram)>) -> Vram {
    // A sum above the limit of a quantity is reported as that limit.
    peak(containers, Vram::ZERO, |a, b| a.plus(b).min(Vram::MAX))
}

/// Like [`of_pod`], for the number of replicas of a GPU resource.
pub fn replicas_of_pod(containers: impl IntoIterator<Item = (Role, u64)>) -> u64 {
    peak(containers, 0, u64::saturating_add)
}

/// The largest sum of the containers that run at the same time.
fn peak<T: Copy + Ord>(containers: impl IntoIterator<Item = (Role, T)>, zero: T, plus: fn(T, T) -> T) -> T {
    let (mut sidecars, mut apps, mut peak) = (zero, zero, zero);
    for (role, amount) in containers {
        match role {
            Role::Init => peak = peak.max(plus(sidecars, amount)),
            Role::Sidecar => sidecars = plus(sidecars, amount),
            Role::App => apps = plus(apps, amount),
        }
    }
    peak.max(plus(sidecars, apps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_declaration_is_demanded_with_the_context_of_each_process() {
        let demand = Demand::declared(Vram::from_mib(8192), Vram::from_mib(600), 3).unwrap();
        assert_eq!(demand.total, Vram::from_mib(8192 + 1800));
        assert_eq!(Demand::declared(Vram::MAX, Vram::from_mib(600), 1), None);
        assert_eq!(Demand::declared(Vram::ZERO, Vram::MAX, 2), None);
    }

    #[test]
    fn a_slot_smaller_than_its_overhead_declares_nothing() {
        assert_eq!(Demand::of_slot(Vram::from_mib(500), Vram::from_mib(600), 1).declared, None);
        assert_eq!(Demand::of_slot(Vram::from_mib(5967), Vram::from_mib(600), 1).declared, Some(Vram::from_mib(5367)));
    }

    proptest! {
        /// The oracle simulates the life of the pod: at each moment, it sums what runs.
        #[test]
        fn a_pod_takes_the_peak_of_its_life(
            inits in proptest::collection::vec((any::<bool>(), 0u64..1000), 0..6),
            apps in proptest::collection::vec(0u64..1000, 0..4),
        ) {
            let (mut running, mut peak) = (0, 0);
            for &(sidecar, mib) in &inits {
                peak = peak.max(running + mib);
                if sidecar {
                    running += mib;
                }
            }
            peak = peak.max(running + apps.iter().sum::<u64>());
            let containers = inits
                .iter()
                .map(|&(sidecar, mib)| (if sidecar { Role::Sidecar } else { Role::Init }, Vram::from_mib(mib)))
                .chain(apps.iter().map(|&mib| (Role::App, Vram::from_mib(mib))));
            prop_assert_eq!(of_pod(containers), Vram::from_mib(peak));
        }
    }
}
