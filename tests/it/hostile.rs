//! Attacks on a server with the memory limit of the manifests, which must survive and answer good reviews during them.
//!
//! | module | owns |
//! |---|---|
//! | `shapes` | pods that are as large in memory as possible |
//! | `attacks` | the attacks of a client that reaches the ports, and of a user who may create pods |
//! | `probe` | good reviews during an attack, and their latencies |
//! | `memory` | the memory limit and the memory of a process |
//! | `cluster` | the long form, through the API server of a real control plane with many nodes |
//!
//! CI asserts what does not depend on the machine: the server survives within its memory, and answers good reviews within the
//! webhook's timeout. Latencies are printed. `just hostile` runs everything.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // time, files and programs are what this is about

mod attacks;
mod cluster;
mod memory;
mod probe;
mod shapes;

use std::time::Duration;

use serde_json::json;

use self::attacks::Target;
use self::memory::{LIMIT, Limited};
use self::probe::{Asker, Latencies, Probe};
use crate::support::test_server::{TestServer, pod, review};

/// Time for which an attack holds connections or memory, longer than the deadline of a body.
const HELD: Duration = Duration::from_secs(3);

/// Size of an attack.
struct Effort {
    /// Number of concurrent large reviews of the worst shape, and of each other shape.
    large: (usize, usize),
    /// Number of concurrent small reviews of each shape.
    small: usize,
}

/// The attack in CI, where the binary is not optimised.
const SHORT: Effort = Effort { large: (16, 4), small: 16 };
const LONG: Effort = Effort { large: (16, 16), small: 128 };

/// A process under attack.
pub(crate) struct Victim {
    pub pid: u32,
    /// Makes the clients that send good reviews.
    pub askers: Box<dyn Fn() -> Vec<(&'static str, Asker)>>,
}

impl Victim {
    /// Attacks while probes send good reviews, prints memory and latencies, and asserts what does not depend on the machine.
    pub(crate) async fn suffers(&self, name: &str, attack: impl Future<Output = ()>) {
        memory::forget_peak(self.pid);
        let probes: Vec<_> = (self.askers)().into_iter().map(|(way, asker)| (way, Probe::start(asker))).collect();
        for (_, probe) in &probes {
            probe.begun().await;
        }
        attack.await;
        let mut asked = Vec::new();
        for (way, probe) in probes {
            asked.push((way, probe.stop().await));
        }
        let (now, peak) = memory::resident(self.pid).unwrap_or_else(|| panic!("{name}: killed"));
        for (way, Latencies { median, worst, count, unanswered }) in &asked {
            println!(
                "{name}: peak {peak} MiB, then {now} MiB; {way}: median {median:.1?}, worst {worst:.1?} of {count}, {} unanswered",
                unanswered.len()
            );
            assert!(unanswered.is_empty(), "{name}, {way}: {unanswered:?}");
            assert!(*count > 1, "{name}, {way}: asked {count} times, which shows nothing");
        }
        assert!(peak < LIMIT >> 20, "{name}: {peak} MiB");
    }
}

/// All attacks that need no cluster.
async fn ports(victim: &Victim, target: &Target, Effort { large, small }: Effort) {
    // The sleep is the scenario: a second without an attack, for comparison.
    victim.suffers("nothing", tokio::time::sleep(Duration::from_secs(1))).await;
    let name = format!("{} reviews of 2.9 MiB at once, {} of each other shape", large.0, large.1);
    victim.suffers(&name, target.large_reviews(large.0, large.1)).await;
    let name = format!("{small} reviews of 250 KiB at once, of each shape");
    victim.suffers(&name, target.small_reviews(small)).await;
    let name = format!("{} updates of workloads of 4 MiB at once, {} of each other shape", large.0, large.1);
    victim.suffers(&name, target.large_workloads(large.0, large.1)).await;
    victim.suffers("8 slow bodies of 8 MiB", target.slow_bodies(&[8 << 20; 8], HELD)).await;
    victim.suffers("300 slow bodies of 200 KiB", target.slow_bodies(&[200 << 10; 300], HELD)).await;
    victim.suffers("2,000 idle connections", target.idle_connections(2_000, HELD)).await;
    victim.suffers("8 scrapes at a time", target.scrapes(8, HELD)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_under_attack_keeps_to_its_memory_and_answers_good_reviews() {
    let limited = Limited::new("vramguard-hostile");
    let server = TestServer::start_with(&[]).await;
    let pid = server.process.pid().expect("it runs");
    limited.take(pid);
    println!("limit of {} MiB kept by the kernel: {}", LIMIT >> 20, limited.is_kept());
    let (port, ca) = (server.files.https, server.ca());
    let target = Target { https: port, http: server.files.http, ca: ca.clone(), namespace: "lab".into() };
    let askers = move || {
        let body = review(&pod("lab", json!({}))).to_string();
        vec![("review", Asker::Port { port, ca: ca.clone(), body, client: None })]
    };
    ports(&Victim { pid, askers: Box::new(askers) }, &target, SHORT).await;
    server.expect_ready();
    drop((server, limited)); // in this order: a cgroup with a process cannot be removed
}
