//! The parts of a pod's demand, for messages. Owns when the pod's annotations explain its demand;
//! [`super::declaration`] decides what a declaration is worth.

use std::collections::BTreeMap;

use crate::capacity::admission::declaration::{self, Fallback, Names};
use crate::capacity::pod::Pod;
use crate::capacity::pod::demand::{self, Role};
use crate::capacity::verdict::MadeOf;
use crate::capacity::vram::Vram;

/// The sums of what a pod declares: its amounts and its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Makeup {
    declared: Vram,
    processes: u32,
}

impl Makeup {
    /// The sums of a pod whose GPU containers all run at once and all declare an amount by annotation.
    ///
    /// `None` for any other pod, because a single sum does not explain its demand.
    pub fn of(pod: &Pod) -> Option<Makeup> {
        let with_gpu: Vec<_> = pod.containers.iter().filter(|container| !container.gpus.is_empty()).collect();
        if with_gpu.is_empty() || with_gpu.iter().any(|container| container.role == Role::Init) {
            return None;
        }
        let each = pod.declarations.processes.as_ref().map_or(Some(1), |processes| processes.as_ref().ok().copied())?;
        let all: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
        let guarded: Vec<&str> = with_gpu.iter().map(|container| container.name.as_str()).collect();
        let names = Names { all: &all, guarded: &guarded };
        let fallback = Fallback { models: &BTreeMap::new(), default: None };
        let amounts = declaration::resolve(&pod.declarations, names, fallback, &mut Vec::new());
        let amounts = amounts.into_iter().map(|amount| amount.ok().flatten()).collect::<Option<Vec<Vram>>>()?;
        let declared = demand::of_pod(amounts.into_iter().map(|amount| (Role::App, amount)));
        let processes = each.checked_mul(u32::try_from(with_gpu.len()).ok()?)?;
        Some(Makeup { declared, processes })
    }

    /// The two parts of a demand, or `None` if they do not add up to it.
    ///
    /// They do not if the policy changed after the demand was requested. `per_process` is the policy's overhead of one
    /// process.
    pub fn explains(self, demand: Vram, per_process: Vram) -> Option<MadeOf> {
        let Makeup { declared, processes } = self;
        let overhead = per_process.checked_times(u64::from(processes))?;
        (declared.plus(overhead) == demand).then_some(MadeOf { declared, overhead, processes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::gpu::Resource;
    use crate::capacity::pod::placement::Placement;
    use crate::capacity::pod::{Container, HostAccess, Origin, PodName, VramRequest};
    use crate::capacity::pod::{Declarations, Written};

    fn pod(containers: &[(&str, Role, u64)], declared: &str, processes: Option<Result<u32, String>>) -> Pod {
        let container = |&(name, role, gpus): &(&str, Role, u64)| Container {
            name: name.into(),
            role,
            gpus: (gpus > 0).then(|| (Resource("nvidia.com/gpu".into()), gpus)).into_iter().collect(),
            vram_request: VramRequest::Absent,
            env: Vec::new(),
            software: crate::capacity::pod::software::Software::default(),
        };
        let amount = declared.parse().map_err(|_| "unreadable".to_owned());
        let written = Written { key: "vramguard.dev/vram".into(), text: declared.into(), amount };
        Pod {
            name: PodName { namespace: "ml".into(), name: "llm".into() },
            containers: containers.iter().map(container).collect(),
            declarations: Declarations { pod: Some(written), processes, ..Declarations::default() },
            reserved_annotations: Vec::new(),
            bounded_by: std::collections::BTreeMap::new(),
            unknown_annotations: Vec::new(),
            placement: Placement::default(),
            origin: Origin::Api,
            access: HostAccess::None,
            excess: None,
        }
    }

    #[test]
    fn a_demand_is_explained_by_what_is_declared_and_the_processes() {
        let mib = Vram::from_mib;
        let (one, init) = ([("main", Role::App, 1), ("beside", Role::App, 0)], [("main", Role::Init, 1)]);
        let two = Makeup::of(&pod(&one, "8Gi", Some(Ok(2)))).unwrap();
        let made_of = MadeOf { declared: mib(8192), overhead: mib(1440), processes: 2 };
        assert_eq!(two.explains(mib(9632), mib(720)), Some(made_of));
        assert_eq!(two.explains(mib(9392), mib(720)), None, "requested under another policy");
        assert_eq!(Makeup::of(&pod(&init, "8Gi", None)), None);
        assert_eq!(Makeup::of(&pod(&one, "8 GB", None)), None);
        assert_eq!(Makeup::of(&pod(&one, "8Gi", Some(Err("x".into())))), None);
        assert_eq!(Makeup::of(&Pod { declarations: Declarations::default(), ..pod(&one, "8Gi", None) }), None);
    }
}
