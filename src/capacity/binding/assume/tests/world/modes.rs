//! Nodes that change their accounting mode, while pods are bound through several replicas of the server.
//!
//! A node's mode follows from the report of its agent, from the age of that report, and from the agent's pod. All three
//! change here, and each replica learns of them at its own time.
//!
//! The oracle plays every way in which the containers may get their GPUs: see [`Machine::spreads`]. It knows what each
//! pod demands, what was really bound, and who chooses the GPU when the kubelet admits a pod. It shares nothing with
//! the accounting of the product.
//!
//! A mode in which the server predicts a GPU ends in order: the report comes first, then a pause, and only then
//! someone else chooses the GPUs. In the pause, binds that were allowed before the report commit or fail, and the
//! kubelet admits their pods. An agent that steers stops like that. These cases are not modelled:
//!
//! - A bind or an admission that takes longer than the pause. The pause is one second.
//! - An agent that crashes. Its claim counts for a second or two longer, and `docs/steering.md` says what may happen.
//! - A device plugin that leaves the rule `distributed` before the agent's report says so. Mode confirmed is safe only
//!   while the plugin follows its rule.

use std::collections::BTreeMap;

use super::*;
use crate::capacity::node::presence::NamedPod;
use crate::capacity::pod::PodName;

/// Who chooses the GPU of a container when the kubelet admits its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chooser {
    /// The agent gives the GPU that is reserved in the ledger if that has a free replica.
    ///
    /// If not, the real agent chooses a GPU with room for the pod. Here, it may choose any.
    Agent,
    /// The device plugin takes a GPU with the fewest replicas taken.
    Fewest,
    /// The device plugin takes a GPU with the most replicas taken.
    Most,
    /// The device plugin takes any GPU.
    Any,
}

impl Chooser {
    /// The chooser that a report with this policy promises.
    fn of(policy: AllocationPolicy) -> Chooser {
        match policy {
            AllocationPolicy::Steered => Chooser::Agent,
            AllocationPolicy::Distributed => Chooser::Fewest,
            AllocationPolicy::Packed => Chooser::Most,
            AllocationPolicy::Unverified | AllocationPolicy::Stale | AllocationPolicy::Doubted => Chooser::Any,
        }
    }

    /// Whether the server relies on this chooser, so that it must end in order.
    fn is_relied_on(self) -> bool {
        matches!(self, Chooser::Agent | Chooser::Fewest)
    }

    /// The GPUs that a pod may get, given the replicas taken on each.
    fn choices(self, taken: &[u32], reserved: Option<u32>) -> Vec<u32> {
        let open: Vec<u32> = (0..).zip(taken).filter(|(_, taken)| **taken < REPLICAS).map(|(gpu, _)| gpu).collect();
        let counts = open.iter().map(|gpu| taken[*gpu as usize]);
        let best = match self {
            Chooser::Agent => {
                let reserved = reserved.filter(|gpu| open.contains(gpu));
                return reserved.map_or(open, |gpu| vec![gpu]);
            }
            Chooser::Any => return open,
            Chooser::Fewest => counts.min(),
            Chooser::Most => counts.max(),
        };
        open.into_iter().filter(|gpu| Some(taken[*gpu as usize]) == best).collect()
    }
}

/// The GPU of each pod that the kubelet of a node has admitted.
type Spread = BTreeMap<usize, u32>;

/// What happens on one node, whatever the server knows of it.
struct Machine {
    chooser: Chooser,
    /// Every way in which the GPUs may have been given out, and that no report has contradicted.
    spreads: BTreeSet<Spread>,
    /// The pods whose GPU the agent reports.
    named: BTreeSet<usize>,
    /// The pods that are bound and not admitted, each with the version of the ledger under which it was allowed.
    waiting: Vec<(usize, u64)>,
    /// In the pause: the version of the ledger with the report that ended the mode.
    stopping: Option<u64>,
    /// The number of instances of its agent that have run.
    instances: u32,
}

/// The world, and what happens on its nodes.
struct Modes {
    world: World,
    machines: Vec<Machine>,
}

/// What a report names, apart from the policy.
#[derive(Clone, Copy, Debug)]
struct Naming {
    /// Which of the possible spreads is the real one.
    spread: usize,
    /// A bit for each pod: whether the agent has seen its GPU.
    seen: u32,
}

impl Modes {
    fn new(demands: &[u64], ahead: &[i64]) -> Modes {
        let machine = |_| Machine {
            chooser: Chooser::Any,
            spreads: BTreeSet::from([Spread::new()]),
            named: BTreeSet::new(),
            waiting: vec![],
            stopping: None,
            instances: 0,
        };
        let world = World::new(AllocationPolicy::Unverified, demands, ahead);
        Modes { world, machines: (0..NODES.len()).map(machine).collect() }
    }

    /// The GPU that the ledger of a node reserves for a pod.
    fn reserved(&self, node: usize, pod: usize) -> Option<u32> {
        let content = self.world.ledgers[node].content.as_ref()?;
        let gpu = content.reservations.of(&World::uid(pod))?.gpu.as_ref()?;
        Some(gpu.to_string().parse().unwrap())
    }

    /// All spreads after a pod is admitted to a node.
    fn after(&self, node: usize, spreads: &BTreeSet<Spread>, pod: usize) -> BTreeSet<Spread> {
        let reserved = self.reserved(node, pod);
        let with = |spread: &Spread| {
            let taken = |gpu| u32::try_from(spread.values().filter(|on| **on == gpu).count()).unwrap();
            let taken: Vec<u32> = (0..).zip(GPUS[node]).map(|(gpu, _)| taken(gpu)).collect();
            let choices = self.machines[node].chooser.choices(&taken, reserved).into_iter();
            choices.map(|gpu| spread.clone().into_iter().chain([(pod, gpu)]).collect()).collect::<Vec<Spread>>()
        };
        spreads.iter().flat_map(with).collect()
    }

    /// Lets the kubelet of a node admit one of the pods that wait there.
    fn admit(&mut self, node: usize, waiting: usize) {
        let (pod, _) = self.machines[node].waiting.remove(waiting);
        self.machines[node].spreads = self.after(node, &self.machines[node].spreads, pod);
    }

    /// Writes a report, which names the GPU of more pods.
    fn report(&mut self, node: usize, allocation_policy: AllocationPolicy, naming: Naming) {
        let container = pod(0).parts[0].container.clone();
        let machine = &mut self.machines[node];
        let real = machine.spreads.iter().cycle().nth(naming.spread).expect("at least one is possible").clone();
        machine.named.extend(real.keys().filter(|pod| naming.seen >> **pod & 1 == 1));
        machine.spreads.retain(|spread| machine.named.iter().all(|pod| spread[pod] == real[pod]));
        let assigned = machine.named.iter();
        let assigned =
            assigned.map(|pod| (World::uid(*pod), vec![(container.clone(), GpuId::Index(real[pod]))].into()));
        let pod = NamedPod {
            uid: World::agent(node),
            name: PodName { namespace: "vramguard-agent".into(), name: NODES[node].into() },
            container: self.world.agents[node].map(|instance| instance.to_string().into()),
        };
        let inventory = Inventory {
            reported: Some(Moment(self.world.now)),
            pod: Some(Box::new(pod)),
            allocation_policy,
            assigned: assigned.collect(),
            ..Inventory::default()
        };
        self.world.change(node, |content| content.inventory = Some(inventory));
    }

    fn reported(&self, node: usize) -> AllocationPolicy {
        let inventory = self.world.ledgers[node].content.as_ref().and_then(|content| content.inventory.as_ref());
        inventory.map_or(AllocationPolicy::Unverified, |inventory| inventory.allocation_policy)
    }

    fn sees_agent(&mut self, node: usize, instance: Option<u32>) {
        self.world.agents[node] = instance;
        self.world.tell(&Event::Agent { node, instance });
    }

    /// Takes the next step towards a mode in which `policy` is reported.
    ///
    /// In most changes that is the whole change. If the server relies on the present chooser, there are three steps:
    /// the report that ends the mode, the end of the pause, and the report that begins the next mode.
    fn turn(&mut self, node: usize, policy: AllocationPolicy, naming: Naming) {
        let chooser = self.machines[node].chooser;
        let begins = Chooser::of(policy);
        if let Some(version) = self.machines[node].stopping.take() {
            self.end_pause(node, version);
            self.machines[node].chooser = if begins.is_relied_on() { Chooser::Any } else { begins };
        } else if chooser.is_relied_on() && chooser != begins {
            let slot = if begins == Chooser::Most { policy } else { AllocationPolicy::Unverified };
            self.report(node, slot, naming);
            self.machines[node].stopping = Some(self.world.ledgers[node].version);
        } else {
            self.machines[node].chooser = begins;
            let naming = if begins == Chooser::Agent { self.start_agent(node, naming) } else { naming };
            self.report(node, policy, naming);
        }
    }

    /// Lets an agent begin to steer. Returns what its first report names, which includes each pod with a reserved GPU:
    /// an agent claims to steer only after the kubelet has told which devices it gave to whom.
    fn start_agent(&mut self, node: usize, naming: Naming) -> Naming {
        if self.world.agents[node].is_none() {
            self.machines[node].instances += 1;
            let instance = self.machines[node].instances;
            self.sees_agent(node, Some(instance));
        }
        let reserved = (0..PODS).filter(|pod| self.reserved(node, *pod).is_some());
        Naming { seen: reserved.fold(naming.seen, |seen, pod| seen | 1 << pod), ..naming }
    }

    /// Ends the pause. Binds that were allowed before the report have committed and their pods are admitted, or they
    /// fail.
    fn end_pause(&mut self, node: usize, report: u64) {
        self.world.binds.retain(|bind| bind.node != node || bind.version >= report);
        while let Some(next) = self.machines[node].waiting.iter().position(|(_, version)| *version < report) {
            self.admit(node, next);
        }
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::World(super::Step::Commit(bind)) if bind < self.world.binds.len() => {
                let Bind { pod, node, version, .. } = self.world.binds[bind];
                if self.world.phases[pod] == Phase::Unbound {
                    self.machines[node].waiting.push((pod, version));
                }
                self.world.commit(bind);
            }
            Step::World(ref step) => super::play(&mut self.world, step),
            Step::Admit { node, waiting } if waiting < self.machines[node].waiting.len() => self.admit(node, waiting),
            Step::Admit { .. } => {}
            Step::Report { node, naming } => self.report(node, self.reported(node), naming),
            Step::Turn { node, policy, naming } => self.turn(node, policy, naming),
            Step::DeleteAgent { node } => self.sees_agent(node, None),
        }
        for node in 0..NODES.len() {
            let here: BTreeSet<usize> = self.world.bound_to(node).map(|(pod, _)| pod).collect();
            let machine = &mut self.machines[node];
            machine.waiting.retain(|(pod, _)| here.contains(pod));
            machine.named.retain(|pod| here.contains(pod));
            let stay = |mut spread: Spread| {
                spread.retain(|pod, _| here.contains(pod));
                spread
            };
            machine.spreads = std::mem::take(&mut machine.spreads).into_iter().map(stay).collect();
        }
    }

    /// The pods that may still be admitted to a node without another decision of the server.
    fn coming(&self, node: usize) -> BTreeSet<usize> {
        let allowed = self.world.binds.iter().filter(|bind| bind.node == node).map(|bind| bind.pod);
        let allowed = allowed.filter(|pod| self.world.phases[*pod] == Phase::Unbound);
        allowed.chain(self.machines[node].waiting.iter().map(|(pod, _)| *pod)).collect()
    }

    /// Asserts that no GPU is overcommitted, now and after any admission of pods that may still be admitted.
    fn check(&self) {
        for node in 0..NODES.len() {
            let mut open = vec![(self.coming(node), self.machines[node].spreads.clone())];
            let mut visited = BTreeSet::new();
            while let Some((coming, spreads)) = open.pop() {
                spreads.iter().for_each(|spread| self.assert_fits(node, spread));
                for pod in &coming {
                    let mut rest = coming.clone();
                    rest.remove(pod);
                    let next = (rest, self.after(node, &spreads, *pod));
                    if visited.insert(next.clone()) {
                        open.push(next);
                    }
                }
            }
            let promised = self.world.promised(node);
            assert!(self.world.bound_to(node).all(|(pod, _)| promised.contains(&World::uid(pod))));
        }
        self.world.check_published();
    }

    fn assert_fits(&self, node: usize, spread: &Spread) {
        for (gpu, size) in (0..).zip(GPUS[node]) {
            let held: u64 = spread.iter().filter(|(_, on)| **on == gpu).map(|(pod, _)| self.world.demands[*pod]).sum();
            assert!(held <= *size, "{held} of {size} on GPU {gpu} of node {}: {spread:?}", NODES[node]);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    World(super::Step),
    /// The kubelet admits the n-th pod that waits.
    Admit {
        node: usize,
        waiting: usize,
    },
    /// The agent reports again, in the same mode.
    Report {
        node: usize,
        naming: Naming,
    },
    Turn {
        node: usize,
        policy: AllocationPolicy,
        naming: Naming,
    },
    /// The deletion of the agent's pod begins. The agent steers until it stops in order.
    DeleteAgent {
        node: usize,
    },
}

fn steps(replicas: usize) -> impl Strategy<Value = Vec<Step>> {
    let node = 0..NODES.len();
    let policy = proptest::sample::select(vec![
        AllocationPolicy::Steered,
        AllocationPolicy::Steered,
        AllocationPolicy::Unverified,
        AllocationPolicy::Packed,
        AllocationPolicy::Distributed,
    ]);
    let naming = || (0usize..6, 0u32..1 << PODS).prop_map(|(spread, seen)| Naming { spread, seen });
    let turn = (node.clone(), policy, naming());
    let step = prop_oneof![
        40 => step(replicas).prop_map(Step::World),
        1 => Just(Step::World(super::Step::Pass(600_000))),
        5 => (node.clone(), 0usize..3).prop_map(|(node, waiting)| Step::Admit { node, waiting }),
        2 => (node.clone(), naming()).prop_map(|(node, naming)| Step::Report { node, naming }),
        5 => turn.prop_map(|(node, policy, naming)| Step::Turn { node, policy, naming }),
        2 => node.prop_map(|node| Step::DeleteAgent { node }),
    ];
    proptest::collection::vec(step, 0..140)
}

/// Demands of which most fit into a slot: those of the nodes here have 3000 and 4000 MiB.
fn demands() -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(prop_oneof![3 => 500u64..=4000, 2 => 4000u64..9000], PODS)
}

proptest! {
    /// No GPU is overcommitted, whichever GPU each container gets from whoever chooses it at that time.
    #[test]
    fn a_node_that_changes_its_mode_is_never_overcommitted(
        steps in steps(3), demands in demands(), ahead in proptest::collection::vec(0i64..=30_000, 3),
    ) {
        let mut modes = Modes::new(&demands, &ahead);
        for step in &steps {
            modes.play(step);
            modes.check();
        }
        modes.world.calm_down();
        modes.check();
        for node in 0..NODES.len() {
            let bound: BTreeSet<PodUid> = modes.world.bound_to(node).map(|(pod, _)| World::uid(pod)).collect();
            assert_eq!(modes.world.promised(node), bound);
        }
    }
}
