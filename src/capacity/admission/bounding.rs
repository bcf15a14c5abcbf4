//! The environment of the containers of a pod, and what bounds each of them. Owns which framework a container is taken to
//! run, and the annotation that says what bounds it; [`environment`] owns what each framework is told.

use std::collections::BTreeMap;

use super::environment::{self, Injection, Setting, recognise};
use super::{Assessment, OnConflict};
use crate::capacity::cluster::Landing;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::demand::{Basis, Demand};
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Container, HostAccess};
use crate::capacity::policy::{FrameworkPolicy, Mode};
use crate::capacity::verdict::{Advice, Bound, BoundedBy, Violation, Why};
use crate::keys;

/// The GPUs that a pod may land on, by resource: each is looked up once for a pod, however many containers it has.
type Landings = BTreeMap<Resource, Landing>;

impl Assessment<'_> {
    /// Decides what is injected into each container, and what of its own environment conflicts with it.
    pub(super) fn environment(&mut self) {
        let guarded = self.is_guarded();
        let injects = matches!(self.policy.mode, Mode::Enforce | Mode::Warn);
        // A pod that is rerouted may land on GPUs of other sizes, and one that avoids shared GPUs on fewer.
        let placement = self.final_placement().into_owned();
        let mut landings = Landings::new();
        for (container, demand) in self.pod.containers.iter().zip(&self.demands) {
            let seen_anyway = self.pod.access == HostAccess::Host;
            if environment::shows_gpus_without_request(container) && !seen_anyway {
                self.violations.push(Violation::VisibleDevices { container: container.name.clone() });
            }
            // A container whose declaration is refused has no demand, but it does request a GPU.
            let refused = demand.is_none() && !container.gpus.is_empty();
            let mut injection = if guarded && !refused {
                environment::of_container(container, demand.as_ref())
            } else {
                Injection::default()
            };
            self.bound(container, demand.as_ref(), &placement, &mut landings, &mut injection);
            // A container whose GPU is not guarded could see guarded GPUs too.
            let chosen_gpus = environment::chosen_gpus(container).filter(|_| self.cluster.guards_any());
            let injection = Injection { chosen_gpus, ..injection };
            if let Some(Bound { why: why @ Why::WriteFlag { .. }, .. }) = &injection.bound {
                self.advice.push(Advice::Unbounded { container: container.name.clone(), why: why.clone() });
            }
            for conflict in injection.conflicts.iter().cloned() {
                let container = container.name.clone();
                match self.policy.on_conflict {
                    OnConflict::Deny => self.violations.push(Violation::EnvironmentConflict { container, conflict }),
                    OnConflict::Warn => self.advice.push(Advice::KeptEnvironment { container, conflict }),
                }
            }
            // `/mutate/pods` removes such a choice, so `/validate/pods` finds one only if it was not removed. Audit
            // removes nothing, so what Enforce would remove is no violation there.
            if let Some(conflict) = injection.chosen_gpus.clone().filter(|_| injects || self.denies_conflicts()) {
                self.violations.push(Violation::EnvironmentConflict { container: container.name.clone(), conflict });
            }
            self.injections.push(injection);
        }
        self.unknown_frameworks();
    }

    pub(super) fn denies_conflicts(&self) -> bool {
        self.policy.on_conflict == OnConflict::Deny
    }

    /// Tells a container its budget if it takes one GPU that may be shared. A container with several GPUs gets whole
    /// ones.
    fn bound(
        &self,
        container: &Container,
        demand: Option<&Demand>,
        placement: &Placement,
        landings: &mut Landings,
        injection: &mut Injection,
    ) {
        let Some((resource, 1)) = self.guarded_gpu(container) else { return };
        let Some(demand) = demand else { return };
        let setting = self.setting(container, demand);
        // Nothing depends on the GPUs if no framework is told a share and no node enforces a limit.
        let is_asked = setting.framework.is_some() && !setting.is_off || self.cluster.enforces_limits(resource);
        let look = || self.cluster.landing(resource, placement);
        let landing =
            || if is_asked { *landings.entry(resource.clone()).or_insert_with(look) } else { Landing::default() };
        environment::bound(injection, container, demand, &setting, landing);
    }

    fn setting(&self, container: &Container, demand: &Demand) -> Setting {
        let (declarations, software) = (&self.pod.declarations, &container.software);
        let written = declarations.frameworks.get(&container.name).or(declarations.framework.as_ref());
        let recognised = || software.framework.map(|framework| (framework, software.version));
        let by_policy = || match self.policy.framework {
            FrameworkPolicy::Named(framework) => Some((framework, None)),
            FrameworkPolicy::Auto | FrameworkPolicy::None => None,
        };
        let known = match written.map(|text| recognise::named(text)) {
            // The image tells the version of what its author names.
            Some(Some((framework, None))) if software.framework == Some(framework) => recognised(),
            Some(Some(named)) => Some(named),
            Some(None) | None => recognised().or_else(by_policy),
        };
        let processes = declarations.processes.as_ref().and_then(|processes| processes.as_ref().ok());
        Setting {
            framework: known.map(|(framework, _)| framework),
            version: known.and_then(|(_, version)| version),
            is_off: self.policy.framework == FrameworkPolicy::None,
            declared: demand.declared.filter(|_| demand.basis == Basis::Declared),
            processes: processes.copied().unwrap_or(1),
        }
    }

    /// Adds a warning for each annotation that names no framework.
    fn unknown_frameworks(&mut self) {
        let declarations = &self.pod.declarations;
        let of_pod = declarations.framework.iter().map(|text| (keys::FRAMEWORK.to_owned(), text));
        let of_containers =
            declarations.frameworks.iter().map(|(name, text)| (format!("{}{name}", keys::FRAMEWORK_OF), text));
        let unknown = of_pod.chain(of_containers).filter(|(_, text)| recognise::named(text).is_none());
        self.advice.extend(unknown.map(|(key, text)| Advice::UnknownFramework { key, text: text.clone() }));
    }

    /// What bounds each container that takes part of a shared GPU, where a pod with this placement lands.
    pub(super) fn bounds(&self, placement: &Placement) -> Vec<Option<Bound>> {
        let mut landings = Landings::new();
        let of = |(container, demand): (&Container, &Option<Demand>)| {
            let mut injection = Injection::default();
            self.bound(container, demand.as_ref(), placement, &mut landings, &mut injection);
            let bound = injection.bound.take()?;
            // What is not there cannot be injected into a pod that has a node already.
            let absent = injection.first().filter(|_| placement.node_name.is_some());
            Some(match absent {
                Some(name) => Bound { by: BoundedBy::Nothing, why: Why::Absent { name: name.to_owned() }, ..bound },
                None => bound,
            })
        };
        self.pod.containers.iter().zip(&self.demands).map(of).collect()
    }

    /// The annotations about what bounds each container: those to remove, and those to set. An earlier pass may have
    /// written them, and so may anybody else.
    pub(super) fn bound_annotations(&self) -> (Vec<String>, BTreeMap<String, String>) {
        let key = |container: &str| format!("{}{container}", keys::BOUNDED_BY_OF);
        let bounds =
            self.pod.containers.iter().zip(&self.injections).filter_map(|(container, injection)| {
                Some((container.name.as_str(), injection.bound.as_ref()?.by.word()))
            });
        // The API server refuses a longer key, and the pod with it.
        let fits = |name: &str| key(name).split_once('/').is_some_and(|(_, name)| name.len() <= keys::MAX_KEY);
        let bounds: BTreeMap<&str, &str> = bounds.filter(|(name, _)| fits(name)).collect();
        let written = &self.pod.bounded_by;
        let stray = written.keys().filter(|name| !bounds.contains_key(name.as_str())).map(|name| key(name)).collect();
        let changed = bounds.into_iter().filter(|(name, word)| written.get(*name).is_none_or(|there| there != word));
        (stray, changed.map(|(name, word)| (key(name), word.to_owned())).collect())
    }
}

#[cfg(test)]
mod tests;
