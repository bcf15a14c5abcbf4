//! Between vramguard's declarations and claims of Dynamic Resource Allocation (DRA).
//!
//! A claim asks NVIDIA's DRA driver for a share of a GPU's `memory`. The driver publishes such shares with its feature
//! gate `ConsumableShares` and `--consumable-shares=memory` (kubernetes-sigs/dra-driver-nvidia-gpu
//! `cmd/gpu-kubelet-plugin/consumable_shares.go`), and Kubernetes serves them with `DRAConsumableCapacity`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::edit::{Edit, Step, key, under};
use super::ours::containers;
use super::{Change, Refused};
use crate::capacity::policy::Policy;
use crate::capacity::verdict::finding::Members;
use crate::capacity::vram::Vram;
use crate::k8s::quantity::{self, Bytes};
use crate::k8s::template::{self, Template};
use crate::keys;

/// What a claim needs, as a comment above it.
pub(super) const NEEDS: &str = "needs Kubernetes 1.36 (or 1.34 with the feature gate DRAConsumableCapacity) and NVIDIA's DRA \
                                driver with the feature gate ConsumableShares and --consumable-shares=memory";

/// Selects devices that several claims may share. Without it, a claim may take a whole GPU that is not shared.
const SHARED_ONLY: &str = "device.allowMultipleAllocations == true";

/// What a pod loses with a claim in place of a declaration, whatever its manifest.
const LOST: [&str; 4] = [
    "the driver counts the whole memory of a GPU: no driver reserve and no headroom are kept free",
    "kube-scheduler preempts no pod for a claim",
    "a ResourceQuota counts claimed devices, not memory",
    "policies, injected environment and audit of vramguard do not apply to claims",
];

/// From declarations to claims; `None` if the template has no GPU or declares nothing for vramguard.
pub(super) fn to_claims(
    object: &Value,
    found: &Template<'_>,
    at: &[Step],
    policy: &Policy,
) -> Result<Option<Change>, Refused> {
    let template = found.value;
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
    let (demands, _) =
        template::container_demands(template, namespace.unwrap_or("default"), policy).map_err(Refused)?;
    if demands.iter().all(|demand| demand.demand.is_none()) {
        return Ok(None);
    }
    let owner = ["/metadata/name", "/metadata/generateName"].iter().find_map(|name| object.pointer(name)?.as_str());
    let owner = owner.unwrap_or("pod").trim_end_matches(['-', '.']);
    // The containers of leaders and workers often have the same names.
    let of_leaders = if found.kind.members(object) == Some(Members::Leaders) { "-leader" } else { "" };
    let mut change = Change::default();
    let mut refused = Vec::new();
    let claims = template.pointer("/spec/resourceClaims").and_then(Value::as_array);
    let all = containers(template, at);
    let mut pod_claims = Vec::new();
    for part in &demands {
        let name = &part.container;
        let (Some(demand), [(resource, 1)]) = (&part.demand, part.gpus.as_slice()) else {
            refused.push(format!("container {name:?} asks for a GPU and declares no VRAM, or asks for several GPUs"));
            continue;
        };
        if resource.is_mig() {
            refused.push(format!(
                "container {name:?} asks for {resource}; write a claim of the DeviceClass for MIG by hand"
            ));
            continue;
        }
        if claims.is_some_and(|claims| claims.iter().any(|claim| claim.get("name") == Some(&json!(name)))) {
            refused.push(format!("the pod has a claim named {name:?} already"));
            continue;
        }
        let claim: String = format!("{owner}{of_leaders}-{name}-vram").chars().take(253).collect();
        change.documents.push(claim_template(&claim, namespace, demand.total, demand.declared, part.processes));
        pod_claims.push(json!({"name": name, "resourceClaimTemplateName": claim}));
        let container = all.iter().find(|(_, container)| container.get("name") == Some(&json!(name)));
        if let Some((path, container)) = container {
            take_gpu(container, path, name, &resource.0, &mut change.edits);
        }
        let declared = demand.declared.unwrap_or(demand.total);
        change.done.push(format!("container {name}: {declared} -> claim {claim}: {}", demand.total));
    }
    if !refused.is_empty() {
        return Err(Refused(refused));
    }
    match claims {
        Some(_) => {
            let at = under(at, "/spec/resourceClaims");
            change.edits.extend(pod_claims.into_iter().map(|value| Edit::Push { at: at.clone(), value }));
        }
        None => {
            let entries = Map::from_iter([("resourceClaims".to_owned(), Value::Array(pod_claims))]);
            change.edits.push(Edit::Merge { at: under(at, "/spec"), entries });
        }
    }
    strip_annotations(template, at, &mut change.edits);
    change.lost.extend(LOST.iter().map(ToString::to_string));
    Ok(Some(change))
}

/// The template of a claim. What was declared is kept as an annotation, for the way back.
fn claim_template(name: &str, namespace: Option<&str>, demand: Vram, declared: Option<Vram>, processes: u32) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    if let Some(declared) = declared {
        metadata["annotations"] = json!({keys::VRAM: declared.to_string()});
        if processes != 1 {
            metadata["annotations"][keys::PROCESSES] = json!(processes.to_string());
        }
    }
    let request = json!({
        "name": "gpu",
        "exactly": {
            "deviceClassName": keys::DRA_GPU_CLASS,
            "selectors": [{"cel": {"expression": SHARED_ONLY}}],
            "capacity": {"requests": {"memory": demand.to_string()}},
        },
    });
    json!({
        "apiVersion": keys::DRA_VERSION,
        "kind": "ResourceClaimTemplate",
        "metadata": metadata,
        "spec": {"spec": {"devices": {"requests": [request]}}},
    })
}

/// Takes the GPU and the VRAM out of a container's resources, and puts its claim there.
fn take_gpu(container: &Value, path: &[Step], claim: &str, resource: &str, edits: &mut Vec<Edit>) {
    let at = under(path, "/resources");
    if container.pointer("/resources/claims").is_some() {
        edits.push(Edit::Push { at: key(&at, "claims"), value: json!({"name": claim}) });
    } else {
        let entries = Map::from_iter([("claims".to_owned(), json!([{"name": claim}]))]);
        edits.push(Edit::Merge { at: at.clone(), entries });
    }
    for list in ["limits", "requests"] {
        let names = container.pointer(&format!("/resources/{list}")).and_then(Value::as_object);
        let names: Vec<&String> = names.into_iter().flat_map(Map::keys).collect();
        let gone: Vec<&&String> =
            names.iter().filter(|name| name.as_str() == resource || name.as_str() == keys::VRAM_RESOURCE).collect();
        let list = key(&at, list);
        if gone.is_empty() {
            continue;
        }
        if gone.len() == names.len() {
            edits.push(Edit::Remove { at: list });
        } else {
            edits.extend(gone.iter().map(|name| Edit::Remove { at: key(&list, name) }));
        }
    }
}

/// Removes the annotations of vramguard, and the map if nothing else is in it.
fn strip_annotations(template: &Value, at: &[Step], edits: &mut Vec<Edit>) {
    let names = template.pointer("/metadata/annotations").and_then(Value::as_object);
    let names: Vec<&String> = names.into_iter().flat_map(Map::keys).collect();
    let ours = |name: &&&String| name.starts_with(keys::PREFIX) || name.starts_with(keys::FOREIGN_OF);
    let gone: Vec<&&String> = names.iter().filter(ours).collect();
    let list = under(at, "/metadata/annotations");
    if !gone.is_empty() && gone.len() == names.len() {
        edits.push(Edit::Remove { at: list });
    } else {
        edits.extend(gone.iter().map(|name| Edit::Remove { at: key(&list, name) }));
    }
}

/// The templates of claims among the objects, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct ClaimTemplates(BTreeMap<(String, String), Value>);

impl ClaimTemplates {
    /// Adds an object, if it is the template of a claim.
    pub(super) fn add(&mut self, object: &Value) {
        if let Some(id) = ClaimTemplates::id(object) {
            self.0.insert(id, object.clone());
        }
    }

    /// Namespace and name of an object that is the template of a claim.
    pub(super) fn id(object: &Value) -> Option<(String, String)> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let group = text("/apiVersion")?.split('/').next()?;
        let is_one = group == keys::DRA_GROUP && text("/kind")? == "ResourceClaimTemplate";
        let namespace = text("/metadata/namespace").unwrap_or("default");
        is_one.then(|| Some((namespace.to_owned(), text("/metadata/name")?.to_owned())))?
    }
}

/// From claims to declarations; `None` if the template has no claim for a GPU of NVIDIA's driver.
pub(super) fn from_claims(
    object: &Value,
    template: &Value,
    at: &[Step],
    overhead: Vram,
    templates: &ClaimTemplates,
) -> Result<Option<Change>, Refused> {
    let claims = template.pointer("/spec/resourceClaims").and_then(Value::as_array);
    let Some(claims) = claims.filter(|claims| !claims.is_empty()) else { return Ok(None) };
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default");
    let mut change = Change::default();
    let mut refused = Vec::new();
    let mut declared: Vec<(String, Vram, u32)> = Vec::new();
    let mut gone = Vec::new();
    for (index, claim) in claims.iter().enumerate() {
        let text = |key: &str| claim.get(key).and_then(Value::as_str);
        let name = text("name").unwrap_or_default();
        let Some(source) = text("resourceClaimTemplateName") else {
            refused.push(format!(
                "claim {name:?} is a claim that other pods may share; only claims of a template are converted"
            ));
            continue;
        };
        let id = (namespace.to_owned(), source.to_owned());
        let Some(of_claim) = templates.0.get(&id) else {
            refused.push(format!("ResourceClaimTemplate {namespace}/{source} is not in this file"));
            continue;
        };
        match amount(of_claim, overhead, &mut change.lost) {
            Ok(None) => {}
            Ok(Some((amount, processes))) => match users(template, at, name).as_slice() {
                [(path, container)] => {
                    give_gpu(container, path, name, &mut change.edits);
                    let container = container.get("name").and_then(Value::as_str).unwrap_or_default();
                    declared.push((container.to_owned(), amount, processes));
                    gone.push(index);
                    change.used.push(id);
                }
                users => refused.push(format!("claim {name:?} is used by {} containers, not by one", users.len())),
            },
            Err(why) => refused.push(format!("ResourceClaimTemplate {namespace}/{source}: {why}")),
        }
    }
    if declared.windows(2).any(|pair| pair[0].2 != pair[1].2) {
        refused.push(format!("{} differs between its claims, and a pod has one", keys::PROCESSES));
    }
    if !refused.is_empty() {
        return Err(Refused(refused));
    }
    if declared.is_empty() {
        return Ok(None);
    }
    let list = under(at, "/spec/resourceClaims");
    if gone.len() == claims.len() {
        change.edits.push(Edit::Remove { at: list });
    } else {
        change.edits.extend(gone.iter().map(|index| Edit::Remove { at: under(&list, &index.to_string()) }));
    }
    declare(&declared, at, &mut change);
    Ok(Some(change))
}

fn declare(declared: &[(String, Vram, u32)], at: &[Step], change: &mut Change) {
    let mut entries = Map::new();
    for (container, amount, processes) in declared {
        let key = if declared.len() == 1 { keys::VRAM.to_owned() } else { format!("{}{container}", keys::VRAM_OF) };
        change.done.push(format!("claim of container {container} -> {key}: {amount}"));
        entries.insert(key, Value::String(amount.to_string()));
        if *processes != 1 {
            entries.insert(keys::PROCESSES.to_owned(), Value::String(processes.to_string()));
        }
    }
    change.edits.push(Edit::Merge { at: under(at, "/metadata/annotations"), entries });
}

/// What a claim stands for: the declared amount and the processes. `None` for another driver's devices.
fn amount(of_claim: &Value, overhead: Vram, lost: &mut Vec<String>) -> Result<Option<(Vram, u32)>, String> {
    let requests = of_claim.pointer("/spec/spec/devices/requests").and_then(Value::as_array);
    let [request] = requests.map(Vec::as_slice).unwrap_or_default() else {
        return Err("asks for several devices, and a container gets one GPU".to_owned());
    };
    // v1beta1 has the fields of `exactly` in the request itself.
    let exactly = request.get("exactly").unwrap_or(request);
    let text = |key: &str| exactly.get(key).and_then(Value::as_str);
    if text("deviceClassName") != Some(keys::DRA_GPU_CLASS) {
        return Ok(None);
    }
    if request.get("firstAvailable").is_some() || text("allocationMode").is_some_and(|mode| mode != "ExactCount") {
        return Err("leaves open how many devices it takes".to_owned());
    }
    if exactly.get("count").is_some_and(|count| count != &json!(1)) {
        return Err("asks for several devices, and a container gets one GPU".to_owned());
    }
    let memory = exactly.pointer("/capacity/requests/memory");
    let Some(memory) = memory else {
        return Err("asks for no memory, so it takes a whole GPU or none of its memory".to_owned());
    };
    let memory = memory.as_str().map_or_else(|| memory.to_string(), str::to_owned);
    let bytes = quantity::bytes(&memory).map(Bytes::vram).filter(|amount| !amount.is_zero());
    let demand = bytes.ok_or_else(|| format!("memory: {memory:?} is not an amount above zero"))?;
    let ours = |selector: &Value| selector.pointer("/cel/expression") == Some(&json!(SHARED_ONLY));
    let selectors = exactly.get("selectors").and_then(Value::as_array).into_iter().flatten();
    let others: Vec<&Value> = selectors.filter(|selector| !ours(selector)).collect();
    lost.extend(others.iter().map(|selector| {
        format!("selector {selector}: choose nodes by nodeSelector; one GPU of a node cannot be chosen")
    }));
    if of_claim.pointer("/spec/spec/devices/config").is_some() {
        lost.push("config of the claim: sharing is configured in the device plugin".to_owned());
    }
    let kept = |key: &str| of_claim.pointer("/metadata/annotations")?.get(key)?.as_str();
    let processes: u32 = match kept(keys::PROCESSES) {
        None => 1,
        Some(text) => text.parse().map_err(|_| {
            format!("{}: {text:?} is no number of processes, expected a whole number above zero", keys::PROCESSES)
        })?,
    };
    let all = overhead.checked_times(u64::from(processes)).unwrap_or(Vram::MAX);
    let declared = demand.minus(all).free();
    if declared.is_zero() {
        return Err(format!("memory: {memory} is not more than the overhead of its processes, {all}"));
    }
    Ok(Some((declared, processes)))
}

/// The containers that use a claim.
fn users<'t>(template: &'t Value, at: &[Step], claim: &str) -> Vec<(Vec<Step>, &'t Value)> {
    let mut all = containers(template, at);
    all.retain(|(_, container)| {
        let claims = container.pointer("/resources/claims").and_then(Value::as_array).into_iter().flatten();
        claims.into_iter().any(|used| used.get("name").and_then(Value::as_str) == Some(claim))
    });
    all
}

/// Takes a claim out of a container's resources, and puts a GPU there.
fn give_gpu(container: &Value, path: &[Step], claim: &str, edits: &mut Vec<Edit>) {
    let at = under(path, "/resources");
    let entries = Map::from_iter([(keys::GPU_RESOURCE.to_owned(), Value::from(1))]);
    edits.push(Edit::Merge { at: key(&at, "limits"), entries });
    let claims = container.pointer("/resources/claims").and_then(Value::as_array);
    let claims = claims.map(Vec::as_slice).unwrap_or_default();
    let is_it = |used: &Value| used.get("name").and_then(Value::as_str) == Some(claim);
    let list = key(&at, "claims");
    match claims.iter().position(is_it) {
        Some(index) if claims.len() > 1 => edits.push(Edit::Remove { at: under(&list, &index.to_string()) }),
        _ => edits.push(Edit::Remove { at: list }),
    }
}
