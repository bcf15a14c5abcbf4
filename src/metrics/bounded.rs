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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::verdict::{BoundedBy, Why};

    #[test]
    fn containers_are_counted_by_framework_and_word() {
        let bounded = Bounded::default();
        let mut registry = Registry::default();
        bounded.register(&mut registry);
        let count = |framework, by| bounded.count(&Bound { framework, by, why: Why::NoFramework });
        count(Some(Framework::Jax), BoundedBy::Allocator);
        count(Some(Framework::Jax), BoundedBy::Allocator);
        count(None, BoundedBy::Nothing);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"bounded_containers_total{framework="JAX",by="allocator"} 2"#,
            r#"bounded_containers_total{framework="",by="nothing"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
