//! How long ago the API server was last heard about objects of each kind. Owns the clock readings; whether a replica that hears
//! nothing is ready is for who asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::watch::stream::WATCH;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
    /// `GpuLedger` objects.
    Ledgers,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Pods, Kind::Nodes, Kind::Ledgers];

    /// As the API calls them.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Pods => "pods",
            Kind::Nodes => "nodes",
            Kind::Ledgers => "gpuledgers",
        }
    }
}

/// From here on a silent watch means that this replica has lost the API server: three watches in a row neither ended nor began.
/// Reviews then go to replicas that still hear it. Shorter silences are what restarts and upgrades of API servers look like, and
/// must not take all replicas away at once.
pub const SILENT: Duration = WATCH.saturating_mul(3);

/// When something was last heard, in milliseconds since `start` and one more; zero is never.
#[derive(Debug)]
pub struct Freshness {
    start: Instant,
    heard: [AtomicU64; Kind::ALL.len()],
}

impl Default for Freshness {
    fn default() -> Freshness {
        Freshness { start: Instant::now(), heard: Default::default() }
    }
}

impl Freshness {
    /// Something was heard at `now`.
    pub fn heard(&self, kind: Kind, now: Instant) {
        let since = now.saturating_duration_since(self.start).as_millis();
        let mark = u64::try_from(since).unwrap_or(u64::MAX - 1) + 1;
        self.heard[kind as usize].store(mark, Ordering::Relaxed);
    }

    /// For how long nothing was heard; `None` where nothing ever was.
    pub fn silent_for(&self, kind: Kind, now: Instant) -> Option<Duration> {
        let mark = self.heard[kind as usize].load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.start).saturating_sub(Duration::from_millis(mark)))
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
}
