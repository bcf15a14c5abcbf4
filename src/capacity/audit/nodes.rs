//! GPUs and nodes: what they hold and what is wrong with them.

use std::collections::BTreeSet;

use super::View;
use super::findings::Findings;
use super::outcome::{GpuState, Held, NodeState, Sharing, State};
use super::scene::{Stage, Subject, Unusable};
use super::used::Seen;
use crate::capacity::cluster::NodeView;
use crate::capacity::gpu::{Accounting, Gpu, GpuId, Pool, Resource};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::holder::{Amount, Holder, Part};
use crate::capacity::node::usage::{GpuUsage, PoolUsage};
use crate::capacity::pod::PodName;
use crate::capacity::pod::demand::Role;
use crate::capacity::verdict::finding::{Finding, Matter, Object, Severity};
use crate::capacity::vram::Vram;
use crate::keys;

/// The nodes with a pod that declares memory for another tool, which counts it there.
fn guarded_by_others<'a>(view: &View<'a>) -> BTreeSet<&'a str> {
    let requests_gpu = |subject: &&Subject| subject.pod.containers.iter().any(|container| !container.gpus.is_empty());
    let foreign = view.scene.subjects.iter().filter(|subject| !subject.foreign.is_empty()).filter(requests_gpu);
    let node = |subject: &'a Subject| match &subject.stage {
        Stage::Bound(node) => Some(node.as_str()),
        Stage::Template | Stage::Waiting => None,
    };
    foreign.filter_map(node).collect()
}

/// All GPUs and nodes. `smallest` is the smallest demand that waits.
pub(super) fn look(
    view: &View<'_>,
    smallest: Option<Vram>,
    findings: &mut Findings,
) -> (Vec<GpuState>, Vec<NodeState>) {
    let (mut gpus, mut nodes) = (Vec::new(), Vec::new());
    let guarded_by_others = guarded_by_others(view);
    for name in view.cluster.node_names() {
        let Some(seen) = view.cluster.node(name) else { continue };
        let observed = Seen::on(view, name);
        let looked = Node { view, name, seen, observed, guarded_by_other: guarded_by_others.contains(name) };
        if seen.facts.pools.is_empty() {
            nodes.extend(looked.without_gpus(findings));
        } else {
            let (more, node) = looked.look(smallest, findings);
            gpus.extend(more);
            nodes.push(node);
        }
    }
    for Unusable { node, resource, has, usable } in &view.scene.unusable {
        let matter = Matter::GpusUnusable { resource: resource.clone(), has: *has, usable: *usable };
        findings.add(Finding {
            object: object(node),
            matter,
            severity: Severity::Warn,
            node: None,
            pods: 0,
            place: None,
        });
    }
    (gpus, nodes)
}

/// The object that is a node.
pub(super) fn object(name: &str) -> Object {
    Object { kind: Name::from("Node"), namespace: Name::default(), name: name.into() }
}

/// Whether the containers of a holder declare or request what they take.
pub(super) fn declares(holder: &Holder) -> bool {
    holder.parts.iter().all(|part| !matches!(part.amount, Amount::Slots(_)))
}

struct Node<'a> {
    view: &'a View<'a>,
    name: &'a str,
    seen: NodeView<'a>,
    /// What its agent reported.
    observed: Option<Seen<'a>>,
    /// Whether another tool counts memory here.
    guarded_by_other: bool,
}

impl Node<'_> {
    /// A node that was not read, or has no GPU, although pods that request one are bound to it; `None` if none are.
    fn without_gpus(&self, findings: &mut Findings) -> Option<NodeState> {
        let holders = self.seen.ledger.counted().filter(|(_, holder)| !holder.gpus.is_empty());
        let holders: Vec<(&PodUid, &Holder)> = holders.collect();
        let resource = holders.first()?.1.gpus.first()?.0.clone();
        let parts = holders.iter().flat_map(|(uid, holder)| holder.parts.iter().map(move |part| (uid, holder, part)));
        let unassigned = parts.map(|(uid, holder, part)| self.held(uid, holder, part, None)).collect();
        let matter = Matter::GpusMissing { resource };
        let unknown = Some(matter.to_string());
        self.add(matter, Severity::Deny, count(holders.len()), findings);
        Some(NodeState {
            name: self.name.to_owned(),
            accounting: Some(Accounting::Unknown),
            pods: holders.len(),
            unassigned,
            unknown,
            state: State::Unknown,
            agent: self.observed.as_ref().map(Seen::agent),
            ..NodeState::default()
        })
    }

    /// What a container counts as, and by what.
    fn held(&self, uid: &PodUid, holder: &Holder, part: &Part, slot: Option<Vram>) -> Held {
        let (rules, ledger) = (self.view.cluster.rules(), self.seen.ledger);
        Held {
            pod: holder.name.clone(),
            container: part.container.clone(),
            amount: ledger.part_amount(uid, part, slot, rules),
            declared: !matches!(part.amount, Amount::Slots(_)),
            seen: ledger.counts_as_seen(uid, part, slot, rules).is_some(),
            bounded_by: None,
            in_use: self.observed.as_ref().and_then(|observed| observed.container(uid, &part.container)),
        }
    }

    /// The GPUs of the node, and the node.
    fn look(&self, smallest: Option<Vram>, findings: &mut Findings) -> (Vec<GpuState>, NodeState) {
        let NodeView { facts, usage, ledger } = self.seen;
        let (mut gpus, mut unassigned, mut state) = (Vec::new(), Vec::new(), State::Ok);
        let mut undeclared = 0;
        for (pool, used) in facts.pools.iter().zip(&usage.pools) {
            let (mut of_pool, others) = self.pool(pool, used);
            state = state.max(pool_state(used));
            undeclared += self.undeclared(pool);
            self.report(pool, used, &of_pool, findings);
            gpus.append(&mut of_pool);
            unassigned.extend(others);
        }
        let guarded = facts.pools.iter().zip(&usage.pools).filter(|(pool, _)| self.view.cluster.guards(&pool.resource));
        // A pod counts against the same amount of the node, whichever of its resources it requests.
        let placeable = guarded.map(|(pool, used)| self.placeable(pool, used)).min();
        // Whole GPUs are given as a whole, so nothing of them is stranded.
        let guards = facts.pools.iter().any(|pool| self.view.cluster.guards(&pool.resource));
        let stranded = smallest.map(|smallest| if usage.free < smallest { usage.free } else { Vram::ZERO });
        let stranded = stranded.filter(|_| guards);
        if let (Some(smallest), Some(free)) = (smallest, stranded.filter(|free| !free.is_zero())) {
            self.add(Matter::Stranded { free, smallest }, Severity::Info, 0, findings);
        }
        let node = NodeState {
            name: self.name.to_owned(),
            accounting: usage.pools.iter().map(|pool| pool.accounting).max(),
            product: facts.profile.labels.get(keys::GFD_PRODUCT).map(ToString::to_string),
            resources: facts.pools.iter().map(|pool| pool.resource.clone()).collect(),
            gpus: gpus.len(),
            published: usage.published,
            placeable,
            allocatable: usage
                .pools
                .iter()
                .map(|pool| pool.allocatable)
                .reduce(|sum, one| Some(sum?.plus(one?)))
                .flatten(),
            held: usage.pools.iter().map(|pool| pool.held).sum(),
            free: self.free(),
            pod_max: facts.pools.iter().filter_map(|pool| pool.max_demand(self.view.cluster.rules())).max(),
            stranded,
            pods: ledger.counted().filter(|(_, holder)| !holder.gpus.is_empty()).count(),
            undeclared,
            unassigned,
            unknown: facts.pools.iter().find_map(|pool| pool.contents.as_ref().err()).map(ToString::to_string),
            state,
            agent: self.observed.as_ref().map(Seen::agent),
        };
        (gpus, node)
    }

    /// The largest demand of one more pod, whichever resource it requests. Whole GPUs are not guarded, and one that
    /// nobody has is free too.
    fn free(&self) -> Option<Vram> {
        let NodeView { facts, usage, .. } = self.seen;
        let known = facts.pools.iter().all(|pool| pool.contents.is_ok());
        known.then(|| usage.pools.iter().map(|pool| pool.free).max().unwrap_or_default())
    }

    /// What further pods may request together of a pool, as far as replicas and memory allow.
    fn placeable(&self, pool: &Pool, used: &PoolUsage) -> Vram {
        let Ok(contents) = &pool.contents else { return Vram::ZERO };
        let replicas = count(contents.gpus.len()).saturating_mul(u64::from(contents.replicas.get()));
        let taken = self.seen.ledger.counted().filter_map(|(_, holder)| holder.takes(&pool.resource));
        let left = replicas.saturating_sub(taken.fold(0, u64::saturating_add));
        used.free.checked_times(left).map_or(used.free_total, |most| most.min(used.free_total))
    }

    fn undeclared(&self, pool: &Pool) -> usize {
        if !self.view.cluster.guards(&pool.resource) {
            return 0;
        }
        let takers = self.seen.ledger.counted().filter(|(_, holder)| holder.takes(&pool.resource).is_some());
        takers.filter(|(_, holder)| !declares(holder)).count()
    }

    /// The GPUs of a pool, and the containers whose GPU is not known.
    fn pool(&self, pool: &Pool, used: &PoolUsage) -> (Vec<GpuState>, Vec<Held>) {
        let rules = self.view.cluster.rules();
        let contents = pool.contents.as_ref().ok();
        let gpus = contents.map(|contents| contents.gpus.as_slice()).unwrap_or_default();
        let mut states: Vec<GpuState> = gpus
            .iter()
            .zip(&used.gpus)
            .map(|(gpu, gpu_usage)| self.gpu(pool, gpu, gpu_usage, used, gpus.len() == 1))
            .collect();
        let (slot, mut unassigned) = (pool.slot(rules), Vec::new());
        let takers = self.seen.ledger.counted().filter(|(_, holder)| holder.takes(&pool.resource).is_some());
        for (uid, holder) in takers {
            let amount = |part: &Part| self.seen.ledger.part_amount(uid, part, slot, rules).unwrap_or_default();
            for part in counted_parts(holder, amount) {
                let held = self.held(uid, holder, part, slot);
                let gpu = self.gpu_of(uid, part, pool, gpus);
                match gpu.and_then(|index| states.get_mut(index)) {
                    Some(state) => state.holders.push(held),
                    None => unassigned.push(held),
                }
            }
        }
        (states, unassigned)
    }

    /// The position of a container's GPU in its pool; `None` if not known.
    fn gpu_of(&self, uid: &PodUid, part: &Part, pool: &Pool, gpus: &[Gpu]) -> Option<usize> {
        if gpus.len() == 1 {
            return Some(0);
        }
        let id = self.seen.ledger.gpu_of(uid, part, pool.allocation_policy)?;
        gpus.iter().position(|gpu| gpu.has_id(&id))
    }

    fn gpu(&self, pool: &Pool, gpu: &Gpu, used: &GpuUsage, pool_used: &PoolUsage, only: bool) -> GpuState {
        let certain =
            pool_used.deficit.as_ref().is_some_and(|deficit| deficit.on.as_ref().is_some_and(|on| gpu.has_id(on)));
        // With one GPU behind the resource, every pod of the pool is on it.
        let (held, free) = if only { (pool_used.held, Some(pool_used.free)) } else { (used.held, used.free) };
        let free = free.filter(|_| certain || pool_used.deficit.is_none() || only);
        let state = if certain || held > used.allocatable {
            State::Overcommitted
        } else if pool_used.deficit.is_some() {
            State::MaybeOvercommitted
        } else if free.unwrap_or(pool_used.free).is_zero() {
            State::Full
        } else {
            State::Ok
        };
        GpuState {
            node: self.name.to_owned(),
            id: gpu.id.to_string(),
            resource: pool.resource.to_string(),
            product: self.seen.facts.profile.labels.get(keys::GFD_PRODUCT).map(ToString::to_string),
            sharing: Sharing::Plugin(pool_used.accounting),
            replicas: pool.contents.as_ref().map_or(1, |contents| contents.replicas.get()),
            total: used.total,
            allocatable: used.allocatable,
            headroom: used.total.minus(used.allocatable).minus(gpu.out_of_band).free(),
            held,
            free,
            state,
            holders: Vec::new(),
            in_use: self.observed.as_ref().map(|observed| observed.gpu(&gpu.id.to_string())).unwrap_or_default(),
        }
    }

    /// Reports what is wrong with a pool.
    fn report(&self, pool: &Pool, used: &PoolUsage, gpus: &[GpuState], findings: &mut Findings) {
        let pods = count(used.holders);
        if let Err(why) = &pool.contents {
            let matter = Matter::GpusUnknown { resource: pool.resource.clone(), why: why.clone() };
            let severity = if self.view.cluster.guards(&pool.resource) { Severity::Deny } else { Severity::Warn };
            self.add(matter, severity, pods, findings);
        }
        for gpu in gpus.iter().filter(|gpu| gpu.state == State::Overcommitted) {
            let matter = Matter::Overcommitted {
                gpu: Some(GpuId::from(gpu.id.as_str())),
                resource: pool.resource.clone(),
                held: gpu.held,
                allocatable: gpu.allocatable,
                by: gpu.held.minus(gpu.allocatable).free(),
            };
            let on_gpu: BTreeSet<&PodName> = gpu.holders.iter().map(|held| &held.pod).collect();
            self.add(matter, Severity::Deny, count(on_gpu.len()), findings);
        }
        if let Some(deficit) = used.deficit.as_ref().filter(|deficit| deficit.on.is_none()) {
            let matter = Matter::Overcommitted {
                gpu: None,
                resource: pool.resource.clone(),
                held: used.held,
                allocatable: used.allocatable.unwrap_or_default(),
                by: deficit.by,
            };
            self.add(matter, Severity::Warn, pods, findings);
        }
        if !self.guarded_by_other {
            self.report_replicas(pool, findings);
        }
    }

    /// Reports a pool of which kube-scheduler may place more pods of the usual demand than fit.
    fn report_replicas(&self, pool: &Pool, findings: &mut Findings) {
        let Ok(contents) = &pool.contents else { return };
        let rules = self.view.cluster.rules();
        let Some(allocatable) = pool.smallest_gpu(rules).filter(|_| pool.sharing.is_shared()) else { return };
        let declared = |holder: &Holder| holder.amount(None, rules).filter(|amount| !amount.is_zero());
        let takers = self.seen.ledger.counted().filter(|(_, holder)| holder.takes(&pool.resource).is_some());
        let mut demands: Vec<Vram> = takers.filter_map(|(_, holder)| declared(holder)).collect();
        demands.sort_unstable();
        let Some(median) = demands.get(demands.len() / 2).copied() else { return };
        let replicas = contents.replicas.get();
        if median.checked_times(u64::from(replicas)).is_some_and(|all| all <= allocatable) {
            return;
        }
        let matter = Matter::TooManyReplicas {
            resource: pool.resource.clone(),
            replicas,
            median,
            allocatable,
            fits: median.times_in(allocatable),
        };
        // With vramguard's resource on the nodes, kube-scheduler counts memory too.
        let severity = if self.view.scene.installed { Severity::Info } else { Severity::Warn };
        self.add(matter, severity, 0, findings);
    }

    fn add(&self, matter: Matter, severity: Severity, pods: u64, findings: &mut Findings) {
        findings.add(Finding { object: object(self.name), matter, severity, node: None, pods, place: None });
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The containers whose amounts add up to what the pod holds: those that run together when it holds the most.
fn counted_parts(holder: &Holder, amount: impl Fn(&Part) -> Vram) -> Vec<&Part> {
    let lasting = || holder.parts.iter().filter(|part| part.role != Role::Init);
    let together: Vram = lasting().map(&amount).sum();
    let init = holder.parts.iter().enumerate().filter(|(_, part)| part.role == Role::Init);
    // An init container runs with the sidecars that were started before it.
    let with = |at: usize| holder.parts.iter().take(at).filter(|part| part.role == Role::Sidecar);
    let sum = |(at, part): &(usize, &Part)| with(*at).map(&amount).sum::<Vram>().plus(amount(part));
    match init.max_by_key(sum) {
        Some((at, part)) if sum(&(at, part)) > together => with(at).chain([part]).collect(),
        _ => lasting().collect(),
    }
}

/// State of a pool, and so of its node.
fn pool_state(used: &PoolUsage) -> State {
    match &used.deficit {
        _ if used.accounting == Accounting::Unknown => State::Unknown,
        Some(deficit) if deficit.on.is_some() => State::Overcommitted,
        Some(_) => State::MaybeOvercommitted,
        None if used.free.is_zero() => State::Full,
        None => State::Ok,
    }
}

/// Whether a pool of this resource is on a node.
pub(super) fn has(view: &View<'_>, node: &str) -> Option<Resource> {
    view.cluster.node(node)?.facts.pools.first().map(|pool| pool.resource.clone())
}
