//! One pod against policy and cluster: what `/mutate/pods` changes and how `/validate/pods` answers. Owns the order of the
//! decisions; the pieces are the other modules of this tier, the sentences are [`super::verdict`]'s.
//!
//! Nothing is reserved here: reviews race, are dry-run, or are refused later by somebody else.

use super::cluster::{Cluster, Outlook};
use super::declaration::{self, Fallback, Names, Refused};
use super::demand::{self, Basis, Demand};
use super::environment::{self, Injection};
use super::gpu::Resource;
use super::makeup::Makeup;
use super::placement::{Affinity, NodeNeeds, Placement};
use super::pod::{Container, Excess, HostAccess, Origin, Pod, VramRequest};
use super::policy::{Mode, OnConflict, OnShortfall, OnUnaccounted, Policy};
use super::verdict::{Advice, NeverFits, Shortfall, Verdict, Violation};
use super::vram::Vram;
use crate::keys;

mod undeclared;

use self::undeclared::Slots;

/// What is known of a pod under a policy, before it is asked which webhook wants to know.
#[derive(Debug)]
pub struct Assessment<'a> {
    pod: &'a Pod,
    policy: &'a Policy,
    cluster: &'a Cluster,
    /// For each container: what it demands; `None` where it requests no shared GPU, demands nothing of its own, or its
    /// declaration is refused.
    demands: Vec<Option<Demand>>,
    injections: Vec<Injection>,
    violations: Vec<Violation>,
    advice: Vec<Advice>,
    slots: Slots,
}

/// What `/mutate/pods` changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Annotations to take off.
    pub strip: Vec<String>,
    /// By container, in the pod's order.
    pub containers: Vec<ContainerChange>,
    /// What its required node affinity has to become; `None` where it is as it should be.
    pub affinity: Option<Affinity>,
    /// Whether its nodeSelector names our label, which has to go.
    pub unselect: bool,
    /// What its author is told.
    pub advice: Vec<Advice>,
}

/// What changes in one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerChange {
    /// The request for `vramguard.dev/vram` to set.
    pub request: Option<Vram>,
    /// To take out of its environment, each entry of that name.
    pub remove_env: Option<&'static str>,
    /// To put in front of its environment.
    pub env: Vec<environment::Variable>,
}

/// How `/validate/pods` sees a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The namespace's mode, which decides what a violation does.
    pub mode: Mode,
    /// What the pod demands in all, as Kubernetes counts; `None` where it is not guarded or not readable.
    pub demand: Option<Vram>,
    /// What breaks policy.
    pub violations: Vec<Violation>,
    /// What else there is to say.
    pub advice: Vec<Advice>,
}

/// Violations, and pieces of advice, in one answer.
pub const MAX_SAID: usize = 16;

/// Looks at a pod under the policy of its namespace.
pub fn assess<'a>(pod: &'a Pod, policy: &'a Policy, cluster: &'a Cluster) -> Assessment<'a> {
    let mut assessment = Assessment {
        pod,
        policy,
        cluster,
        demands: vec![None; pod.containers.len()],
        injections: Vec::new(),
        violations: Vec::new(),
        advice: Vec::new(),
        slots: Slots::default(),
    };
    assessment.demand();
    assessment.unaccounted();
    assessment.environment();
    let unknown =
        pod.unknown_annotations.iter().take(MAX_SAID).map(|key| Advice::UnknownAnnotation { key: key.clone() });
    assessment.advice.extend(unknown);
    assessment
}

/// Answers `/validate/pods`: under the policy in force, or the one before it where only the request for VRAM tells the
/// two apart, because the pod was mutated a moment before the policy changed.
pub fn judge(pod: &Pod, current: &Policy, previous: Option<&Policy>, cluster: &Cluster) -> Judgement {
    let now = assess(pod, current, cluster).judge();
    let mismatch = |violation: &Violation| {
        matches!(violation, Violation::RequestMismatch { .. } | Violation::EnvironmentConflict { .. })
    };
    // A policy that did not inject has nothing to say on what should have been injected.
    let previous = previous.filter(|policy| matches!(policy.mode, Mode::Enforce | Mode::Warn));
    if now.violations.is_empty() || !now.violations.iter().all(mismatch) {
        return now;
    }
    match previous.map(|policy| assess(pod, policy, cluster).judge()) {
        Some(before) if before.violations.is_empty() => Judgement { mode: now.mode, ..before },
        _ => now,
    }
}

/// What would keep a pod that runs from being created again, for instance when its node is replaced: what breaks policy and is
/// not put right by `/mutate/pods`. Empty where the mode refuses nothing.
pub fn refused_if_created(pod: &Pod, policy: &Policy, cluster: &Cluster) -> Vec<Violation> {
    if policy.mode != Mode::Enforce || pod.origin == Origin::Mirror {
        return Vec::new();
    }
    // Its node was chosen by a scheduler.
    let placement = Placement { node_name: None, ..pod.placement.clone() };
    let pod = Pod { placement, ..pod.clone() };
    let mut assessment = assess(&pod, policy, cluster);
    let taken_out = |violation: &Violation| matches!(violation, Violation::EnvironmentConflict { conflict, .. } if conflict.ours.is_none());
    let denies = assessment.denies_conflicts();
    assessment.violations.retain(|violation| denies || !taken_out(violation));
    assessment.violations.truncate(MAX_SAID);
    assessment.violations
}

impl Judgement {
    /// What the mode makes of it.
    pub fn verdict(self) -> Verdict {
        let Judgement { mode, violations, mut advice, .. } = self;
        match mode {
            Mode::Enforce if !violations.is_empty() => Verdict::Deny { violations, advice },
            Mode::Enforce => Verdict::Allow { advice },
            Mode::Warn => {
                advice.splice(0..0, violations.into_iter().map(Advice::Violates));
                Verdict::Allow { advice }
            }
            Mode::Audit | Mode::Off => Verdict::Allow { advice: Vec::new() },
        }
    }
}

impl Assessment<'_> {
    /// Whether the pod requests a guarded resource.
    pub fn is_guarded(&self) -> bool {
        self.pod.containers.iter().any(|container| self.guarded_gpu(container).is_some())
    }

    /// What `/mutate/pods` changes. Nothing where the mode says so; a container whose declaration is refused is left as it
    /// is, for `/validate/pods` to say why.
    pub fn changes(self) -> Changes {
        if matches!(self.policy.mode, Mode::Audit | Mode::Off) || self.pod.origin == Origin::Mirror {
            return Changes::default();
        }
        // A patch of a pod that was not read whole could name the wrong places.
        if self.pod.excess.is_some() {
            return Changes::default();
        }
        let strip = self.pod.reserved_annotations.clone();
        let mut advice: Vec<Advice> =
            strip.iter().take(MAX_SAID).map(|key| Advice::Stripped { key: key.clone() }).collect();
        let placement = &self.pod.placement;
        let affinity = if self.is_guarded() { placement.affinity_for(&self.node_needs()) } else { None };
        let unselect = self.is_guarded() && placement.selects_our_label();
        if unselect || affinity.is_some() && placement.requires_our_label() {
            advice.push(Advice::ReplacedAffinity);
        }
        let takes_out = self.policy.on_conflict == OnConflict::Warn;
        let chosen = |injection: &Injection| injection.chosen_gpus.clone().filter(|_| takes_out);
        let removed = self.pod.containers.iter().zip(&self.injections).filter_map(|(container, injection)| {
            Some(Advice::RemovedEnvironment { container: container.name.clone(), conflict: chosen(injection)? })
        });
        advice.extend(removed);
        advice.truncate(MAX_SAID);
        let injections = self.injections.into_iter();
        let containers = self
            .pod
            .containers
            .iter()
            .zip(self.demands)
            .zip(injections)
            .map(|((container, demand), injection)| ContainerChange {
                // A user's own figure is left for validation to compare, never overwritten.
                request: demand.filter(|_| container.vram_request == VramRequest::Absent).map(|demand| demand.total),
                remove_env: chosen(&injection).map(|conflict| conflict.name),
                env: injection.missing,
            })
            .collect();
        Changes { strip, containers, affinity, unselect, advice }
    }

    /// How `/validate/pods` sees the pod, which is the final object.
    pub fn judge(mut self) -> Judgement {
        let mode = self.policy.mode;
        if self.pod.origin == Origin::Mirror || mode == Mode::Off {
            return Judgement { mode, demand: None, violations: Vec::new(), advice: Vec::new() };
        }
        if let Some(excess) = self.excess() {
            // What else there is to say was concluded from a part of it.
            return Judgement { mode, demand: None, violations: vec![Violation::TooMany(excess)], advice: Vec::new() };
        }
        let reserved = self.pod.reserved_annotations.iter();
        self.violations.extend(reserved.map(|key| Violation::ReservedAnnotation { key: key.clone() }));
        if matches!(mode, Mode::Enforce | Mode::Warn) {
            self.requests();
            let several: Vec<Violation> = self.several_replicas().collect();
            self.violations.extend(several);
            // Where more of what was injected is missing, that is what is said.
            let missing =
                |v: &Violation| matches!(v, Violation::RequestMismatch { .. } | Violation::SharedReplicas { .. });
            if !self.violations.iter().any(missing) {
                let request = self.request().filter(|request| !self.pod.placement.fits_pod_max(*request));
                self.violations.extend(request.map(|request| Violation::PodMaxUnchecked { request }));
            }
        }
        let demand = self.total();
        if self.is_guarded() {
            self.landing(demand);
        }
        // A pod can be wrong in ten thousand places; nobody reads more than a few.
        self.violations.truncate(MAX_SAID);
        self.advice.truncate(MAX_SAID);
        Judgement { mode, demand, violations: self.violations, advice: self.advice }
    }

    /// What of a pod was not read, where it may be one with a guarded GPU.
    fn excess(&self) -> Option<Excess> {
        self.pod.excess.clone().filter(|excess| excess.hides_gpus || self.is_guarded())
    }

    /// The first guarded resource that a container requests.
    fn guarded_gpu<'c>(&self, container: &'c Container) -> Option<&'c (Resource, u64)> {
        container.gpus.iter().find(|(resource, _)| self.cluster.guards(resource))
    }

    /// What all containers demand, as Kubernetes counts; `None` where none does or one of them is refused.
    fn total(&self) -> Option<Vram> {
        let guarded = |container: &Container| self.guarded_gpu(container).is_some_and(|(_, count)| *count == 1);
        let complete = self.pod.containers.iter().zip(&self.demands).all(|(c, demand)| demand.is_some() || !guarded(c));
        let any = self.demands.iter().any(Option::is_some);
        let amounts = self.pod.containers.iter().zip(&self.demands);
        (any && complete).then(|| demand::of_pod(amounts.filter_map(|(c, d)| Some((c.role, d.as_ref()?.total)))))
    }

    fn demand(&mut self) {
        let pod = self.pod;
        let all: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
        let guarded: Vec<(usize, &Container)> =
            pod.containers.iter().enumerate().filter(|(_, container)| self.guarded_gpu(container).is_some()).collect();
        let names: Vec<&str> = guarded.iter().map(|(_, container)| container.name.as_str()).collect();
        let fallback = Fallback { models: &self.policy.models, default: self.policy.default };
        let names = Names { all: &all, guarded: &names };
        let mut violations = Vec::new();
        let declared = declaration::resolve(&pod.declarations, names, fallback, &mut violations);
        for violation in violations {
            match self.unguarded_instead(&violation) {
                Some(Ok(advice)) => self.advice.push(advice),
                Some(Err(unaccounted)) => self.violations.push(unaccounted),
                None => self.violations.push(violation),
            }
        }
        let processes = match &pod.declarations.processes {
            None => 1,
            Some(Ok(processes)) => *processes,
            Some(Err(text)) => {
                self.violations.push(Violation::BadProcesses { text: text.clone() });
                return;
            }
        };
        let only = guarded.len() == 1;
        for ((index, container), declared) in guarded.into_iter().zip(declared) {
            let key = if only { keys::VRAM.to_owned() } else { format!("{}{}", keys::VRAM_OF, container.name) };
            self.demands[index] = match declared {
                Err(Refused) => None,
                // A demand of nothing (a default of 0 without overhead) would fit everywhere, any number of times.
                Ok(Some(declared)) if !declared.is_zero() || !self.policy.per_process_overhead.is_zero() => {
                    self.declared(container, declared, processes)
                }
                Ok(_) => self.undeclared(container, processes, key),
            };
        }
    }

    /// What a declaration means on GPUs that are not guarded. Where each goes to one container it is harmless: said, not
    /// refused. Where nobody says how they are shared nothing accounts for it, and policy decides.
    fn unguarded_instead(&self, violation: &Violation) -> Option<Result<Advice, Violation>> {
        let Violation::WithoutGpu { key, container } = violation else {
            return None;
        };
        let named = |c: &&Container| container.as_ref().is_none_or(|name| *name == c.name);
        let (resource, _) = self.pod.containers.iter().filter(named).find_map(|container| container.gpus.first())?;
        let (key, resource) = (key.clone(), resource.clone());
        Some(match (self.cluster.unaccounted(&resource, &self.pod.placement), self.policy.on_unaccounted) {
            (None, _) => Ok(Advice::NotGuarded { key, resource }),
            (Some(why), OnUnaccounted::Warn) => Ok(Advice::Unaccounted { key, resource, why }),
            (Some(why), OnUnaccounted::Deny) => Err(Violation::Unaccounted { key, resource, why }),
        })
    }

    fn declared(&mut self, container: &Container, declared: Vram, processes: u32) -> Option<Demand> {
        let name = || container.name.clone();
        if let Some(minimum) = self.policy.min.filter(|minimum| declared < *minimum) {
            self.violations.push(Violation::BelowMinimum { container: name(), declared, minimum });
        }
        if let Some(maximum) = self.policy.max.filter(|maximum| declared > *maximum) {
            self.violations.push(Violation::AboveMaximum { container: name(), declared, maximum });
        }
        let demand = Demand::declared(declared, self.policy.per_process_overhead, processes);
        if demand.is_none() {
            self.violations.push(Violation::TooLarge { container: name(), declared });
        }
        demand
    }

    fn undeclared(&mut self, container: &Container, processes: u32, key: String) -> Option<Demand> {
        let (resource, count) = self.guarded_gpu(container).expect("only guarded containers are asked").clone();
        if count > 1 {
            return None; // whole GPUs on a node that does not share: there is nothing to sum
        }
        let (container, vram_request) = (container.name.clone(), container.vram_request.clone());
        if self.policy.required {
            self.violations.push(Violation::Undeclared { container, resource, key });
            return None;
        }
        // To declare nothing is no way below the least that may be declared.
        let least = self.policy.min.and_then(|min| Demand::declared(min, self.policy.per_process_overhead, processes));
        let least = least.map_or(Vram::ZERO, |least| least.total);
        // What the pod was given a moment ago, if it is the slot of some node: nodes come and go between two reviews.
        let given = match vram_request {
            VramRequest::Exactly(request) if request >= least && self.is_given(&resource, request, least) => {
                Some(request)
            }
            VramRequest::Absent | VramRequest::Exactly(_) | VramRequest::Odd { .. } => None,
        };
        let slot = given.or_else(|| Some(self.slot(&resource)?.max(least)));
        let Some(slot) = slot else {
            self.violations.push(Violation::SlotUnknown { container, resource });
            return None;
        };
        self.advice.push(Advice::CountsAsSlot { container, slot, key });
        Some(Demand::of_slot(slot, self.policy.per_process_overhead, processes))
    }

    fn environment(&mut self) {
        let guarded = self.is_guarded();
        let injects = matches!(self.policy.mode, Mode::Enforce | Mode::Warn);
        for (container, demand) in self.pod.containers.iter().zip(&self.demands) {
            let seen_anyway = self.pod.access == HostAccess::Host;
            if environment::shows_gpus_without_request(container) && !seen_anyway {
                self.violations.push(Violation::VisibleDevices { container: container.name.clone() });
            }
            // A container whose declaration is refused is not an injection without GPU.
            let refused = demand.is_none() && !container.gpus.is_empty();
            let injection = if guarded && !refused {
                environment::of_container(container, demand.as_ref(), self.policy.visible_devices)
            } else {
                Injection::default()
            };
            // Also on a container whose GPU is not guarded: it could see those that are.
            let chosen_gpus = environment::chosen_gpus(container).filter(|_| self.cluster.guards_any());
            let injection = Injection { chosen_gpus, ..injection };
            for conflict in injection.conflicts.iter().cloned() {
                let container = container.name.clone();
                match self.policy.on_conflict {
                    OnConflict::Deny => self.violations.push(Violation::EnvironmentConflict { container, conflict }),
                    OnConflict::Warn => self.advice.push(Advice::KeptEnvironment { container, conflict }),
                }
            }
            // Found by `/validate/pods` it is one that was not taken out; under Audit nothing is, and what Enforce would take
            // out is no violation.
            if let Some(conflict) = injection.chosen_gpus.clone().filter(|_| injects || self.denies_conflicts()) {
                self.violations.push(Violation::EnvironmentConflict { container: container.name.clone(), conflict });
            }
            self.injections.push(injection);
        }
    }

    fn denies_conflicts(&self) -> bool {
        self.policy.on_conflict == OnConflict::Deny
    }

    /// What the pod asks of its node's labels.
    fn node_needs(&self) -> NodeNeeds {
        let avoid_shared = !self.kept_off_shared() && self.several_replicas().next().is_some();
        NodeNeeds { avoid_shared, room_for: self.request() }
    }

    /// Containers that ask for several replicas although the pod may land where those are one GPU.
    fn several_replicas(&self) -> impl Iterator<Item = Violation> {
        let kept_off = self.kept_off_shared();
        self.pod.containers.iter().filter_map(move |container| {
            let several = |(resource, count): &&(Resource, u64)| *count > 1 && self.cluster.guards(resource);
            let (resource, count) = container.gpus.iter().find(several)?;
            // A node that shares without saying so in its label is not kept off by it.
            let unlabelled = self.cluster.shares_unlabelled(resource, &self.pod.placement).map(str::to_owned);
            (!kept_off || unlabelled.is_some()).then(|| Violation::SharedReplicas {
                container: container.name.clone(),
                resource: resource.clone(),
                count: *count,
                unlabelled,
            })
        })
    }

    /// Whether the pod requires nodes whose label does not say that they share.
    fn kept_off_shared(&self) -> bool {
        let shared = [keys::SHARING_TIME_SLICING, keys::SHARING_MPS];
        self.pod.placement.excludes_everywhere(keys::GFD_SHARING, &shared)
    }

    /// What a guarded pod requests once it is mutated; `None` where that is nothing. Its request and not its demand, which may
    /// differ where the mode only warns: that is what is accounted for.
    fn request(&self) -> Option<Vram> {
        let of_container = |(container, demand): (&Container, &Option<Demand>)| {
            let request = match &container.vram_request {
                VramRequest::Absent => demand.map(|demand| demand.total),
                own => own.counted(),
            };
            Some((container.role, request?))
        };
        let request = demand::of_pod(self.pod.containers.iter().zip(&self.demands).filter_map(of_container));
        (self.is_guarded() && !request.is_zero()).then_some(request)
    }

    /// The final request of each container is its demand.
    fn requests(&mut self) {
        for (container, demand) in self.pod.containers.iter().zip(&self.demands) {
            let text = match &container.vram_request {
                VramRequest::Absent => None,
                VramRequest::Exactly(amount) => Some(amount.to_string()),
                VramRequest::Odd { text, .. } => Some(text.clone()),
            };
            let (demand, basis) = match demand {
                Some(demand) if container.vram_request == VramRequest::Exactly(demand.total) => continue,
                Some(demand) => (demand.total, self.basis(demand)),
                // Refused already, for what its declaration says; or nothing asked, nothing requested.
                None if self.guarded_gpu(container).is_some() || text.is_none() => continue,
                None => (Vram::ZERO, String::new()),
            };
            let container = container.name.clone();
            self.violations.push(Violation::RequestMismatch { container, requested: text, demand, basis });
        }
    }

    fn basis(&self, demand: &Demand) -> String {
        match (demand.basis, demand.declared) {
            (Basis::Declared, Some(declared)) => {
                let overhead = demand.total.less(declared).room();
                format!("{declared} declared + {overhead} for its CUDA contexts")
            }
            (Basis::Slot | Basis::Declared, _) => "one slot".to_owned(),
        }
    }

    /// Where a guarded pod with that demand may land, now or at all.
    fn landing(&mut self, demand: Option<Vram>) {
        let pod = self.pod;
        if let Some(node) = &pod.placement.node_name {
            let resources = pod.containers.iter().filter_map(|container| self.guarded_gpu(container));
            let room = resources.filter_map(|(resource, _)| self.cluster.room_on(node, resource)).min();
            self.violations.push(Violation::NodeNameSet { node: node.clone(), demand, room });
            return;
        }
        let Some((resource, _)) = pod.containers.iter().find_map(|container| self.guarded_gpu(container)) else {
            return;
        };
        let Some(demand) = demand else { return };
        let made_of = || Makeup::of(pod).and_then(|makeup| makeup.explains(demand, self.policy.per_process_overhead));
        match self.policy.on_shortfall {
            OnShortfall::Deny => match self.cluster.outlook(resource, demand, &pod.placement) {
                Outlook::Fits => {}
                Outlook::Waits(shortfall) => {
                    self.violations.push(Violation::Shortfall(Shortfall { made_of: made_of(), ..shortfall }));
                }
                Outlook::NeverFits(never) => {
                    self.violations.push(Violation::NeverFits(NeverFits { made_of: made_of(), ..never }));
                }
            },
            OnShortfall::Wait | OnShortfall::Reroute => {
                if let Some(never) = self.cluster.never_fits(resource, demand, &pod.placement) {
                    self.advice.push(Advice::NeverFits(NeverFits { made_of: made_of(), ..never }));
                }
            }
        }
    }
}
