//! One node: its inventory, its holders and reservations, and the usage of its GPUs. Owns all accounting of a single
//! node; the sum over all nodes is [`super::cluster`]'s.
//!
//! Examples in this module refer to one worked node with two GPUs, G0 and G1, of 24 GiB each and 4 replicas each. They
//! assume no headroom, driver reserve or overhead, so that each GPU has 24 GiB allocatable and a slot is 24 GiB / 4 = 6
//! GiB.
//!
//! *Replica* means a replica of the device plugin here: one time-slicing unit of `nvidia.com/gpu`, which carries no
//! memory. A comment that means a replica of the server writes *replica of vramguard*.

pub mod holder;
pub mod inventory;
pub mod ledger;
pub mod occupancy;
pub mod presence;
pub mod reservation;
pub mod usage;
