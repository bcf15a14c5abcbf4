//! Metrics of the ResourceQuotas that limit VRAM; only on the leader.

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::capacity::vram::Vram;
use crate::k8s::resource_quota::Limit;

/// ResourceQuotas that are shown. Past it, further ones are left out.
const MAX_QUOTAS: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Quota {
    namespace: String,
    resourcequota: String,
}

/// The metrics of ResourceQuotas.
#[derive(Debug, Default)]
pub struct Quotas {
    hard: Family<Quota, Gauge>,
    used: Family<Quota, Gauge>,
    not_kept: Gauge,
    shown: AtomicUsize,
}

impl Quotas {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Limit on VRAM requests of a ResourceQuota; only on the leader";
        registry.register_with_unit("quota_hard", help, Unit::Bytes, self.hard.clone());
        let help = "VRAM requests that a ResourceQuota counts; only on the leader";
        registry.register_with_unit("quota_used", help, Unit::Bytes, self.used.clone());
        let help = "Namespaces whose ResourceQuota somebody else made or changed, so that it is not the policy's; only on the leader";
        registry.register("quotas_not_kept", help, self.not_kept.clone());
    }

    /// Sets the amounts of one ResourceQuota. An amount that is not known has no sample.
    pub fn set(&self, limit: &Limit) {
        let labels = Quota { namespace: limit.namespace.clone(), resourcequota: limit.name.clone() };
        if self.hard.get(&labels).is_none() && self.used.get(&labels).is_none() {
            if self.shown.load(Ordering::Relaxed) >= MAX_QUOTAS || limit.hard.or(limit.used).is_none() {
                return;
            }
            self.shown.fetch_add(1, Ordering::Relaxed);
        }
        for (family, amount) in [(&self.hard, limit.hard), (&self.used, limit.used)] {
            match amount {
                Some(amount) => _ = family.get_or_create(&labels).set(bytes(amount)),
                None => _ = family.remove(&labels),
            }
        }
    }

    /// Removes one ResourceQuota.
    pub fn remove(&self, namespace: &str, name: &str) {
        let labels = Quota { namespace: namespace.to_owned(), resourcequota: name.to_owned() };
        let was_shown = [self.hard.remove(&labels), self.used.remove(&labels)].contains(&true);
        if was_shown {
            self.shown.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sets the number of namespaces whose ResourceQuota is not the policy's.
    pub fn not_kept(&self, namespaces: usize) {
        self.not_kept.set(i64::try_from(namespaces).unwrap_or(i64::MAX));
    }

    /// Removes all of them.
    pub fn clear(&self) {
        self.hard.clear();
        self.used.clear();
        self.not_kept.set(0);
        self.shown.store(0, Ordering::Relaxed);
    }
}

fn bytes(amount: Vram) -> i64 {
    i64::try_from(amount.bytes()).unwrap_or(i64::MAX)
}
