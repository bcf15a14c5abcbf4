//! The node agent: what only a process on the node can see and do. Owns the connections to the kubelet and to the
//! device plugin.
//!
//! | module | owns |
//! |---|---|
//! | [`kubelet`] | the kubelet's sockets and files: PodResources, device plugin API, device checkpoint |
//! | [`steer`] | the agent between device plugin and kubelet, which answers by the ledger |

pub mod kubelet;
pub mod steer;
