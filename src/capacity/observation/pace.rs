//! When a report is worth a write. Owns the intervals, which bound what all agents of a cluster ask of its API server.
//!
//! On N nodes, heartbeats are N / 216 writes a second at most. A node whose amounts change all the time writes every
//! 120 s, and then needs no heartbeats. So 5,000 nodes write 23.2 times a second if nothing happens, and 41.7 times if
//! everything changes all the time. Writes about placements come on top, at most one in two seconds on each node: one for
//! each start of a container with a GPU, its first use of the GPU and its end, which cost the API server several times as
//! many writes anyway, and one for each 256 MiB that a pod without a declaration grows or that memory outside of pods falls.

use std::time::Duration;

use super::report::{Change, Report, Written};
use crate::capacity::time::Moment;

/// Longest time between two reports. The heartbeats of several agents are spread over its last tenth.
pub const HEARTBEAT: Duration = Duration::from_secs(240);
/// Shortest time before a report about amounts.
pub const AMOUNTS: Duration = Duration::from_secs(120);
/// Shortest time before a report that bindings depend on. Several pods that start together are one report.
pub const PLACEMENT: Duration = Duration::from_secs(2);

/// Whether a report should be written now. `spread` is any number that differs between nodes.
pub fn is_due(report: &Report, written: Option<&Written>, spread: u64, now: Moment) -> bool {
    let Some(written) = written else { return true };
    let tenth = HEARTBEAT / 10;
    let early = Duration::from_millis(spread % u64::try_from(tenth.as_millis()).unwrap_or(1));
    let wait = match report.change_from(&written.report) {
        Change::Slight => HEARTBEAT - early,
        Change::Amounts => AMOUNTS,
        Change::Placement => PLACEMENT,
    };
    // A clock that was set back must not silence the agent.
    now >= written.at.after(wait) || now < written.at.before(PLACEMENT)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::capacity::cluster::REPORT_DEADLINE;
    use crate::capacity::gpu::Resource;
    use crate::capacity::observation::report::GpuReport;
    use crate::capacity::vram::Vram;

    const NODES: u64 = 5_000;
    const HOUR: u64 = 3_600;

    fn report(used: u64, replicas: u32) -> Report {
        let gpu = GpuReport {
            resource: Resource("nvidia.com/gpu".into()),
            replicas: NonZeroU32::new(replicas).unwrap(),
            uuid: "GPU-0".into(),
            index: 0.into(),
            total: Vram::from_mib(81_559),
            reserved: Some(Vram::from_mib(480)),
            used: Vram::from_mib(used),
            outside: Some(Vram::ZERO),
            unreadable: None,
        };
        Report { gpus: vec![gpu], ..Report::default() }
    }

    /// The writes of all nodes in an hour, in which each looks once a second and sees `at(second)`.
    fn writes_per_second(at: impl Fn(u64) -> Report) -> f64 {
        let mut writes = 0;
        let sampled = 50;
        for node in 0..sampled {
            let mut written: Option<Written> = None;
            for second in 0..HOUR {
                let (report, now) = (at(second), Moment::default().after(Duration::from_secs(second)));
                if is_due(&report, written.as_ref(), node * 480, now) {
                    written = Some(Written { report, at: now });
                    writes += 1;
                }
            }
        }
        (writes * NODES / sampled) as f64 / HOUR as f64
    }

    #[test]
    fn five_thousand_nodes_write_less_than_fifty_times_a_second() {
        let quiet = writes_per_second(|_| report(1_000, 4));
        let noisy = writes_per_second(|second| report(1_000 + second % 255, 4));
        let wild = writes_per_second(|second| report(second % 7 * 10_000, 4));
        println!(
            "writes a second on {NODES} nodes: {quiet:.1} at rest, {noisy:.1} under noise, {wild:.1} under change"
        );
        assert!(quiet < 24.0 && noisy < 24.0 && wild < 43.0, "{quiet} {noisy} {wild}");
        assert!(quiet > 20.0, "heartbeats are among them");
        // The figures of the module's comment.
        let nodes = NODES as f64;
        assert!((nodes / 216.0 - 23.1).abs() < 0.1 && (nodes / 120.0 - 41.7).abs() < 0.1);
    }

    #[test]
    fn a_placement_is_written_within_seconds_and_several_together() {
        let at = |seconds| Moment::default().after(Duration::from_secs(seconds));
        let written = Written { report: report(1_000, 4), at: at(0) };
        assert!(!is_due(&report(1_000, 8), Some(&written), 0, at(1)));
        assert!(is_due(&report(1_000, 8), Some(&written), 0, at(2)));
        assert!(!is_due(&report(9_000, 4), Some(&written), 0, at(119)));
        assert!(is_due(&report(9_000, 4), Some(&written), 0, at(120)));
        assert!(!is_due(&report(1_000, 4), Some(&written), 0, at(239)));
        assert!(is_due(&report(1_000, 4), Some(&written), 0, at(240)));
    }

    #[test]
    fn two_heartbeats_may_fail_before_a_report_is_stale() {
        assert!(REPORT_DEADLINE > HEARTBEAT * 2 && REPORT_DEADLINE < HEARTBEAT * 3);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_silence_the_agent() {
        let written = Written { report: report(1_000, 4), at: Moment(10_000_000) };
        assert!(is_due(&report(1_000, 4), Some(&written), 0, Moment(5_000_000)));
    }
}
