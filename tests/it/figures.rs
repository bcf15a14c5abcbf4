//! Figures of a guarded cluster on a real control plane: printed, and bounded by nothing but patience, because a shared machine
//! would fail a bound for reasons of its own. What was seen, and what it means, is in `docs/benchmarks.md`.
//!
//! | module | is |
//! |---|---|
//! | `site` | the cluster, with the guard and without it |
//! | `rate` | pods per second from created to bound |
//! | `room` | room freed → the waiting pod bound |
//! | `sample` | medians and percentiles, CPU time of processes |
//!
//! `just figures`; `VRAMGUARD_ROUNDS` and `VRAMGUARD_SAMPLES` say how often, `VRAMGUARD_NODES` on how many nodes with several
//! GPUs.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // time, environment and processes are what this is about

mod rate;
mod room;
mod sample;
mod site;

use crate::support::ClientLimits;
use site::Workload;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: see the top of the file"]
async fn pods_per_second_beside_the_same_cluster_without_the_guard() {
    rate::measure(ClientLimits::Default).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: see the top of the file"]
async fn pods_per_second_with_raised_client_limits() {
    rate::measure(ClientLimits::Raised).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: see the top of the file"]
async fn time_from_freed_room_to_a_bound_pod() {
    for workload in [Workload::Single, Workload::Pinned] {
        room::measure(workload).await;
    }
}

/// How often something is measured.
fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{variable}: {e}")))
}
