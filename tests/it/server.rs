//! The real listener, as a black box: the binary is started on a snapshot, and everything goes over its two ports.
//!
//! | module | asks |
//! |---|---|
//! | `site` | nothing: it starts servers |
//! | `client` | nothing: it speaks TLS and HTTP |
//! | `reviews` | what is answered |
//! | `garbage` | what is answered to what is no review |
//! | `filter` | what kube-scheduler is answered |
//! | `slow` | what becomes of clients that stall |
//! | `crowd` | what becomes of clients that are too many, or send too much |
//! | `oversized` | what is answered about pods that are larger than what is read of them |
//! | `clients` | who may ask at all |
//! | `certificates` | which certificate is served |
//! | `policies` | which policies are in force |
//! | `lifecycle` | how it starts and stops |
//! | `metrics` | what it says of itself |
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // files, sockets and time are what this is about

mod certificates;
pub mod client;
pub mod clients;
mod crowd;
mod filter;
mod garbage;
mod lifecycle;
mod metrics;
mod oversized;
mod policies;
mod reviews;
pub mod site;
mod slow;
