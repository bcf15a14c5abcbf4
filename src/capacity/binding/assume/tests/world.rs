//! Pods that are bound through several replicas of the server, under random faults.
//!
//! The caches of the replicas lag, and their events are repeated and reordered. Clocks differ, answers are lost, and
//! binds commit late or never. Controllers write based on what they saw some time ago. The runs are long and random,
//! while [`model`](super::model) is short and complete. In [`modes`], the nodes also change their mode meanwhile.

use proptest::prelude::*;

use super::*;
use crate::capacity::node::presence::{AgentPod, Instance};

mod modes;

const NODES: [&str; 2] = ["a", "b"];
/// The sizes of each node's GPUs, in MiB. With [`REPLICAS`] replicas of each, a node has four pods at most.
const GPUS: [&[u64]; 2] = [&[10_000, 6000], &[8000, 8000]];
const REPLICAS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unbound,
    Bound { node: usize, gpu: Option<u32> },
    Ended,
}

/// A ledger in the API server or in a replica's cache. `content` is `None` if the ledger does not exist.
#[derive(Clone, Debug, Default)]
struct Object {
    version: u64,
    content: Option<LedgerContent>,
}

#[derive(Clone, Debug)]
enum Event {
    Node { node: usize, there: bool },
    Pod { pod: usize, phase: Phase },
    Ledger { node: usize, object: Object },
    Agent { node: usize, instance: Option<u32> },
}

/// One replica of the server.
struct Replica {
    cluster: Cluster,
    seen: Vec<Object>,
    inbox: Vec<Event>,
    /// How far its clock is ahead, in milliseconds.
    ahead: i64,
}

/// A bind that was allowed and has neither committed nor failed.
struct Bind {
    pod: usize,
    node: usize,
    gpu: Option<u32>,
    asked: i64,
    /// The version of the ledger with its reservation.
    version: u64,
}

/// A pending write of a controller.
struct Proposal {
    node: usize,
    version: u64,
    reservations: Reservations,
}

struct World {
    allocation_policy: AllocationPolicy,
    demands: Vec<u64>,
    phases: Vec<Phase>,
    ledgers: Vec<Object>,
    replicas: Vec<Replica>,
    binds: Vec<Bind>,
    proposals: Vec<Proposal>,
    /// The instance of each node's agent that runs in a pod; `None` if the pod is being deleted or does not exist.
    agents: Vec<Option<u32>>,
    now: i64,
}

impl World {
    fn new(allocation_policy: AllocationPolicy, demands: &[u64], ahead: &[i64]) -> World {
        let first = match allocation_policy {
            AllocationPolicy::Unverified => Object::default(),
            AllocationPolicy::Stale
            | AllocationPolicy::Doubted
            | AllocationPolicy::Distributed
            | AllocationPolicy::Packed
            | AllocationPolicy::Steered => {
                Object { version: 1, content: Some(content(allocation_policy, Reservations::default())) }
            }
        };
        let replica = |&ahead: &i64| Replica {
            cluster: Cluster::new(rules(), BTreeSet::new()),
            seen: vec![Object::default(); 2],
            inbox: vec![],
            ahead,
        };
        let mut world = World {
            allocation_policy,
            demands: demands.to_vec(),
            phases: vec![Phase::Unbound; demands.len()],
            ledgers: vec![first; 2],
            replicas: ahead.iter().map(replica).collect(),
            binds: vec![],
            proposals: vec![],
            agents: vec![None; 2],
            now: 1_700_000_000_000,
        };
        (0..ahead.len()).for_each(|replica| world.restart(replica));
        world
    }

    fn holder(&self, pod: usize, gpu: Option<u32>) -> Holder {
        annotated(self.demands[pod], gpu)
    }

    fn uid(pod: usize) -> PodUid {
        PodUid::from(format!("uid-{pod}"))
    }

    /// The uid of the pod of a node's agent.
    fn agent(node: usize) -> PodUid {
        PodUid::from(format!("uid-agent-{node}"))
    }

    fn tell(&mut self, event: &Event) {
        self.replicas.iter_mut().for_each(|replica| replica.inbox.push(event.clone()));
    }

    fn apply(&mut self, replica: usize, event: Event) {
        let bound = |pod, gpu| self.holder(pod, gpu);
        match event {
            Event::Node { node, there: true } => {
                self.replicas[replica].cluster.apply_node(NODES[node], super::node(GPUS[node], REPLICAS));
            }
            Event::Node { node, there: false } => self.replicas[replica].cluster.delete_node(NODES[node]),
            Event::Pod { pod, phase: Phase::Bound { node, gpu } } => {
                let holder = bound(pod, gpu);
                self.replicas[replica].cluster.apply_pod(&World::uid(pod), NODES[node], holder);
            }
            Event::Pod { pod, phase: Phase::Ended } => self.replicas[replica].cluster.delete_pod(&World::uid(pod)),
            Event::Pod { phase: Phase::Unbound, .. } => {}
            Event::Ledger { node, object } => {
                self.replicas[replica].cluster.apply_ledger(NODES[node], object.content.clone());
                self.replicas[replica].seen[node] = object;
            }
            Event::Agent { node, instance: Some(instance) } => {
                let container = Instance::Running(instance.to_string().into());
                let pod = AgentPod { node: NODES[node].into(), deleting: false, container };
                self.replicas[replica].cluster.apply_agent_pod(&World::agent(node), pod);
            }
            Event::Agent { node, instance: None } => {
                self.replicas[replica].cluster.delete_agent_pod(&World::agent(node));
            }
        }
    }

    /// Discards pending events and lists all objects. A known pod that is not listed is gone.
    fn relist(&mut self, replica: usize) {
        self.replicas[replica].inbox.clear();
        for node in 0..NODES.len() {
            self.apply(replica, Event::Node { node, there: true });
            self.apply(replica, Event::Agent { node, instance: self.agents[node] });
            let object = self.ledgers[node].clone();
            self.apply(replica, Event::Ledger { node, object });
        }
        let known: Vec<PodUid> = self.replicas[replica].cluster.pods().cloned().collect();
        for pod in 0..self.phases.len() {
            let phase = self.phases[pod];
            if phase != Phase::Ended {
                self.apply(replica, Event::Pod { pod, phase });
            } else if known.contains(&World::uid(pod)) {
                self.apply(replica, Event::Pod { pod, phase: Phase::Ended });
            }
        }
    }

    fn restart(&mut self, replica: usize) {
        self.replicas[replica].cluster = Cluster::new(rules(), BTreeSet::new());
        self.replicas[replica].cluster.follow_agent_pods();
        self.relist(replica);
    }

    /// Writes a ledger if it still has this version, sends the event to all replicas, and returns whether it wrote.
    fn write(&mut self, node: usize, version: u64, reservations: Reservations) -> bool {
        if self.ledgers[node].version != version {
            return false;
        }
        self.change(node, |content| content.reservations = reservations);
        true
    }

    /// Changes a ledger, whatever version it has, and sends the event to all replicas.
    fn change(&mut self, node: usize, change: impl FnOnce(&mut LedgerContent)) {
        let object = &mut self.ledgers[node];
        object.version += 1;
        change(object.content.get_or_insert_default());
        let object = object.clone();
        self.tell(&Event::Ledger { node, object });
    }

    /// Lets a scheduler bind a pod through a replica.
    ///
    /// The replica decides on the ledger that it saw last. If that one is outdated, the replica decides again on the
    /// current one.
    fn bind(&mut self, replica: usize, pod: usize, node: usize, answered: bool) {
        let taken = self.phases.iter().filter(|phase| matches!(phase, Phase::Bound { node: on, .. } if *on == node));
        let full = taken.count() + self.binds.iter().filter(|bind| bind.node == node).count() >= 2 * REPLICAS as usize;
        if self.phases[pod] != Phase::Unbound || full {
            return; // kube-scheduler counts replicas
        }
        let last = self.ledgers[node].clone();
        for known in [self.replicas[replica].seen[node].clone(), last] {
            let at = &self.replicas[replica];
            let Some((ledger, pools)) = at.cluster.with_content(NODES[node], known.content.unwrap_or_default()) else {
                return;
            };
            let now = Moment(self.now + at.ahead);
            let assumed = ledger.assume(&World::uid(pod), &self.holder(pod, None), &pools, &rules(), now);
            let Ok(Assumed { gpu, write }) = assumed else { return };
            if write.is_none_or(|reservations| self.write(node, known.version, reservations)) {
                if answered {
                    let gpu = gpu.map(|gpu| match gpu {
                        GpuId::Index(index) => index,
                        GpuId::Uuid(uuid) => panic!("no GPU here is named {uuid}"),
                    });
                    let version = self.ledgers[node].version;
                    self.binds.push(Bind { pod, node, gpu, asked: self.now, version });
                }
                return;
            }
        }
    }

    fn commit(&mut self, bind: usize) {
        let Bind { pod, node, gpu, .. } = self.binds.remove(bind);
        if self.phases[pod] == Phase::Unbound {
            self.phases[pod] = Phase::Bound { node, gpu };
            self.tell(&Event::Pod { pod, phase: self.phases[pod] });
        }
    }

    fn end(&mut self, pod: usize) {
        self.phases[pod] = Phase::Ended;
        self.tell(&Event::Pod { pod, phase: Phase::Ended });
    }

    /// Lets a controller compute the upkeep of a node, do its quorum reads, and prepare its write.
    fn propose(&mut self, replica: usize, node: usize) {
        let at = &self.replicas[replica];
        let Some(NodeView { facts, ledger, .. }) = at.cluster.node(NODES[node]) else { return };
        let now = Moment(self.now + at.ahead);
        let upkeep = ledger.upkeep(&facts.pools, &rules(), |resource| at.cluster.guards(resource), &PATIENCE, now);
        let mut reservations = upkeep.reservations;
        for (uid, _) in upkeep.doubtful {
            let pod = (0..self.phases.len()).find(|pod| World::uid(*pod) == uid).unwrap();
            let found = match self.phases[pod] {
                Phase::Ended => Found::Gone,
                Phase::Unbound => Found::Unbound,
                Phase::Bound { node: on, .. } if on == node => Found::Here,
                Phase::Bound { .. } => Found::Elsewhere,
            };
            if !reservations.of(&uid).unwrap().survives(found, &PATIENCE, now) {
                reservations.remove(&uid);
            }
        }
        let seen = &at.seen[node];
        if seen.content.as_ref().is_none_or(|content| content.reservations != reservations) {
            self.proposals.push(Proposal { node, version: seen.version, reservations });
        }
    }

    fn settle(&mut self, proposal: usize) {
        let Proposal { node, version, reservations } = self.proposals.remove(proposal);
        self.write(node, version, reservations);
    }

    /// Lets time pass. The API server times out binds that take too long.
    fn pass(&mut self, milliseconds: i64) {
        self.now += milliseconds;
        let timeout = i64::try_from(PATIENCE.request_timeout.as_millis()).unwrap();
        self.binds.retain(|bind| self.now - bind.asked < timeout);
        for replica in &mut self.replicas {
            replica.cluster.tick(Moment(self.now + replica.ahead));
        }
    }

    /// Stops faults and lets time pass, while one controller continues.
    fn calm_down(&mut self) {
        self.proposals.clear();
        self.pass(600_000);
        for node in (0..NODES.len()).cycle().take(3 * NODES.len()) {
            self.relist(0);
            self.propose(0, node);
            if !self.proposals.is_empty() {
                self.settle(0);
            }
        }
        self.relist(0);
    }

    fn bound_to(&self, on: usize) -> impl Iterator<Item = (usize, Option<u32>)> + '_ {
        self.phases.iter().enumerate().filter_map(move |(pod, phase)| match phase {
            Phase::Bound { node, gpu } if *node == on => Some((pod, *gpu)),
            Phase::Bound { .. } | Phase::Unbound | Phase::Ended => None,
        })
    }

    /// Asserts that these amounts fit on the GPUs of a node.
    ///
    /// If it is not known which GPU a pod is on, the worst case must fit.
    fn assert_fits(&self, node: usize, amounts: &[(u64, Option<u32>)]) {
        if self.allocation_policy == AllocationPolicy::Steered {
            for (index, size) in (0..).zip(GPUS[node]) {
                let sum: u64 = amounts.iter().filter(|(_, gpu)| *gpu == Some(index)).map(|(amount, _)| amount).sum();
                assert!(sum <= *size, "{sum} of {size} on GPU {index} of node {}", NODES[node]);
            }
            assert!(amounts.iter().all(|(_, gpu)| gpu.is_some()));
        } else {
            let mut largest: Vec<u64> = amounts.iter().map(|(amount, _)| *amount).collect();
            largest.sort_unstable_by(|a, b| b.cmp(a));
            let worst: u64 = largest.iter().take(REPLICAS as usize).sum();
            let smallest = GPUS[node].iter().min().unwrap();
            assert!(worst <= *smallest, "{worst} of {smallest} on some GPU of node {}", NODES[node]);
        }
    }

    fn check(&self) {
        let index = |gpu: &Option<GpuId>| gpu.as_ref().map(|gpu| gpu.to_string().parse().unwrap());
        for (node, object) in self.ledgers.iter().enumerate() {
            let bound: Vec<(usize, Option<u32>)> = self.bound_to(node).collect();
            let amounts: Vec<_> = bound.iter().map(|(pod, gpu)| (self.demands[*pod], *gpu)).collect();
            self.assert_fits(node, &amounts);
            let none = Reservations::default();
            let promised = object.content.as_ref().map_or(&none, |content| &content.reservations);
            for (pod, gpu) in bound {
                let reservation = promised.of(&World::uid(pod)).expect("who is bound has a reservation");
                assert_eq!(index(&reservation.gpu), gpu);
            }
            // Adopted reservations are left out: they allowed no binding. A controller with an old cache may adopt a
            // pod again that has ended.
            let assumed = promised.iter().filter(|(_, reservation)| reservation.state != State::Adopted);
            let assumed: Vec<_> = assumed.map(|(_, r)| (r.holder.request.unwrap().mib(), index(&r.gpu))).collect();
            self.assert_fits(node, &assumed);
        }
        self.check_published();
    }

    /// Asserts that no replica would publish less for a node than what the pods request that it sees there.
    fn check_published(&self) {
        for replica in &self.replicas {
            for NodeView { ledger, usage, .. } in NODES.iter().filter_map(|name| replica.cluster.node(name)) {
                let seen: Vram = ledger.holders().values().filter_map(|holder| holder.request).sum();
                assert!(usage.published.unwrap_or(Vram::ZERO) >= seen);
            }
        }
    }

    /// The pods that have a reservation on a node.
    fn promised(&self, node: usize) -> BTreeSet<PodUid> {
        let content = self.ledgers[node].content.as_ref();
        content.into_iter().flat_map(|content| content.reservations.iter()).map(|(uid, _)| uid.clone()).collect()
    }

    /// Asserts that all bound pods have a reservation, and that no other pod has one.
    fn check_calm(&self) {
        self.check();
        for (node, name) in NODES.iter().enumerate() {
            let bound: BTreeSet<PodUid> = self.bound_to(node).map(|(pod, _)| World::uid(pod)).collect();
            assert_eq!(self.promised(node), bound);
            let usage = self.replicas[0].cluster.node(name).unwrap().usage;
            let sum = self.bound_to(node).map(|(pod, _)| self.demands[pod]).sum();
            assert_eq!((usage.bound.mib(), usage.deficit), (sum, None));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Bind {
        replica: usize,
        pod: usize,
        node: usize,
        answered: bool,
    },
    Commit(usize),
    Fail(usize),
    End(usize),
    /// The n-th pending event arrives. With `again`, it stays pending and may arrive once more.
    Deliver {
        replica: usize,
        event: usize,
        again: bool,
    },
    Relist(usize),
    Restart(usize),
    Flap {
        node: usize,
        there: bool,
    },
    Propose {
        replica: usize,
        node: usize,
    },
    Settle(usize),
    Pass(i64),
}

const PODS: usize = 8;

fn steps(replicas: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(replicas), 0..100)
}

fn step(replicas: usize) -> impl Strategy<Value = Step> {
    let (node, replica, pod) = (0..NODES.len(), 0..replicas, 0..PODS);
    let bind = (replica.clone(), pod.clone(), node.clone(), proptest::bool::weighted(0.85));
    let deliver = (replica.clone(), 0usize..8, proptest::bool::weighted(0.2));
    let bind = bind.prop_map(|(replica, pod, node, answered)| Step::Bind { replica, pod, node, answered });
    let deliver = deliver.prop_map(|(replica, event, again)| Step::Deliver { replica, event, again });
    let propose = (replica.clone(), node.clone()).prop_map(|(replica, node)| Step::Propose { replica, node });
    prop_oneof![
        8 => bind,
        6 => (0usize..4).prop_map(Step::Commit),
        1 => (0usize..4).prop_map(Step::Fail),
        1 => pod.prop_map(Step::End),
        12 => deliver,
        1 => replica.clone().prop_map(Step::Relist),
        1 => replica.prop_map(Step::Restart),
        1 => (node, any::<bool>()).prop_map(|(node, there)| Step::Flap { node, there }),
        5 => propose,
        4 => (0usize..3).prop_map(Step::Settle),
        2 => (0i64..95_000).prop_map(Step::Pass),
    ]
}

fn play(world: &mut World, step: &Step) {
    match *step {
        Step::Bind { replica, pod, node, answered } => world.bind(replica, pod, node, answered),
        Step::Commit(bind) if bind < world.binds.len() => world.commit(bind),
        Step::Fail(bind) if bind < world.binds.len() => _ = world.binds.remove(bind),
        Step::End(pod) => world.end(pod),
        Step::Deliver { replica, event, again } if event < world.replicas[replica].inbox.len() => {
            let inbox = &mut world.replicas[replica].inbox;
            let event = if again { inbox[event].clone() } else { inbox.remove(event) };
            world.apply(replica, event);
        }
        Step::Relist(replica) => world.relist(replica),
        Step::Restart(replica) => world.restart(replica),
        Step::Flap { node, there } => world.tell(&Event::Node { node, there }),
        Step::Propose { replica, node } => world.propose(replica, node),
        Step::Settle(proposal) if proposal < world.proposals.len() => world.settle(proposal),
        Step::Pass(milliseconds) => world.pass(milliseconds),
        Step::Commit(_) | Step::Fail(_) | Step::Deliver { .. } | Step::Settle(_) => {}
    }
}

proptest! {
    /// No GPU is overcommitted and all bound pods have a reservation. In the end, no other pod has one.
    #[test]
    fn no_fault_overcommits_a_steered_gpu(
        steps in steps(3), demands in proptest::collection::vec(1000u64..7000, PODS),
        ahead in proptest::collection::vec(0i64..=30_000, 3),
    ) {
        let mut world = World::new(AllocationPolicy::Steered, &demands, &ahead);
        for step in &steps {
            play(&mut world, step);
            world.check();
        }
        world.calm_down();
        world.check_calm();
    }

    /// If the GPU of a pod is not known, no choice of the device plugin overcommits a GPU.
    #[test]
    fn no_fault_overcommits_a_slot_gpu(
        steps in steps(2), demands in proptest::collection::vec(1000u64..5000, PODS),
        ahead in proptest::collection::vec(0i64..=30_000, 2),
    ) {
        let mut world = World::new(AllocationPolicy::Unverified, &demands, &ahead);
        for step in &steps {
            play(&mut world, step);
            world.check();
        }
        world.calm_down();
        world.check_calm();
    }
}
