//! Tests of the rules for bindings, and of what each binding needs.

use super::*;
use crate::capacity::gpu::{Resource, Sharing};
use crate::capacity::node::holder::Amount;
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::pod::demand::Role;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Declarations, EnvEntry, Origin, VramRequest};
use crate::capacity::testing::{self, GPU, mib};
use crate::capacity::verdict::{Reason, Unplaced};

const SHARED: &str = "nvidia.com/gpu.shared";

fn pool(resource: &str, gpus: u32, replicas: u32) -> Pool {
    let sharing = if replicas == 1 { Sharing::Exclusive } else { Sharing::TimeSlicing };
    let sizes = vec![24_576; gpus as usize];
    Pool { resource: Resource(resource.into()), sharing, ..testing::pool(&sizes, replicas) }
}

fn holder(resources: &[&str]) -> Holder {
    Holder {
        parts: vec![testing::part(Amount::Requested(mib(5720)))].into(),
        gpus: resources.iter().map(|name| (Resource((*name).into()), 1)).collect(),
        annotated: false,
        ..testing::holder(5720)
    }
}

fn pod(node: Option<&str>) -> Pod {
    let budget = EnvEntry { name: "VRAMGUARD_VRAM_MIB".into(), value: Some("5120".into()), field: None };
    let main = Container {
        name: "main".into(),
        role: Role::App,
        gpus: vec![(Resource(GPU.into()), 1)],
        vram_request: VramRequest::Exactly(mib(5720)),
        env: vec![budget],
        software: crate::capacity::pod::software::Software::default(),
    };
    Pod {
        access: crate::capacity::pod::HostAccess::None,
        name: PodName { namespace: "ml".into(), name: "llm".into() },
        containers: vec![main],
        declarations: Declarations::default(),
        reserved_annotations: vec![],
        bounded_by: std::collections::BTreeMap::new(),
        unknown_annotations: vec![],
        placement: Placement { node_name: node.map(Into::into), ..Placement::default() },
        origin: Origin::Api,
        excess: None,
    }
}

fn binding() -> Binding {
    Binding {
        pod: PodName { namespace: "ml".into(), name: "llm".into() },
        uid: Some(PodUid::from("a")),
        node: "gpu-0".into(),
        reserved_annotations: vec![],
        binder: "system:kube-scheduler".into(),
    }
}

fn reason(binding: &Binding, pod: &Pod, places: usize) -> Option<Reason> {
    let binders = BTreeSet::from(["system:kube-scheduler".to_owned()]);
    judge(binding, &PodUid::from("a"), pod, &binders, places).err().map(|refusal| refusal.reason())
}

#[test]
fn a_binding_is_refused_by_rule() {
    assert_eq!(reason(&binding(), &pod(None), 0), None);
    let foreign = Binding { binder: "alice".into(), ..binding() };
    assert_eq!(reason(&foreign, &pod(None), 0), Some(Reason::ForeignBinder));
    let other = Binding { uid: Some(PodUid::from("b")), ..binding() };
    assert_eq!(reason(&other, &pod(None), 0), Some(Reason::OtherUid));
    assert_eq!(reason(&Binding { uid: None, ..binding() }, &pod(None), 0), None);
    assert_eq!(reason(&binding(), &pod(Some("gpu-1")), 0), Some(Reason::AlreadyBound));
    let forged = Binding { reserved_annotations: vec!["vramguard.dev/gpu.main".into()], ..binding() };
    assert_eq!(screen(&forged).unwrap_err().reason(), Reason::ReservedAnnotation);
}

/// Reviews can be forged. Without the bound, one pod could hold a reservation on every node.
#[test]
fn a_pod_is_promised_a_place_on_few_nodes_at_a_time() {
    assert_eq!(reason(&binding(), &pod(None), MAX_RESERVED_NODES - 1), None);
    assert_eq!(reason(&binding(), &pod(None), MAX_RESERVED_NODES), Some(Reason::Undecided));
}

#[test]
fn single_gpus_are_annotated_and_reserved_only_where_the_scheduler_does_not_keep_the_sum() {
    let exact = [pool(GPU, 1, 4)];
    let rules = Rules::default();
    assert_eq!(task(&holder(&[GPU]), &exact, &rules), Task::Annotate);
    for rules in [Rules { serialize_per_gpu: true, ..rules }, Rules { several_schedulers: true, ..rules }] {
        assert_eq!(task(&holder(&[GPU]), &exact, &rules), Task::Reserve);
    }
    let watched = Pool { tells_processes: true, ..pool(GPU, 1, 4) };
    assert_eq!(task(&holder(&[GPU]), &[watched], &rules), Task::Reserve, "memory may outlive its pod");
    assert_eq!(task(&holder(&[GPU]), &[pool(GPU, 2, 4)], &rules), Task::Reserve);
    assert_eq!(task(&holder(&[GPU]), &[pool(GPU, 2, 1)], &rules), Task::Annotate);
    assert_eq!(task(&Holder { request: None, ..holder(&[GPU]) }, &exact, &rules), Task::None);
}

#[test]
fn a_pod_that_takes_two_resources_of_a_node_has_no_place_there() {
    let pools = [pool(GPU, 1, 1), pool(SHARED, 2, 4)];
    let both = holder(&[GPU, SHARED]);
    assert_eq!(task(&both, &pools, &Rules::default()), Task::Reserve);
    let placed = NodeLedger::default().assume(&PodUid::from("a"), &both, &pools, &Rules::default(), Default::default());
    assert!(matches!(placed, Err(Unplaced::SeveralResources)));
}

#[test]
fn annotations_say_what_is_known() {
    let of = |pools: &[Pool], gpu: Option<GpuId>| annotations(&pod(None), &holder(&[GPU]), gpu.as_ref(), pools);
    let known = of(&[pool(GPU, 2, 4)], Some(GpuId::Index(1)));
    let expected = [("gpu-total-mib", "24576"), ("gpu.main", "1"), ("vram-fraction.main", "0.2083")];
    let expected = expected.map(|(key, value)| (format!("vramguard.dev/{key}"), value.to_owned()));
    assert_eq!(known, BTreeMap::from(expected.clone()));
    let alike = of(&[pool(GPU, 2, 4)], None);
    assert_eq!(alike.into_keys().collect::<Vec<_>>(), [expected[0].0.clone(), expected[2].0.clone()]);
    let mut mixed = pool(GPU, 2, 4);
    mixed.contents.as_mut().unwrap().gpus[1].total = mib(80_000);
    assert_eq!(of(&[mixed], None), BTreeMap::new());
}
