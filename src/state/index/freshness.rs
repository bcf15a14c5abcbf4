//! How long ago the API server last sent anything about each kind. Owns the clock readings; the caller decides whether
//! a replica that receives nothing is ready.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::k8s::document::resource;
use crate::state::watch::stream::WATCH;

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
    /// `GpuLedger` objects.
    Ledgers,
    /// `ClusterVramPolicy` objects.
    ClusterPolicies,
    /// `VramPolicy` objects.
    NamespacePolicies,
    /// `GpuInventory` objects.
    Inventories,
}

impl From<resource::Kind> for Kind {
    fn from(kind: resource::Kind) -> Kind {
        match kind {
            resource::Kind::Cluster => Kind::ClusterPolicies,
            resource::Kind::Namespace => Kind::NamespacePolicies,
            resource::Kind::Inventory => Kind::Inventories,
        }
    }
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 6] =
        [Kind::Pods, Kind::Nodes, Kind::Ledgers, Kind::ClusterPolicies, Kind::NamespacePolicies, Kind::Inventories];

    /// The plural name of the resource in the API.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Pods => "pods",
            Kind::Nodes => "nodes",
            Kind::Ledgers => "gpuledgers",
            Kind::ClusterPolicies => resource::Kind::Cluster.plural(),
            Kind::NamespacePolicies => resource::Kind::Namespace.plural(),
            Kind::Inventories => resource::Kind::Inventory.plural(),
        }
    }
}

/// Silence after which this replica counts as cut off from the API server: three watches in a row neither ended nor
/// began. Reviews then go to replicas that still receive events. Restarts and upgrades of API servers cause shorter
/// silences, which must not make all replicas unready at once.
pub const SILENT: Duration = WATCH.saturating_mul(3);

/// The time of the last sign of life of each kind: milliseconds since `start`, plus one. Zero is never.
#[derive(Debug)]
pub(super) struct Freshness {
    start: Instant,
    heard: [AtomicU64; Kind::ALL.len()],
}

impl Default for Freshness {
    fn default() -> Freshness {
        Freshness { start: Instant::now(), heard: Default::default() }
    }
}

impl Freshness {
    /// Notes a sign of life at `now`.
    pub(super) fn heard(&self, kind: Kind, now: Instant) {
        let since = now.saturating_duration_since(self.start).as_millis();
        let mark = u64::try_from(since).unwrap_or(u64::MAX - 1) + 1;
        self.heard[kind as usize].store(mark, Ordering::Relaxed);
    }

    /// How long a kind has been silent at `now`; `None` before its first sign of life.
    pub(super) fn silent_for(&self, kind: Kind, now: Instant) -> Option<Duration> {
        let mark = self.heard[kind as usize].load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.start).saturating_sub(Duration::from_millis(mark)))
    }

    /// Whether the API server has been silent about any kind for at least [`SILENT`].
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        Kind::ALL.iter().any(|kind| self.silent_for(*kind, now).is_some_and(|silent| silent >= SILENT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_for_each_kind_from_what_was_heard_last() {
        let freshness = Freshness::default();
        let at = |seconds| freshness.start + Duration::from_secs(seconds);
        assert_eq!(freshness.silent_for(Kind::Pods, at(5)), None);
        freshness.heard(Kind::Pods, at(5));
        freshness.heard(Kind::Pods, at(7));
        assert_eq!(freshness.silent_for(Kind::Pods, at(10)), Some(Duration::from_secs(3)));
        assert_eq!(freshness.silent_for(Kind::Nodes, at(10)), None);
    }

    #[test]
    fn three_silent_minutes_about_one_kind_are_too_many_and_a_kind_never_heard_of_is_not_waited_for() {
        let freshness = Freshness::default();
        let at = |seconds| freshness.start + Duration::from_secs(seconds);
        assert!(!freshness.is_lost(at(3600)), "a snapshot is never heard of");
        freshness.heard(Kind::Pods, at(10));
        freshness.heard(Kind::Nodes, at(100));
        assert!(!freshness.is_lost(at(189)));
        assert!(freshness.is_lost(at(190)), "nodes alone are not enough");
        freshness.heard(Kind::Pods, at(191));
        assert!(!freshness.is_lost(at(192)));
    }
}
