//! Which pods may be on another GPU than the reserved one: those whose answer, as the agent logged it, is not by the ledger.
//!
//! While the API server hangs, the kubelet may know a pod whose reservation the agent does not know yet. On a busy
//! machine an answer may be late. Owns the rules:
//!
//! - An answer that names its caller excuses that pod, if a container of it has the devices of the answer.
//! - An answer without a caller excuses at most one pod. The kubelet admitted that pod around the time of the answer.
//!   The pod has the devices of the answer, if it names any; otherwise the device plugin chose. No answer named the
//!   container.

use std::collections::BTreeSet;

use super::process::Answered;
use super::seen::Misplaced;

/// The names of the pods that answers excuse. `misplaced` are all that are on another GPU.
pub(super) fn excused(misplaced: &[&Misplaced], answers: &[Answered]) -> BTreeSet<String> {
    let fallbacks = || answers.iter().filter(|answer| !answer.fallback.is_empty());
    let mut excused: BTreeSet<String> = misplaced
        .iter()
        .filter(|pod| fallbacks().any(|answer| names(answer, pod)))
        .map(|pod| pod.pod.clone())
        .collect();
    let mut nameless: Vec<&Answered> = fallbacks().filter(|answer| answer.caller.is_empty()).collect();
    // Answers that name devices fit fewer pods, so they come first. Of several pods the one that was admitted first is
    // excused, because a later answer may still fit the others.
    nameless.sort_by_key(|answer| (answer.given.is_empty(), answer.at));
    for answer in nameless {
        let open = misplaced.iter().filter(|pod| !excused.contains(&pod.pod));
        let fitting = open.filter(|pod| pod.from <= answer.at && answer.at <= pod.until);
        let fitting = fitting.filter(|pod| may_be_about(answer, pod, answers));
        let first = fitting.min_by_key(|pod| (pod.until, &pod.pod)).map(|pod| pod.pod.clone());
        excused.extend(first);
    }
    excused
}

/// Whether the answer is about a container of the pod that is on another GPU, and gave it its devices.
fn names(answer: &Answered, pod: &Misplaced) -> bool {
    pod.devices.iter().any(|(container, ids)| answer.caller == caller(pod, container) && gave(answer, ids))
}

/// Whether an answer without a caller may be about a container of the pod that is on another GPU. It is not about one that
/// another of `answers` names, because the kubelet asks once for each container.
fn may_be_about(answer: &Answered, pod: &Misplaced, answers: &[Answered]) -> bool {
    let is_named = |container: &str| answers.iter().any(|answer| answer.caller == caller(pod, container));
    pod.devices.iter().any(|(container, ids)| gave(answer, ids) && !is_named(container))
}

/// Whether the answer gave these devices, or left the choice to the device plugin.
fn gave(answer: &Answered, ids: &BTreeSet<String>) -> bool {
    answer.given.is_empty() || answer.given == *ids
}

fn caller(pod: &Misplaced, container: &str) -> String {
    format!("ml/{}/{container}", pod.pod)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;

    /// A pod that was admitted between these seconds, with this device.
    fn pod(name: &str, (from, until): (i64, i64), id: &str) -> Misplaced {
        let at = |second| Timestamp::from_second(second).unwrap();
        let devices = BTreeMap::from([("main".to_owned(), BTreeSet::from([id.to_owned()]))]);
        Misplaced { pod: name.to_owned(), devices, from: at(from), until: at(until) }
    }

    fn answer(caller: &str, second: i64, given: &[&str], fallback: &str) -> Answered {
        Answered {
            caller: caller.to_owned(),
            at: Timestamp::from_second(second).unwrap(),
            given: given.iter().map(|id| (*id).to_owned()).collect(),
            fallback: fallback.to_owned(),
            ms: 1.0,
        }
    }

    fn names_of(misplaced: &[Misplaced], answers: &[Answered]) -> Vec<String> {
        excused(&misplaced.iter().collect::<Vec<_>>(), answers).into_iter().collect()
    }

    #[test]
    fn an_answer_with_a_caller_excuses_only_that_pod_on_the_devices_that_it_gave() {
        let pods = [pod("p", (1, 5), "A::1"), pod("q", (1, 5), "A::2")];
        assert_eq!(names_of(&pods, &[answer("ml/p/main", 3, &["A::1"], "ReservedFull")]), ["p"]);
        assert_eq!(names_of(&pods, &[answer("ml/p/main", 3, &[], "SeveralGpus")]), ["p"]);
        assert!(names_of(&pods, &[answer("ml/p/main", 3, &["A::2"], "ReservedFull")]).is_empty());
        assert!(names_of(&pods, &[answer("ml/p/other", 3, &["A::1"], "ReservedFull")]).is_empty());
        assert!(names_of(&pods, &[answer("ml/p/main", 3, &["A::1"], "")]).is_empty(), "it was by the ledger");
    }

    #[test]
    fn an_answer_without_a_caller_excuses_one_pod_of_its_time() {
        let pods = [pod("p", (1, 9), "A::1"), pod("q", (1, 5), "A::2")];
        assert_eq!(names_of(&pods, &[answer("", 3, &[], "Late")]), ["q"]);
        assert_eq!(names_of(&pods, &[answer("", 3, &[], "Late"), answer("", 4, &[], "Late")]), ["p", "q"]);
        assert_eq!(names_of(&pods, &[answer("", 7, &[], "Late")]), ["p"]);
        assert_eq!(names_of(&pods, &[answer("", 3, &[], "Late"), answer("", 10, &[], "Late")]), ["q"]);
        assert!(names_of(&pods, &[answer("", 0, &[], "Late")]).is_empty());
        assert!(names_of(&pods, &[answer("", 3, &[], "")]).is_empty(), "it was by the ledger");
    }

    #[test]
    fn a_pod_that_an_answer_named_is_not_excused_by_one_without_a_caller() {
        let pods = [pod("p", (1, 9), "A::1")];
        let named = answer("ml/p/main", 4, &["B::1"], "");
        assert!(
            names_of(&pods, &[answer("", 3, &[], "Late"), named]).is_empty(),
            "the kubelet allocated other devices"
        );
    }

    #[test]
    fn an_answer_without_a_caller_that_gave_devices_excuses_the_pod_that_has_them() {
        let pods = [pod("p", (1, 9), "A::1"), pod("q", (1, 5), "A::2")];
        assert_eq!(names_of(&pods, &[answer("", 3, &["A::1"], "NoCandidate")]), ["p"]);
        assert!(names_of(&pods, &[answer("", 3, &["A::3"], "NoCandidate")]).is_empty());
        let both = [answer("", 2, &[], "Late"), answer("", 3, &["A::2"], "NoCandidate")];
        assert_eq!(names_of(&pods, &both), ["p", "q"]);
    }
}
