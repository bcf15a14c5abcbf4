//! The decisions of vramguard, and nothing else.
//!
//! Plain values in, plain values out: no Kubernetes types, no clock, no environment, no I/O, no async, and no order that
//! depends on a hash. Time, configuration and cluster state are arguments. `clippy.toml` and `tests/it/tiers.rs` hold
//! that line.
//!
//! | module | owns |
//! |---|---|
//! | [`vram`] | amounts of GPU memory: grammar and arithmetic |
//! | [`gpu`] | GPUs, pools of GPUs behind one resource name, allocatable |
//! | [`declaration`] | what a container declares: sources, precedence, conflicts |
//! | [`demand`] | from declared to demanded; the sum over a pod's containers |
//! | [`occupancy`] | the GPUs of one pool and what lies on each: modes, room, worst cases |
//! | [`ledger`] | who holds how much on a node; placeable and published |
//! | [`reservation`] | what all replicas have promised on a node: assume, confirm, forget, release |
//! | [`report`] | what a node agent saw, in place of what labels say |
//! | [`binding`] | one binding against the rules: who may bind, what is written |
//! | [`pod`] | what a pod asks for, as one validated value |
//! | [`placement`] | which node a pod may land on |
//! | [`cluster`] | all nodes together: guarded resources, room, slots |
//! | [`filter`] | which of some nodes can take a pod now, and why the others cannot |
//! | [`policy`] | policy fields, layers, the effective policy of a namespace |
//! | [`environment`] | what is injected into each container |
//! | [`admission`] | one pod against policy and cluster |
//! | [`moment`] | time, as an argument |
//! | [`verdict`] | reasons and every sentence that a user reads |

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admission;
pub mod binding;
pub mod cluster;
pub mod declaration;
pub mod demand;
pub mod environment;
pub mod filter;
pub mod gpu;
pub mod ledger;
pub mod makeup;
pub mod moment;
pub mod name;
pub mod occupancy;
pub mod placement;
pub mod pod;
pub mod policy;
pub mod report;
pub mod reservation;
pub mod sharing;
pub mod verdict;
pub mod vram;
