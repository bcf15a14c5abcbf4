//! Nodes with several pools, nodes that were not read, manifests alone, and other cases that are easy to get wrong.

use super::*;
use crate::capacity::name::Name;
use crate::capacity::node::inventory::Inventory;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::verdict::finding::Finding;

#[test]
fn each_overcommitted_gpu_is_a_finding_of_its_own() {
    let other = Pool { resource: crate::capacity::gpu::Resource("nvidia.com/gpu.large".into()), ..pool(&[24_000], 4) };
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4), other])]);
    for name in ["p", "q", "r"] {
        scene.running(name, "a", Some(9_000));
    }
    let mut large = holder(0);
    large.name = PodName { namespace: "ml".into(), name: "large".into() };
    large.request = None;
    large.gpus = vec![(crate::capacity::gpu::Resource("nvidia.com/gpu.large".into()), 1)].into();
    large.parts = vec![part(Amount::Declared { declared: mib(30_000), processes: 1 })].into();
    scene.cluster.apply_pod(&uid("large"), "a", large);
    let audit = run(&scene);
    let found = audit.findings.iter().filter(|finding| finding.matter.reason() == Reason::GpuOvercommitted);
    assert_eq!((found.count(), audit.totals.overcommitted), (2, 2));
}

#[test]
fn pods_on_a_node_that_was_not_read_are_reported_and_never_as_nothing() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    scene.running("p", "gone", Some(9_000));
    let audit = run(&scene);
    let gone = audit.nodes.iter().find(|node| node.name == "gone").expect("the node of the pod");
    assert_eq!((gone.state, gone.pods, gone.free), (State::Unknown, 1, None));
    assert!(reasons(&audit).contains(&(Severity::Deny, Reason::GpusUnknown, "gone".into())));
    assert!(audit.enforced.elsewhere.is_empty(), "what becomes of it is not known: {:?}", audit.enforced);
}

#[test]
fn steering_keeps_each_mig_device_of_a_gpu_and_gpus_that_share_an_index() {
    use crate::capacity::gpu::{Gpu, GpuId, GpuIndex};
    let devices = |indices: [GpuIndex; 2]| {
        let mut pool = pool(&[10_000; 2], 4);
        let contents = pool.contents.as_mut().unwrap();
        for ((gpu, index), uuid) in contents.gpus.iter_mut().zip(indices).zip(["MIG-a", "MIG-b"]) {
            *gpu = Gpu { id: GpuId::from(uuid), index, ..gpu.clone() };
        }
        run_assuming(&scene(vec![("a", vec![pool])]), &[Assumption::Steered])
    };
    let names = |audit: &Audit| audit.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    let mig = |mig| GpuIndex { gpu: 0, mig: Some(mig) };
    let steered = devices([mig(0), mig(1)]);
    assert_eq!((steered.totals.gpus, names(&steered)), (2, vec!["a/0:0".to_owned(), "a/0:1".to_owned()]));
    let alike = devices([0.into(); 2]);
    assert_eq!((alike.totals.gpus, names(&alike)), (2, vec!["a/MIG-a".to_owned(), "a/MIG-b".to_owned()]));
}

#[test]
fn steering_keeps_the_gpus_and_pods_of_every_pool() {
    let name = || crate::capacity::gpu::Resource("nvidia.com/gpu.large".into());
    let mut scene = scene(vec![("a", vec![pool(&[24_000; 2], 4), Pool { resource: name(), ..pool(&[80_000; 2], 4) }])]);
    scene.running("p", "a", Some(5_000));
    let mut large = holder(0);
    large.request = None;
    large.gpus = vec![(name(), 1)].into();
    large.parts = vec![part(Amount::Declared { declared: mib(15_000), processes: 1 })].into();
    scene.cluster.apply_pod(&uid("large"), "a", large);
    let (today, steered) = (run(&scene), run_assuming(&scene, &[Assumption::Steered]));
    assert_eq!((steered.totals.gpus, steered.totals.held), (today.totals.gpus, today.totals.held));
    assert_eq!(steered.totals.allocatable, today.totals.allocatable);
}

#[test]
fn a_node_of_dra_devices_alone_does_not_hide_what_is_stranded() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    scene.running("p", "a", Some(20_000));
    scene.subject("r", Some(10_000), Stage::Waiting);
    scene.devices = vec![SharedDevice {
        slice: "gpu-0-slice".into(),
        node: Some("b".into()),
        driver: "gpu.nvidia.com".into(),
        pool: "b".into(),
        device: "gpu-0".into(),
        memory: Some(mib(80_000)),
        claims: Vec::new(),
    }];
    assert_eq!(run(&scene).totals.stranded, Some(mib(4_000)));
}

#[test]
fn the_holders_of_a_gpu_add_up_to_what_it_holds_with_init_containers_too() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    for (number, (init, app)) in [(12_000, 8_000), (3_000, 8_000)].into_iter().enumerate() {
        let mut pod = holder(0);
        pod.name = PodName { namespace: "ml".into(), name: format!("p{number}").into() };
        pod.request = None;
        let of = |role, amount| Part { role, ..part(Amount::Declared { declared: mib(amount), processes: 1 }) };
        pod.parts = vec![of(Role::Init, init), of(Role::App, app)].into();
        scene.cluster.apply_pod(&uid(&format!("p{number}")), "a", pod);
    }
    let gpu = &run(&scene).gpus[0];
    let held: Vram = gpu.holders.iter().filter_map(|held| held.amount).sum();
    assert_eq!((held, gpu.held), (mib(20_000), mib(20_000)));
}

#[test]
fn manifests_without_a_cluster_exceed_no_room() {
    let mut scene = scene(Vec::new());
    workload(&mut scene, 9_000, 3, 1, Some(10), 0);
    assert_eq!(reasons(&run(&scene)), []);
    // What the policy alone decides is reported.
    scene.subjects[0].pod.declarations.pod.as_mut().expect("it declares").amount = Err("is not an amount".into());
    assert_eq!(reasons(&run(&scene)), [(Severity::Deny, Reason::VramUnreadable, "agents".to_owned())]);
}

#[test]
fn a_pod_that_was_not_read_whole_is_refused_as_the_webhook_refuses_it() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    let excess =
        crate::capacity::pod::Excess { field: "spec.containers".into(), count: 5_000, most: 256, hides_gpus: true };
    scene.subject("p", Some(1_000), Stage::Waiting).pod.excess = Some(excess);
    assert_eq!(reasons(&run(&scene)), [(Severity::Deny, Reason::TooManyEntries, "p".to_owned())]);
}

#[test]
fn whole_gpus_that_nobody_has_are_free_and_those_of_unknown_nodes_are_not_known() {
    let whole = |sizes: &[u64]| Pool { sharing: Sharing::Exclusive, ..pool(sizes, 1) };
    let mut scene = scene(vec![("a", vec![whole(&[80_000, 80_000])])]);
    scene.running("p", "a", None);
    assert_eq!(run(&scene).nodes[0].free, Some(mib(80_000)));
}

#[test]
fn a_workload_that_may_land_on_no_node_is_told_so_and_not_to_declare_less() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    workload(&mut scene, 9_000, 1, 0, None, 0);
    scene.subjects[0].pod.placement.node_selector = [("zone".to_owned(), "elsewhere".to_owned())].into_iter().collect();
    assert_eq!(reasons(&run(&scene)), [(Severity::Warn, Reason::NoNodeAllowed, "agents".to_owned())]);
}

/// The audit once said nothing about such a pod, which the webhook keeps off every node that there is.
#[test]
fn a_container_with_several_gpus_where_all_are_shared_is_told_that_it_never_runs() {
    let whole = || Pool { sharing: Sharing::Exclusive, ..pool(&[24_000, 24_000], 1) };
    let shared = || pool(&[24_000], 4);
    let found = |nodes: Vec<(&str, Vec<Pool>)>, stage: Stage, selector: Option<&str>| {
        let mut scene = scene(nodes);
        let pod = &mut scene.subject("p", Some(1_000), stage).pod;
        pod.containers[0].gpus = vec![(gpu(), 2)];
        pod.placement.node_selector = selector.map(|zone| ("zone".to_owned(), zone.to_owned())).into_iter().collect();
        let audit = run(&scene);
        let of = |finding: &crate::capacity::verdict::finding::Finding| {
            (finding.matter.reason() == Reason::OnlySharedGpus).then(|| (finding.severity, finding.matter.to_string()))
        };
        audit.findings.iter().find_map(of)
    };
    let (severity, message) = found(vec![("a", vec![shared()]), ("b", vec![shared()])], Stage::Waiting, None).unwrap();
    assert_eq!(severity, Severity::Deny);
    assert_eq!(
        message,
        "container \"main\" requests 2 of nvidia.com/gpu, and no node that its pod may land on has GPUs that are not shared: \
         node \"a\" and 1 other share theirs; several replicas may be one GPU, so such a pod is kept off these nodes, and a \
         device plugin with failRequestsGreaterThanOne fails it"
    );
    let runs = found(vec![("a", vec![shared()])], Stage::Bound("a".into()), None).unwrap();
    assert_eq!(runs.0, Severity::Warn, "it runs, and is not placed again");
    assert_eq!(found(vec![("a", vec![shared()]), ("b", vec![whole()])], Stage::Waiting, None), None);
    assert_eq!(
        found(vec![("a", vec![shared()])], Stage::Waiting, Some("elsewhere")),
        None,
        "its selector keeps it off"
    );
    assert_eq!(found(Vec::new(), Stage::Template, None), None, "manifests alone have no nodes");
}

/// Two pods of one owner are one finding, with the figure that covers both.
#[test]
fn a_pod_that_declares_nothing_counts_what_it_was_seen_to_use_and_the_finding_says_what_to_declare() {
    let mut scene = scene(vec![("a", vec![pool(&[24_000], 4)])]);
    for name in ["p", "q", "r"] {
        scene.running(name, "a", None);
        scene.subjects.last_mut().expect("just pushed").object = object("Deployment", "agent");
    }
    let peak = |pod: &str, peak: u64| {
        let of_container: (Name, Vram) = ("main".into(), mib(peak));
        (uid(pod), vec![of_container].into())
    };
    let peaks = [peak("p", 9_000), peak("q", 11_000), peak("r", 5_000)].into_iter().collect();
    let inventory = Inventory { peaks, ..Inventory::default() };
    let content = LedgerContent { inventory: Some(inventory), ..LedgerContent::default() };
    scene.cluster.apply_ledger("a", Some(content));
    let audit = run(&scene);
    let held: Vec<(u64, bool, bool)> = audit.gpus[0]
        .holders
        .iter()
        .map(|held| (held.amount.expect("known").mib(), held.declared, held.seen))
        .collect();
    assert_eq!(held, [(9_000, false, true), (11_000, false, true), (6_000, false, false)]);
    assert_eq!((audit.gpus[0].held, audit.namespaces[0].held), (mib(26_000), mib(26_000)));
    let undeclared: Vec<&Finding> =
        audit.findings.iter().filter(|finding| finding.matter.reason() == Reason::VramUndeclared).collect();
    let [finding] = undeclared.as_slice() else { panic!("{undeclared:?}") };
    assert_eq!(finding.pods, 3);
    // 11000 x 1.05 = 11550, the next multiple of 64 is 11584; these rules add no overhead.
    let expected = "container \"main\" declares no VRAM and counts 11000Mi that it has been seen to use; set vramguard.dev/vram \
                    to 11584Mi";
    assert_eq!(finding.matter.to_string(), expected);
    assert_eq!(finding.matter.remedy(), "vramguard.dev/vram: 11584Mi");
}
