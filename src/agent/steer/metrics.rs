//! Counters of steering. Owns their names and labels.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::capacity::steering::Fallback;

/// Counters of the metrics page.
#[derive(Debug)]
pub struct Counters {
    answers: Counter,
    fallbacks: Family<Why, Counter>,
    seconds: Histogram,
    pub(super) answers_dropped: Counter,
    pub(super) registrations: Counter,
    pub(super) matched: Counter,
    pub(super) mismatched: Counter,
    pub(super) unasked: Counter,
    pub(super) bypassed: Counter,
}

/// Label of a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Why(Fallback);

impl EncodeLabelSet for Why {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        [("why", self.0.label())].encode(encoder)
    }
}

impl Default for Counters {
    fn default() -> Counters {
        // The deadline is 280 ms.
        let buckets = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 1.0];
        let fallbacks = Family::<Why, Counter>::default();
        // A reason that never occurred is a sample of 0, so that a rate exists from the start.
        for why in Fallback::ALL {
            drop(fallbacks.get_or_create(&Why(why)));
        }
        Counters {
            answers: Counter::default(),
            fallbacks,
            seconds: Histogram::new(buckets),
            answers_dropped: Counter::default(),
            registrations: Counter::default(),
            matched: Counter::default(),
            mismatched: Counter::default(),
            unasked: Counter::default(),
            bypassed: Counter::default(),
        }
    }
}

impl Counters {
    /// Adds the counters to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "steer_answers",
            "Questions of the kubelet for devices that were answered",
            self.answers.clone(),
        );
        registry.register(
            "steer_fallbacks",
            "Answers that are not simply the GPU that the ledger reserved, by reason",
            self.fallbacks.clone(),
        );
        registry.register_with_unit(
            "steer_answer",
            "How long the kubelet waited for an answer",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "steer_answers_dropped",
            "Answers that could not be reported because too many were waiting",
            self.answers_dropped.clone(),
        );
        registry.register("steer_registrations", "Registrations with the kubelet", self.registrations.clone());
        registry.register(
            "steer_placements_matched",
            "Answers whose devices the kubelet then allocated and recorded",
            self.matched.clone(),
        );
        registry.register(
            "steer_placements_mismatched",
            "Answers in place of which the kubelet allocated or recorded other devices",
            self.mismatched.clone(),
        );
        registry.register(
            "steer_bypassed",
            "Allocations by the device plugin itself, while the agent took its own registration for the newest",
            self.bypassed.clone(),
        );
        registry.register("steer_unasked", "Allocations that the kubelet made without asking", self.unasked.clone());
    }

    pub(super) fn answered(&self, fallback: Option<Fallback>, took: Duration) {
        self.answers.inc();
        self.seconds.observe(took.as_secs_f64());
        if let Some(why) = fallback {
            self.fallbacks.get_or_create(&Why(why)).inc();
        }
    }
}
