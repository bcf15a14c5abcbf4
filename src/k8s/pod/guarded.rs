//! A guarded pod: the input of a decision on a binding. Owns which pods need that decision; the core makes it.

use crate::capacity::name::PodUid;
use crate::capacity::node::holder::Holder;
use crate::capacity::pod::Pod;
use crate::k8s::object::PodObject;

/// A pod that requests VRAM, and the holder that it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// Uid of the pod.
    pub uid: PodUid,
    /// Requests, declarations and placement of the pod.
    pub pod: Pod,
    /// The holder that the pod is once it is bound.
    pub holder: Holder,
}

impl Guarded {
    /// Translates a pod that requests VRAM; `None` for a pod without such a request. A pod without one, for example
    /// under mode Audit or from before its namespace was guarded, is counted once it is seen bound.
    pub fn of(object: &PodObject) -> Option<Guarded> {
        let holder = super::would_hold(object).filter(|holder| holder.request.is_some())?;
        Some(Guarded { uid: super::uid(&object.metadata), pod: super::translate(object, None, None), holder })
    }
}
