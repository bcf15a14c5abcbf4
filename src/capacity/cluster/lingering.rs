//! Pods that are gone from the API and whose memory may not be free yet. Owns when it counts as free.
//!
//! The API server removes a pod that is deleted by force at once, and its processes live on for seconds. So where a node
//! agent has shown that a pod uses memory of a GPU, the pod counts until a later report no longer shows it. From then on
//! the agent reports what its processes still use as memory outside of pods. A report that does not come is waited for up
//! to a deadline, and so is one that can show it: an agent may have changed to a source that does not tell processes.
//!
//! This is for nodes on which the binding guard decides. Elsewhere kube-scheduler has given the room away by then, and the
//! node would seem overcommitted. The reports that show processes also put the binding guard in charge of one single GPU.

use std::time::Duration;

use super::{Cluster, REPORT_DEADLINE};
use crate::capacity::name::PodUid;
use crate::capacity::time::Moment;

/// How long a pod that is gone counts, if the agent reports nothing.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(30);

/// A pod that is gone from the API and still counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lingers {
    /// Since when it is gone.
    since: Moment,
    /// The report that was the last one then.
    report: Moment,
}

impl Cluster {
    /// Releases what a pod holds that ended or was deleted, or lets it count until its memory is free.
    pub fn end_pod(&mut self, uid: &PodUid) {
        if self.lingering.contains_key(uid) {
            return;
        }
        match self.shown_by(uid) {
            Some(report) => {
                let since = self.reports_from.after(REPORT_DEADLINE);
                self.lingering.insert(uid.clone(), Lingers { since, report });
            }
            None => self.delete_pod(uid),
        }
    }

    /// When the agent of a pod's node reported last, if that report is current and shows that the pod has used memory.
    fn shown_by(&self, uid: &PodUid) -> Option<Moment> {
        let name = self.node_of.get(uid)?.as_str();
        let node = self.nodes.get(name).filter(|_| self.needs_ledger(name))?;
        let inventory = node.ledger.content()?.inventory.as_ref()?;
        let current = inventory.reported.filter(|at| *at >= self.reports_from)?;
        inventory.peaks.contains_key(uid).then_some(current)
    }

    /// Releases the pods that the new report of a node no longer shows.
    pub(super) fn release_unshown(&mut self, name: &str) {
        let on_node = |uid: &PodUid| self.node_of.get(uid).is_some_and(|node| *node == *name);
        let shown = |uid: &PodUid, before: &Lingers| match self.shown_by(uid) {
            Some(_) => true,
            // An old report that the watch delivers again tells nothing new, and neither does a ledger that is gone or cannot
            // be read, or a report without processes.
            None => self.last_showing(name).is_none_or(|report| report == before.report),
        };
        let gone = self.lingering.iter().filter(|(uid, before)| on_node(uid) && !shown(uid, before));
        let gone: Vec<PodUid> = gone.map(|(uid, _)| uid.clone()).collect();
        self.release_all(gone);
    }

    /// When the last report was written, if it is one that shows the pods that use memory.
    fn last_showing(&self, name: &str) -> Option<Moment> {
        let inventory = self.nodes.get(name)?.ledger.content()?.inventory.as_ref()?;
        inventory.reported.filter(|_| inventory.source.tells_processes())
    }

    /// Releases the pods for which no report came in time.
    pub(super) fn release_overdue(&mut self, now: Moment) {
        let is_overdue = |lingers: &Lingers| lingers.since.after(RELEASE_DEADLINE) <= now;
        let overdue = self.lingering.iter().filter(|(_, lingers)| is_overdue(lingers));
        let overdue: Vec<PodUid> = overdue.map(|(uid, _)| uid.clone()).collect();
        self.release_all(overdue);
    }

    fn release_all(&mut self, pods: Vec<PodUid>) {
        for uid in pods {
            self.lingering.remove(&uid);
            self.delete_pod(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;

    use super::super::NodeView;
    use super::*;
    use crate::capacity::gpu::{AllocationPolicy, Gpu, GpuId};
    use crate::capacity::node::inventory::{Inventory, InventoryGpu, Source};
    use crate::capacity::node::ledger::LedgerContent;
    use crate::capacity::testing::{facts, gpu, holder, mib, pool, rules, uid};

    const NOW: Moment = Moment(10_000_000);

    fn report(second: i64, shown: &[&str], outside: u64) -> LedgerContent {
        let of = |(index, uuid): (u32, &str)| InventoryGpu {
            gpu: Gpu { id: GpuId::from(uuid), out_of_band: mib(outside), ..Gpu::of_size(index, mib(10_000)) },
            replicas: NonZeroU32::new(4).expect("four"),
        };
        let peak = |pod: &&str| (uid(pod), vec![("main".into(), mib(4_000))].into());
        let inventory = Inventory {
            reported: Some(Moment(NOW.0 + second * 1_000)),
            gpus: BTreeMap::from([(gpu(), [(0, "GPU-a"), (1, "GPU-b")].map(of).into())]),
            peaks: shown.iter().map(peak).collect(),
            allocation_policy: AllocationPolicy::Steered,
            ..Inventory::default()
        };
        LedgerContent { inventory: Some(inventory), ..LedgerContent::default() }
    }

    /// A node whose agent shows that `p` uses memory, and not that `unseen` does.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::new(rules(), std::collections::BTreeSet::new());
        cluster.apply_node("n", facts(vec![pool(&[10_000, 10_000], 4)]));
        cluster.tick(NOW);
        cluster.apply_ledger("n", Some(report(0, &["p"], 0)));
        for pod in ["p", "unseen"] {
            cluster.apply_pod(&uid(pod), "n", holder(4_000));
        }
        cluster
    }

    fn counts(cluster: &Cluster, pod: &str) -> bool {
        cluster.pods().any(|counted| *counted == uid(pod))
    }

    #[test]
    fn a_pod_that_is_gone_counts_until_a_later_report_no_longer_shows_it() {
        let mut cluster = cluster();
        cluster.end_pod(&uid("p"));
        cluster.end_pod(&uid("unseen"));
        assert!(counts(&cluster, "p") && !counts(&cluster, "unseen"), "nothing was seen of the other");
        cluster.apply_ledger("n", Some(report(0, &["p"], 0)));
        cluster.apply_ledger("n", Some(report(1, &["p"], 0)));
        assert!(counts(&cluster, "p"), "a report that was on its way still shows it");
        cluster.end_pod(&uid("p"));
        cluster.apply_ledger("n", Some(report(2, &[], 4_000)));
        assert!(!counts(&cluster, "p"), "what is left of it is memory outside of pods now");
    }

    #[test]
    fn a_ledger_that_is_gone_or_cannot_be_read_releases_nothing() {
        for content in [None, Some(LedgerContent { fault: Some("no ledger".into()), ..LedgerContent::default() })] {
            let mut cluster = cluster();
            cluster.end_pod(&uid("p"));
            cluster.apply_ledger("n", content);
            assert!(counts(&cluster, "p"));
            cluster.tick(NOW.after(RELEASE_DEADLINE));
            assert!(!counts(&cluster, "p"), "the deadline holds");
        }
    }

    #[test]
    fn a_report_that_cannot_show_pods_releases_none_before_the_deadline() {
        let mut cluster = cluster();
        cluster.end_pod(&uid("p"));
        for second in [1, 2] {
            let mut totals = report(second, &[], 0);
            totals.inventory.as_mut().expect("a report").source = Source::DcgmExporter;
            cluster.apply_ledger("n", Some(totals));
            assert!(counts(&cluster, "p"), "its process may be there still");
        }
        cluster.tick(Moment(NOW.after(RELEASE_DEADLINE).0 - 1));
        assert!(counts(&cluster, "p"));
        cluster.tick(NOW.after(RELEASE_DEADLINE));
        assert!(!counts(&cluster, "p"), "the deadline holds");
    }

    #[test]
    fn an_agent_that_sees_processes_again_releases_what_it_does_not_show() {
        let mut cluster = cluster();
        cluster.end_pod(&uid("p"));
        let mut totals = report(1, &[], 0);
        totals.inventory.as_mut().expect("a report").source = Source::DcgmExporter;
        cluster.apply_ledger("n", Some(totals));
        assert!(counts(&cluster, "p"));
        cluster.apply_ledger("n", Some(report(2, &[], 0)));
        assert!(!counts(&cluster, "p"));
    }

    #[test]
    fn a_pod_whose_peak_was_seen_by_an_earlier_source_counts_up_to_the_deadline() {
        let mut cluster = cluster();
        let mut totals = report(1, &["p"], 0);
        totals.inventory.as_mut().expect("a report").source = Source::DcgmExporter;
        cluster.apply_ledger("n", Some(totals));
        cluster.end_pod(&uid("p"));
        assert!(counts(&cluster, "p"));
        cluster.tick(NOW.after(RELEASE_DEADLINE));
        assert!(!counts(&cluster, "p"));
    }

    #[test]
    fn a_report_that_does_not_come_is_waited_for_up_to_a_deadline() {
        let mut cluster = cluster();
        cluster.end_pod(&uid("p"));
        let deadline = NOW.after(RELEASE_DEADLINE);
        cluster.tick(Moment(deadline.0 - 1));
        assert!(counts(&cluster, "p"));
        cluster.tick(deadline);
        assert!(!counts(&cluster, "p"));
    }

    #[test]
    fn without_a_current_report_a_pod_is_released_at_once() {
        let mut cluster = cluster();
        cluster.tick(NOW.after(REPORT_DEADLINE * 2));
        cluster.end_pod(&uid("p"));
        assert!(!counts(&cluster, "p"));
    }

    /// A node with one GPU, whose agent once showed that `p` uses memory, and now reads this source.
    fn with_one_gpu(source: Source) -> Cluster {
        let mut cluster = cluster();
        cluster.apply_node("n", facts(vec![pool(&[10_000], 4)]));
        let mut content = report(1, &["p"], 0);
        let inventory = content.inventory.as_mut().expect("a report");
        inventory.gpus.values_mut().for_each(|gpus| gpus.truncate(1));
        inventory.source = source;
        cluster.apply_ledger("n", Some(content));
        cluster
    }

    #[test]
    fn where_kube_scheduler_decides_a_pod_is_released_at_once() {
        let mut cluster = with_one_gpu(Source::DcgmExporter);
        cluster.end_pod(&uid("p"));
        assert!(!counts(&cluster, "p"), "its successor may be bound already");
    }

    #[test]
    fn on_one_gpu_the_successor_of_a_pod_waits_until_the_agent_no_longer_shows_its_memory() {
        let mut cluster = with_one_gpu(Source::Driver);
        let refused = |cluster: &Cluster| {
            let NodeView { facts, ledger, .. } = cluster.node("n").expect("the node");
            ledger.assume(&uid("next"), &holder(4_000), &facts.pools, &rules(), NOW).is_err()
        };
        assert!(refused(&cluster), "4,000 of 10,000 MiB are held twice");
        cluster.end_pod(&uid("p"));
        assert!(refused(&cluster), "its process may be there still");
        let mut content = report(2, &[], 0);
        content.inventory.as_mut().expect("a report").gpus.values_mut().for_each(|gpus| gpus.truncate(1));
        cluster.apply_ledger("n", Some(content));
        assert!(!refused(&cluster));
    }

    #[test]
    fn a_pod_that_a_list_shows_again_is_not_released() {
        let mut cluster = cluster();
        cluster.end_pod(&uid("p"));
        cluster.apply_pod(&uid("p"), "n", holder(4_000));
        cluster.tick(NOW.after(RELEASE_DEADLINE * 2));
        assert!(counts(&cluster, "p"));
    }
}
