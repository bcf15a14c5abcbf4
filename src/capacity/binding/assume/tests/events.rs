//! Random watch events in any order, some repeated, compared with a plain list of the last event per object.
//!
//! The events need not be consistent with each other. The cluster must follow from them anyway.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const NODES: [&str; 2] = ["a", "b"];
const PODS: [&str; 6] = ["p", "q", "r", "s", "t", "u"];
/// The sizes of a node's GPUs, in MiB, of which an event picks one list.
const SHAPES: [&[u64]; 3] = [&[10_000, 10_000], &[4000, 20_000, 8000], &[16_000]];

#[derive(Clone, Debug)]
enum Event {
    /// A node is seen with the GPUs of [`SHAPES`] at an index, or it is deleted.
    Node(usize, Option<usize>),
    /// A pod is seen on a node, with the GPU that its annotation names.
    Bound(usize, usize, Option<u32>),
    Ended(usize),
    /// A ledger is seen, or it is deleted.
    Ledger(usize, Option<Vec<(usize, Option<u32>, State)>>),
    /// This number of seconds passes.
    Tick(i64),
    /// The process restarts and lists all objects.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let gpu = || proptest::option::weighted(0.8, 0u32..3);
    let state = select(vec![State::Assumed, State::Confirmed, State::Adopted]);
    let rows = proptest::collection::vec((0..PODS.len(), gpu(), state), 0..6);
    prop_oneof![
        2 => (0..NODES.len(), proptest::option::weighted(0.8, 0..SHAPES.len())).prop_map(|(n, s)| Event::Node(n, s)),
        6 => (0..PODS.len(), 0..NODES.len(), gpu()).prop_map(|(pod, node, gpu)| Event::Bound(pod, node, gpu)),
        2 => (0..PODS.len()).prop_map(Event::Ended),
        4 => (0..NODES.len(), proptest::option::weighted(0.9, rows)).prop_map(|(n, rows)| Event::Ledger(n, rows)),
        1 => (1i64..4).prop_map(Event::Tick),
        1 => Just(Event::Restart),
    ]
}

/// The last event for each object.
#[derive(Clone, Debug, Default)]
struct Notice {
    nodes: BTreeMap<usize, usize>,
    bound: BTreeMap<usize, (usize, Option<u32>)>,
    ended: BTreeSet<usize>,
    ledgers: BTreeMap<usize, BTreeMap<usize, (Option<u32>, State)>>,
    seconds: i64,
}

fn holder(pod: usize, annotation: Option<u32>) -> Holder {
    annotated(demand(pod), annotation)
}

fn demand(pod: usize) -> u64 {
    1000 + 700 * pod as u64
}

impl Notice {
    fn fold(&mut self, event: &Event) {
        match event.clone() {
            Event::Node(node, Some(shape)) => _ = self.nodes.insert(node, shape),
            Event::Node(node, None) => _ = self.nodes.remove(&node),
            Event::Bound(pod, node, gpu) if !self.ended.contains(&pod) => _ = self.bound.insert(pod, (node, gpu)),
            Event::Bound(..) => {}
            Event::Ended(pod) => {
                self.bound.remove(&pod);
                self.ended.insert(pod);
            }
            Event::Ledger(node, Some(rows)) => {
                let rows = rows.into_iter().map(|(pod, gpu, state)| (pod, (gpu, state)));
                self.ledgers.insert(node, rows.collect());
            }
            Event::Ledger(node, None) => _ = self.ledgers.remove(&node),
            Event::Tick(seconds) => self.seconds += seconds,
            Event::Restart => self.ended.clear(),
        }
    }

    /// The pods that count on a node, each with its GPU if that is known.
    fn counted(&self, node: usize) -> BTreeMap<usize, Option<u32>> {
        let rows = self.ledgers.get(&node);
        let gpu = |pod: usize, annotation: Option<u32>| {
            let reserved = rows?.get(&pod).and_then(|(gpu, _)| *gpu);
            reserved.or(annotation)
        };
        let here = self.bound.iter().filter(|(_, (on, _))| *on == node);
        let coming = rows.into_iter().flatten().map(|(pod, _)| pod);
        let coming = coming.filter(|pod| !self.ended.contains(pod) && !self.bound.contains_key(pod));
        let here = here.map(|(pod, (_, annotation))| (*pod, gpu(*pod, *annotation)));
        here.chain(coming.map(|pod| (*pod, gpu(*pod, None)))).collect()
    }

    /// The amount that is known to be held of each GPU of a node, in MiB.
    fn held(&self, node: usize, shape: usize) -> Vec<u64> {
        let counted = self.counted(node);
        let sum = |gpu: u32| {
            let alone = SHAPES[shape].len() == 1;
            let on = counted.iter().filter(|(_, on)| alone || **on == Some(gpu));
            on.map(|(pod, _)| demand(*pod)).sum()
        };
        (0..).zip(SHAPES[shape]).map(|(gpu, _)| sum(gpu)).collect()
    }

    /// The cluster of a process that starts now and lists all objects.
    fn listed(&self) -> Cluster {
        let mut cluster = Cluster::new(rules(), BTreeSet::new());
        for (node, shape) in &self.nodes {
            cluster.apply_node(NODES[*node], node_of(*shape));
        }
        for (pod, (node, annotation)) in &self.bound {
            cluster.apply_pod(&uid(PODS[*pod]), NODES[*node], holder(*pod, *annotation));
        }
        for (node, rows) in &self.ledgers {
            cluster.apply_ledger(NODES[*node], Some(ledger(rows)));
        }
        cluster
    }
}

fn node_of(shape: usize) -> NodeFacts {
    node(SHAPES[shape], 4)
}

fn ledger(rows: &BTreeMap<usize, (Option<u32>, State)>) -> LedgerContent {
    let row = |(pod, (gpu, state)): (&usize, &(Option<u32>, State))| {
        (PODS[*pod], reservation(holder(*pod, None), *gpu, *state, 0))
    };
    under(reservations(rows.iter().map(row)))
}

fn apply(cluster: &mut Cluster, event: &Event, said: &Notice) {
    match event.clone() {
        Event::Node(node, Some(shape)) => cluster.apply_node(NODES[node], node_of(shape)),
        Event::Node(node, None) => cluster.delete_node(NODES[node]),
        Event::Bound(pod, node, gpu) => cluster.apply_pod(&uid(PODS[pod]), NODES[node], holder(pod, gpu)),
        Event::Ended(pod) => cluster.delete_pod(&uid(PODS[pod])),
        Event::Ledger(node, _) => cluster.apply_ledger(NODES[node], said.ledgers.get(&node).map(ledger)),
        Event::Tick(_) => cluster.tick(Moment(said.seconds * 1000)),
        Event::Restart => *cluster = said.listed(),
    }
}

proptest! {
    /// After each event, the held amounts of each node and each GPU equal those of the list.
    ///
    /// No node publishes less than the sum that the pods bound there request.
    #[test]
    fn sums_are_those_of_what_was_said_last(
        events in proptest::collection::vec(event(), 0..60), again in any::<bool>(),
    ) {
        let mut live = Cluster::new(rules(), BTreeSet::new());
        let mut said = Notice::default();
        for event in events.iter().flat_map(|event| std::iter::repeat_n(event, if again { 2 } else { 1 })) {
            said.fold(event);
            apply(&mut live, event, &said);
            for (node, shape) in &said.nodes {
                let usage = live.node(NODES[*node]).unwrap().usage;
                let counted = said.counted(*node);
                prop_assert_eq!(usage.bound.mib(), counted.keys().map(|pod| demand(*pod)).sum::<u64>());
                let held: Vec<u64> = usage.pools[0].gpus.iter().map(|gpu| gpu.held.mib()).collect();
                prop_assert_eq!(held, said.held(*node, *shape));
                let seen: u64 = said.bound.iter().filter(|(_, at)| at.0 == *node).map(|(pod, _)| demand(*pod)).sum();
                prop_assert!(usage.published.unwrap().mib() >= seen);
            }
        }
        // The whole usage of a node equals that in a process that has just started and knows which pods ended.
        let mut fresh = said.listed();
        said.ended.iter().for_each(|pod| fresh.delete_pod(&uid(PODS[*pod])));
        for node in said.nodes.keys() {
            prop_assert_eq!(live.node(NODES[*node]).unwrap().usage, fresh.node(NODES[*node]).unwrap().usage);
        }
    }
}
