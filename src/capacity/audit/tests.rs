//! An audit on hand-made clusters, whose rules deduct nothing: amounts are those of the GPUs.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::outcome::{Audit, State};
use super::scene::{DeviceClaim, Scene, SharedDevice, Stage, Subject, Template, Workload};
use super::*;
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{Pool, Sharing};
use crate::capacity::node::holder::Amount;
use crate::capacity::node::holder::Part;
use crate::capacity::pod::demand::Role;
use crate::capacity::pod::placement::Placement;
use crate::capacity::pod::{Container, Declarations, EnvEntry, HostAccess, Origin, Pod, PodName, VramRequest, Written};
use crate::capacity::policy::{ClusterPolicy, Documents, Layer};
use crate::capacity::testing::{facts, gpu, holder, mib, part, pool, uid};
use crate::capacity::verdict::finding::{Growth, Matter, Object, Severity};
use crate::capacity::verdict::{BoundedBy, Reason};

mod edges;
mod used;

/// A policy without any deduction, in this mode.
fn policies(mode: Mode) -> Policies {
    let cluster = ClusterPolicy {
        layer: Layer { mode: Some(mode), ..Layer::default() },
        per_process_overhead: Some(Vram::ZERO),
        headroom_percent: Some(0),
        headroom_minimum: Some(Vram::ZERO),
        driver_reserve: Some(crate::capacity::gpu::DriverReserve::Amount(Vram::ZERO)),
        ..ClusterPolicy::default()
    };
    Policies::new(&Documents { cluster: Some(cluster), ..Documents::default() }, "vramguard-system")
}

/// A scene of nodes, in mode Enforce.
fn scene(nodes: Vec<(&str, Vec<Pool>)>) -> Scene {
    let policies = policies(Mode::Enforce);
    let mut cluster = Cluster::new(*policies.rules(), Default::default());
    for (name, pools) in nodes {
        cluster.apply_node(name, NodeFacts { ..facts(pools) });
    }
    Scene {
        cluster,
        policies,
        installed: false,
        subjects: Vec::new(),
        workloads: Vec::new(),
        quotas: BTreeMap::new(),
        devices: Vec::new(),
        unusable: Vec::new(),
        observed: BTreeMap::new(),
        at: None,
    }
}

fn object(kind: &str, name: &str) -> Object {
    Object { kind: kind.into(), namespace: "ml".into(), name: name.into() }
}

/// A pod that declares an amount, in MiB, or nothing.
fn pod(name: &str, declared: Option<u64>) -> Pod {
    let written = declared.map(|amount| Written {
        key: "vramguard.dev/vram".into(),
        text: format!("{amount}Mi"),
        amount: Ok(mib(amount)),
    });
    Pod {
        name: PodName { namespace: "ml".into(), name: name.into() },
        containers: vec![Container {
            name: "main".into(),
            role: Role::App,
            gpus: vec![(gpu(), 1)],
            vram_request: VramRequest::Absent,
            env: Vec::new(),
            software: crate::capacity::pod::software::Software::default(),
        }],
        declarations: Declarations { pod: written, ..Declarations::default() },
        reserved_annotations: Vec::new(),
        bounded_by: std::collections::BTreeMap::new(),
        unknown_annotations: Vec::new(),
        placement: Placement::default(),
        access: HostAccess::None,
        origin: Origin::Api,
        excess: None,
    }
}

impl Scene {
    fn subject(&mut self, name: &str, declared: Option<u64>, stage: Stage) -> &mut Subject {
        self.subjects.push(Subject {
            pod: pod(name, declared),
            uid: uid(name),
            stage,
            object: object("Pod", name),
            owner_kind: None,
            place: None,
            foreign: Vec::new(),
            environment: Vec::new(),
            bypasses: Vec::new(),
        });
        self.subjects.last_mut().expect("just pushed")
    }

    /// A pod that runs on a node, and declares an amount or nothing.
    fn running(&mut self, name: &str, node: &str, declared: Option<u64>) {
        let amount =
            declared.map_or(Amount::Slots(1), |declared| Amount::Declared { declared: mib(declared), processes: 1 });
        let mut holds = holder(0);
        holds.name = PodName { namespace: "ml".into(), name: name.into() };
        holds.request = None;
        holds.parts = vec![part(amount)].into();
        self.cluster.apply_pod(&uid(name), node, holds);
        self.subject(name, declared, Stage::Bound(node.into()));
    }
}

fn reasons(audit: &Audit) -> Vec<(Severity, Reason, String)> {
    let of = |finding: &crate::capacity::verdict::finding::Finding| {
        (finding.severity, finding.matter.reason(), finding.object.name.to_string())
    };
    audit.findings.iter().map(of).collect()
}

#[test]
fn a_gpu_that_is_promised_more_than_it_has_is_overcommitted_for_certain_and_grave() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    for name in ["p", "q", "r"] {
        scene.running(name, "a", Some(9_000));
    }
    let audit = run(&scene);
    let gpu = &audit.gpus[0];
    assert_eq!((gpu.held, gpu.allocatable, gpu.state), (mib(27_000), mib(24_000), State::Overcommitted));
    assert_eq!(gpu.holders.len(), 3);
    assert_eq!(audit.totals.overcommitted, 1);
    assert!(reasons(&audit).contains(&(Severity::Deny, Reason::GpuOvercommitted, "a".into())), "{:?}", reasons(&audit));
}

#[test]
fn a_holder_is_bounded_by_what_its_container_has() {
    let mut scene = scene(vec![("a", vec![pool(&[80_000], 4)])]);
    let limit = EnvEntry { name: "XLA_PYTHON_CLIENT_MEM_FRACTION".into(), value: Some("0.1".into()), field: None };
    for (name, framework, env) in
        [("told", Some("JAX"), vec![limit]), ("untold", Some("JAX"), vec![]), ("unknown", None, vec![])]
    {
        scene.running(name, "a", Some(9_000));
        let pod = &mut scene.subjects.last_mut().expect("just added").pod;
        pod.placement.node_name = Some("a".into());
        pod.declarations.framework = framework.map(str::to_owned);
        pod.containers[0].env = env;
    }
    scene.running("undeclared", "a", None);
    let audit = run(&scene);
    let by = |name: &str| {
        let holder = audit.gpus[0].holders.iter().find(|held| held.pod.name == *name).expect("it is on the GPU");
        holder.bounded_by
    };
    assert_eq!(by("told"), Some(BoundedBy::Allocator));
    for name in ["untold", "unknown", "undeclared"] {
        assert_eq!(by(name), Some(BoundedBy::Nothing), "{name}");
    }
}

#[test]
fn with_several_gpus_and_nothing_verified_a_gpu_only_may_be_overcommitted() {
    // Slots of 6,000: two pods of 12,500 may be on one GPU of 24,000.
    let mut scene = scene(vec![("a", vec![pool(&[24_000, 24_000], 4)])]);
    scene.running("p", "a", Some(12_500));
    scene.running("q", "a", Some(12_500));
    let audit = run(&scene);
    assert_eq!(audit.nodes[0].state, State::MaybeOvercommitted);
    assert_eq!((audit.totals.overcommitted, audit.totals.maybe_overcommitted), (0, 1));
    assert!(audit.gpus.iter().all(|gpu| gpu.holders.is_empty()), "which GPU they are on is not known");
    assert_eq!(audit.nodes[0].unassigned.len(), 2);
    assert!(reasons(&audit).contains(&(Severity::Warn, Reason::GpuMayBeOvercommitted, "a".into())));
}

#[test]
fn a_pod_without_a_declaration_counts_as_a_slot_and_is_reported() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    scene.running("p", "a", None);
    let audit = run(&scene);
    assert_eq!((audit.totals.undeclared, audit.gpus[0].held), (1, mib(6_000)));
    assert!(!audit.gpus[0].holders[0].declared);
    assert_eq!(audit.namespaces[0].undeclared, 1);
    assert!(reasons(&audit).contains(&(Severity::Warn, Reason::VramUndeclared, "p".into())));
}

#[test]
fn gpus_that_are_not_known_are_reported_with_the_reason_and_never_as_empty() {
    let unknown = Pool {
        contents: Err(crate::capacity::gpu::Unknown::BadLabel {
            label: "nvidia.com/gpu.memory",
            value: "x".into(),
            capacity: 4,
        }),
        ..pool(&[24_000], 4)
    };
    let mut scene = scene(vec![("a", vec![unknown])]);
    scene.running("p", "a", Some(9_000));
    let audit = run(&scene);
    let node = &audit.nodes[0];
    assert_eq!((node.allocatable, node.state, audit.gpus.len()), (None, State::Unknown, 0));
    assert!(node.unknown.as_deref().is_some_and(|why| why.contains("nvidia.com/gpu.memory")));
    assert!(reasons(&audit).contains(&(Severity::Deny, Reason::GpusUnknown, "a".into())));
}

#[test]
fn the_pods_of_one_owner_are_one_finding() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    for name in ["p", "q", "r"] {
        scene.running(name, "a", None);
        scene.subjects.last_mut().unwrap().object = object("Deployment", "agents");
    }
    scene.subject("", None, Stage::Template).object = object("Deployment", "agents");
    let audit = run(&scene);
    let of_reason =
        |finding: &&crate::capacity::verdict::finding::Finding| finding.matter.reason() == Reason::VramUndeclared;
    let found: Vec<_> = audit.findings.iter().filter(of_reason).collect();
    assert_eq!((found.len(), found[0].pods), (1, 3), "three pods; the template is none");
}

#[test]
fn what_breaks_policy_is_grave_only_where_the_policy_refuses() {
    for (mode, severity) in [
        (Mode::Enforce, Severity::Deny),
        (Mode::Warn, Severity::Warn),
        (Mode::Audit, Severity::Warn),
        (Mode::Off, Severity::Warn),
    ] {
        let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
        scene.policies = policies(mode);
        let subject = scene.subject("p", Some(1), Stage::Waiting);
        subject.pod.declarations.pod.as_mut().unwrap().amount = Err("is not an amount".into());
        let audit = run(&scene);
        assert_eq!(reasons(&audit), [(severity, Reason::VramUnreadable, "p".to_owned())], "{mode}");
        assert_eq!(audit.enforced.refused.len(), 1, "Enforce would refuse it in any case");
        assert_eq!(audit.totals.refused, 1);
    }
}

#[test]
fn a_pod_that_never_fits_is_grave_while_it_waits() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    scene.subject("p", Some(30_000), Stage::Waiting);
    assert_eq!(reasons(&run(&scene)), [(Severity::Deny, Reason::NeverFits, "p".to_owned())]);
}

#[test]
fn free_memory_below_the_smallest_demand_that_waits_is_stranded() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)]), ("b", vec![pool(&[24_000], 4)])]);
    scene.running("p", "a", Some(20_000));
    scene.running("q", "b", Some(12_000));
    assert_eq!(run(&scene).totals.stranded, None, "nothing waits");
    scene.subject("r", Some(10_000), Stage::Waiting);
    let audit = run(&scene);
    assert_eq!(audit.totals.stranded, Some(mib(4_000)), "b has room for it");
    assert!(reasons(&audit).contains(&(Severity::Info, Reason::VramStranded, "a".into())));
}

#[test]
fn a_plugin_that_offers_more_replicas_than_fit_is_reported_until_memory_is_counted() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 8)])]);
    scene.running("p", "a", Some(9_000));
    let found = |scene: &Scene| {
        let audit = run(scene);
        let found = audit.findings.into_iter().find(|finding| finding.matter.reason() == Reason::TooManyReplicas);
        found.map(|finding| (finding.severity, finding.matter.remedy()))
    };
    let remedy = "replicas: 2  # or keep them, and let vramguard count memory".to_owned();
    assert_eq!(found(&scene), Some((Severity::Warn, remedy.clone())));
    scene.installed = true;
    assert_eq!(found(&scene), Some((Severity::Info, remedy)));
}

fn workload(scene: &mut Scene, declared: u64, replicas: u64, surge: u64, autoscaler: Option<u64>, bound: u64) {
    scene.subject("", Some(declared), Stage::Template).object = object("Deployment", "agents");
    scene.workloads.push(Workload {
        object: object("Deployment", "agents"),
        templates: vec![Template { subject: scene.subjects.len() - 1, members: None, each: 1, bound }],
        replicas,
        surge,
        autoscaler: autoscaler.map(|most| ("hpa".into(), most)),
    });
}

#[test]
fn an_autoscaler_that_may_ask_for_more_than_fits_is_told_the_largest_number_that_does() {
    // Two GPUs of 24,000 take two pods of 9,000 each. One runs.
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 8)]), ("b", vec![pool(&[24_000], 8)])]);
    scene.running("p", "a", Some(9_000));
    workload(&mut scene, 9_000, 1, 0, Some(10), 1);
    let audit = run(&scene);
    assert_eq!(audit.workloads[0].fits, Some(3));
    let found = audit.findings.iter().find(|finding| finding.matter.reason() == Reason::AutoscalerExceedsRoom).unwrap();
    assert_eq!(found.matter.remedy(), "maxReplicas: 4");
    assert!(matches!(&found.matter, Matter::ExceedsRoom { growth: Growth::Autoscaler(_), wanted: 10, fits: 3, .. }));
}

#[test]
fn a_rollout_whose_surge_has_no_room_is_reported() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 8)])]);
    scene.running("p", "a", Some(9_000));
    scene.running("q", "a", Some(9_000));
    workload(&mut scene, 9_000, 2, 1, None, 2);
    assert!(reasons(&run(&scene)).contains(&(Severity::Warn, Reason::RolloutExceedsRoom, "agents".into())));
}

#[test]
fn replicas_of_the_device_plugin_bound_the_room_too() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 3)])]);
    workload(&mut scene, 1_000, 1, 0, Some(10), 0);
    assert_eq!(run(&scene).workloads[0].fits, Some(3));
}

#[test]
fn enforcing_leaves_who_came_first_and_moves_or_holds_back_the_others() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 8)]), ("b", vec![pool(&[10_000], 8)])]);
    for name in ["p1", "p2", "p3", "p4"] {
        scene.running(name, "a", Some(9_000));
    }
    let enforced = run(&scene).enforced;
    let names = |pods: Vec<String>| pods.join(" ");
    assert_eq!(
        names(enforced.elsewhere.iter().map(|(pod, from, to)| format!("{} {from} {to}", pod.name)).collect()),
        "p3 a b"
    );
    assert_eq!(names(enforced.waiting.iter().map(|(pod, from)| format!("{} {from}", pod.name)).collect()), "p4 a");
    assert!(enforced.refused.is_empty());
}

#[test]
fn assumed_replicas_and_steering_are_shown_on_the_same_pods() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000, 24_000], 4)])]);
    scene.running("p", "a", Some(12_500));
    scene.running("q", "a", Some(12_500));
    let steered = run_assuming(&scene, &[Assumption::Steered]);
    assert_eq!(steered.nodes.iter().map(|node| node.state).collect::<Vec<_>>(), [State::Ok, State::Ok]);
    assert_eq!(
        steered.gpus.iter().map(|gpu| (gpu.node.as_str(), gpu.held)).collect::<Vec<_>>(),
        [("a/0", mib(12_500)), ("a/1", mib(12_500))]
    );
    let one = run_assuming(&scene, &[Assumption::Replicas(NonZeroU32::MIN)]);
    assert!(one.gpus.iter().all(|gpu| gpu.replicas == 1));
    let off = run_assuming(&scene, &[Assumption::Mode(Mode::Off)]);
    assert_eq!(off.namespaces[0].mode, Some(Mode::Off));
}

#[test]
fn an_exempt_namespace_breaks_nothing() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    let subject = scene.subject("p", Some(1), Stage::Waiting);
    subject.pod.name.namespace = "kube-system".into();
    subject.pod.declarations.pod.as_mut().unwrap().amount = Err("is not an amount".into());
    let audit = run(&scene);
    assert_eq!(reasons(&audit), []);
    assert_eq!(audit.namespaces[0].mode, None);
}

#[test]
fn claims_count_on_their_device_and_one_without_memory_is_named() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    let claim = |name: &str, memory: Option<u64>| DeviceClaim {
        namespace: "ml".into(),
        name: name.into(),
        memory: memory.map(mib),
        pods: vec![name.into()],
    };
    scene.devices = vec![SharedDevice {
        slice: "gpu-0-slice".into(),
        node: Some("a".into()),
        driver: "gpu.nvidia.com".into(),
        pool: "a".into(),
        device: "gpu-0".into(),
        memory: Some(mib(80_000)),
        claims: vec![claim("x", Some(50_000)), claim("y", Some(40_000)), claim("z", None)],
    }];
    let audit = run(&scene);
    let device = audit.gpus.iter().find(|gpu| gpu.id == "a/gpu-0").unwrap();
    assert_eq!((device.held, device.state), (mib(90_000), State::Overcommitted));
    let found = reasons(&audit);
    assert!(found.contains(&(Severity::Deny, Reason::DeviceOvercommitted, "gpu-0-slice".into())), "{found:?}");
    assert!(found.contains(&(Severity::Warn, Reason::ClaimWithoutMemory, "z".into())));
    assert!(found.contains(&(Severity::Warn, Reason::NodeInBothWorlds, "a".into())), "{found:?}");
}

#[test]
fn whole_gpus_are_full_and_nobody_on_them_is_undeclared() {
    let whole = Pool { sharing: Sharing::Exclusive, ..pool(&[80_000, 80_000], 1) };
    let mut scene = scene(vec![("a", vec![whole])]);
    scene.running("p", "a", None);
    let audit = run(&scene);
    assert_eq!((audit.totals.undeclared, audit.totals.pods, audit.nodes[0].held), (0, 1, mib(80_000)));
}

proptest! {
    /// The oracle adds up by hand: what each node holds, and whether a GPU is overcommitted, on nodes with one GPU.
    #[test]
    fn sums_are_those_of_the_oracle(pods in prop::collection::vec((0_usize..3, prop::option::of(1_u64..20_000)), 0..24)) {
        let names = ["a", "b", "c"];
        let mut scene = scene(names.iter().map(|name| (*name, vec![pool(&[24_000], 4)])).collect());
        let mut held = [0_u64; 3];
        for (number, (node, declared)) in pods.iter().enumerate() {
            scene.running(&format!("p{number}"), names[*node], *declared);
            held[*node] += declared.unwrap_or(6_000);
        }
        let audit = run(&scene);
        for (gpu, held) in audit.gpus.iter().zip(held) {
            prop_assert_eq!(gpu.held, mib(held));
            prop_assert_eq!(gpu.state == State::Overcommitted, held > 24_000);
        }
        prop_assert_eq!(audit.totals.held, mib(held.iter().sum()));
        prop_assert_eq!(audit.totals.pods, pods.len());
        prop_assert_eq!(audit.totals.undeclared, pods.iter().filter(|(_, declared)| declared.is_none()).count());
        // Under Enforce each pod stays, moves or waits, and no GPU is overcommitted.
        let mut after = [0_u64; 3];
        for (number, (node, declared)) in pods.iter().enumerate() {
            let name = format!("p{number}");
            if audit.enforced.waiting.iter().any(|(pod, _)| *pod.name == *name) {
                continue;
            }
            let moved = audit.enforced.elsewhere.iter().find(|(pod, _, _)| *pod.name == *name);
            let node = moved.map_or(*node, |(_, _, to)| names.iter().position(|name| name == to).expect("a node"));
            after[node] += declared.unwrap_or(6_000);
        }
        prop_assert!(after.iter().all(|held| *held <= 24_000), "{:?}", after);
        let in_order = held.iter().all(|held| *held <= 24_000);
        prop_assert!(!in_order || audit.enforced.waiting.is_empty() && audit.enforced.elsewhere.is_empty());
    }
}
