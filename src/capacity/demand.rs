//! From what a container declares to what it demands, and from containers to the pod, as Kubernetes counts. Owns the two
//! sums; does not decide where a declaration comes from (see [`super::declaration`]).

use super::vram::Vram;

/// What one GPU container takes of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// What the user says the container needs (D); absent where the container counts as one slot that is smaller than
    /// its own overhead.
    pub declared: Option<Vram>,
    /// What is requested and summed (N): declared + overhead × processes.
    pub total: Vram,
    /// Whether nothing was declared and the container counts as one slot.
    pub basis: Basis,
}

/// What a demand stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// A declaration, or the policy's default.
    Declared,
    /// Nothing: one slot of a node.
    Slot,
}

impl Demand {
    /// D + overhead × processes, or `None` above [`Vram::MAX`].
    pub fn declared(declared: Vram, overhead: Vram, processes: u32) -> Option<Demand> {
        let overhead = overhead.checked_times(u64::from(processes))?;
        let total = Vram::checked_from_mib(declared.plus(overhead).mib())?;
        Some(Demand { declared: Some(declared), total, basis: Basis::Declared })
    }

    /// One slot, overhead included: an undeclared container may use what its replica stands for.
    pub fn of_slot(slot: Vram, overhead: Vram, processes: u32) -> Demand {
        let declared = overhead
            .checked_times(u64::from(processes))
            .map(|overhead| slot.less(overhead).room())
            .filter(|declared| !declared.is_zero());
        Demand { declared, total: slot, basis: Basis::Slot }
    }
}

/// When a container of a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// Runs beside the others, after all init containers.
    App,
}

/// What a pod takes as Kubernetes counts: the larger of all app containers and sidecars together, and each init
/// container with the sidecars started before it. `containers` in start order: init containers and sidecars as listed,
/// then app containers.
pub fn of_pod(containers: impl IntoIterator<Item = (Role, Vram)>) -> Vram {
    // A sum past what a quantity can say is said as the most that it can.
    peak(containers, Vram::ZERO, |a, b| a.plus(b).min(Vram::MAX))
}

/// As [`of_pod`], for the number of replicas of a GPU resource.
pub fn replicas_of_pod(containers: impl IntoIterator<Item = (Role, u64)>) -> u64 {
    peak(containers, 0, u64::saturating_add)
}

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
        /// The oracle plays the pod's life: at each moment, what runs is summed.
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
