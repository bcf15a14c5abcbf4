//! [`Outside`]: memory of one GPU that no pod of the node counts with. Owns how it is measured and when the reported
//! amount follows: it rises at once, and falls only after some time, because placing a pod on memory that comes back
//! kills that pod, and waiting costs it a minute.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{GpuLook, Listing, Owner};
use crate::capacity::name::PodUid;
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// How long the measured amount must have been lower before the reported amount falls.
pub const FALL_AFTER: Duration = Duration::from_secs(60);
/// A fall smaller than this is not reported, unless to zero. A process outside of pods moves by such amounts all the
/// time.
pub const FALL_STEP: Vram = Vram::from_mib(64);
/// How long a departed pod counts although the processes of the GPU cannot be read any more.
pub const DEPARTED_DEADLINE: Duration = Duration::from_secs(60);

/// Part of a GPU's used memory that no process shows: a fixed part, and a part for each process. On an H100, 6 MiB a
/// process were seen.
const UNSHOWN: (Vram, Vram) = (Vram::from_mib(64), Vram::from_mib(8));

/// The memory of one GPU that no pod counts with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// The reported amount of processes outside of pods, and of memory that no process shows; `None` before the first
    /// reading.
    reported: Option<Vram>,
    /// The largest amount measured since the last time at which the reported amount was reached, and since when it is
    /// lower.
    lower: Option<(Vram, Moment)>,
    /// What no process showed in the look before.
    unshown: Option<Vram>,
    /// What each departed pod was last seen to use, and when.
    departed: BTreeMap<PodUid, (Vram, Moment)>,
}

impl Outside {
    /// Restores the amount that an earlier run of the agent reported.
    pub fn restored(reported: Vram) -> Outside {
        Outside { reported: Some(reported), ..Outside::default() }
    }

    /// Takes a look into account.
    pub fn observe(&mut self, gpu: &GpuLook, now: Moment) {
        let processes = match &gpu.processes {
            Listing::Listed(processes) => processes,
            Listing::Unreadable(_) => {
                // The reported amount stays. A departed pod must not hold memory forever that nobody can see.
                self.departed.retain(|_, (_, seen)| now < seen.after(DEPARTED_DEADLINE));
                return;
            }
            // Nobody will ever see this memory go, so the amount cannot stay.
            Listing::NotTold => {
                *self = Outside::default();
                return;
            }
        };
        // The card shows which memory of departed pods is still used, so their release needs no further time.
        self.departed.clear();
        let (mut shown, mut outside) = (Vram::ZERO, Vram::ZERO);
        for process in processes {
            let memory = process.memory.unwrap_or(Vram::ZERO);
            shown = shown.plus(memory);
            match &process.owner {
                Owner::Container { .. } | Owner::Arriving(_) => {}
                Owner::Outside => outside = outside.plus(memory),
                Owner::Departed(pod) => {
                    let held = self.departed.entry(pod.clone()).or_insert((Vram::ZERO, now));
                    *held = (held.0.plus(memory), now);
                }
            }
        }
        // A process whose memory is not told may be that of a pod. Nothing can then be said of the rest.
        let told = processes.iter().all(|process| process.memory.is_some());
        let unshown =
            gpu.memory.as_ref().ok().filter(|_| told).map(|memory| unshown(memory.used, shown, processes.len()));
        // Memory and processes are read one after the other, so a process that starts or ends in between seems to be
        // unshown memory. It is not so in two looks.
        let lasting = self.unshown.zip(unshown).map_or(Vram::ZERO, |(before, now)| before.min(now));
        self.unshown = unshown;
        self.follow(outside.plus(lasting), now);
    }

    /// Memory that no pod counts with; `None` before it was measured.
    pub fn amount(&self) -> Option<Vram> {
        let departed: Vram = self.departed.values().map(|(memory, _)| *memory).sum();
        self.reported.map(|reported| reported.plus(departed))
    }

    fn follow(&mut self, measured: Vram, now: Moment) {
        let Some(reported) = self.reported.filter(|reported| measured < *reported) else {
            (self.reported, self.lower) = (Some(measured), None);
            return;
        };
        let (largest, since) = self.lower.map_or((measured, now), |(largest, since)| (largest.max(measured), since));
        let step = measured.is_zero() || reported.minus(largest).minus(FALL_STEP).deficit().is_none();
        if now >= since.after(FALL_AFTER) {
            if step {
                self.reported = Some(largest);
            }
            self.lower = None;
        } else {
            self.lower = Some((largest, since));
        }
    }
}

/// Used memory of a GPU that its processes do not show, beyond what is usual.
fn unshown(used: Vram, shown: Vram, processes: usize) -> Vram {
    let usual = UNSHOWN.1.checked_times(processes as u64).unwrap_or(Vram::MAX).plus(UNSHOWN.0);
    used.minus(shown).minus(usual).free()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::observation::{GpuMemory, Process};
    use crate::capacity::verdict::Unreadable;

    const AT: Moment = Moment(0);

    fn mib(mib: u64) -> Vram {
        Vram::from_mib(mib)
    }

    fn after(seconds: u64) -> Moment {
        AT.after(Duration::from_secs(seconds))
    }

    fn look(used: u64, processes: &[(Owner, u64)]) -> GpuLook {
        let process =
            |(owner, memory): &(Owner, u64)| Process { owner: owner.clone(), memory: Some(mib(*memory)), busy: None };
        GpuLook {
            uuid: "GPU-0".into(),
            index: 0.into(),
            mig: false,
            mps: false,
            memory: Ok(GpuMemory { total: mib(81_559), reserved: Some(mib(480)), used: mib(used) }),
            processes: Listing::Listed(processes.iter().map(process).collect()),
        }
    }

    fn outside(memory: u64) -> GpuLook {
        look(memory, &[(Owner::Outside, memory)])
    }

    #[test]
    fn use_outside_of_pods_is_reported_at_once_and_forgotten_after_a_minute() {
        let mut seen = Outside::default();
        assert_eq!(seen.amount(), None, "not measured yet, which is not zero");
        seen.observe(&outside(0), after(0));
        assert_eq!(seen.amount(), Some(mib(0)));
        seen.observe(&outside(900), after(1));
        assert_eq!(seen.amount(), Some(mib(900)));
        for second in 2..62 {
            seen.observe(&outside(0), after(second));
            assert_eq!(seen.amount(), Some(mib(900)), "{second}");
        }
        seen.observe(&outside(0), after(62));
        assert_eq!(seen.amount(), Some(mib(0)));
    }

    #[test]
    fn a_fall_goes_to_the_largest_amount_of_its_minute() {
        let mut seen = Outside::default();
        seen.observe(&outside(900), after(0));
        for second in 1..=61 {
            seen.observe(&outside(if second == 30 { 700 } else { 100 }), after(second));
        }
        assert_eq!(seen.amount(), Some(mib(700)));
    }

    #[test]
    fn an_amount_that_comes_back_within_the_minute_never_falls() {
        let mut seen = Outside::default();
        for second in 0..600 {
            seen.observe(&outside(if second % 50 == 0 { 900 } else { 100 }), after(second));
            assert_eq!(seen.amount(), Some(mib(900)), "{second}");
        }
    }

    #[test]
    fn small_falls_are_not_reported() {
        let mut seen = Outside::default();
        seen.observe(&outside(900), after(0));
        for second in 1..600 {
            seen.observe(&outside(900 - 63), after(second));
        }
        assert_eq!(seen.amount(), Some(mib(900)));
    }

    #[test]
    fn a_departed_pod_counts_until_the_card_shows_its_memory_free() {
        let gone = Owner::Departed("a".into());
        let mut seen = Outside::default();
        seen.observe(&look(8_868, &[(gone.clone(), 8_868)]), after(0));
        assert_eq!(seen.amount(), Some(mib(8_868)));
        seen.observe(&look(8_868, &[(gone, 8_868)]), after(600));
        assert_eq!(seen.amount(), Some(mib(8_868)), "it is still on the card");
        seen.observe(&look(0, &[]), after(601));
        assert_eq!(seen.amount(), Some(mib(0)), "without the minute of other processes");
    }

    #[test]
    fn a_departed_pod_counts_up_to_a_deadline_while_nobody_can_see_its_processes() {
        let mut seen = Outside::default();
        seen.observe(&look(8_868, &[(Owner::Departed("a".into()), 8_868)]), after(0));
        let blind = GpuLook { processes: Listing::Unreadable(Unreadable::NoPermission), ..look(8_868, &[]) };
        seen.observe(&blind, after(59));
        assert_eq!(seen.amount(), Some(mib(8_868)));
        seen.observe(&blind, after(60));
        assert_eq!(seen.amount(), Some(mib(0)));
    }

    #[test]
    fn an_unreadable_gpu_keeps_the_last_amount() {
        let mut seen = Outside::default();
        seen.observe(&outside(900), after(0));
        let lost =
            GpuLook { processes: Listing::Unreadable(Unreadable::Lost), memory: Err(Unreadable::Lost), ..outside(0) };
        for second in [1, 100, 10_000] {
            seen.observe(&lost, after(second));
            assert_eq!(seen.amount(), Some(mib(900)));
        }
    }

    #[test]
    fn a_source_that_does_not_tell_processes_tells_nothing_of_memory_outside_of_pods() {
        let mut seen = Outside::restored(mib(500));
        seen.observe(&outside(900), after(0));
        let totals = GpuLook { processes: Listing::NotTold, ..look(8_868, &[]) };
        for second in [1, 2, 100] {
            seen.observe(&totals, after(second));
            assert_eq!(seen.amount(), None, "neither the old amount nor zero");
        }
        seen.observe(&outside(700), after(101));
        assert_eq!(seen.amount(), Some(mib(700)));
    }

    /// Without hostPID, NVML shows the memory of the card and none of its processes.
    #[test]
    fn used_memory_that_no_process_shows_counts_in_the_second_look() {
        let mut seen = Outside::default();
        seen.observe(&look(8_868, &[]), after(0));
        assert_eq!(seen.amount(), Some(mib(0)), "a process may have started between the two readings of one look");
        seen.observe(&look(8_868, &[]), after(1));
        assert_eq!(seen.amount(), Some(mib(8_868 - 64)));
    }

    #[test]
    fn what_a_process_takes_beside_its_own_memory_is_not_outside_of_pods() {
        let mut seen = Outside::default();
        let pod = |name: &str| Owner::Container { pod: name.into(), container: "main".into() };
        let nine: Vec<(Owner, u64)> = (0..9).map(|number| (pod(&number.to_string()), 8_868)).collect();
        for second in 0..3 {
            seen.observe(&look(9 * (8_868 + 6), &nine), after(second));
            assert_eq!(seen.amount(), Some(mib(0)));
        }
    }

    #[test]
    fn a_process_of_unknown_size_leaves_the_rest_unknown() {
        let mut seen = Outside::default();
        let mut hidden = look(8_868, &[(Owner::Arriving("a".into()), 0)]);
        let listed = hidden.processes.listed().unwrap().iter();
        hidden.processes = Listing::Listed(listed.map(|process| Process { memory: None, ..process.clone() }).collect());
        for second in 0..3 {
            seen.observe(&hidden, after(second));
            assert_eq!(seen.amount(), Some(mib(0)));
        }
    }

    #[test]
    fn an_amount_of_an_earlier_run_falls_like_any_other() {
        let mut seen = Outside::restored(mib(500));
        seen.observe(&outside(0), after(0));
        assert_eq!(seen.amount(), Some(mib(500)));
        seen.observe(&outside(0), after(60));
        assert_eq!(seen.amount(), Some(mib(0)));
    }
}
