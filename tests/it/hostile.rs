//! Attacks on a server that has the memory of the manifests: it lives, and good reviews are answered all the while.
//!
//! | module | is |
//! |---|---|
//! | `shapes` | pods that are as large in memory as they can be |
//! | `attacks` | what somebody does who reaches the ports, or may create pods |
//! | `probe` | good reviews all the while, and how long they took |
//! | `memory` | the limit, and what the process has |
//! | `cluster` | the long form: a real control plane with many nodes and the API server between |
//!
//! CI asserts what does not depend on the machine: it lives, within its memory, and good reviews are answered within the
//! webhook's timeout. Latencies are printed. All of it: `just hostile`.
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
use crate::server::site::{Server, pod, review};

/// How long an attack that only holds something goes on: longer than the deadline of a body.
const HELD: Duration = Duration::from_secs(3);

/// How much of it.
struct Effort {
    /// Large reviews at once, of the worst shape and of the others.
    large: (usize, usize),
    /// Reviews at once that pass as small ones, of each shape.
    small: usize,
}

/// For CI, where the binary is not optimised.
const SHORT: Effort = Effort { large: (16, 4), small: 16 };
const LONG: Effort = Effort { large: (16, 16), small: 128 };

/// A process under attack.
pub struct Victim {
    pub pid: u32,
    /// Good reviews come from here.
    pub askers: Box<dyn Fn() -> Vec<(&'static str, Asker)>>,
}

impl Victim {
    /// Attacks while good reviews are asked for; prints what came of it, and holds what does not depend on the machine.
    pub async fn suffers(&self, name: &str, attack: impl Future<Output = ()>) {
        memory::forget_peak(self.pid);
        let probes: Vec<_> = (self.askers)().into_iter().map(|(way, asker)| (way, Probe::start(asker))).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
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

/// Attacks that need no cluster behind the ports.
async fn ports(victim: &Victim, target: &Target, Effort { large, small }: Effort) {
    victim.suffers("nothing", tokio::time::sleep(Duration::from_secs(1))).await;
    let name = format!("{} reviews of 2.9 MiB at once, {} of each other shape", large.0, large.1);
    victim.suffers(&name, target.large_reviews(large.0, large.1)).await;
    let name = format!("{small} reviews of 250 KiB at once, of each shape");
    victim.suffers(&name, target.small_reviews(small)).await;
    victim.suffers("8 slow bodies of 8 MiB", target.slow_bodies(&[8 << 20; 8], HELD)).await;
    victim.suffers("300 slow bodies of 200 KiB", target.slow_bodies(&[200 << 10; 300], HELD)).await;
    victim.suffers("2,000 idle connections", target.idle_connections(2_000, HELD)).await;
    victim.suffers("8 scrapes at a time", target.scrapes(8, HELD)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_under_attack_keeps_to_its_memory_and_answers_good_reviews() {
    let limited = Limited::new("vramguard-hostile");
    let server = Server::start_with(&[]).await;
    let pid = server.process.pid().expect("it runs");
    limited.take(pid);
    println!("limit of {} MiB kept by the kernel: {}", LIMIT >> 20, limited.is_kept());
    let (port, ca) = (server.site.https, server.ca());
    let target = Target { https: port, http: server.site.http, ca: ca.clone(), namespace: "lab".into() };
    let askers = move || {
        let body = review(&pod("lab", json!({}))).to_string();
        vec![("review", Asker::Port { port, ca: ca.clone(), body, client: None })]
    };
    ports(&Victim { pid, askers: Box::new(askers) }, &target, SHORT).await;
    server.expect_ready();
    drop((server, limited)); // in this order: a cgroup with a process in it stays
}
