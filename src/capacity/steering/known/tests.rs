use litemap::LiteMap;

use super::*;
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{AllocationPolicy, Gpu};
use crate::capacity::name::Name;
use crate::capacity::node::holder::Amount;
use crate::capacity::node::inventory::{Inventory, InventoryGpu};
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::{Reservation, Reservations, State};
use crate::capacity::testing::{facts, gpu, holder, mib, part, pool, rules, uid};
use crate::capacity::time::Moment;

/// A node with two GPUs of 10,000 MiB and four replicas each, which its agent reports.
fn cluster(assigned: &[(&str, &str)], reserved: &[(&str, &str)]) -> Cluster {
    cluster_with(assigned, reserved, State::Confirmed)
}

fn cluster_with(assigned: &[(&str, &str)], reserved: &[(&str, &str)], state: State) -> Cluster {
    let mut cluster = Cluster::new(rules(), std::collections::BTreeSet::new());
    cluster.apply_node("n", facts(vec![pool(&[10_000, 10_000], 4)]));
    let reported = |(index, uuid): (u32, &str)| InventoryGpu {
        gpu: Gpu { id: GpuId::from(uuid), ..Gpu::of_size(index, mib(10_000)) },
        replicas: std::num::NonZeroU32::new(4).expect("four"),
    };
    let on = |(pod, gpu): &(&str, &str)| {
        let container: (Name, GpuId) = ("main".into(), GpuId::from(*gpu));
        (uid(pod), vec![container].into())
    };
    let reservation = |(pod, gpu): &(&str, &str)| {
        let gpu = Some(GpuId::from(*gpu));
        (uid(pod), Reservation { holder: holder(4_000), gpu, state, since: Moment(0) })
    };
    let inventory = Inventory {
        gpus: BTreeMap::from([(gpu(), [(0, "GPU-a"), (1, "GPU-b")].map(reported).into())]),
        assigned: assigned.iter().map(on).collect::<LiteMap<_, _>>(),
        allocation_policy: AllocationPolicy::Steered,
        ..Inventory::default()
    };
    let reservations: Reservations = reserved.iter().map(reservation).collect();
    cluster.apply_ledger("n", Some(LedgerContent { reservations, inventory: Some(inventory), fault: None }));
    for (pod, _) in assigned {
        cluster.apply_pod(&uid(pod), "n", holder(4_000));
    }
    cluster
}

fn reserved_gpu(cluster: &Cluster, pod: &str, annotation: Option<&str>) -> Option<GpuId> {
    let mut holder = holder(4_000);
    let mut parts: Vec<_> = holder.parts.iter().cloned().collect();
    parts[0].gpu = annotation.map(GpuId::from);
    holder.parts = parts.into();
    let (uid, name) = (uid(pod), holder.name.clone());
    let pod = PodOnNode {
        uid: &uid,
        name: &name,
        containers: &[],
        phase: Phase::Pending,
        deleted: false,
        holder: Some(&holder),
    };
    let known = KnownNode::pod(cluster.node("n").as_ref(), &rules(), &pod);
    assert_eq!(known.demand, Some(mib(4_000)));
    known.reserved
}

#[test]
fn the_room_of_a_gpu_is_what_the_pods_on_it_leave() {
    let cluster = cluster(&[("p", "GPU-b")], &[]);
    let pools = KnownNode::pools(&cluster, "n").unwrap();
    let rooms: Vec<(&str, u32, u64)> =
        pools[&gpu()].iter().map(|gpu| (&*gpu.uuid, gpu.index.gpu, gpu.room.free().mib())).collect();
    assert_eq!(rooms, [("GPU-a", 0, 10_000), ("GPU-b", 1, 6_000)]);
    assert_eq!(KnownNode::pools(&cluster, "unknown"), None);
}

#[test]
fn a_node_whose_gpus_have_no_uuids_has_no_rooms() {
    let mut cluster = Cluster::new(rules(), std::collections::BTreeSet::new());
    cluster.apply_node("n", facts(vec![pool(&[10_000, 10_000], 4)]));
    assert_eq!(KnownNode::pools(&cluster, "n").unwrap()[&gpu()], []);
}

#[test]
fn the_reported_gpu_counts_before_the_reserved_one_and_the_annotation_never() {
    let both = cluster(&[("p", "GPU-b")], &[("p", "GPU-a")]);
    assert_eq!(reserved_gpu(&both, "p", Some("GPU-a")), Some(GpuId::from("GPU-b")));
    let reserved = cluster(&[], &[("p", "GPU-a")]);
    assert_eq!(reserved_gpu(&reserved, "p", Some("GPU-b")), Some(GpuId::from("GPU-a")));
    // Anyone may write the annotation in a namespace that is not guarded, and the server adopts such pods.
    assert_eq!(reserved_gpu(&reserved, "new", Some("GPU-b")), None);
    let adopted = cluster_with(&[], &[("p", "GPU-a")], State::Adopted);
    assert_eq!(reserved_gpu(&adopted, "p", Some("GPU-a")), None);
}

#[test]
fn the_demand_of_a_pod_that_declares_nothing_is_what_it_was_seen_to_use() {
    let mut cluster = cluster(&[("p", "GPU-b")], &[]);
    let content = cluster.node("n").unwrap().ledger.content().cloned().unwrap();
    let peak: (Name, Vram) = ("main".into(), mib(9_000));
    let inventory =
        Inventory { peaks: [(uid("p"), vec![peak].into())].into_iter().collect(), ..content.inventory.unwrap() };
    cluster.apply_ledger("n", Some(LedgerContent { inventory: Some(inventory), ..LedgerContent::default() }));
    let undeclared = Holder { parts: vec![part(Amount::Slots(1))].into(), request: None, ..holder(0) };
    cluster.apply_pod(&uid("p"), "n", undeclared.clone());
    let demand = |pod: &str, holder: &Holder| {
        let (uid, name) = (uid(pod), holder.name.clone());
        let pod = PodOnNode {
            uid: &uid,
            name: &name,
            containers: &[],
            phase: Phase::Started,
            deleted: false,
            holder: Some(holder),
        };
        KnownNode::pod(cluster.node("n").as_ref(), &rules(), &pod).demand
    };
    assert_eq!(demand("p", &undeclared), Some(mib(9_000)));
    assert_eq!(demand("q", &undeclared), Some(mib(2_500)), "a pod that was not seen counts as a slot");
    assert_eq!(demand("p", &holder(4_000)), Some(mib(4_000)), "one that declares counts by that");
    let pools = KnownNode::pools(&cluster, "n").unwrap();
    let rooms: Vec<u64> = pools[&gpu()].iter().map(|gpu| gpu.room.free().mib()).collect();
    assert_eq!(rooms, [10_000, 1_000]);
}
