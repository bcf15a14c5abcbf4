//! What a container may take, as an amount and as a share of the GPU that it lands on. Owns which share is safe when the
//! GPUs differ.

use crate::capacity::cluster::Landing;
use crate::capacity::verdict::Why;
use crate::capacity::vram::Vram;

/// By how much the GPUs that a pod may land on can differ, in percent of the smallest. Within that, the share of the
/// largest is used, which takes no more than this from the budget: GPUs of one model differ by what their drivers keep.
/// Beyond that, a share of the largest would give a container on the smallest much less than it declares.
const DIFFERENCE: u32 = 2;

/// What a container may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// What it declares, in MiB: the memory of all its processes without their CUDA contexts.
    pub declared: Vram,
    /// What it demands, in MiB: `declared` and the CUDA contexts.
    pub demand: Vram,
    /// The number of its processes, at least 1.
    pub processes: u32,
    /// What CUDA reports as the total of its GPU, in MiB, or why that is not known.
    pub total: Result<Vram, Why>,
}

impl Budget {
    /// What one of its processes may take, as a share of the total: a decimal number above 0 and below 1.
    ///
    /// # Errors
    /// The total is not known, or the amount is no share of it that could be written.
    pub(super) fn share(&self) -> Result<String, Why> {
        let total = self.total.clone()?;
        let no_share = || Why::NoShare { total };
        let parts = total.checked_times(u64::from(self.processes)).ok_or_else(no_share)?;
        let share = self.declared.fraction_of(parts).ok_or_else(no_share)?;
        let is_share = self.declared < parts && share != "0.0000";
        if is_share { Ok(share) } else { Err(no_share()) }
    }

    /// What one of its processes may take together with its CUDA context, in MiB.
    pub(super) fn of_process(&self) -> Vram {
        self.demand.share(self.processes)
    }
}

/// Whether a share of the user's allows no more than ours. It may be a share that vramguard computed itself, by the total
/// that another replica or an earlier snapshot knew: that one differs by [`DIFFERENCE`], and by one step of rounding.
pub(super) fn is_at_most(theirs: &str, ours: &str) -> bool {
    const STEP: f64 = 0.0001;
    match (theirs.trim().parse::<f64>(), ours.parse::<f64>()) {
        (Ok(theirs), Ok(ours)) => theirs > 0.0 && theirs * 100.0 <= (ours + STEP) * f64::from(100 + DIFFERENCE),
        _ => false,
    }
}

/// The one total of the GPUs that a pod may land on.
pub(super) fn total(landing: &Landing) -> Result<Vram, Why> {
    let (smallest, largest) = landing.totals.ok_or(Why::SizeUnknown)?;
    let spread = largest.minus(smallest).free().mib();
    if spread.saturating_mul(100) > smallest.mib().saturating_mul(u64::from(DIFFERENCE)) {
        return Err(Why::SizesDiffer { smallest, largest });
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> Vram {
        Vram::from_mib(mib)
    }

    fn budget(declared: u64, processes: u32, total: u64) -> Budget {
        let demand = mib(declared + 720 * u64::from(processes));
        Budget { declared: mib(declared), demand, processes, total: Ok(mib(total)) }
    }

    #[test]
    fn a_share_is_of_what_cuda_reports_and_divided_among_processes() {
        for (declared, processes, total, share) in [
            (8192, 1, 81_079, Ok("0.1010")),
            (8192, 2, 81_079, Ok("0.0505")),
            (8192, 1, 8192, Err(())),
            (8192, 2, 8192, Ok("0.5000")),
            (9000, 1, 8192, Err(())),
            (1, 1, 81_079, Err(())),
            (8, 1, 81_079, Err(())),
            (9, 1, 81_079, Ok("0.0001")),
        ] {
            let found = budget(declared, processes, total).share();
            assert_eq!(found.as_deref().map_err(|_| ()), share, "{declared} {processes} {total}");
        }
    }

    #[test]
    fn a_share_never_allows_more_than_the_budget() {
        for declared in (64..20_000).step_by(97) {
            for processes in 1..4 {
                let share: f64 = budget(declared, processes, 24_576).share().unwrap().parse().unwrap();
                let taken = share * 24_576.0 * f64::from(processes);
                assert!(taken <= declared as f64 && declared as f64 - taken < 10.0, "{declared} {processes}: {taken}");
            }
        }
    }

    #[test]
    fn a_share_by_another_total_of_the_same_model_of_gpu_is_no_looser_value() {
        for declared in (100..20_000).step_by(97) {
            for total in [80_000, 81_079, 81_600] {
                let share = |total| budget(declared, 1, total).share().unwrap();
                assert!(is_at_most(&share(80_000), &share(total)), "{declared} {total}");
                assert!(is_at_most(&share(total), &share(80_000)), "{declared} {total}");
            }
        }
        for (theirs, expected) in [("0.102", true), ("0.1022", false), ("0.11", false), ("0", false), ("NaN", false)] {
            assert_eq!(is_at_most(theirs, "0.1000"), expected, "{theirs}");
        }
    }

    #[test]
    fn the_largest_total_counts_while_gpus_hardly_differ_and_none_if_they_do() {
        let of =
            |smallest, largest| total(&Landing { totals: Some((mib(smallest), mib(largest))), ..Landing::default() });
        assert_eq!(of(80_000, 81_600), Ok(mib(81_600)));
        let differ = Why::SizesDiffer { smallest: mib(80_000), largest: mib(81_601) };
        assert_eq!(of(80_000, 81_601), Err(differ));
        assert_eq!(total(&Landing::default()), Err(Why::SizeUnknown));
    }
}
