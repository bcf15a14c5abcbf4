//! GPUs that claims share through dynamic resource allocation (DRA).

use std::collections::{BTreeMap, BTreeSet};

use super::View;
use super::findings::Findings;
use super::nodes;
use super::outcome::{GpuState, GpuUse, Held, NodeState, Sharing, State};
use super::scene::{DeviceClaim, SharedDevice};
use crate::capacity::gpu::Gpu;
use crate::capacity::name::Name;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::finding::{Finding, Matter, Object, Severity};
use crate::capacity::vram::Vram;

/// Adds the shared devices of a scene to its GPUs and nodes.
pub(super) fn look(view: &View<'_>, gpus: &mut Vec<GpuState>, nodes: &mut Vec<NodeState>, findings: &mut Findings) {
    let mut in_both: BTreeSet<(Name, Name)> = BTreeSet::new();
    let mut position_of: BTreeMap<String, usize> =
        nodes.iter().enumerate().map(|(position, node)| (node.name.clone(), position)).collect();
    for device in &view.scene.devices {
        let Some(state) = look_at(view, device, findings) else { continue };
        let node = device.node.clone().unwrap_or_default();
        if let Some(resource) =
            nodes::has(view, &node).filter(|_| in_both.insert((node.clone(), device.driver.clone())))
        {
            let matter = Matter::BothWorlds { driver: device.driver.clone(), resource };
            add(nodes::object(&node), matter, Severity::Warn, None, findings);
        }
        let position = *position_of.entry(node.to_string()).or_insert_with(|| {
            nodes.push(NodeState { name: node.to_string(), allocatable: Some(Vram::ZERO), ..NodeState::default() });
            nodes.len() - 1
        });
        let known = &mut nodes[position];
        known.gpus += 1;
        known.allocatable = known.allocatable.map(|sum| sum.plus(state.allocatable));
        known.held = known.held.plus(state.held);
        known.free = known.free.max(state.free);
        known.pods += state.holders.len();
        known.state = known.state.max(state.state);
        gpus.push(state);
    }
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    gpus.sort_by(|one, other| one.node.cmp(&other.node));
}

/// The state of a device with memory; `None` for a device whose memory is not known.
fn look_at(view: &View<'_>, device: &SharedDevice, findings: &mut Findings) -> Option<GpuState> {
    let name = format!("{}/{}", device.pool, device.device);
    let mut held = Vram::ZERO;
    for claim in &device.claims {
        match claim.memory {
            Some(memory) => held = held.plus(memory).min(Vram::MAX),
            None => {
                let matter = Matter::ClaimWithoutMemory { device: name.clone() };
                add(object(claim), matter, Severity::Warn, device.node.clone(), findings);
            }
        }
    }
    let total = device.memory?;
    let allocatable = Gpu::of_size(0, total).allocatable(view.cluster.rules()).free();
    let reserve = total.minus(allocatable).free();
    if held > allocatable {
        let severity = if held > total { Severity::Deny } else { Severity::Warn };
        let matter = Matter::DeviceOvercommitted { device: name.clone(), held, memory: total, reserve };
        let slice =
            Object { kind: Name::from("ResourceSlice"), namespace: Name::default(), name: device.slice.clone() };
        add(slice, matter, severity, device.node.clone(), findings);
    }
    let free = allocatable.minus(held).free();
    let state = if held > total {
        State::Overcommitted
    } else if held > allocatable {
        State::MaybeOvercommitted
    } else if free.is_zero() {
        State::Full
    } else {
        State::Ok
    };
    Some(GpuState {
        node: device.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        id: name,
        resource: device.driver.to_string(),
        product: None,
        sharing: Sharing::Claims,
        replicas: 1,
        total,
        allocatable,
        headroom: reserve,
        held,
        free: Some(free),
        state,
        holders: device.claims.iter().flat_map(holders).collect(),
        in_use: GpuUse::default(),
    })
}

/// The holders of a claim: its pods, or the claim itself while no pod uses it.
fn holders(claim: &DeviceClaim) -> Vec<Held> {
    let held = |pod: &Name, amount| Held {
        pod: PodName { namespace: claim.namespace.clone(), name: pod.clone() },
        container: claim.name.clone(),
        amount,
        declared: claim.memory.is_some(),
        seen: false,
        bounded_by: None,
        in_use: None,
    };
    match claim.pods.split_first() {
        None => vec![held(&claim.name, claim.memory)],
        // Pods that share a claim share its memory.
        Some((first, others)) => {
            let others = others.iter().map(|pod| held(pod, Some(Vram::ZERO)));
            std::iter::once(held(first, claim.memory)).chain(others).collect()
        }
    }
}

fn object(claim: &DeviceClaim) -> Object {
    Object { kind: Name::from("ResourceClaim"), namespace: claim.namespace.clone(), name: claim.name.clone() }
}

fn add(object: Object, matter: Matter, severity: Severity, node: Option<Name>, findings: &mut Findings) {
    findings.add(Finding { object, matter, severity, node, pods: 0, place: None });
}
