use std::num::NonZeroU32;

use super::*;
use crate::capacity::gpu::Resource;
use crate::capacity::observation::owners::{LiveContainer, LivePod};
use crate::capacity::observation::report::Change;
use crate::capacity::observation::{Listing, Owner, Process};
use crate::capacity::pod::PodName;
use crate::capacity::vram::Vram;

fn mib(mib: u64) -> Vram {
    Vram::from_mib(mib)
}

fn at(second: i64) -> Moment {
    Moment(second * 1000)
}

fn pod(uid: &str) -> LivePod {
    let container = LiveContainer {
        name: "main".into(),
        id: Some(format!("{uid}-c").into()),
        demand: Some(mib(8_912)),
        declares: true,
        overhead: mib(720),
        annotation: "vramguard.dev/vram".into(),
    };
    let name = PodName { namespace: "ml".into(), name: uid.into() };
    LivePod { uid: uid.into(), cgroup_uid: uid.into(), name, containers: vec![container] }
}

fn gpu(uuid: &str, processes: &[(Owner, u64)]) -> GpuLook {
    let used: u64 = processes.iter().map(|(_, memory)| memory).sum();
    let process =
        |(owner, memory): &(Owner, u64)| Process { owner: owner.clone(), memory: Some(mib(*memory)), busy: Some(true) };
    GpuLook {
        uuid: uuid.into(),
        index: 0.into(),
        mig: false,
        mps: false,
        memory: Ok(GpuMemory { total: mib(24_576), reserved: Some(mib(450)), used: mib(used) }),
        processes: Listing::Listed(processes.iter().map(process).collect()),
    }
}

fn devices(gpus: &[&str], replicas: u32) -> Replicas {
    let resource = || Resource("nvidia.com/gpu".into());
    gpus.iter().map(|uuid| (resource(), Name::from(*uuid), NonZeroU32::new(replicas).unwrap())).collect()
}

fn owner(observer: &mut Observer, uid: &str, second: i64) -> Owner {
    let id = format!("{uid}-c");
    observer.owners.owner(Some((uid.into(), &id)), at(second))
}

/// Two GPUs with four replicas each; pod "a" uses 5000 MiB of GPU-0.
fn observer() -> Observer {
    let mut observer = Observer::new(Source::Driver, None);
    observer.owners.reset(vec![pod("a")], at(0));
    let a = owner(&mut observer, "a", 0);
    observer.offered(devices(&["GPU-0", "GPU-1"], 4));
    observer.observe(&Look { at: at(0), gpus: vec![gpu("GPU-0", &[(a, 5_000)]), gpu("GPU-1", &[])] }, None);
    observer.allocated(Devices::from([(("a".into(), "main".into()), vec!["GPU-0".into()])]));
    observer
}

#[test]
fn a_report_has_the_gpus_their_use_and_that_of_each_container() {
    let report = observer().report(at(0));
    let rows: Vec<String> = report
        .gpus
        .iter()
        .map(|gpu| format!("{} {} used {} outside {:?}", gpu.uuid, gpu.replicas, gpu.used, gpu.outside))
        .collect();
    assert_eq!(rows, ["GPU-0 4 used 5000Mi outside Some(Vram(0))", "GPU-1 4 used 0Mi outside Some(Vram(0))"]);
    let (key, container) = report.containers.iter().next().unwrap();
    assert_eq!((key.1.as_str(), container.seen.used, container.demand), ("main", Some(mib(5_000)), Some(mib(8_912))));
    assert_eq!(report.assigned.values().collect::<Vec<_>>(), [&Name::from("GPU-0")]);
}

#[test]
fn a_pod_that_is_deleted_by_force_counts_until_its_process_is_gone() {
    let mut observer = observer();
    let before = observer.report(at(0));
    observer.owners.remove(&"a".into(), at(1));
    let gone = owner(&mut observer, "a", 1);
    observer.observe(&Look { at: at(1), gpus: vec![gpu("GPU-0", &[(gone, 5_000)]), gpu("GPU-1", &[])] }, None);
    let after = observer.report(at(1));
    assert_eq!(after.gpus[0].outside, Some(mib(5_000)));
    assert_eq!(after.change_from(&before), Change::Placement);
    assert!(after.containers.is_empty(), "its row is gone with the pod");
    observer.observe(&Look { at: at(3), gpus: vec![gpu("GPU-0", &[]), gpu("GPU-1", &[])] }, None);
    assert_eq!(observer.report(at(3)).gpus[0].outside, Some(mib(0)));
}

#[test]
fn a_driver_that_fails_leaves_the_last_values_with_the_reason() {
    let mut observer = observer();
    let before = observer.report(at(0));
    observer.failed(Unreadable::NoDriver);
    let after = observer.report(at(100));
    assert_eq!(after, Report { unreadable: Some(Unreadable::NoDriver), ..before });
}

#[test]
fn a_lost_gpu_keeps_its_size_and_says_that_it_is_lost() {
    let mut observer = observer();
    let lost = GpuLook {
        memory: Err(Unreadable::Lost),
        processes: Listing::Unreadable(Unreadable::Lost),
        ..gpu("GPU-0", &[])
    };
    observer.observe(&Look { at: at(1), gpus: vec![lost, gpu("GPU-1", &[])] }, None);
    let report = observer.report(at(1));
    assert_eq!((report.gpus[0].total, report.gpus[0].unreadable.clone()), (mib(24_576), Some(Unreadable::Lost)));
    assert_eq!(report.gpus[1].unreadable, None);
    // After a reload of the driver it is not even listed.
    observer.observe(&Look { at: at(2), gpus: vec![gpu("GPU-1", &[])] }, None);
    assert_eq!(observer.report(at(2)).gpus[0].unreadable, Some(Unreadable::Lost));
}

#[test]
fn a_device_plugin_that_restarts_takes_no_gpu_away() {
    let mut observer = observer();
    let before = observer.report(at(0));
    observer.offered(Replicas::default());
    observer.offered(devices(&["GPU-1"], 4));
    assert_eq!(observer.report(at(1)).gpus.len(), 2, "an unhealthy GPU still counts in the capacity of the node");
    observer.offered(devices(&["GPU-0", "GPU-1"], 4));
    assert_eq!(observer.report(at(2)), before);
    observer.offered(devices(&["GPU-0", "GPU-1"], 8));
    assert!(
        observer.report(at(3)).gpus.iter().all(|gpu| gpu.replicas.get() == 8),
        "a change of its configuration counts"
    );
}

#[test]
fn a_gpu_that_was_split_into_mig_devices_is_replaced_by_them() {
    let mut observer = observer();
    let mig = [("nvidia.com/mig-1g.10gb", "MIG-a"), ("nvidia.com/gpu", "GPU-1::0")];
    observer.observe(&Look { at: at(1), gpus: vec![gpu("MIG-a", &[]), gpu("GPU-1", &[])] }, None);
    observer.offered(Replicas::of_devices(mig));
    let report = observer.report(at(1));
    let uuids: Vec<&str> = report.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-1", "MIG-a"]);
}

#[test]
fn a_restarted_agent_goes_on_where_the_last_one_stopped() {
    let earlier = observer().report(at(0));
    let mut observer = Observer::new(Source::Driver, None);
    observer.failed(Unreadable::NoDriver);
    observer.restore(earlier.clone(), at(50));
    observer.owners.reset(vec![pod("a")], at(50));
    let report = observer.report(at(50));
    assert_eq!(report, Report { unreadable: Some(Unreadable::NoDriver), ..earlier });
}

#[test]
fn a_container_on_two_gpus_has_no_single_gpu() {
    let mut observer = observer();
    observer.allocated(Devices::from([(("a".into(), "main".into()), vec!["GPU-0".into(), "GPU-1".into()])]));
    assert!(observer.report(at(1)).assigned.is_empty());
}

#[test]
fn a_node_is_steered_only_if_all_its_gpu_resources_are() {
    let mut observer = observer();
    let gpu = || Resource("nvidia.com/gpu".into());
    let steering = |begun, resources: Vec<Resource>| Steering {
        begun,
        missing: resources.is_empty().then(|| "no device plugin".to_owned()),
        resources: resources.into_iter().collect(),
    };
    observer.steers(steering(false, Vec::new()));
    let report = observer.report(at(1));
    assert_eq!(report.allocation_policy, AllocationPolicy::Unverified);
    assert_eq!(report.not_steered.as_deref(), Some("no device plugin"));
    observer.steers(steering(true, vec![gpu()]));
    let steered = observer.report(at(1));
    assert_eq!(
        (steered.allocation_policy, &steered.not_steered),
        (AllocationPolicy::Steered, &None),
        "{:?}",
        steered.not_steered
    );
    assert_eq!(steered.change_from(&report), Change::Placement, "bindings depend on it");
    let other = Resource("nvidia.com/mig-1g.10gb".into());
    let both = [(gpu(), "GPU-0"), (other, "MIG-0")];
    observer.offered(both.map(|(resource, uuid)| (resource, Name::from(uuid), NonZeroU32::MIN)).into_iter().collect());
    let report = observer.report(at(1));
    assert_eq!(report.allocation_policy, AllocationPolicy::Unverified);
    assert!(report.not_steered.unwrap().starts_with("nvidia.com/mig-1g.10gb: "), "it names the other one");
}

#[test]
fn a_restarted_agent_does_not_count_as_steering_before_the_kubelet_has_told_where_the_pods_are() {
    let mut observer = Observer::new(Source::Driver, None);
    observer.offered(devices(&["GPU-0"], 4));
    let resources = BTreeSet::from([Resource("nvidia.com/gpu".into())]);
    observer.steers(Steering { begun: true, resources, missing: None });
    assert_eq!(observer.report(at(1)).allocation_policy, AllocationPolicy::Unverified);
    observer.allocated(Devices::new());
    assert_eq!(observer.report(at(1)).allocation_policy, AllocationPolicy::Steered);
    observer.stops_steering("the agent has stopped");
    let stopped = observer.report(at(1));
    assert_eq!(stopped.not_steered.as_deref(), Some("the agent has stopped"));
    assert_eq!(stopped.allocation_policy, AllocationPolicy::Unverified);
}

#[test]
fn placements_of_a_steered_node_tell_nothing_of_the_device_plugins_policy() {
    let placed = |begun: bool| {
        let mut observer = Observer::new(Source::Driver, Some(AllocationPolicy::Distributed));
        observer.offered(devices(&["GPU-0", "GPU-1"], 4));
        observer.steers(Steering { begun, ..Steering::default() });
        let mut placed = Devices::new();
        observer.allocated(placed.clone());
        for (pod, gpu) in [("a", "GPU-0"), ("b", "GPU-1")] {
            placed.insert((pod.into(), "main".into()), vec![gpu.into()]);
            observer.allocated(placed.clone());
        }
        observer.report(at(1)).allocation_policy
    };
    assert_eq!(placed(false), AllocationPolicy::Distributed);
    assert_eq!(placed(true), AllocationPolicy::Unverified);
}

/// What a DCGM exporter tells of a GPU.
fn totals(uuid: &str, used: u64) -> GpuLook {
    let memory = Ok(GpuMemory { total: mib(24_576), reserved: None, used: mib(used) });
    GpuLook { memory, processes: Listing::NotTold, ..gpu(uuid, &[]) }
}

fn exported(second: i64) -> Look {
    Look { at: at(second), gpus: vec![totals("GPU-0", 6_000), totals("GPU-1", 7)] }
}

/// A report with a process outside of pods on GPU-0, as an agent with a driver wrote it.
fn of_the_driver() -> Report {
    let mut observer = observer();
    let a = owner(&mut observer, "a", 1);
    let gpus = vec![gpu("GPU-0", &[(a, 4_000), (Owner::Outside, 900)]), gpu("GPU-1", &[])];
    observer.observe(&Look { at: at(1), gpus }, None);
    observer.report(at(1))
}

#[test]
fn a_source_without_processes_reports_gpus_as_current_and_tells_nothing_of_pods() {
    let mut observer = Observer::new(Source::DcgmExporter, None);
    observer.owners.reset(vec![pod("a")], at(0));
    observer.offered(devices(&["GPU-0", "GPU-1"], 4));
    observer.observe(&exported(0), None);
    let report = observer.report(at(0));
    assert_eq!((report.source, &report.unreadable), (Source::DcgmExporter, &None));
    let rows: Vec<_> = report.gpus.iter().map(|gpu| (gpu.used, gpu.reserved, gpu.outside, &gpu.unreadable)).collect();
    assert_eq!(rows, [(mib(6_000), None, None, &None), (mib(7), None, None, &None)]);
    assert!(report.containers.is_empty());
}

#[test]
fn a_gpu_that_an_exporter_no_longer_lists_keeps_its_values_with_the_reason() {
    let mut observer = Observer::new(Source::DcgmExporter, None);
    observer.offered(devices(&["GPU-0", "GPU-1"], 4));
    observer.observe(&exported(0), None);
    observer.observe(&Look { at: at(1), gpus: vec![totals("GPU-1", 9)] }, None);
    let report = observer.report(at(1));
    assert_eq!((report.gpus[0].used, report.gpus[0].unreadable.clone()), (mib(6_000), Some(Unreadable::NotListed)));
    assert_eq!((report.gpus[1].used, report.gpus[1].unreadable.clone()), (mib(9), None));
}

/// The ledger may be read before the first look, after it, or while the exporter cannot be reached.
#[test]
fn of_an_agent_that_saw_processes_only_the_peaks_remain_for_one_that_does_not() {
    let earlier = of_the_driver();
    assert_eq!(earlier.gpus[0].outside, Some(mib(900)));
    let earlier = Report { driver: Some(Driver { version: "580".into(), cuda: None }), ..earlier };
    for order in ["look, restore", "restore, look", "restore", "restore, look, look"] {
        let mut observer = Observer::new(Source::DcgmExporter, None);
        observer.owners.reset(vec![pod("a")], at(50));
        observer.offered(devices(&["GPU-0", "GPU-1"], 4));
        for step in order.split(", ") {
            match step {
                "restore" => observer.restore(earlier.clone(), at(50)),
                _ => observer.observe(&exported(50), None),
            }
        }
        let report = observer.report(at(50));
        assert_eq!(report.gpus[0].outside, None, "{order}: nobody would see it go");
        assert_eq!(report.driver, None, "{order}: the exporter does not tell it");
        let (_, container) = report.containers.iter().next().unwrap();
        assert_eq!((container.seen.used, container.seen.idle_since), (None, None), "{order}");
        assert_eq!((container.seen.peak, &container.finding), (mib(5_000), &None), "{order}: it counts if undeclared");
        observer.owners.remove(&"a".into(), at(60));
        observer.observe(&exported(60), None);
        assert!(observer.report(at(60)).containers.is_empty(), "{order}: the pod is gone");
    }
}

#[test]
fn an_agent_that_sees_processes_again_takes_no_time_for_observed_in_which_nobody_looked() {
    let mut blind = Observer::new(Source::DcgmExporter, None);
    blind.owners.reset(vec![pod("a")], at(10));
    blind.restore(of_the_driver(), at(10));
    blind.offered(devices(&["GPU-0", "GPU-1"], 4));
    blind.observe(&exported(10), None);
    let mut observer = Observer::new(Source::Driver, None);
    observer.owners.reset(vec![pod("a")], at(9_000));
    observer.restore(blind.report(at(8_000)), at(9_000));
    let a = owner(&mut observer, "a", 9_001);
    observer.observe(&Look { at: at(9_001), gpus: vec![gpu("GPU-0", &[(a, 3_000)]), gpu("GPU-1", &[])] }, None);
    let report = observer.report(at(9_001));
    let seen = &report.containers.values().next().unwrap().seen;
    assert_eq!((seen.first, seen.cycles, seen.peak), (at(9_000), Some(0), mib(5_000)));
}

#[test]
fn the_allocation_policy_is_verified_without_processes_too() {
    let mut observer = Observer::new(Source::DcgmExporter, Some(AllocationPolicy::Packed));
    observer.offered(devices(&["GPU-0", "GPU-1"], 4));
    observer.observe(&exported(0), None);
    let mut placed = Devices::new();
    observer.allocated(placed.clone());
    for pod in ["a", "b"] {
        placed.insert((pod.into(), "main".into()), vec!["GPU-0".into()]);
        observer.allocated(placed.clone());
    }
    let report = observer.report(at(1));
    assert_eq!((report.allocation_policy, report.assigned.len()), (AllocationPolicy::Packed, 2));
}

#[test]
fn a_report_names_the_container_of_its_agent_only_while_it_is_seen_to_run() {
    let mut observer = observer();
    assert_eq!(observer.report(at(0)).pod, None, "an agent outside of a pod");
    let name = PodName { namespace: "vramguard-agent".into(), name: "agent".into() };
    observer.pod = Some(NamedPod { uid: "u".into(), name, container: None });
    let mut before = observer.report(at(0));
    let mut sees = |container: Instance| {
        observer.sees_own(&AgentPod { node: "n".into(), deleting: false, container });
        let report = observer.report(at(0));
        let change = report.change_from(&before);
        before = report;
        (before.pod.as_ref().and_then(|pod| pod.container.clone()), change)
    };
    assert_eq!(sees(Instance::Running("c1".into())), (Some("c1".into()), Change::Placement));
    assert_eq!(sees(Instance::Running("c1".into())), (Some("c1".into()), Change::Slight));
    assert_eq!(sees(Instance::NotRunning("Error".into())), (None, Change::Placement), "the end of an earlier one");
    assert_eq!(sees(Instance::Running("c2".into())), (Some("c2".into()), Change::Placement));
}

#[test]
fn the_end_of_steering_is_known_without_a_report_only_by_the_deletion_of_the_pod_that_the_stored_one_names() {
    let own = PodUid::from("own".to_owned());
    let ends_known = |deleting: bool, stored: Option<&str>, refused: Duration| {
        let mut observer = observer();
        let name = PodName { namespace: "vramguard-agent".into(), name: "agent".into() };
        observer.pod = Some(NamedPod { uid: own.clone(), name, container: None });
        observer.sees_own(&AgentPod { node: "n".into(), deleting, container: Instance::Running("c1".into()) });
        observer.stored(stored.map(|uid| PodUid::from(uid.to_owned())).as_ref());
        observer.ends_known(refused)
    };
    assert!(ends_known(true, Some("own"), REFUSED));
    assert!(!ends_known(true, Some("own"), REFUSED - Duration::from_millis(1)), "the API server may have just started");
    assert!(!ends_known(false, Some("own"), REFUSED), "a probe stopped it, and the server sees a pod that stays");
    assert!(!ends_known(true, None, REFUSED), "the definition of GpuLedger does not know the field");
    assert!(!ends_known(true, Some("other"), REFUSED));
    assert!(!observer().ends_known(REFUSED), "it runs outside of a pod");
}
