//! The promise on a real control plane, with everything going wrong: several replicas of the server, two schedulers, bursts
//! of pods onto nodes of every accounting mode, replicas killed and hung, the API server restarted. An independent checker
//! adds up what is bound at each version.
//!
//! | module | is |
//! |---|---|
//! | `seed` | chance that can be repeated: `VRAMGUARD_SEED` |
//! | `hardware` | what nodes are made of |
//! | `burst` | the workload |
//! | `node_agent` | a stand-in for device plugin and node agent |
//! | `faults` | what goes wrong |
//! | `stream`, `view` | what the checker and the stand-in see |
//! | `checker` | who judges |
//! | `run` | all of it together |
//!
//! The long run: `VRAMGUARD_ROUNDS=10 cargo test --test it -- --ignored --nocapture chaos::rounds`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // time, files and programs are what this is about

mod burst;
mod checker;
mod faults;
mod hardware;
mod node_agent;
mod run;
mod seed;
pub mod stream;
mod view;

use std::time::Duration;

use crate::guard::OnOutage;
use checker::Kind;
use run::{Plan, Run};

/// What a run of CI and the long one have in common.
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

/// Under `Ignore` bindings pass by a guard that is away, and kube-scheduler goes by what the nodes published last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slips_past_a_guard_that_is_away_is_reported_within_seconds_of_its_return() {
    let run = Run::start(Plan { bindings: OnOutage::Allow, faults: Duration::ZERO, ..plan(seed::seed()) }).await;
    run.burst().await;
    run.settle(Duration::from_secs(3), Duration::from_secs(60)).await;
    run.away().await;
    assert!(!run.overcommitted().is_empty(), "nothing slipped past: the test shows nothing");
    run.overcommit_is_reported(Duration::from_secs(5)).await;
    run.slips_are_said(Duration::from_secs(10)).await;
}

/// As often as VRAMGUARD_ROUNDS says (3), each round with the seed after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: see the top of the file"]
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

/// A checker that cannot find anything would pass every run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: see the top of the file"]
async fn without_the_binding_guard_gpus_are_overcommitted_and_the_checker_sees_it() {
    let run = Run::start(Plan { faults: Duration::ZERO, ..plan(seed::seed()) }).await;
    run.remove_binding_guard().await;
    run.burst().await;
    run.settle(Duration::from_secs(12), Duration::from_secs(60)).await;
    run.print_findings();
    assert!(run.count(Kind::Overcommitted) > 0, "nobody guards and nothing is wrong");
}
