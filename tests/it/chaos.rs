//! The promise under faults, on a real control plane with several replicas, two schedulers and bursts of pods.
//!
//! The nodes cover every accounting mode. Replicas are killed and paused, and the API server is restarted. An independent
//! checker adds up the bound pods at each resource version.
//!
//! | module | owns |
//! |---|---|
//! | `seed` | repeatable randomness from `VRAMGUARD_SEED` |
//! | `hardware` | the GPUs of nodes |
//! | `burst` | the workload |
//! | `node_agent` | a stand-in for device plugin and node agent |
//! | `faults` | the faults |
//! | `view` | the fields of pods and nodes that the checker and the stand-in read |
//! | `checker` | the verdict |
//! | `run` | one run of all parts |
//!
//! The long run: `VRAMGUARD_ROUNDS=10 cargo test --test it -- --ignored --nocapture chaos::rounds`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // these tests need time, files and programs

mod burst;
mod checker;
mod faults;
mod hardware;
mod node_agent;
mod run;
pub(crate) mod seed;
mod view;

use std::time::Duration;

use crate::support::guard::OnOutage;
use checker::Kind;
use run::{Plan, Run};

/// The plan of a run in CI; longer runs change fields.
fn plan(seed: u64) -> Plan {
    Plan { seed, pods: 500, bindings: OnOutage::Refuse, faults: Duration::from_secs(30) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_gpu_is_overcommitted_at_any_version_whatever_dies_or_hangs() {
    let run = Run::start(plan(seed::seed())).await;
    run.burst().await;
    run.everything_that_fits_is_bound().await;
    run.nothing_was_wrong();
}

/// With `failurePolicy: Ignore`, bindings bypass a stopped guard, and kube-scheduler uses the last published numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slips_past_a_guard_that_is_away_is_reported_within_seconds_of_its_return() {
    let run = Run::start(Plan { bindings: OnOutage::Allow, faults: Duration::ZERO, ..plan(seed::seed()) }).await;
    run.burst().await;
    run.settle(Duration::from_secs(3), Duration::from_secs(60)).await;
    run.away().await;
    assert!(!run.overcommitted().is_empty(), "nothing slipped past: the test shows nothing");
    run.overcommit_is_reported(Duration::from_secs(5)).await;
    run.slips_are_reported(Duration::from_secs(10)).await;
}

/// Runs `VRAMGUARD_ROUNDS` rounds (default 3), each with the next seed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: `just chaos`"]
async fn rounds() {
    let rounds =
        std::env::var("VRAMGUARD_ROUNDS").map_or(3, |text| text.parse().expect("VRAMGUARD_ROUNDS is a number"));
    let first = seed::seed();
    for seed in first..first + rounds {
        println!("round with VRAMGUARD_SEED={seed}");
        let run = Run::start(Plan { faults: Duration::from_secs(90), ..plan(seed) }).await;
        run.burst().await;
        run.everything_that_fits_is_bound().await;
        run.nothing_was_wrong();
    }
}

/// Tests the checker, because a checker that finds nothing would pass every run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute, and shows only that the checker finds something: `just chaos`"]
async fn without_the_binding_guard_gpus_are_overcommitted_and_the_checker_sees_it() {
    let run = Run::start(Plan { faults: Duration::ZERO, ..plan(seed::seed()) }).await;
    run.remove_binding_guard().await;
    run.burst().await;
    run.settle(Duration::from_secs(12), Duration::from_secs(60)).await;
    run.print_findings();
    assert!(run.count(Kind::Overcommitted) > 0, "nobody guards and nothing is wrong");
}
