//! The review of one pod: what `/mutate/pods` changes and how `/validate/pods` answers. Owns the order of the
//! decisions; their parts are in other modules of this tier, the messages in [`super::verdict`].
//!
//! A review reserves nothing: it may race with others, be a dry run, or be followed by another webhook's refusal.

use std::collections::BTreeMap;

use crate::capacity::admission::declaration::{Fallback, Names, Refused};
use crate::capacity::admission::environment::Injection;
use crate::capacity::admission::makeup::Makeup;
use crate::capacity::cluster::{Cluster, Outlook};
use crate::capacity::gpu::Resource;
use crate::capacity::pod::demand::{self, Basis, Demand};
use crate::capacity::pod::placement::{Affinity, Reroute};
use crate::capacity::pod::{Container, Excess, Origin, Pod, VramRequest};
use crate::capacity::policy::{Mode, OnConflict, OnShortfall, OnUnaccounted, Policy};
use crate::capacity::verdict::{Advice, Bound, MAX_FINDINGS, NeverFits, Shortfall, Verdict, Violation};
use crate::capacity::vram::Vram;
use crate::keys;

pub mod account;
mod bounding;
pub mod declaration;
pub mod environment;
pub mod makeup;
mod nodes;
mod reassessment;
mod undeclared;
pub mod workload;

use self::nodes::Rerouting;
pub use self::reassessment::{Assessed, Reassessment, reassess, refused_if_created};
use self::undeclared::Lookups;

/// What is known of a pod under a policy, for both webhooks.
#[derive(Debug)]
pub struct Assessment<'a> {
    pod: &'a Pod,
    policy: &'a Policy,
    cluster: &'a Cluster,
    /// The demand of each container; `None` if it requests no shared GPU or several whole ones without a declaration,
    /// or if its declaration is refused.
    demands: Vec<Option<Demand>>,
    injections: Vec<Injection>,
    violations: Vec<Violation>,
    advice: Vec<Advice>,
    lookups: Lookups,
    /// How the pod is rerouted, and where it may be placed then.
    reroute: Rerouting,
}

/// What `/mutate/pods` changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Annotations to remove.
    pub strip: Vec<String>,
    /// Annotations to set.
    pub annotate: BTreeMap<String, String>,
    /// The changes of each container, in the pod's order.
    pub containers: Vec<ContainerChange>,
    /// The new required node affinity; `None` if it needs no change.
    pub affinity: Option<Affinity>,
    /// Labels to remove from its nodeSelector.
    pub unselect: Vec<String>,
    /// How it is rerouted, which `affinity`, `unselect` and `annotate` include already; `None` if it is not.
    pub reroute: Option<Reroute>,
    /// Warnings for its author; at most [`MAX_FINDINGS`].
    pub advice: Vec<Advice>,
}

/// What `/mutate/pods` changes in one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerChange {
    /// The request for `vramguard.dev/vram` to set, in MiB; `None` to set none.
    pub request: Option<Vram>,
    /// Name of the variable to remove, in all its entries.
    pub remove_env: Option<&'static str>,
    /// Variables to insert before its own.
    pub env: Vec<environment::Variable>,
    /// New values of variables that it has.
    pub edit_env: Vec<environment::Variable>,
    /// The flag to append to its arguments.
    pub argument: Option<environment::Argument>,
    /// What bounds it then; `None` if it takes no part of a shared GPU.
    pub bound: Option<Bound>,
}

/// What `/validate/pods` finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The policy mode of the namespace, which decides what a violation does.
    pub mode: Mode,
    /// The pod's demand as Kubernetes counts it, in MiB; `None` if no container has one or one is refused.
    pub demand: Option<Vram>,
    /// What breaks policy; at most [`MAX_FINDINGS`].
    pub violations: Vec<Violation>,
    /// Other warnings; at most [`MAX_FINDINGS`].
    pub advice: Vec<Advice>,
}

/// Assesses a pod under the policy of its namespace.
pub fn assess<'a>(pod: &'a Pod, policy: &'a Policy, cluster: &'a Cluster) -> Assessment<'a> {
    let mut assessment = Assessment {
        pod,
        policy,
        cluster,
        demands: vec![None; pod.containers.len()],
        injections: Vec::new(),
        violations: Vec::new(),
        advice: Vec::new(),
        lookups: Lookups::default(),
        reroute: Rerouting::default(),
    };
    assessment.reroute = assessment.rerouting();
    assessment.demand();
    assessment.unaccounted();
    assessment.environment();
    let unknown =
        pod.unknown_annotations.iter().take(MAX_FINDINGS).map(|key| Advice::UnknownAnnotation { key: key.clone() });
    assessment.advice.extend(unknown);
    assessment
}

/// Answers `/validate/pods` under the current policy, or under an earlier one if the pod was mutated before a change.
/// An earlier one counts if it finds no violation, and the current one only mismatches of VRAM request or environment.
pub fn judge(pod: &Pod, current: &Policy, earlier: &[&Policy], cluster: &Cluster) -> Judgement {
    let now = assess(pod, current, cluster).judge();
    let mismatch = |violation: &Violation| {
        matches!(violation, Violation::RequestMismatch { .. } | Violation::EnvironmentConflict { .. })
    };
    if now.violations.is_empty() || !now.violations.iter().all(mismatch) {
        return now;
    }
    // A policy in mode Audit or Off injected nothing, so the pod was not mutated under it.
    let injecting = earlier.iter().filter(|policy| matches!(policy.mode, Mode::Enforce | Mode::Warn));
    let mut judged = injecting.map(|policy| assess(pod, policy, cluster).judge());
    match judged.find(|before| before.violations.is_empty()) {
        Some(before) => Judgement { mode: now.mode, ..before },
        None => now,
    }
}

impl Judgement {
    /// The answer under the policy mode.
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

    /// What `/mutate/pods` changes; nothing under mode Audit or Off. It does not change a container whose declaration
    /// is refused, because `/validate/pods` then reports the cause.
    pub fn changes(self) -> Changes {
        if matches!(self.policy.mode, Mode::Audit | Mode::Off) || self.pod.origin == Origin::Mirror {
            return Changes::default();
        }
        // If a part of the pod was not read, a patch could address the wrong entries.
        if self.pod.excess.is_some() {
            return Changes::default();
        }
        let (mut strip, mut annotate) = self.bound_annotations();
        strip.extend(self.pod.reserved_annotations.iter().cloned());
        let mut advice: Vec<Advice> =
            strip.iter().take(MAX_FINDINGS).map(|key| Advice::Stripped { key: key.clone() }).collect();
        let placement = &self.pod.placement;
        advice.extend(self.reroute.is_refused.then_some(Advice::NotRerouted));
        let reroute = self.reroute.reroute.clone();
        let affinity =
            if self.is_guarded() { placement.affinity_for(&self.node_needs(), reroute.as_ref()) } else { None };
        let selects = self.is_guarded() && placement.selects_our_label();
        if selects || affinity.is_some() && placement.requires_our_label() {
            advice.push(Advice::ReplacedAffinity);
        }
        let mut unselect: Vec<String> = selects.then(|| keys::POD_MAX_MIB.to_owned()).into_iter().collect();
        if let Some(reroute) = &reroute {
            annotate.insert(keys::OWN_POOL.to_owned(), reroute.own.to_string());
            unselect.extend(reroute.moved.iter().cloned());
        }
        let takes_out = self.policy.on_conflict == OnConflict::Warn;
        let chosen = |injection: &Injection| injection.chosen_gpus.clone().filter(|_| takes_out);
        let removed = self.pod.containers.iter().zip(&self.injections).filter_map(|(container, injection)| {
            Some(Advice::RemovedEnvironment { container: container.name.clone(), conflict: chosen(injection)? })
        });
        advice.extend(removed);
        advice.truncate(MAX_FINDINGS);
        let injections = self.injections.into_iter();
        let containers = self
            .pod
            .containers
            .iter()
            .zip(self.demands)
            .zip(injections)
            .map(|((container, demand), injection)| ContainerChange {
                // A user's own request is never overwritten; validation compares it with the demand.
                request: demand.filter(|_| container.vram_request == VramRequest::Absent).map(|demand| demand.total),
                remove_env: chosen(&injection).map(|conflict| conflict.name),
                env: injection.missing,
                edit_env: injection.edited,
                argument: injection.argument,
                bound: injection.bound,
            })
            .collect();
        Changes { strip, annotate, containers, affinity, unselect, reroute, advice }
    }

    /// What `/validate/pods` finds in the pod, which is the final object.
    pub fn judge(mut self) -> Judgement {
        let mode = self.policy.mode;
        if self.pod.origin == Origin::Mirror || mode == Mode::Off {
            return Judgement { mode, demand: None, violations: Vec::new(), advice: Vec::new() };
        }
        if let Some(excess) = self.excess() {
            // The other findings come from an incomplete pod, so they are dropped.
            return Judgement { mode, demand: None, violations: vec![Violation::TooMany(excess)], advice: Vec::new() };
        }
        let reserved = self.pod.reserved_annotations.iter();
        self.violations.extend(reserved.map(|key| Violation::ReservedAnnotation { key: key.clone() }));
        if matches!(mode, Mode::Enforce | Mode::Warn) {
            self.requests();
            let several: Vec<Violation> = self.several_replicas().collect();
            self.violations.extend(several);
            // If other injected parts are missing too, only those are reported.
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
        // A pod can have thousands of violations, and users read only a few.
        self.violations.truncate(MAX_FINDINGS);
        self.advice.truncate(MAX_FINDINGS);
        Judgement { mode, demand, violations: self.violations, advice: self.advice }
    }

    /// The part of the pod that was not read, if the pod has a guarded GPU or may have one.
    fn excess(&self) -> Option<Excess> {
        self.pod.excess.clone().filter(|excess| excess.hides_gpus || self.is_guarded())
    }

    /// The first guarded resource that a container requests.
    fn guarded_gpu<'c>(&self, container: &'c Container) -> Option<&'c (Resource, u64)> {
        container.gpus.iter().find(|(resource, _)| self.cluster.guards(resource))
    }

    /// The pod's demand as Kubernetes counts it, in MiB; `None` if no container has one or one is refused.
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
                // A demand of zero (a default of 0 without overhead) would fit every node any number of times.
                Ok(Some(declared)) if !declared.is_zero() || !self.policy.per_process_overhead.is_zero() => {
                    self.declared(container, declared, processes)
                }
                Ok(_) => self.undeclared(container, processes, key),
            };
        }
    }

    /// The finding for a declaration on GPUs that are not guarded. It is a warning if each GPU goes to one container.
    /// If nothing accounts for the GPUs, the policy decides between a warning and a violation.
    fn unguarded_instead(&mut self, violation: &Violation) -> Option<Result<Advice, Violation>> {
        let Violation::WithoutGpu { key, container } = violation else {
            return None;
        };
        let named = |c: &&Container| container.as_ref().is_none_or(|name| *name == c.name);
        let (resource, _) = self.pod.containers.iter().filter(named).find_map(|container| container.gpus.first())?;
        let (key, resource) = (key.clone(), resource.clone());
        Some(match (self.why_unaccounted(&resource), self.policy.on_unaccounted) {
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
            return None; // whole GPUs on a node that does not share them need no sum
        }
        let (container, vram_request) = (container.name.clone(), container.vram_request.clone());
        if self.policy.required {
            self.violations.push(Violation::Undeclared { container, resource, key });
            return None;
        }
        // A container must not get below `declaration.min` by declaring nothing.
        let least = self.policy.min.and_then(|min| Demand::declared(min, self.policy.per_process_overhead, processes));
        let least = least.map_or(Vram::ZERO, |least| least.total);
        // Nodes come and go between two reviews, so a request that is the slot of any allowed node is kept.
        let kept = match vram_request {
            VramRequest::Exactly(request) if request >= least && self.is_given(&resource, request, least) => {
                Some(request)
            }
            VramRequest::Absent | VramRequest::Exactly(_) | VramRequest::Irregular { .. } => None,
        };
        let slot = kept.or_else(|| Some(self.slot(&resource)?.max(least)));
        let Some(slot) = slot else {
            self.violations.push(Violation::SlotUnknown { container, resource });
            return None;
        };
        self.advice.push(Advice::CountsAsSlot { container, slot, key });
        Some(Demand::of_slot(slot, self.policy.per_process_overhead, processes))
    }

    /// What a guarded pod requests once it is mutated, in MiB; `None` if that is zero. Nodes account for the request,
    /// which may differ from the demand under mode Warn.
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

    /// Adds a violation for each container whose final request differs from its demand.
    fn requests(&mut self) {
        for (container, demand) in self.pod.containers.iter().zip(&self.demands) {
            let text = match &container.vram_request {
                VramRequest::Absent => None,
                VramRequest::Exactly(amount) => Some(amount.to_string()),
                VramRequest::Irregular { text, .. } => Some(text.clone()),
            };
            let (demand, basis) = match demand {
                Some(demand) if container.vram_request == VramRequest::Exactly(demand.total) => continue,
                Some(demand) => (demand.total, self.basis(demand)),
                // Its declaration is refused already, or it has neither a demand nor a request.
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
                let overhead = demand.total.minus(declared).free();
                format!("{declared} declared + {overhead} for its CUDA contexts")
            }
            (Basis::Slot | Basis::Declared, _) => "one slot".to_owned(),
        }
    }

    /// Adds the findings about nodes for a guarded pod: `spec.nodeName`, no room now, or no room ever.
    fn landing(&mut self, demand: Option<Vram>) {
        let pod = self.pod;
        if let Some(node) = &pod.placement.node_name {
            let resources = pod.containers.iter().filter_map(|container| self.guarded_gpu(container));
            let free = resources.filter_map(|(resource, _)| self.cluster.free_on(node, resource)).min();
            self.violations.push(Violation::NodeNameSet { node: node.clone(), demand, free });
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
                if let Some(never) = self.cluster.never_fits(resource, demand, self.placement()) {
                    self.advice.push(Advice::NeverFits(NeverFits { made_of: made_of(), ..never }));
                }
            }
        }
    }
}
