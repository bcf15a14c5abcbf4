//! The machine reasons of all messages. Owns the closed list [`Reason`]; its names are a contract with dashboards and
//! scripts.

use std::fmt;

/// The machine reason of a violation, a refused binding or an event.
///
/// It is `status.reason` of a denial, `reason` of an event, a label of metrics and a field of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A container declares nothing, but the policy requires a declaration.
    VramUndeclared,
    /// A declaration cannot be read as an amount.
    VramUnreadable,
    /// A declaration is zero.
    VramZero,
    /// Two declarations for one container differ.
    VramConflict,
    /// One declaration may mean several GPU containers.
    VramAmbiguous,
    /// A declaration names a container that the pod does not have.
    UnknownContainer,
    /// A declaration is for a pod or a container that requests no shared GPU.
    VramWithoutGpu,
    /// A declaration is for a GPU resource that nothing accounts for.
    VramUnaccounted,
    /// A declared model is not in the policy's catalogue.
    UnknownModel,
    /// The number of processes is not a whole number in the allowed range.
    BadProcesses,
    /// A declared amount is below `declaration.min`.
    VramBelowMinimum,
    /// A declared amount is above `declaration.max`.
    VramAboveMaximum,
    /// A demand is larger than a Kubernetes quantity of bytes can express.
    VramTooLarge,
    /// A container declares nothing, and the size of a slot is not known from any node.
    SlotUnknown,
    /// The request for `vramguard.dev/vram` differs from the demand.
    RequestMismatch,
    /// The pod's node affinity does not exclude nodes whose `vramguard.dev/pod-max-mib` is below its request.
    PodMaxUnchecked,
    /// A container requests several replicas, but the pod does not require nodes with unshared GPUs.
    SharedReplicas,
    /// A guarded pod sets `spec.nodeName`.
    NodeNameSet,
    /// Too little VRAM is free now. A pod under review is refused for it only under `onShortfall: Deny`.
    VramShortfall,
    /// No node that the pod may land on could take it, even when empty.
    NeverFits,
    /// A container makes GPUs visible to itself without requesting one.
    VisibleDevicesWithoutGpu,
    /// A user's variable conflicts with an injected one under `onConflict: Deny`, or chooses GPUs in place of the
    /// device plugin.
    EnvironmentConflict,
    /// A pod or a Binding carries an annotation that only vramguard sets.
    ReservedAnnotation,
    /// A part of the pod has more entries, or a longer name, than vramguard reads.
    TooManyEntries,
    /// The user who binds a guarded pod is not a known scheduler.
    ForeignBinder,
    /// A Binding names the uid of another pod of the same name.
    OtherUid,
    /// The pod of a Binding is bound already.
    AlreadyBound,
    /// The node of a Binding has no GPUs that are accounted for, or the pod requests several GPU resources.
    NodeUnaccounted,
    /// A pod is starting on each GPU that it could get.
    GpuStarting,
    /// No place could be reserved in time, or the pod has reservations on too many other nodes.
    Undecided,
    /// A pod was bound, and the binding guard was not asked.
    BoundPastGuard,
    /// A running pod would be refused if it were created again.
    RefusedIfCreated,
    /// A GPU is overcommitted, or may be: more of it is held than its allocatable.
    GpuOvercommitted,
    /// Another writer keeps changing what the controller publishes on a node.
    PublicationUndone,
    /// A GPU may be overcommitted, depending on which pod is on which GPU.
    GpuMayBeOvercommitted,
    /// The GPUs of a node are not known: its labels are missing, cannot be read, or contradict its capacity.
    GpusUnknown,
    /// The device plugin offers less of a resource than the node has, or nothing.
    GpusUnusable,
    /// The device plugin offers more replicas of a GPU than pods of the usual demand fit on it.
    TooManyReplicas,
    /// Memory is free, and smaller than the smallest demand that waits.
    VramStranded,
    /// An annotation under the prefix `vramguard.dev/` has no meaning.
    UnknownAnnotation,
    /// An annotation names a framework that vramguard does not know.
    UnknownFramework,
    /// A framework is not told its budget, because it is started in a way that vramguard does not edit.
    Unbounded,
    /// A declaration has no effect, because each GPU of the resource goes to one container.
    NotGuarded,
    /// A declaration is for another tool.
    ForeignDeclaration,
    /// An environment variable has no effect.
    DeadEnvironment,
    /// An environment variable has a dangerous effect.
    DangerousEnvironment,
    /// A pod reaches GPUs past the device plugin.
    GpuBypass,
    /// A HorizontalPodAutoscaler may scale a workload beyond what fits.
    AutoscalerExceedsRoom,
    /// A rollout needs more room than there is.
    RolloutExceedsRoom,
    /// A workload should have more pods than fit.
    ReplicasExceedRoom,
    /// No node that has the resource is one that the pods of a workload may land on.
    NoNodeAllowed,
    /// A container requests several GPUs, and no node that its pod may land on has GPUs that are not shared.
    OnlySharedGpus,
    /// The ResourceQuota of a namespace is not that of its policy, because somebody else made or changed it.
    QuotaNotKept,
    /// A pod runs in another pool than its own, as `onShortfall: Reroute` allows.
    Rerouted,
    /// A pod is not rerouted, because its node affinity is too large for that.
    NotRerouted,
    /// The pods of a namespace hold more than the quota of its policy.
    QuotaExceeded,
    /// Claims on a shared DRA device take more memory than it has.
    DeviceOvercommitted,
    /// Claims on a shared DRA device leave nothing for the driver and CUDA contexts.
    DeviceWithoutHeadroom,
    /// A claim has a share of a DRA device and names no amount of memory.
    ClaimWithoutMemory,
    /// The device plugin and a DRA driver offer GPUs of the same node.
    NodeInBothWorlds,
    /// A container uses more GPU memory than it counts with.
    OverDeclaration,
    /// A container uses GPU memory and declares none.
    Undeclared,
    /// A container has computed nothing for hours and holds GPU memory.
    Idle,
    /// A container has never used most of what it counts with.
    FarUnder,
    /// The agent of a node has not reported for too long.
    AgentStale,
    /// The agent of a node cannot read the driver, or a GPU.
    AgentUnreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of the variant is what clients see.
        fmt::Debug::fmt(self, f)
    }
}
