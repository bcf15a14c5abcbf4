//! The real listener as a black box: the tests start the binary on a snapshot and use its two ports.
//!
//! | module | tests |
//! |---|---|
//! | `reviews` | answers to reviews |
//! | `garbage` | answers to bodies that are no reviews |
//! | `workloads` | answers to reviews of workloads |
//! | `filter` | answers to kube-scheduler's extender requests |
//! | `slow` | clients that stall |
//! | `crowd` | too many clients, and too large bodies |
//! | `oversized` | pods with more entries than the server reads |
//! | `clients` | client certificates |
//! | `certificates` | rotation of the serving certificate |
//! | `policies` | changes of policy files |
//! | `lifecycle` | start, invalid input, and stop |
//! | `metrics` | the content of `/metrics` |
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // these tests need files, sockets and time

mod certificates;
mod clients;
mod crowd;
mod filter;
mod garbage;
mod lifecycle;
mod metrics;
mod oversized;
mod policies;
mod reviews;
mod slow;
mod workloads;
