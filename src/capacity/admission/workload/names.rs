//! The names that workloads give their pods, as the controllers of Kubernetes make them. Owns whether a name is one of
//! them; a pod of another owner may have such a name too, which nothing here can tell.

use crate::capacity::verdict::finding::Members;

/// Characters that Kubernetes adds to a generated name.
const RANDOM: usize = 5;
/// Longest part of a generated name before its random characters. Kubernetes cuts what is longer.
const LONGEST_BASE: usize = 63 - RANDOM;
/// Longest hash of a pod template: ten digits, each as one character.
const LONGEST_HASH: usize = 10;
/// The characters of hashes and random ends. There are no vowels, so that they make no words.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether a workload of this kind and name may have made a pod of this name.
pub(super) fn makes(kind: &str, workload: &str, pod: &str) -> bool {
    if workload.is_empty() {
        return false;
    }
    if kind == "StatefulSet" {
        return pod.strip_prefix(workload).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_number);
    }
    let Some((base, random)) = pod.split_at_checked(pod.len().saturating_sub(RANDOM)) else { return false };
    if random.len() != RANDOM || !is_safe(random) {
        return false;
    }
    match kind {
        "Deployment" => is_of_replica_set(base, workload),
        "Job" => is_cut(base, &format!("{workload}-")) || is_of_index(base, workload),
        "CronJob" => is_of_run(base, workload),
        _ => is_cut(base, &format!("{workload}-")),
    }
}

/// Whether a LeaderWorkerSet of this name may have given a pod of its groups this name: `NAME-GROUP` for a leader, and
/// `NAME-GROUP-WORKER` for the others, which are counted from 1.
pub(super) fn makes_in_group(workload: &str, members: Members, pod: &str) -> bool {
    let Some(rest) = pod.strip_prefix(workload).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let is_leader = is_number(rest);
    let is_worker = || {
        let numbers = rest.split_once('-');
        numbers.is_some_and(|(group, worker)| is_number(group) && is_number(worker) && worker != "0")
    };
    !workload.is_empty()
        && match members {
            Members::All => is_leader || is_worker(),
            Members::Leaders => is_leader,
            Members::Workers => is_worker(),
        }
}

fn is_safe(text: &str) -> bool {
    text.bytes().all(|byte| SAFE.contains(&byte))
}

fn is_number(text: &str) -> bool {
    text == "0" || !text.is_empty() && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a base is this one, cut where Kubernetes cuts it. Names of workloads are ASCII.
fn is_cut(base: &str, whole: &str) -> bool {
    whole.get(..whole.len().min(LONGEST_BASE)) == Some(base)
}

/// Whether a base is `WORKLOAD-HASH-`, or the beginning of it that is left of a long one.
fn is_of_replica_set(base: &str, deployment: &str) -> bool {
    let prefix = format!("{deployment}-");
    if prefix.len() >= LONGEST_BASE {
        return is_cut(base, &prefix);
    }
    let Some(rest) = base.strip_prefix(&prefix) else { return false };
    let hash = match rest.strip_suffix('-') {
        Some(hash) => hash,
        None if base.len() == LONGEST_BASE => rest,
        None => return false,
    };
    !hash.is_empty() && hash.len() <= LONGEST_HASH && is_safe(hash)
}

/// Whether a base is `JOB-INDEX-`. Kubernetes cuts the name of the Job to keep the index.
fn is_of_index(base: &str, job: &str) -> bool {
    let Some((name, index)) = base.strip_suffix('-').and_then(|base| base.rsplit_once('-')) else { return false };
    let room = LONGEST_BASE.saturating_sub(index.len() + 2);
    is_number(index) && job.get(..job.len().min(room)) == Some(name)
}

/// Whether a base is that of a Job `CRONJOB-MINUTES`. A CronJob has at most 52 characters, so that nothing is cut but an
/// indexed Job.
fn is_of_run(base: &str, cron_job: &str) -> bool {
    let Some(rest) = base.strip_prefix(cron_job).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let minutes = rest.split('-').next().unwrap_or_default();
    let job = format!("{cron_job}-{minutes}");
    is_number(minutes) && (is_cut(base, &format!("{job}-")) || is_of_index(base, &job))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_workload_makes_the_names_that_its_controller_gives_and_no_others() {
        for (kind, workload, pod, expected) in [
            ("Deployment", "agent", "agent-6d4cf56db6-x7v2k", true),
            ("Deployment", "agent", "agent-b-6d4cf56db6-x7v2k", false),
            ("Deployment", "agent-b", "agent-b-6d4cf56db6-x7v2k", true),
            ("Deployment", "agent-b", "agent-6d4cf56db6-x7v2k", false),
            ("Deployment", "agent", "agent-x7v2k", false),
            ("Deployment", "agent", "agent--x7v2k", false),
            ("Deployment", "agent", "agent-6d4cf56db6-x7v2", false),
            ("Deployment", "agent", "agent-6d4cf56db6-x7v2kk", false),
            ("Deployment", "agent", "agent-6d4cf56db6-abcde", false),
            ("Deployment", "agent", "agent-6d4cf56db66-x7v2k", false),
            ("Deployment", "agent", "agents-6d4cf56db6-x7v2k", false),
            ("Deployment", "agent", "agent", false),
            ("Deployment", "", "-6d4cf56db6-x7v2k", false),
            ("ReplicaSet", "agent", "agent-x7v2k", true),
            ("ReplicaSet", "agent", "agent-b-x7v2k", false),
            ("ReplicaSet", "agent", "agent-0", false),
            ("ReplicationController", "agent", "agent-x7v2k", true),
            ("StatefulSet", "db", "db-0", true),
            ("StatefulSet", "db", "db-12", true),
            ("StatefulSet", "db", "db-01", false),
            ("StatefulSet", "db", "db-", false),
            ("StatefulSet", "db", "db-b-0", false),
            ("StatefulSet", "db", "db-x7v2k", false),
            ("Job", "train", "train-x7v2k", true),
            ("Job", "train", "train-3-x7v2k", true),
            ("Job", "train", "train-b-x7v2k", false),
            ("Job", "train", "train-03-x7v2k", false),
            ("CronJob", "nightly", "nightly-29384720-x7v2k", true),
            ("CronJob", "nightly", "nightly-29384720-1-x7v2k", true),
            ("CronJob", "nightly", "nightly-x7v2k", false),
            ("CronJob", "nightly", "nightly-b-29384720-x7v2k", false),
            ("Deployment", "ä", "ä-6d4cf56db6-x7v2k", true),
            ("Deployment", "agent", "ääää", false),
        ] {
            assert_eq!(makes(kind, workload, pod), expected, "{kind} {workload} {pod}");
        }
    }

    #[test]
    fn the_leader_and_the_workers_of_a_group_are_told_by_their_numbers() {
        for (pod, is_leader, is_worker) in [
            ("vllm-0", true, false),
            ("vllm-12", true, false),
            ("vllm-0-1", false, true),
            ("vllm-12-10", false, true),
            ("vllm-0-0", false, false),
            ("vllm-0-01", false, false),
            ("vllm-01-1", false, false),
            ("vllm-0-1-2", false, false),
            ("vllm-b-0", false, false),
            ("vllm-", false, false),
            ("vllm", false, false),
        ] {
            let makes = |members| makes_in_group("vllm", members, pod);
            assert_eq!((makes(Members::Leaders), makes(Members::Workers)), (is_leader, is_worker), "{pod}");
            assert_eq!(makes(Members::All), is_leader || is_worker, "{pod}");
        }
        assert!(!makes_in_group("", Members::All, "-0"));
    }

    #[test]
    fn what_kubernetes_cuts_is_known_by_what_is_left() {
        let long = "a".repeat(52);
        let base = |text: &str| text[..58].to_owned();
        for (kind, workload, whole) in [
            ("ReplicaSet", "b".repeat(70), format!("{}-", "b".repeat(70))),
            ("Deployment", "b".repeat(70), format!("{}-6d4cf56db6-", "b".repeat(70))),
            ("Deployment", long.clone(), format!("{long}-6d4cf56db6-")),
            ("Deployment", "b".repeat(46), format!("{}-6d4cf56db6-", "b".repeat(46))),
            ("CronJob", long.clone(), format!("{long}-29384720-")),
            ("Job", "b".repeat(63), format!("{}-12-", "b".repeat(54))),
        ] {
            let pod = format!("{}x7v2k", base(&whole));
            assert!(makes(kind, &workload, &pod), "{kind} {workload} {pod}");
            assert!(!makes(kind, &workload, &format!("c{pod}")), "{kind} {workload} {pod}");
        }
    }

    /// A generated name: the base as Kubernetes cuts it, and the random end.
    fn generated(base: &str, random: &str) -> String {
        format!("{}{random}", &base[..base.len().min(58)])
    }

    const RANDOM_END: &str = "[bcdfghjklmnpqrstvwxz2456789]{5}";
    const HASH: &str = "[bcdfghjklmnpqrstvwxz2456789]{1,10}";

    proptest! {
        #[test]
        fn a_name_of_any_length_is_one_that_its_workload_makes(
            workload in "[a-z0-9]([-a-z0-9]{0,80}[a-z0-9])?", hash in HASH, random in RANDOM_END, index in 0_u32..2_000,
        ) {
            let of_set = generated(&format!("{workload}-"), &random);
            let index = format!("-{index}-");
            let job = &workload[..workload.len().min(58 - index.len())];
            for (kind, pod) in [
                ("Deployment", generated(&format!("{workload}-{hash}-"), &random)),
                ("ReplicaSet", of_set.clone()),
                ("Job", of_set),
                ("Job", format!("{job}{index}{random}")),
                ("StatefulSet", format!("{workload}{}", index.trim_end_matches('-'))),
            ] {
                prop_assert!(makes(kind, &workload, &pod), "{} {}", kind, pod);
            }
        }

        /// Names of so few segments that they are often the beginning of each other.
        #[test]
        fn the_pods_of_a_deployment_whose_names_are_not_cut_are_those_of_no_other(
            one in "[bx](-[bx]){0,3}", other in "[bx](-[bx]){0,3}", hash in HASH, random in RANDOM_END,
        ) {
            let pod = format!("{one}-{hash}-{random}");
            prop_assert_eq!(makes("Deployment", &other, &pod), one == other, "{}", pod);
        }
    }
}
