//! The node agent: what only a process on the node can see and do. Owns the connections to the kubelet and to the
//! device plugin.
//!
//! | module | owns |
//! |---|---|
//! | [`kubelet`] | the kubelet's sockets and files: PodResources, device plugin API, device checkpoint |

pub mod kubelet;
