//! [`Finding`]: what is wrong with what a container uses. Owns the thresholds and the amount to write in place of the
//! present declaration; [`crate::capacity::verdict`] owns the sentences.

use std::fmt;
use std::time::Duration;

use super::containers::Use;
use super::owners::{LiveContainer, LivePod};
use crate::capacity::time::Moment;
use crate::capacity::verdict::{self, Subject};
use crate::capacity::vram::Vram;

/// Use beyond the demand that is not reported: the sizes of a driver's blocks, and contexts that grow by a few MiB.
pub const ALLOWANCE: Vram = Vram::from_mib(64);
/// How long a container must have been seen before its peak is compared with its demand from below.
pub const FULL_CYCLE: Duration = Duration::from_secs(3600);
/// A demand that is larger than the peak by less than this is not reported as too large.
pub const UNUSED: Vram = Vram::from_mib(1024);
/// How long a container must have computed nothing.
pub const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Memory that an idle container must hold to be reported.
pub const IDLE_HOLDS: Vram = Vram::from_mib(1024);
/// Room above a peak in the amount to write, in percent.
const MARGIN: u8 = 5;
/// Amounts to write are multiples of this.
const ROUND: u64 = 64;

/// What is wrong with what a container uses. The name of the variant is the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Problem {
    /// It uses more than it counts with.
    OverDeclaration,
    /// It uses memory and declares none.
    Undeclared,
    /// It computes nothing and holds memory.
    Idle,
    /// It has never used most of what it counts with.
    FarUnder,
}

impl Problem {
    /// All problems, the most urgent first.
    pub const ALL: [Problem; 4] = [Problem::OverDeclaration, Problem::Undeclared, Problem::Idle, Problem::FarUnder];
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One finding about one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub problem: Problem,
    /// The sentence for users.
    pub message: String,
}

impl Finding {
    /// The most urgent finding about a container, if there is one.
    pub fn of(pod: &LivePod, container: &LiveContainer, seen: &Use, now: Moment) -> Option<Finding> {
        let subject = Subject { pod: &pod.name, container: &container.name, annotation: &container.annotation };
        let finding = |problem, message| Some(Finding { problem, message });
        let used = seen.used?;
        let over = container.demand.filter(|demand| exceeds(used, *demand));
        if let Some(demand) = over.filter(|_| container.declares) {
            let message = verdict::uses_more(subject, used, demand, to_write(used, container.overhead));
            return finding(Problem::OverDeclaration, message);
        }
        // Such a container counts with what it uses, also if vramguard gave it a request.
        if over.is_some() || container.demand.is_none() && used > ALLOWANCE {
            let message = verdict::uses_undeclared(subject, used, to_write(seen.peak, container.overhead));
            return finding(Problem::Undeclared, message);
        }
        if let Some(since) = seen.idle_since
            && now >= since.after(IDLE)
            && used >= IDLE_HOLDS
        {
            return finding(Problem::Idle, verdict::idles(subject, used, since.until(now)));
        }
        let demand = container.demand?;
        if now >= seen.first.after(FULL_CYCLE) && is_far_under(seen.peak, demand) {
            let write = to_write(seen.peak, container.overhead);
            let message = verdict::uses_far_less(subject, seen.peak, demand, seen.first.until(now), write);
            return finding(Problem::FarUnder, message);
        }
        None
    }
}

/// Whether a use is more than the demand covers.
pub fn exceeds(used: Vram, demand: Vram) -> bool {
    used.minus(demand).free() > ALLOWANCE
}

/// Whether a peak leaves most of the demand unused.
pub fn is_far_under(peak: Vram, demand: Vram) -> bool {
    peak < demand.share(2) && demand.minus(peak).free() >= UNUSED
}

/// The part of a demand that is for CUDA contexts: the overhead of each process. A number of processes that is missing or
/// cannot be read counts as one.
pub fn overhead(per_process: Vram, processes: Option<u32>) -> Vram {
    per_process.checked_times(u64::from(processes.unwrap_or(1))).unwrap_or(Vram::MAX)
}

/// The declaration that covers a use: without the overhead of the processes, which is added to each declaration.
pub fn to_write(used: Vram, overhead: Vram) -> Vram {
    let own = used.minus(overhead).free();
    let with_margin = own.plus(own.percent_rounded_up(MARGIN)).mib();
    Vram::checked_from_mib(with_margin.div_ceil(ROUND).max(1).saturating_mul(ROUND)).unwrap_or(Vram::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::pod::PodName;

    const AT: Moment = Moment(0);

    fn mib(mib: u64) -> Vram {
        Vram::from_mib(mib)
    }

    fn find(demand: Option<u64>, seen: Use, after: Duration) -> Option<Finding> {
        let container = LiveContainer {
            name: "main".into(),
            id: None,
            demand: demand.map(mib),
            declares: true,
            overhead: mib(720),
            annotation: "vramguard.dev/vram".into(),
        };
        let name = PodName { namespace: "ml".into(), name: "llm".into() };
        let pod = LivePod { uid: "u".into(), cgroup_uid: "u".into(), name, containers: vec![container.clone()] };
        Finding::of(&pod, &container, &seen, AT.after(after))
    }

    /// The webhook gives such a pod a request of one slot, which it does not keep to.
    #[test]
    fn a_container_that_uses_more_than_an_injected_request_declares_nothing_and_takes_no_memory_unseen() {
        let container = LiveContainer {
            name: "main".into(),
            id: None,
            demand: Some(mib(5_967)),
            declares: false,
            overhead: mib(720),
            annotation: "vramguard.dev/vram".into(),
        };
        let name = PodName { namespace: "ml".into(), name: "llm".into() };
        let pod = LivePod { uid: "u".into(), cgroup_uid: "u".into(), name, containers: vec![container.clone()] };
        let found = |used| Finding::of(&pod, &container, &seen(used, used), AT).map(|finding| finding.problem);
        assert_eq!((found(5_967 + 64), found(5_967 + 65)), (None, Some(Problem::Undeclared)));
    }

    fn seen(used: u64, peak: u64) -> Use {
        Use { used: Some(mib(used)), peak: mib(peak), idle_since: None, first: AT, cycles: None, gpu: "GPU-0".into() }
    }

    fn problem(demand: Option<u64>, seen: Use, after: Duration) -> Option<Problem> {
        find(demand, seen, after).map(|finding| finding.problem)
    }

    #[test]
    fn a_container_within_its_demand_and_the_allowance_is_no_finding() {
        for used in [5_000, 8_912, 8_912 + 64] {
            assert_eq!(problem(Some(8_912), seen(used, used), FULL_CYCLE), None, "{used}");
        }
    }

    #[test]
    fn a_container_above_its_demand_is_told_what_to_declare() {
        let found = find(Some(8_912), seen(10_868, 10_868), Duration::ZERO).unwrap();
        assert_eq!(found.problem, Problem::OverDeclaration);
        // (10868 - 720) × 1.05 = 10655.4, the next multiple of 64 is 10688.
        assert!(found.message.ends_with("set vramguard.dev/vram to at least 10688Mi"), "{}", found.message);
    }

    #[test]
    fn a_container_that_declares_nothing_is_found_once_it_uses_memory() {
        assert_eq!(problem(None, seen(500, 500), Duration::ZERO), Some(Problem::Undeclared));
        assert_eq!(problem(None, seen(64, 64), Duration::ZERO), None);
    }

    #[test]
    fn a_demand_of_more_than_twice_the_peak_is_found_after_a_full_cycle() {
        let almost = FULL_CYCLE - Duration::from_secs(1);
        assert_eq!(problem(Some(8_912), seen(2_000, 2_100), almost), None);
        assert_eq!(problem(Some(8_912), seen(2_000, 2_100), FULL_CYCLE), Some(Problem::FarUnder));
        assert_eq!(problem(Some(8_912), seen(2_000, 4_456), FULL_CYCLE), None, "half is used");
        assert_eq!(problem(Some(1_500), seen(500, 500), FULL_CYCLE), None, "too little to be worth a change");
    }

    #[test]
    fn an_idle_container_is_found_after_hours_if_it_holds_memory() {
        let idle = |used: u64| Use { idle_since: Some(AT), ..seen(used, 8_868) };
        assert_eq!(problem(Some(8_912), idle(8_868), IDLE), Some(Problem::Idle));
        assert_eq!(problem(Some(8_912), idle(8_868), IDLE - Duration::from_secs(1)), None);
        assert_eq!(problem(Some(8_912), idle(1_023), IDLE), None);
    }

    #[test]
    fn an_unknown_use_is_no_finding() {
        let unknown = Use { used: None, ..seen(0, 0) };
        assert_eq!(problem(Some(8_912), unknown, IDLE), None);
    }
}
