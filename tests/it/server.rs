//! The real listener, as a black box: the binary is started on a snapshot, and everything goes over its two ports.
//!
//! | module | asks |
//! |---|---|
//! | `site` | nothing: it starts servers |
//! | `client` | nothing: it speaks TLS and HTTP |
//! | `reviews` | what is answered |
//! | `garbage` | what is answered to what is no review |
//! | `filter` | what kube-scheduler is answered |
//! | `slow` | what becomes of clients that stall, or are too many |
//! | `certificates` | which certificate is served |
//! | `policies` | which policies are in force |
//! | `lifecycle` | how it starts and stops |
//! | `metrics` | what it says of itself |
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // files, sockets and time are what this is about

mod certificates;
mod client;
mod filter;
mod garbage;
mod lifecycle;
mod metrics;
mod policies;
mod reviews;
mod site;
mod slow;
