//! How the demand of a pod comes about, for `vramguard explain`. Owns which containers are listed, and with what; the
//! amounts are those of the [`Assessment`].

use super::Assessment;
use crate::capacity::admission::declaration::{self, Fallback, Names};
use crate::capacity::pod::Container;
use crate::capacity::pod::demand::{Demand, Role};
use crate::capacity::verdict::{Counts, Source};
use crate::capacity::vram::Vram;

/// How the demand of a pod comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The containers, in start order.
    pub containers: Vec<ContainerAccount>,
    /// CUDA processes of each GPU container; `None` if the annotation is not a count.
    pub processes: Option<u32>,
    /// The demand of the pod, as Kubernetes counts it; `None` if no container has one or one is refused.
    pub demand: Option<Vram>,
}

/// How the demand of a container comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerAccount {
    /// Name of the container.
    pub name: String,
    /// When it runs.
    pub role: Role,
    /// Whether it counts.
    pub counts: Counts,
    /// What it declares, and the source of that; `None` if it declares nothing, or if the declaration is refused.
    pub declared: Option<(Vram, Source)>,
    /// Other sources that declare an amount for it and that do not decide.
    pub also: Vec<Source>,
    /// Its demand; `None` if it has none, or if its declaration is refused.
    pub demand: Option<Demand>,
}

impl Assessment<'_> {
    /// How the demand comes about.
    pub fn account(&self) -> Account {
        let (pod, declarations) = (self.pod, &self.pod.declarations);
        let all: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
        let is_guarded = |container: &&Container| self.guarded_gpu(container).is_some();
        let guarded: Vec<&str> = pod.containers.iter().filter(is_guarded).map(|c| c.name.as_str()).collect();
        let fallback = Fallback { models: &self.policy.models, default: self.policy.default };
        let names = Names { all: &all, guarded: &guarded };
        let mut declared = declaration::resolve_sources(declarations, names, fallback).into_iter();
        let containers = pod.containers.iter().zip(&self.demands).map(|(container, demand)| {
            let counts = self.counts(container);
            let counted = matches!(counts, Counts::Guarded(_) | Counts::Several(..));
            let declared = if counted { declared.next().and_then(|declared| declared.ok().flatten()) } else { None };
            let decides = declared.map(|(_, source)| source);
            let also = if counted { self.sources(container, guarded.len()) } else { Vec::new() };
            let also = also.into_iter().filter(|source| Some(*source) != decides).collect();
            let (name, role) = (container.name.clone(), container.role);
            ContainerAccount { name, role, counts, declared, also, demand: *demand }
        });
        let containers = containers.collect();
        let processes = declarations.processes.as_ref().map_or(Some(1), |count| count.as_ref().ok().copied());
        Account { containers, processes, demand: self.total() }
    }

    fn counts(&self, container: &Container) -> Counts {
        match (self.guarded_gpu(container), container.gpus.first()) {
            (Some((resource, 1)), _) => Counts::Guarded(resource.clone()),
            (Some((resource, count)), _) => Counts::Several(resource.clone(), *count),
            (None, Some((resource, _))) => Counts::Unguarded(resource.clone()),
            (None, None) => Counts::WithoutGpu,
        }
    }

    /// All sources that declare an amount for a container, one of `guarded` containers with a GPU.
    fn sources(&self, container: &Container, guarded: usize) -> Vec<Source> {
        let declarations = &self.pod.declarations;
        let sources = [
            (Source::Container, declarations.containers.contains_key(&container.name)),
            (Source::Pod, declarations.pod.is_some() && guarded == 1),
            (Source::Model, declarations.model.is_some() && guarded == 1),
            (Source::Foreign, declarations.foreign.contains_key(&container.name)),
            (Source::Default, self.policy.default.is_some()),
        ];
        sources.into_iter().filter(|(_, is_set)| *is_set).map(|(source, _)| source).collect()
    }
}
