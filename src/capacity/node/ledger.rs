//! [`NodeLedger`]: the holders of one node, and the held, free and published amounts that follow from them.
//!
//! Owns the choice between the sources: pods seen on the node, reservations that all replicas of vramguard share, and
//! the report of the node agent. [`super::occupancy`] owns the arithmetic on GPUs, [`super::reservation`] the life
//! cycle of a reservation, and [`crate::capacity::cluster`] the sum over all nodes.
//!
//! A pod that is seen bound to the node is a holder until it is seen ended or gone:
//!
//! ```text
//!            bind seen                 Succeeded, Failed or deleted seen
//!   absent ─────────────▶ holder ─────────────────────────────────────▶ absent
//!                          │  ▲
//!                          └──┘ seen again: the record with its uid is replaced
//! ```
//!
//! A pod with a reservation that is not seen here yet is a holder too, unless it is certain that it never arrives.
//!
//! A node publishes the sum of all requests plus `free_total`, the amount that may still be requested. It never
//! publishes less than the requests that are bound, because a kubelet that starts admits its pods again and must find
//! room for each.
//!
//! In most modes, `free_total` is what one more pod can get now. In mode slot, each free replica adds one slot, so the
//! published amount stays constant. On the worked node of [`super`] it is 8 replicas × 6 GiB = 48 GiB, whether 0 or 8
//! pods are there. This is safe only if no pod takes more than one slot. The node's label `pod_max` (6 GiB) ensures
//! that: each pod has a required node affinity for a label of at least its request.

use std::collections::{BTreeMap, BTreeSet};

use litemap::LiteMap;

use crate::capacity::gpu::{Accounting, AllocationPolicy, GpuId, Pool, Resource, Rules, Unknown};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::{Holder, Newcomer, Part};
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::occupancy::{self, Occupancy};
use crate::capacity::node::presence::Doubt;
use crate::capacity::node::reservation::Reservations;
use crate::capacity::node::usage::{Counted, NodeUsage, PoolUsage};
use crate::capacity::pod::demand::{self, Role};
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// The ledger of one node: the sources from which its usage is computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLedger {
    holders: LiteMap<PodUid, Holder>,
    /// Content of the node's `GpuLedger`: reservations and the agent's report. `None` if the node has no `GpuLedger`.
    content: Option<LedgerContent>,
    /// Pods whose reservation is void, because they certainly hold nothing here: ended, gone, or bound to another node.
    departed: BTreeSet<PodUid>,
    /// A startup that began before this moment has timed out and no longer blocks its GPU.
    startups_from: Moment,
    /// A report of the node agent that is older than this is stale.
    reports_from: Moment,
    /// Why the agent's claim to steer does not count; `None` if it does, or if there is none.
    doubt: Option<Box<Doubt>>,
}

/// Content of a node's `GpuLedger` object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerContent {
    /// The reservations on the node.
    pub reservations: Reservations,
    /// The report of the node agent; `None` if no agent runs.
    pub inventory: Option<Inventory>,
    /// Why the object cannot be read; `None` if it can. With a fault, the node's GPUs are unknown and nothing fits.
    pub fault: Option<String>,
}

impl NodeLedger {
    /// Records a pod that is seen bound to the node, and returns its previous record. Idempotent: the new record
    /// replaces the previous one. The state of the pod's reservation does not change: [`NodeLedger::upkeep`] does that.
    pub fn confirm(&mut self, uid: PodUid, holder: Holder) -> Option<Holder> {
        self.departed.remove(&uid);
        self.holders.insert(uid, holder)
    }

    /// Removes a pod that is no longer seen on the node, and returns its record. Its reservation, if any, still counts.
    /// For a pod that certainly holds nothing here, use [`NodeLedger::void`]. Idempotent.
    pub fn release(&mut self, uid: &PodUid) -> Option<Holder> {
        self.holders.remove(uid)
    }

    /// Records that the pod certainly holds nothing here and never will. It ended, is gone, or is bound to another
    /// node. Returns whether that changes anything.
    pub fn void(&mut self, uid: &PodUid) -> bool {
        let held = self.holders.remove(uid).is_some();
        let reserved = self.reservations().is_some_and(|reservations| reservations.contains(uid));
        held | (reserved && self.departed.insert(uid.clone()))
    }

    /// Replaces the content of the node's `GpuLedger`; `None` if the object is gone.
    pub fn set_content(&mut self, content: Option<LedgerContent>) {
        self.content = content;
        let reserved = |uid: &PodUid| self.content.as_ref().is_some_and(|content| content.reservations.contains(uid));
        self.departed.retain(|uid| reserved(uid));
    }

    /// Sets the moment before which startups have timed out and no longer block other pods. Returns whether one more
    /// startup has timed out.
    pub fn expire_startups(&mut self, moment: Moment) -> bool {
        let ends = |since: Moment| self.startups_from <= since && since < moment;
        let ended = self.counted().any(|(_, holder)| holder.starting.is_some_and(ends));
        self.startups_from = moment;
        ended
    }

    /// Sets the moment before which reports of the node agent are stale. Returns whether that changes
    /// whether the report here is stale.
    pub fn expire_reports(&mut self, moment: Moment) -> bool {
        let before = self.has_stale_report();
        self.reports_from = moment;
        self.has_stale_report() != before
    }

    /// Sets why the agent's claim to steer does not count. Returns whether that changes anything.
    pub fn set_doubt(&mut self, doubt: Option<Doubt>) -> bool {
        let before = std::mem::replace(&mut self.doubt, doubt.map(Box::new));
        before != self.doubt
    }

    /// Why the agent's claim to steer does not count; `None` if it does, or if there is none.
    pub fn doubt(&self) -> Option<&Doubt> {
        self.doubt.as_deref()
    }

    /// Whether the agent of the node reported once, and not recently.
    pub fn has_stale_report(&self) -> bool {
        let inventory = self.content.as_ref().and_then(|content| content.inventory.as_ref());
        inventory.is_some_and(|inventory| inventory.reported.unwrap_or_default() < self.reports_from)
    }

    /// The pods seen on this node, by uid.
    pub fn holders(&self) -> &LiteMap<PodUid, Holder> {
        &self.holders
    }

    /// Content of the node's `GpuLedger`, if it has one.
    pub fn content(&self) -> Option<&LedgerContent> {
        self.content.as_ref()
    }

    /// The pods whose reservation is void: see [`NodeLedger::void`].
    pub fn departed(&self) -> &BTreeSet<PodUid> {
        &self.departed
    }

    fn reservations(&self) -> Option<&Reservations> {
        self.content.as_ref().map(|content| &content.reservations)
    }

    /// All holders: the pods seen here, and those with a reservation that may still arrive.
    pub fn counted(&self) -> impl Iterator<Item = (&PodUid, &Holder)> {
        let reserved = self.reservations().into_iter().flat_map(Reservations::iter);
        let coming = reserved.filter(|(uid, _)| !self.holders.contains_key(uid) && !self.departed.contains(uid));
        self.holders.iter().chain(coming.map(|(uid, reservation)| (uid, &reservation.holder)))
    }

    /// The amount that a pod holds here. A container that declares nothing counts with the most that the node agent saw it
    /// use, where that is more than its slots. `None` if the amount of one of its containers is not known.
    ///
    /// A stale report counts too: the pod uses what it has used until something newer is known.
    pub fn amount(&self, uid: &PodUid, holder: &Holder, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        holder.amount_of(|part| self.part_amount(uid, part, slot, rules))
    }

    /// The amount that a container of a pod holds here: see [`NodeLedger::amount`].
    pub fn part_amount(&self, uid: &PodUid, part: &Part, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        part.holds_seen(self.peak(uid, part), slot, rules)
    }

    /// The amount that a container was seen to use, if it counts with that in place of its slots.
    pub fn counts_as_seen(&self, uid: &PodUid, part: &Part, slot: Option<Vram>, rules: &Rules) -> Option<Vram> {
        let amount = self.part_amount(uid, part, slot, rules)?;
        (part.holds(slot, rules)? < amount).then_some(amount)
    }

    fn peak(&self, uid: &PodUid, part: &Part) -> Option<Vram> {
        self.content.as_ref()?.inventory.as_ref()?.peak_of(uid, &part.container)
    }

    /// Whether a node publishes less than the sum of the requests that are bound there.
    pub fn falls_short(published: Vram, bound: Vram) -> bool {
        published < bound
    }

    /// The lowest priority of the pods seen on this node that request VRAM.
    pub(in crate::capacity) fn lowest_priority(&self) -> Option<i32> {
        let requesting = self.holders.values().filter(|holder| holder.request.is_some());
        requesting.map(|holder| holder.priority).min()
    }

    /// Frees the spare capacity of the list of holders.
    pub(in crate::capacity) fn pack(&mut self) {
        let mut holders = std::mem::take(&mut self.holders).into_tuple_vec();
        holders.shrink_to_fit();
        self.holders = holders.into_iter().collect();
    }

    /// The sum of all requests once a new pod is bound here too. If that pod has a reservation here already, it counts
    /// only once. The node must publish at least the sum, so that a kubelet that starts finds room for all its pods.
    pub fn bound_with(&self, uid: &PodUid, newcomer: &Holder) -> Vram {
        let others = self.counted().filter(|(other, _)| *other != uid).filter_map(|(_, holder)| holder.request);
        others.chain(newcomer.request).sum()
    }

    /// The pools of the node from its labels, with the agent's report applied.
    ///
    /// Of a stale report, the GPUs and the GPU of each container stay in force: they change rarely, and forgetting them
    /// would free memory that is held. How the device plugin chooses is no longer verified. The same is true of a claim to
    /// steer that does not count, because the agent no longer runs.
    pub fn reported(&self, pools: &[Pool]) -> Vec<Pool> {
        let Some(content) = &self.content else { return pools.to_vec() };
        if let Some(why) = &content.fault {
            let unknown = |pool: &Pool| Pool { contents: Err(Unknown::Ledger { why: why.clone() }), ..pool.clone() };
            return pools.iter().map(unknown).collect();
        }
        match &content.inventory {
            Some(inventory) => {
                let mut pools = inventory.applied_to(pools);
                let verified = |pool: &&mut Pool| pool.allocation_policy != AllocationPolicy::Unverified;
                let steered = |pool: &&mut Pool| pool.allocation_policy == AllocationPolicy::Steered;
                if self.has_stale_report() {
                    pools.iter_mut().for_each(|pool| pool.tells_processes = false);
                    pools.iter_mut().filter(verified).for_each(|pool| pool.allocation_policy = AllocationPolicy::Stale);
                } else if self.doubt.is_some() {
                    pools
                        .iter_mut()
                        .filter(steered)
                        .for_each(|pool| pool.allocation_policy = AllocationPolicy::Doubted);
                }
                pools
            }
            None => pools.to_vec(),
        }
    }

    /// Computes the usage of the node.
    ///
    /// `guarded` selects the resources that count. Pools of other resources appear in the result, but nothing is
    /// published for them. `pools` must come from [`NodeLedger::reported`].
    pub fn usage(&self, pools: &[Pool], rules: &Rules, guarded: impl Fn(&Resource) -> bool) -> NodeUsage {
        let bound: Vram = self.counted().filter_map(|(_, holder)| holder.request).sum();
        let pools: Vec<PoolUsage> = pools.iter().map(|pool| self.pool_usage(pool, rules, Counted::All)).collect();
        // One published amount serves all resources of the node, so the pool with the least room decides.
        let guarded_pools = || pools.iter().filter(|pool| guarded(&pool.resource));
        // A full exclusive pool does not decide: kube-scheduler's count of its GPUs keeps pods off, and the shared GPUs
        // of the same node stay usable.
        let full = |pool: &&PoolUsage| pool.accounting == Accounting::Exclusive && pool.free.is_zero();
        let open = || guarded_pools().filter(|pool| !full(pool));
        let free = open().map(|pool| pool.free).min();
        // A kubelet that starts ends pods whose required node affinity no longer holds, as it ends pods that exceed its
        // allocatable. So the label must be at least what each pod here requests, and what its affinity requires. If
        // that is more than a new pod could get, the published amount keeps other pods of that size off. Any user may
        // write an affinity that requires more than the largest GPU here has. That affinity is ignored: the kubelet has
        // refused the pod, or will.
        let known = pools.iter().all(|pool| !pool.gpus.is_empty());
        let most = pools.iter().flat_map(|pool| &pool.gpus).map(|gpu| gpu.total).max().filter(|_| known);
        let required = |holder: &Holder| holder.label_at_least.filter(|least| most.is_none_or(|most| *least <= most));
        let largest = self.counted().filter_map(|(_, holder)| holder.request.max(required(holder))).max();
        let computed = guarded_pools().filter_map(|pool| pool.pod_max).min();
        let pod_max = computed.map(|most| most.max(largest.unwrap_or_default())).or_else(|| {
            // No resource is guarded here any more, or it is not known how much one pod can get. The label stays only
            // for pods here whose required node affinity fails without it.
            let needs = self.counted().filter(|(_, holder)| holder.needs_label);
            needs.map(|(_, holder)| holder.label_at_least.unwrap_or_default()).max()
        });
        // The `free_total` of a pool may be published only while the node's label limits each pod to the `pod_max` of
        // that pool. If a larger pod has raised the label, one pod could take more, so only `free` is published.
        let label_limits = |pool: &&PoolUsage| pool.pod_max.is_none() || pod_max <= pool.pod_max;
        let free_total_of = |pool: &PoolUsage| if label_limits(&pool) { pool.free_total } else { pool.free };
        let free_total = open().map(free_total_of).min().or_else(|| guarded_pools().map(free_total_of).min());
        let deficit = guarded_pools().filter_map(|pool| pool.deficit.as_ref()).map(|deficit| deficit.by).max();
        let published = match free_total {
            Some(free_total) => Some(bound.plus(free_total)),
            None if bound.is_zero() => None,
            // No guarded pool is left, but pods with requests are. Without this amount, the kubelet would refuse them
            // at its next start.
            None => Some(bound),
        };
        let doubt = self.doubt.clone();
        NodeUsage { bound, free: free.unwrap_or(Vram::ZERO), published, pod_max, deficit, pools, doubt }
    }

    /// Computes the usage of one pool, from the holders that `counting` selects.
    pub fn pool_usage(&self, pool: &Pool, rules: &Rules, counting: Counted) -> PoolUsage {
        let slot = pool.slot(rules);
        let holders = || {
            let all = self.counted().filter(|(_, holder)| counting.includes(holder));
            all.filter(|(_, holder)| holder.takes(&pool.resource).is_some())
        };
        let amounts: Vec<Option<Vram>> = holders().map(|(uid, holder)| self.amount(uid, holder, slot, rules)).collect();
        let occupancy = self.occupancy(pool, rules, counting);
        let free = occupancy.as_ref().map_or(Vram::ZERO, Occupancy::free);
        let requested = || holders().filter_map(|(_, holder)| holder.request).sum();
        let is_within = |amount: Option<Vram>| amount.is_some_and(|amount| Some(amount) <= slot);
        let within_slots = amounts.iter().copied().all(is_within);
        // Whether only what was seen of pods that declare nothing makes one of them larger than a slot.
        let planned_within = || holders().all(|(_, holder)| is_within(holder.amount(slot, rules)));
        let free_total = match (pool.accounting(), pool.total_slots(rules)) {
            // All slots minus the requests: with 8 slots of 6 GiB and 2 pods of 4 GiB, 40 GiB are left. Each further
            // pod takes a replica of its own, and so gets a slot of its own. If a pod is larger than a slot, or each
            // starting pod blocks others, only one more pod is safe.
            (Accounting::Slot, Some(slots)) if within_slots && Some(free) == slot && !rules.serialize_per_gpu => {
                slots.minus(requested()).free()
            }
            // What is seen of a pod must not free anything: without it, all slots minus the requests were published.
            (Accounting::Slot, Some(slots)) if !within_slots && planned_within() => {
                free.min(slots.minus(requested()).free())
            }
            // Each GPU is given to one pod, so kube-scheduler's count of GPUs keeps pods apart. All GPUs are published
            // even while all are taken: a pod that preempts must see that one freed GPU is enough.
            (Accounting::Exclusive, Some(slots)) => slots.minus(requested()).free().max(free),
            _ => free,
        };
        let free_unassigned =
            |replicas| occupancy.as_ref().map_or(Vram::ZERO, |o| o.free_for(Newcomer::Unassigned(replicas)));
        PoolUsage {
            resource: pool.resource.clone(),
            accounting: pool.accounting(),
            allocatable: occupancy.as_ref().map(|_| pool.allocatable(rules)),
            held: amounts.iter().flatten().copied().sum(),
            holders: amounts.len(),
            uncounted: amounts.iter().filter(|amount| amount.is_none()).count(),
            free,
            free_total,
            pod_max: pool.pod_max(rules),
            free_unassigned: [1, 2, 3, 4].map(free_unassigned),
            deficit: occupancy.as_ref().and_then(Occupancy::deficit),
            starting: occupancy.as_ref().is_some_and(Occupancy::is_starting),
            gpus: occupancy.as_ref().map(Occupancy::gpus).unwrap_or_default(),
        }
    }

    /// Returns the GPU for a pod; `None` if the device plugin chooses the GPU. If the pod is already a holder, it does
    /// not take room from itself.
    ///
    /// # Errors
    /// Fails if the demand does not fit. The error is the largest demand that would fit. It is 0 if the GPUs or the
    /// demand are not known.
    pub fn place(&self, uid: &PodUid, newcomer: &Holder, pool: &Pool, rules: &Rules) -> Result<Option<GpuId>, Vram> {
        let (occupancy, demand) = self.without(uid, newcomer, pool, rules)?;
        occupancy.place(demand, newcomer.comes_to(pool)).map(|gpu| gpu.cloned())
    }

    /// As [`NodeLedger::place`], for a pod with a reservation that names the GPU `reserved`. The pod gets no other GPU,
    /// because an earlier bind of it may still commit.
    ///
    /// # Errors
    /// As for [`NodeLedger::place`].
    pub fn place_again(
        &self,
        uid: &PodUid,
        newcomer: &Holder,
        reserved: Option<&GpuId>,
        pool: &Pool,
        rules: &Rules,
    ) -> Result<Option<GpuId>, Vram> {
        let (occupancy, demand) = self.without(uid, newcomer, pool, rules)?;
        occupancy.place_again(demand, newcomer.comes_to(pool), reserved).map(|gpu| gpu.cloned())
    }

    /// The occupancy of a pool without a pod, and the demand of that pod. The error is 0.
    fn without<'p>(
        &self,
        uid: &PodUid,
        newcomer: &Holder,
        pool: &'p Pool,
        rules: &Rules,
    ) -> Result<(Occupancy<'p>, Vram), Vram> {
        let others = self.shares(pool, rules, Counted::All, Some(uid));
        let occupancy = Occupancy::of(pool, rules, others).ok_or(Vram::ZERO)?;
        Ok((occupancy, newcomer.amount(pool.slot(rules), rules).ok_or(Vram::ZERO)?))
    }

    fn occupancy<'p>(&self, pool: &'p Pool, rules: &Rules, counting: Counted) -> Option<Occupancy<'p>> {
        Occupancy::of(pool, rules, self.shares(pool, rules, counting, None))
    }

    /// What each holder that `counting` selects takes of the pool, except the pod `but`.
    fn shares<'l>(
        &'l self,
        pool: &'l Pool,
        rules: &'l Rules,
        counting: Counted,
        except: Option<&'l PodUid>,
    ) -> impl Iterator<Item = occupancy::PodShare> + 'l {
        let slot = pool.slot(rules);
        let counted = self.counted().filter(move |(uid, holder)| counting.includes(holder) && Some(*uid) != except);
        counted.filter_map(move |(uid, holder)| {
            let replicas = holder.takes(&pool.resource)?;
            let starting = holder.starting.is_some_and(|since| since >= self.startups_from);
            // The slot is known here, so an amount is not known only if it is too large to count. It is never zero.
            let amount = || self.amount(uid, holder, slot, rules).unwrap_or(Vram::MAX);
            let portions =
                self.portions(uid, holder, pool, slot, rules).unwrap_or_else(|| vec![(None, amount(), replicas)]);
            Some(occupancy::PodShare { portions, starting })
        })
    }

    /// What a holder takes of each GPU: GPU, amount and replicas. `None` if the GPU or the amount of one of its GPU
    /// containers is not known.
    fn portions(
        &self,
        uid: &PodUid,
        holder: &Holder,
        pool: &Pool,
        slot: Option<Vram>,
        rules: &Rules,
    ) -> Option<Vec<(Option<GpuId>, Vram, u64)>> {
        // With more replicas than containers, one container may be on several GPUs, and only one of them is recorded.
        let taken = holder.takes(&pool.resource)?;
        if taken > holder.parts.len() as u64 {
            return None;
        }
        let mut by_gpu: BTreeMap<GpuId, Vec<(Role, Vram)>> = BTreeMap::new();
        for part in &holder.parts {
            let gpu = self.gpu_of(uid, part, pool.allocation_policy)?;
            by_gpu.entry(gpu).or_default().push((part.role, self.part_amount(uid, part, slot, rules)?));
        }
        let portion = |(gpu, parts): (GpuId, Vec<(Role, Vram)>)| {
            // Of pods that share a GPU which the device plugin gave to another pod, none takes a replica.
            let replicas = demand::replicas_of_pod(parts.iter().map(|(role, _)| (*role, 1))).min(taken);
            (Some(gpu), demand::of_pod(parts), replicas)
        };
        (!by_gpu.is_empty()).then(|| by_gpu.into_iter().map(portion).collect())
    }

    /// The GPU that all containers of a holder are on, if it is known and the same for all.
    pub fn known_gpu(&self, uid: &PodUid, holder: &Holder, pools: &[Pool]) -> Option<GpuId> {
        let pool = pools.iter().find(|pool| holder.takes(&pool.resource).is_some())?;
        if let Some(only) = holder.only_gpu(pools) {
            return Some(only);
        }
        let mut gpus = holder.parts.iter().map(|part| self.gpu_of(uid, part, pool.allocation_policy));
        let first = gpus.next()??;
        gpus.all(|gpu| gpu.as_ref() == Some(&first)).then_some(first)
    }

    /// The GPU of a container; `None` if it is not known.
    ///
    /// The agent reports the GPU that the kubelet gave to it. Until then, the GPU in its reservation counts, or else the
    /// one in its annotation, which its binding wrote. Both count only while the agent steers the device plugin.
    pub(in crate::capacity) fn gpu_of(
        &self,
        uid: &PodUid,
        part: &Part,
        allocation_policy: AllocationPolicy,
    ) -> Option<GpuId> {
        let content = self.content.as_ref()?;
        let assigned = content.inventory.as_ref().and_then(|inventory| inventory.gpu_of(uid, &part.container));
        let reserved = || content.reservations.of(uid).and_then(|reservation| reservation.gpu_of(&part.container));
        match allocation_policy {
            AllocationPolicy::Steered => assigned.or_else(reserved).or(part.gpu.as_ref()).cloned(),
            AllocationPolicy::Unverified
            | AllocationPolicy::Stale
            | AllocationPolicy::Doubted
            | AllocationPolicy::Distributed
            | AllocationPolicy::Packed => assigned.cloned(),
        }
    }
}

#[cfg(test)]
mod tests;
