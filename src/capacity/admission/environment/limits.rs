//! Limits below the framework: the hard limit of the driver, and the limit of MPS. Owns their format, and when a user's
//! own limit is as good as ours. Which nodes enforce them is [`crate::capacity::cluster`]'s.
//!
//! If a node cannot enforce a hard limit, the container does not start there. So these variables are injected only if
//! every node that the pod may land on is known to enforce them.

use super::budget::Budget;
use super::merge::{Merge, Outcome};
use crate::capacity::cluster::Limits;
use crate::capacity::verdict::Why;
use crate::capacity::vram::Vram;
use crate::keys;

/// Sets the limit that these nodes enforce. `None` if they enforce none.
pub(super) fn plan(merge: &mut Merge<'_>, budget: &Budget, limits: Limits) -> Option<Outcome> {
    match limits {
        Limits::None => None,
        Limits::Hard => Some(hard(merge, budget.demand)),
        Limits::Mps => Some(mps(merge, budget.of_process())),
    }
}

/// What CUDA reports as the total under a user's or our hard limit; `None` if the user's cannot be read.
pub(super) fn total(merge: &Merge<'_>, demand: Vram) -> Option<Vram> {
    let name = keys::ENV_GPU_MEMORY_LIMIT;
    if merge.sets(name) { merge.own(name).and_then(amount) } else { Some(demand) }
}

/// The toolkit wants both variables or none, and no request above the limit.
fn hard(merge: &mut Merge<'_>, demand: Vram) -> Outcome {
    let (request, limit) = (keys::ENV_GPU_MEMORY_REQUEST, keys::ENV_GPU_MEMORY_LIMIT);
    let ours = demand.mib().to_string();
    if !merge.sets(request) && !merge.sets(limit) {
        merge.set(request, ours.as_str());
        merge.set(limit, ours.as_str());
        return Outcome::Holds(Why::Holds { name: limit, value: ours });
    }
    let own = merge.own(request).and_then(amount).zip(merge.own(limit).and_then(amount));
    match own {
        Some((least, most)) if least <= most && most <= demand => {
            Outcome::Holds(Why::Holds { name: limit, value: most.mib().to_string() })
        }
        _ => {
            let name = if merge.sets(limit) { limit } else { request };
            merge.looser(name, None, ours)
        }
    }
}

/// The limit is for each process, for the only device that the container sees. One wrong entry makes MPS drop all.
fn mps(merge: &mut Merge<'_>, of_process: Vram) -> Outcome {
    let (name, ours) = (keys::ENV_MPS_LIMIT, format!("0={}M", of_process.mib()));
    if !merge.sets(name) {
        merge.set(name, ours.as_str());
        return Outcome::Holds(Why::Holds { name, value: ours });
    }
    let own = merge.own(name).map(str::to_owned);
    match own.as_deref().and_then(of_device).filter(|most| *most <= of_process) {
        Some(_) => Outcome::Holds(Why::Holds { name, value: own.unwrap_or_default() }),
        None => merge.looser(name, own, ours),
    }
}

/// A limit for device 0 alone: `0=8912M`, or `0=8G`.
fn of_device(text: &str) -> Option<Vram> {
    let value = text.trim().strip_prefix("0=")?;
    let (number, factor) = match value.strip_suffix(['M', 'm']) {
        Some(number) => (number, 1),
        None => (value.strip_suffix(['G', 'g'])?, 1024),
    };
    amount(number)?.checked_times(factor)
}

/// A limit in MiB. Zero limits nothing, and is as good as unreadable.
fn amount(text: &str) -> Option<Vram> {
    let is_count = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let amount = is_count.then(|| text.parse().ok().and_then(Vram::checked_from_mib))?;
    amount.filter(|amount| !amount.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_mps_is_read_for_the_only_device() {
        for (text, mib) in [
            ("0=8912M", Some(8912)),
            ("0=8G", Some(8192)),
            (" 0=1m", Some(1)),
            ("0=1G,1=512M", None),
            ("1=8G", None),
            ("0=8", None),
            ("0=", None),
            ("0=0M", None),
            ("0=0G", None),
            ("0=-1M", None),
            ("0=99999999999999999999G", None),
            ("", None),
        ] {
            assert_eq!(of_device(text).map(Vram::mib), mib, "{text:?}");
        }
    }
}
