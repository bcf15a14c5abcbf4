//! The pools of `reroute.pools`. Owns which labels can name a pool: the API server would refuse a pod whose node affinity
//! has an invalid one.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use crate::capacity::pod::placement::FallbackPool;
use crate::keys;

/// Most pools. A pod gets a node affinity with an alternative for each of them.
/// Each pool has half the weight of the one before, and the sixth has the smallest weight that there is.
pub(super) const MAX_POOLS: usize = 6;
/// Most labels of a pool.
pub(super) const MAX_LABELS: usize = 4;

/// The pools, in the order in which pods prefer them.
#[derive(Default)]
pub(super) struct Pools(pub Vec<FallbackPool>);

impl<'de> Deserialize<'de> for Pools {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pools, D::Error> {
        let pools = Vec::<Pool>::deserialize(deserializer)?;
        if pools.len() > MAX_POOLS {
            return Err(D::Error::custom(format_args!("has {} pools; at most {MAX_POOLS} are allowed", pools.len())));
        }
        Ok(Pools(pools.into_iter().map(|pool| FallbackPool(pool.match_labels.0)).collect()))
    }
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    expecting = "a pool, as in {matchLabels: {nvidia.com/gpu.product: NVIDIA-L40S}}"
)]
pub(super) struct Pool {
    /// Labels that all nodes of the pool have, and no other nodes; 1 to 4 of them.
    match_labels: Labels,
}

/// The labels that name a pool.
pub(super) struct Labels(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
        let labels = BTreeMap::<String, String>::deserialize(deserializer)?;
        if labels.is_empty() || labels.len() > MAX_LABELS {
            return Err(D::Error::custom(format_args!(
                "has {} labels; write 1 to {MAX_LABELS} labels that all nodes of the pool have, and no other nodes",
                labels.len()
            )));
        }
        for (key, value) in &labels {
            if key.starts_with(keys::PREFIX) {
                return Err(D::Error::custom(format_args!("{key:?} is set by vramguard and cannot name a pool")));
            }
            if !is_label_key(key) {
                return Err(D::Error::custom(format_args!("{key:?} is not the key of a label")));
            }
            if !is_label_value(value) {
                return Err(D::Error::custom(format_args!(
                    "{value:?} is not the value of a label (letters, digits, -, _ and ., at most 63)"
                )));
            }
        }
        Ok(Labels(labels))
    }
}

fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let domain = |prefix: &str| {
        let part = |part: &str| {
            let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
        };
        prefix.len() <= 253 && prefix.split('.').all(part)
    };
    prefix.is_none_or(domain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63 && bytes.iter().copied().all(inner) && ends(bytes.first()) && ends(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_that_the_api_server_accepts() {
        for key in ["pool", "nvidia.com/gpu.product", "a-b.c/X_1"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/x", "A.com/x", "a..b/x", "a/b/c", "-a/x", "a/", "a b"] {
            assert!(!is_label_key(key), "{key}");
        }
        for (value, is) in [("", true), ("NVIDIA-A10", true), ("a.b_c", true), ("-a", false), ("a:b", false)] {
            assert_eq!(is_label_value(value), is, "{value}");
        }
        assert!(is_label_value(&"x".repeat(63)) && !is_label_value(&"x".repeat(64)));
    }
}
