//! The decisions of vramguard, and nothing else.
//!
//! Its functions take and return plain values: no Kubernetes types, clock, environment, I/O or async code, and no
//! iteration over hash maps, whose order varies. Time, configuration and cluster state are arguments. `clippy.toml` and
//! `tests/it/tiers.rs` enforce this.
//!
//! # Modules
//!
//! The modules are listed bottom up. A module imports only from the modules above it in this table, which
//! `tests/it/tiers.rs` enforces. The submodules of [`node`] have such an order too. Inside every other module, the
//! files may import each other.
//!
//! | module | owns |
//! |---|---|
//! | [`vram`] | amounts of GPU memory: grammar and arithmetic |
//! | [`time`] | time as an argument |
//! | [`name`] | texts that equal records share in memory, and the UID of a pod |
//! | [`list`] | lists that equal records share in memory, and the labels of a node |
//! | [`gpu`] | GPUs, pools of GPUs behind one resource name, rules, accounting modes |
//! | [`pod`] | the shape of a pod: what it requests and declares, as one validated value |
//! | [`pod::demand`] | from declared to demanded; the sum over the containers of a pod |
//! | [`pod::placement`] | which nodes a pod may be placed on; the node affinity that is added to it |
//! | [`pod::software`] | the LLM framework of a container, and the flags that it is started with |
//! | [`policy`] | policy fields, layers, and the policy in force in a namespace |
//! | [`quota`] | the quota of a policy as a ResourceQuota of the namespace |
//! | [`node`] | one node; its parts follow |
//! | [`node::inventory`] | the GPUs as the node agent reports them, in place of labels |
//! | [`node::holder`] | one pod that counts on a node |
//! | [`node::reservation`] | the reservations of a node, and the life of one |
//! | [`node::usage`] | results: how much of a node, a pool and a GPU is held and free |
//! | [`node::occupancy`] | the GPUs of one pool with all that is held: worst cases and free memory |
//! | [`node::ledger`] | the holders of a node, and what it publishes |
//! | [`verdict`] | reasons, and every sentence that a user reads |
//! | [`observation`] | what a node agent sees on the GPUs, and what is reported of it |
//! | [`cluster`] | all nodes: guarded resources, free memory, slots |
//! | [`admission`] | one pod against policy and cluster |
//! | [`binding`] | one binding: who may bind, where the pod goes, what is written; upkeep of ledgers |
//! | [`steering`] | which devices a container gets when the kubelet asks the node agent |
//! | [`preflight`] | whether a node can be steered, and what is missing |
//! | [`filter`] | which of some nodes can take a pod now, and why the others cannot |
//! | [`plan`] | how many replicas each pool should have, and what fits then |
//! | [`candidates`] | which of all nodes can take a pod now, later or never |
//! | [`audit`] | what a cluster promises today, what is wrong with it, and what mode Enforce would change |
//! | [`recommend`] | what each workload should declare, from what was seen of it |
//! | [`estimate`] | how much memory a model needs, from its shape, context, concurrency and runtime |
//!
//! # Glossary
//!
//! The cluster:
//!
//! - **replica**: one unit of a shared GPU that the NVIDIA device plugin offers, for instance by time-slicing. A
//!   container gets replicas, and a replica carries no memory. A process of the server is a *replica of vramguard*.
//! - **pool**: the GPUs of one node behind one resource name, such as `nvidia.com/gpu`. See [`Pool`](gpu::Pool).
//! - **guarded resource**: a GPU resource that counts: a node shares its GPUs, or configuration names it.
//! - **node agent**: a process on the node that reports its GPUs and the GPU of each container. It is optional.
//! - **binding guard**: the webhook that the API server asks before it binds a pod of a guarded namespace.
//! - **ledger**: the holders and reservations of one node. The reservations are stored in a `GpuLedger` object, which
//!   all replicas of vramguard share.
//!
//! What counts on a node:
//!
//! - **holder**: a pod that counts on a node. It is bound there and has not ended, or it has a reservation there.
//! - **reservation**: the place of one pod in the `GpuLedger` of a node. It is *assumed* when the binding guard allows
//!   the binding, and *confirmed* when the pod is then seen on the node. A pod that is seen there without one is
//!   *adopted*. See [`node::reservation`].
//! - **unassigned**: a pod, or an amount that it holds, whose GPU is not known. In mode slot every pod is unassigned.
//! - **worst case**: the least favourable placement of the unassigned pods on GPUs that is possible. All free amounts
//!   hold in the worst case.
//! - **accounting mode**: how much is known about the GPU of each pod, and therefore how a pool counts. See
//!   [`Accounting`](gpu::Accounting).
//!
//! | mode | when a pool is in it | how it counts |
//! |---|---|---|
//! | exact | it has one shared GPU | the sum decides |
//! | exclusive | its GPUs are not shared | the number of free GPUs decides |
//! | steered | the agent answers for the device plugin, and verified that it takes effect | vramguard chooses the GPU |
//! | confirmed | the agent verified how the device plugin chooses | the GPU is predicted, then reported by the agent |
//! | slot | it has several shared GPUs and nothing is verified, or it uses MPS | one slot for each pod at most |
//! | unknown | its GPUs are not known | nothing more fits |
//!
//! The amounts are those of one worked node: two GPUs of 24 GiB, four time-slicing replicas of each, default rules, and
//! no node agent. It is in mode slot. `held`, `free` and `deficit` are those of a node with only one such GPU, which is
//! in mode exact and takes two pods that declare `8Gi`. The example below computes all of them. The comments in
//! [`node`] use the worked node without driver reserve, headroom and overhead, so that a slot is 6 GiB.
//!
//! | term | meaning | MiB |
//! |---|---|---|
//! | `total` | Memory of one GPU, as its label reports it. See [`Gpu`](gpu::Gpu). | 24,576 |
//! | driver reserve | What the driver keeps: as reported, or 0.6 % of the total and at least 450 MiB. | 450 |
//! | headroom | What is kept free on each GPU: 1 % of the total, at least 256 MiB. | 256 |
//! | `allocatable` | What pods can be given of one GPU. See [`Gpu::allocatable`](gpu::Gpu::allocatable). | 23,870 |
//! | `slot` | Allocatable of the smallest GPU / replicas. See [`Pool::slot`](gpu::Pool::slot). | 5,967 |
//! | demand | What a pod takes: declared + overhead × processes. For `8Gi`: 8,192 + 720. | 8,912 |
//! | request | The demand as a request for `vramguard.dev/vram`, which Kubernetes adds up. | 8,912 |
//! | `max_demand` | The largest demand that an empty pool could take. A larger one never fits. | 5,967 |
//! | `pod_max` | `max_demand` as a label, where the published amount alone would let one pod request more. | 5,967 |
//! | `published` | `vramguard.dev/vram` of the node: the sum of the requests + `free_total`. | 47,736 |
//! | `free_total` | What further pods may request together, each at most `free`: 8 slots if empty. | 47,736 |
//! | `held` | What holders take of a GPU or a pool. With one GPU and two pods: | 17,824 |
//! | `free` | The largest demand of one more pod. With one GPU and two pods: | 6,046 |
//! | `deficit` | By how much a GPU is or may be overcommitted. With one GPU and three pods: | 2,866 |
//!
//! So a pod that declares `8Gi` never fits on the worked node, because its demand is above `max_demand`. On the node
//! with one GPU it fits twice.
//!
//! ```
//! use std::num::NonZeroU32;
//!
//! use vramguard::capacity::gpu::{Accounting, AllocationPolicy, Contents, Gpu, Pool, Resource, Rules, Sharing};
//! use vramguard::capacity::node::ledger::NodeLedger;
//! use vramguard::capacity::pod::demand::Demand;
//! use vramguard::capacity::vram::{Vram, VramError};
//!
//! let rules = Rules::default();
//! let mib = Vram::from_mib;
//! let pool_of = |gpus: u32| Pool {
//!     resource: Resource("nvidia.com/gpu".into()),
//!     sharing: Sharing::TimeSlicing,
//!     contents: Ok(Contents {
//!         gpus: (0..gpus).map(|index| Gpu::of_size(index, mib(24_576))).collect(),
//!         replicas: NonZeroU32::new(4).unwrap(),
//!     }),
//!     allocation_policy: AllocationPolicy::Unverified,
//!     hard_limits: false,
//!     tells_processes: false,
//! };
//! let usage_of = |pool: &Pool| NodeLedger::default().usage(std::slice::from_ref(pool), &rules, |_| true);
//! let demand = Demand::declared("8Gi".parse()?, rules.per_process_overhead, 1).unwrap().total;
//! assert_eq!(demand, mib(8_912));
//!
//! let two = pool_of(2);
//! assert_eq!(two.accounting(), Accounting::Slot);
//! assert_eq!(two.smallest_gpu(&rules), Some(mib(24_576 - 450 - 256)));
//! assert_eq!(two.smallest_gpu(&rules), Some(mib(23_870)));
//! assert_eq!(two.slot(&rules), Some(mib(5_967)));
//! assert_eq!(two.max_demand(&rules), Some(mib(5_967)));
//! assert!(demand > two.max_demand(&rules).unwrap(), "it never fits");
//! let empty = usage_of(&two);
//! assert_eq!((empty.published, empty.pod_max, empty.free), (Some(mib(47_736)), Some(mib(5_967)), mib(5_967)));
//! assert_eq!(empty.pools[0].free_total, mib(8 * 5_967));
//!
//! let one = pool_of(1);
//! assert_eq!(one.accounting(), Accounting::Exact);
//! let empty = usage_of(&one);
//! assert_eq!((empty.published, empty.pod_max, empty.free), (Some(mib(23_870)), None, mib(23_870)));
//! let held = demand.plus(demand);
//! assert_eq!(held, mib(17_824));
//! let left = one.allocatable(&rules).minus(held);
//! assert_eq!((left.free(), left.minus(demand).deficit()), (mib(6_046), Some(mib(2_866))));
//! # Ok::<(), VramError>(())
//! ```

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod admission;
pub mod audit;
pub mod binding;
pub mod candidates;
pub mod cluster;
pub mod estimate;
pub mod filter;
pub mod gpu;
pub mod list;
pub mod name;
pub mod node;
pub mod observation;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod preflight;
pub mod quota;
pub mod recommend;
pub mod steering;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod verdict;
pub mod vram;
