//! What bounds the containers of new pods, counted at each review of `/mutate/pods`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::capacity::pod::software::Framework;
use crate::capacity::verdict::Bound;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Bounds {
    /// Name of its framework; empty if none is known.
    framework: &'static str,
    /// `driver`, `allocator`, `plan` or `nothing`.
    by: &'static str,
}

/// The counter. It has at most 40 series.
#[derive(Debug, Default)]
pub struct Bounded(Family<Bounds, Counter>);

impl Bounded {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Containers with part of a shared GPU in reviews of new pods, by framework and by what bounds them";
        registry.register("bounded_containers", help, self.0.clone());
    }

    /// Counts a container.
    pub fn count(&self, bound: &Bound) {
        let framework = bound.framework.map_or("", Framework::name);
        self.0.get_or_create(&Bounds { framework, by: bound.by.word() }).inc();
    }
}
