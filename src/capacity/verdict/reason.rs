//! The machine reason of everything that is said: a closed list, whose names are a contract with dashboards and scripts.

use std::fmt;

/// Machine reason of a violation: `status.reason` of a denial, a label of metrics, a field of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No declaration where one is required.
    VramUndeclared,
    /// A declaration that is no amount.
    VramUnreadable,
    /// A declaration of nothing.
    VramZero,
    /// Two declarations that differ.
    VramConflict,
    /// One declaration for several containers.
    VramAmbiguous,
    /// A declaration for a container that is not there.
    UnknownContainer,
    /// A declaration where no GPU is requested.
    VramWithoutGpu,
    /// A declaration that nothing accounts for.
    VramUnaccounted,
    /// A model that no catalogue lists.
    UnknownModel,
    /// A process count that is none.
    BadProcesses,
    /// Below the policy's minimum.
    VramBelowMinimum,
    /// Above the policy's maximum.
    VramAboveMaximum,
    /// More than any quantity can say.
    VramTooLarge,
    /// Nothing declared, and no node says what a slot is.
    SlotUnknown,
    /// The request for `vramguard.dev/vram` is not the demand.
    RequestMismatch,
    /// No requirement that keeps the pod off nodes whose GPUs are too small for it.
    PodMaxUnchecked,
    /// Several replicas without a requirement for unshared GPUs.
    SharedReplicas,
    /// `spec.nodeName` on a guarded pod.
    NodeNameSet,
    /// No room now, under `onShortfall: Deny`.
    VramShortfall,
    /// No node that the pod may land on could take it, even when empty.
    NeverFits,
    /// GPUs made visible without a request.
    VisibleDevicesWithoutGpu,
    /// The user's environment says otherwise than ours, under `onConflict: Deny`.
    EnvironmentConflict,
    /// An annotation that only vramguard sets.
    ReservedAnnotation,
    /// A part of the pod has more entries than vramguard reads.
    TooManyEntries,
    /// A binding by somebody who is not a known scheduler.
    ForeignBinder,
    /// A binding for another pod of that name.
    OtherUid,
    /// A binding of a pod that has a node.
    AlreadyBound,
    /// A binding to a node whose GPUs are not accounted for.
    NodeUnaccounted,
    /// A pinned pod on a node that is not verified to honour that.
    PinUnverified,
    /// A pod is starting on each GPU that it could get.
    GpuStarting,
    /// No place could be reserved in time.
    Undecided,
    /// A pod is bound that the guard was not asked about.
    BoundPastGuard,
    /// A pod runs that would be refused if it were created again.
    RefusedIfCreated,
    /// More is promised of a GPU than can be, or may be.
    GpuOvercommitted,
    /// Somebody keeps changing what a node publishes.
    PublicationUndone,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variant's name is the wire form.
        fmt::Debug::fmt(self, f)
    }
}
