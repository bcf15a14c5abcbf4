use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;
use crate::capacity::testing::mib;

const UUIDS: [&str; 4] = ["GPU-a", "GPU-b", "MIG-c", "GPU-d"];

fn rooms(free: &[u64]) -> Vec<GpuRoom> {
    let gpus = (0..).zip(UUIDS).zip(free);
    gpus.map(|((index, uuid), free)| GpuRoom { uuid: uuid.into(), index: index.into(), room: mib(*free).into() })
        .collect()
}

fn ids(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn known(demand: u64, wanted: &str) -> Asker {
    Asker::Known { demand: Some(mib(demand)), wanted: Some(GpuId::from(wanted)) }
}

fn answer(available: &[&str], must_include: &[&str], size: usize, asker: &Asker, free: &[u64]) -> Choice {
    let (available, must_include) = (ids(available), ids(must_include));
    pick(&Question { available: &available, must_include: &must_include, size }, asker, &rooms(free), &[])
}

fn devices(texts: &[&str], gpu: &str, fallback: Option<Fallback>) -> Choice {
    Choice::Devices { ids: ids(texts), gpu: gpu.into(), fallback }
}

#[test]
fn the_reserved_gpu_is_given_even_if_its_memory_is_all_reserved() {
    let chosen = answer(&["GPU-a::0", "GPU-b::1"], &[], 1, &known(9_000, "GPU-b"), &[50_000, 0]);
    assert_eq!(chosen, devices(&["GPU-b::1"], "GPU-b", None));
}

#[test]
fn a_reservation_by_index_names_the_same_gpu_as_its_uuid() {
    let chosen = answer(&["GPU-a::0", "GPU-b::1"], &[], 1, &known(9_000, "1"), &[50_000, 0]);
    assert_eq!(chosen, devices(&["GPU-b::1"], "GPU-b", None));
}

#[test]
fn a_pod_whose_gpu_has_no_replica_gets_the_smallest_room_that_is_large_enough() {
    let available = ["GPU-b::0", "MIG-c::0", "GPU-d::0"];
    let chosen = answer(&available, &[], 1, &known(9_000, "GPU-a"), &[99_000, 30_000, 8_999, 10_000]);
    assert_eq!(chosen, devices(&["GPU-d::0"], "GPU-d", Some(Fallback::ReservedFull)));
    let chosen = answer(&available, &[], 1, &known(90_000, "GPU-a"), &[99_000, 30_000, 8_999, 10_000]);
    assert_eq!(chosen, devices(&["GPU-b::0"], "GPU-b", Some(Fallback::NoRoom)));
}

#[test]
fn demands_that_the_ledger_does_not_show_yet_take_room() {
    let available = ids(&["GPU-a::0", "GPU-b::0"]);
    let question = Question { available: &available, must_include: &[], size: 1 };
    let unplaced = [("GPU-a".into(), mib(9_000))];
    let chosen = pick(
        &question,
        &Asker::Unknown { why: Fallback::NoCandidate, before: Vec::new() },
        &rooms(&[20_000, 12_000]),
        &unplaced,
    );
    assert_eq!(chosen, devices(&["GPU-b::0"], "GPU-b", Some(Fallback::NoCandidate)));
}

#[test]
fn an_included_device_comes_first_and_counts() {
    let available = ["GPU-a::0", "GPU-b::0", "GPU-b::1"];
    let chosen = answer(&available, &["GPU-b::1"], 2, &known(1, "GPU-b"), &[9, 9]);
    assert_eq!(chosen, devices(&["GPU-b::1", "GPU-b::0"], "GPU-b", None));
}

#[test]
fn several_devices_that_no_gpu_has_are_left_to_the_device_plugin() {
    let available = ["GPU-a::0", "GPU-b::0"];
    assert_eq!(answer(&available, &[], 2, &known(1, "GPU-a"), &[9, 9]), Choice::Stock(Fallback::SeveralGpus));
}

#[test]
fn gpus_that_the_ledger_does_not_know_are_left_to_the_device_plugin() {
    assert_eq!(answer(&["GPU-z::0"], &[], 1, &known(1, "GPU-a"), &[9, 9]), Choice::Stock(Fallback::GpusUnknown));
}

#[test]
fn a_question_that_cannot_be_answered_is_left_to_the_device_plugin() {
    let contradiction = Choice::Stock(Fallback::Contradiction);
    let unknown = Asker::Unknown { why: Fallback::NoCandidate, before: Vec::new() };
    for (available, must_include, size) in [
        (&["GPU-a::0"][..], &[][..], 2),
        (&["GPU-a::0"], &[], 0),
        (&[], &["GPU-a::0"], 0),
        (&["GPU-a::0", "GPU-a::1"], &["GPU-a::0", "GPU-a::0"], 2),
    ] {
        assert_eq!(answer(available, must_include, size, &unknown, &[9]), contradiction, "{available:?}");
    }
}

#[test]
fn the_gpu_of_a_replica_is_what_precedes_its_number() {
    assert_eq!(gpu_of("GPU-a::11"), "GPU-a");
    assert_eq!(gpu_of("MIG-c"), "MIG-c");
}

/// A question about up to four GPUs with up to four replicas each.
#[derive(Debug, Clone)]
struct Case {
    available: Vec<String>,
    must_include: Vec<String>,
    size: usize,
    asker: Asker,
    free: Vec<u64>,
    unplaced: Vec<(Name, Vram)>,
}

fn case() -> impl Strategy<Value = Case> {
    let all: Vec<String> = UUIDS.iter().flat_map(|uuid| (0..4).map(move |n| format!("{uuid}::{n}"))).collect();
    let number = all.len();
    let demand = prop::option::of((0..8u64).prop_map(mib));
    let wanted =
        prop::option::of(prop::sample::select(vec!["GPU-a", "1", "2", "MIG-c", "GPU-gone"]).prop_map(GpuId::from));
    let asker = prop_oneof![
        3 => (demand, wanted).prop_map(|(demand, wanted)| Asker::Known { demand, wanted }),
        1 => Just(Asker::Unknown { why: Fallback::SeveralCandidates, before: Vec::new() }),
    ];
    let unplaced = prop::collection::vec((prop::sample::select(UUIDS.to_vec()), 0..4u64), 0..3);
    (
        subsequence(all, 0..=number).prop_shuffle(),
        0..3usize,
        0..5usize,
        asker,
        prop::collection::vec(0..8u64, 1..=4),
        unplaced,
    )
        .prop_map(|(available, included, size, asker, free, unplaced)| Case {
            must_include: available.iter().take(included).cloned().collect(),
            available,
            size,
            asker,
            free,
            unplaced: unplaced.into_iter().map(|(gpu, demand)| (gpu.into(), mib(demand))).collect(),
        })
}

/// The GPUs on which the devices to choose can be, with their balance in MiB. Written over sets of devices, unlike the
/// decision.
fn possible(case: &Case) -> Vec<(usize, i128)> {
    let more = case.size - case.must_include.len();
    let has_enough = |gpu: &usize| {
        let on_it = |id: &&String| id.starts_with(&format!("{}::", UUIDS[*gpu])) && !case.must_include.contains(*id);
        case.available.iter().filter(on_it).count() >= more
    };
    let balance = |gpu: usize| {
        let taken = case.unplaced.iter().filter(|(uuid, _)| *uuid == UUIDS[gpu]).map(|(_, d)| i128::from(d.mib()));
        (gpu, i128::from(case.free[gpu]) - taken.sum::<i128>())
    };
    (0..case.free.len()).filter(has_enough).map(balance).collect()
}

proptest! {
    #[test]
    fn an_answer_has_the_right_number_of_devices_and_is_the_best_of_all(case in case()) {
        let question = Question { available: &case.available, must_include: &case.must_include, size: case.size };
        let choice = pick(&question, &case.asker, &rooms(&case.free), &case.unplaced);
        let Choice::Devices { ids, gpu, fallback } = choice else {
            let answerable = case.size > case.must_include.len() && case.available.len() >= case.size;
            prop_assert!(!answerable || possible(&case).is_empty(), "the device plugin is asked without need");
            return Ok(());
        };
        prop_assert_eq!(ids.len(), case.size);
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), case.size, "no device twice");
        prop_assert!(ids.iter().all(|id| case.available.contains(id)));
        prop_assert_eq!(&ids[..case.must_include.len()], &case.must_include[..]);
        prop_assert!(ids[case.must_include.len()..].iter().all(|id| gpu_of(id) == &*gpu));

        let possible = possible(&case);
        let chosen = possible.iter().find(|(index, _)| gpu == UUIDS[*index]);
        let (index, balance) = *chosen.expect("the GPU has enough devices");
        let most = possible.iter().map(|(_, balance)| *balance).max().expect("the chosen one");
        match &case.asker {
            Asker::Known { wanted: Some(wanted), demand } => {
                // An index names no MIG device.
                let is_wanted = |index: usize| match wanted {
                    GpuId::Index(wanted) => *wanted as usize == index && UUIDS[index].starts_with("GPU-"),
                    GpuId::Uuid(wanted) => *wanted == *UUIDS[index],
                };
                match (possible.iter().any(|(index, _)| is_wanted(*index)), demand) {
                    (true, _) => prop_assert!(is_wanted(index) && fallback.is_none()),
                    (false, None) => prop_assert!(balance == most && fallback == Some(Fallback::DemandUnknown)),
                    (false, Some(demand)) => best_fit(&possible, balance, *demand, fallback, Fallback::ReservedFull)?,
                }
            }
            Asker::Known { wanted: None, demand: Some(demand) } => {
                best_fit(&possible, balance, *demand, fallback, Fallback::NotReserved)?;
            }
            Asker::Known { wanted: None, demand: None } => {
                prop_assert!(balance == most && fallback == Some(Fallback::DemandUnknown));
            }
            Asker::Unknown { why, .. } => prop_assert!(balance == most && fallback == Some(*why)),
        }
    }

    #[test]
    fn any_devices_are_as_many_as_there_are(case in case()) {
        let question = Question { available: &case.available, must_include: &case.must_include, size: case.size };
        let ids = any_devices(&question);
        prop_assert_eq!(ids.len(), case.size.min(case.available.len()));
        prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        prop_assert!(case.size < case.must_include.len() || case.must_include.iter().all(|id| ids.contains(id)));
    }
}

fn best_fit(
    possible: &[(usize, i128)],
    balance: i128,
    demand: Vram,
    fallback: Option<Fallback>,
    why: Fallback,
) -> Result<(), TestCaseError> {
    let demand = i128::from(demand.mib());
    let smallest = possible.iter().map(|(_, balance)| *balance).filter(|balance| *balance >= demand).min();
    match smallest {
        Some(smallest) => prop_assert!(balance == smallest && fallback == Some(why)),
        None => {
            let most = possible.iter().map(|(_, balance)| *balance).max();
            prop_assert!(Some(balance) == most && fallback == Some(Fallback::NoRoom));
        }
    }
    Ok(())
}
