//! Metrics of the ResourceQuotas that limit VRAM; only on the leader.

use std::collections::BTreeSet;

use parking_lot::Mutex;
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
    /// Those that have a sample.
    shown: Mutex<BTreeSet<(String, String)>>,
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
        let key = (limit.namespace.clone(), limit.name.clone());
        let mut shown = self.shown.lock();
        if !shown.contains(&key) && shown.len() >= MAX_QUOTAS {
            return;
        }
        let labels = Quota { namespace: limit.namespace.clone(), resourcequota: limit.name.clone() };
        for (family, amount) in [(&self.hard, limit.hard), (&self.used, limit.used)] {
            match amount {
                Some(amount) => _ = family.get_or_create(&labels).set(bytes(amount)),
                None => _ = family.remove(&labels),
            }
        }
        shown.insert(key);
    }

    /// Removes one ResourceQuota.
    pub fn remove(&self, namespace: &str, name: &str) {
        let labels = Quota { namespace: namespace.to_owned(), resourcequota: name.to_owned() };
        self.hard.remove(&labels);
        self.used.remove(&labels);
        self.shown.lock().remove(&(namespace.to_owned(), name.to_owned()));
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
        self.shown.lock().clear();
    }
}

fn bytes(amount: Vram) -> i64 {
    i64::try_from(amount.bytes()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_come_and_go_without_an_end() {
        let quotas = Quotas::default();
        let limit = |number: usize, hard: Option<Vram>| Limit {
            namespace: number.to_string(),
            name: "vramguard".into(),
            uid: String::new(),
            hard,
            used: None,
            ours: true,
        };
        for number in 0..3 * MAX_QUOTAS {
            quotas.set(&limit(number, Some(Vram::from_mib(1))));
            // It becomes unreadable, and then it is deleted.
            quotas.set(&limit(number, None));
            quotas.remove(&number.to_string(), "vramguard");
        }
        quotas.set(&limit(0, Some(Vram::from_mib(1))));
        let labels = Quota { namespace: "0".into(), resourcequota: "vramguard".into() };
        assert_eq!(quotas.hard.get(&labels).map(|gauge| gauge.get()), Some(1 << 20));
        for number in 0..2 * MAX_QUOTAS {
            quotas.set(&limit(number, Some(Vram::from_mib(1))));
        }
        assert_eq!(quotas.shown.lock().len(), MAX_QUOTAS);
    }
}
