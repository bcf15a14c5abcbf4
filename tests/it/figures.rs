//! Measurements of a guarded cluster on a real control plane. `docs/benchmarks.md` has results and their meaning.
//!
//! The tests print and do not assert, because the load of a shared machine would decide an assertion.
//!
//! | module | owns |
//! |---|---|
//! | `cluster` | the cluster, with and without the guard |
//! | `rate` | pods per second from creation to binding |
//! | `room` | time from freed VRAM to the binding of a waiting pod |
//! | `sample` | medians, percentiles, and CPU time of processes |
//!
//! Run `just figures`. `VRAMGUARD_ROUNDS` and `VRAMGUARD_SAMPLES` set the number of measurements, `VRAMGUARD_NODES` the number
//! of nodes with several GPUs.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // time, environment and processes are what this is about

mod cluster;
mod rate;
mod room;
mod sample;

use crate::support::ClientLimits;
use cluster::Workload;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and measures: `just figures`"]
async fn pods_per_second_beside_the_same_cluster_without_the_guard() {
    rate::measure(ClientLimits::Default).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and measures: `just figures`"]
async fn pods_per_second_with_raised_client_limits() {
    rate::measure(ClientLimits::Raised).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes, and measures: `just figures`"]
async fn time_from_freed_room_to_a_bound_pod() {
    for workload in [Workload::Single, Workload::Steered] {
        room::measure(workload).await;
    }
}

/// The number in an environment variable, or `default`.
fn times(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{variable}: {e}")))
}
