//! Pod object → [`Pod`], its requests, declarations and placement; pod with a node → [`Holder`], its usage there. Owns
//! how unchecked input becomes these types. The core makes every decision on them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::object::{self, PodObject, PodSpec, Quantities};
use super::quantity::{self, Bytes};
use crate::capacity::admission::declaration::{Fallback, Names, resolve};
use crate::capacity::admission::environment::recognise::{MOST_WORDS, recognise};
use crate::capacity::gpu::{GpuId, Resource};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::{Amount, Holder, Part};
use crate::capacity::node::reservation::Found;
use crate::capacity::pod::demand::{self, Role};
use crate::capacity::pod::placement::{Operator, OwnPool, Placement, Preemption, Requirement, Term, Toleration};
use crate::capacity::pod::software::Software;
use crate::capacity::pod::{
    Container, Declarations, EnvEntry, HostAccess, Origin, Pod, PodName, VramRequest, Written, requested,
};
use crate::capacity::time::Moment;
use crate::capacity::verdict::MAX_PROCESSES;
use crate::capacity::vram::{Vram, VramError};
use crate::keys;

mod guarded;

pub use guarded::Guarded;

/// Translates a pod object. `namespace` is that of the review, because the object of a create may lack it. `user` is
/// the author of the request, and `None` outside of a review.
pub fn translate(object: &PodObject, namespace: Option<&str>, user: Option<&str>) -> Pod {
    let annotations = Annotations::of(&object.metadata);
    let placement = Placement { own_pool: annotations.own_pool, ..placement(&object.spec) };
    Pod {
        name: name(&object.metadata, namespace),
        containers: containers(&object.spec),
        declarations: annotations.declarations,
        reserved_annotations: annotations.reserved,
        bounded_by: annotations.bounded_by,
        unknown_annotations: annotations.unknown,
        placement,
        access: access(&object.spec),
        origin: origin(&object.metadata, user),
        excess: object.excess.clone(),
    }
}

/// The stage of a pod's life, as far as GPUs are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The pod requests neither a GPU nor VRAM.
    WithoutGpu,
    /// The pod has no node yet.
    Unbound,
    /// The pod is a holder on this node.
    Holds(String, Holder),
    /// The pod succeeded or failed.
    Ended,
}

/// Returns the stage of a pod. A terminating pod is still a holder.
pub fn stage(object: &PodObject) -> Stage {
    let Some(holder) = would_hold(object) else {
        return Stage::WithoutGpu;
    };
    if matches!(object.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Stage::Ended;
    }
    match object.spec.node_name.clone().filter(|node| !node.is_empty()) {
        Some(node) => Stage::Holds(node, holder),
        None => Stage::Unbound,
    }
}

/// Returns uid, node and holder of a bound pod. `None` for a pod without a node, one that ended, or one that requests
/// neither a GPU nor VRAM.
pub fn holder(object: &PodObject) -> Option<(PodUid, String, Holder)> {
    match stage(object) {
        Stage::Holds(node, holder) => Some((uid(&object.metadata), node, holder)),
        Stage::WithoutGpu | Stage::Unbound | Stage::Ended => None,
    }
}

/// Returns the holder that a pod is once it is bound; `None` if it requests neither a GPU nor VRAM.
pub fn would_hold(object: &PodObject) -> Option<Holder> {
    let containers = containers(&object.spec);
    let request = requested(&containers);
    let gpus = replicas(&containers);
    if request.is_none() && gpus.is_empty() {
        return None;
    }
    let parts = parts(&containers, &object.metadata).into();
    Some(Holder { request, parts, gpus: gpus.into(), ..holder_without_gpu(object) })
}

/// The holder of a pod without its request, containers and GPUs.
pub(super) fn holder_without_gpu(object: &PodObject) -> Holder {
    Holder {
        name: name(&object.metadata, None),
        request: None,
        parts: Vec::new().into(),
        gpus: Vec::new().into(),
        label_at_least: label_at_least(&object.spec),
        needs_label: needs_label(&object.spec),
        priority: object.spec.priority.unwrap_or(0),
        starting: starting(object),
        bound: bound(object),
        annotated: object.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(keys::GPU_TOTAL_MIB)),
    }
}

/// The smallest value of our label that meets every lower bound in the required node affinity, in MiB. A starting
/// kubelet checks its pods against their affinity, so the label of their node must not fall below it.
fn label_at_least(spec: &PodSpec) -> Option<Vram> {
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let requirements = required.node_selector_terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    let above = requirements.filter(|requirement| requirement.key == keys::POD_MAX_MIB && requirement.operator == "Gt");
    let least = above.filter_map(|requirement| requirement.values.iter().next()?.parse::<u64>().ok()?.checked_add(1));
    least.filter_map(Vram::checked_from_mib).max()
}

/// Whether every alternative of the required node affinity needs our label on the node. Of the alternatives that
/// vramguard writes, one also matches without the label.
fn needs_label(spec: &PodSpec) -> bool {
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return false };
    let wants_it = |term: &object::NodeSelectorTerm| {
        term.match_expressions.iter().flatten().any(|requirement| {
            requirement.key == keys::POD_MAX_MIB && !matches!(requirement.operator.as_str(), "DoesNotExist" | "NotIn")
        })
    };
    // A term without requirements is not an alternative, because it matches no node.
    let asks = |list: &Option<object::Requirements>| list.as_ref().is_some_and(|list| !list.is_empty());
    let terms = required.node_selector_terms.iter();
    let mut terms = terms.filter(|term| asks(&term.match_expressions) || asks(&term.match_fields)).peekable();
    terms.peek().is_some() && terms.all(wants_it)
}

/// When the pod was bound, if it is not ready yet.
fn starting(object: &PodObject) -> Option<Moment> {
    if is_true(object, "Ready").is_some() { None } else { bound(object) }
}

/// When the pod was bound.
fn bound(object: &PodObject) -> Option<Moment> {
    is_true(object, "PodScheduled")?.last_transition_time.as_deref().and_then(moment)
}

fn is_true<'o>(object: &'o PodObject, kind: &str) -> Option<&'o object::Condition> {
    let condition = object.status.conditions.iter().find(|condition| condition.kind == kind);
    condition.filter(|condition| condition.status == "True")
}

/// Interprets the result of reading a pod by name: what became of the pod with this uid on this node.
pub fn found(object: Option<&PodObject>, wanted: &PodUid, node: &str) -> Found {
    let Some(object) = object.filter(|object| uid(&object.metadata) == *wanted) else {
        return Found::Gone;
    };
    match stage(object) {
        Stage::Ended | Stage::WithoutGpu => Found::Gone,
        Stage::Unbound => Found::Unbound,
        Stage::Holds(bound, _) if bound == node => Found::Here,
        Stage::Holds(..) => Found::Elsewhere,
    }
}

/// Whether kube-scheduler has tried to place a pod and found no node.
pub fn is_unschedulable(object: &PodObject) -> bool {
    object.spec.node_name.is_none()
        && object.status.conditions.iter().any(|condition| {
            condition.kind == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })
}

/// The uid of a pod. A hand-written snapshot may lack it; namespace and name replace it then.
pub fn uid(metadata: &ObjectMeta) -> PodUid {
    PodUid::from(metadata.uid.clone().unwrap_or_else(|| name(metadata, None).to_string()))
}

/// Parses a time in RFC 3339, as the API server writes it.
pub fn moment(text: &str) -> Option<Moment> {
    text.parse::<jiff::Timestamp>().ok().map(|time| Moment(time.as_millisecond()))
}

fn name(metadata: &ObjectMeta, namespace: Option<&str>) -> PodName {
    let generated = || metadata.generate_name.as_ref().map(|prefix| format!("{prefix}*"));
    PodName {
        namespace: metadata.namespace.as_deref().or(namespace).unwrap_or("default").into(),
        name: metadata.name.clone().filter(|name| !name.is_empty()).or_else(generated).unwrap_or_default().into(),
    }
}

/// Whether a pod says that it was rerouted when it was created.
pub fn is_rerouted(object: &PodObject) -> bool {
    object.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(keys::OWN_POOL))
}

/// Whether an existing pod says that it is the mirror of a static pod, which its kubelet runs in any case. Anyone who may
/// create pods may say so.
pub fn is_mirror(object: &PodObject) -> bool {
    object.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(keys::MIRROR_POD))
}

/// Anyone may write the mirror annotation, so only a kubelet is trusted with it. Outside of a review the pod exists
/// already, and nothing is decided on its origin.
fn origin(metadata: &ObjectMeta, user: Option<&str>) -> Origin {
    let marked = metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(keys::MIRROR_POD));
    if marked && user.is_some_and(|user| user.starts_with("system:node:")) { Origin::Mirror } else { Origin::Api }
}

fn access(spec: &PodSpec) -> HostAccess {
    let mut containers = spec.init_containers.iter().chain(&spec.containers);
    let privileged =
        |container: &object::Container| container.security_context.as_ref().is_some_and(|c| c.privileged == Some(true));
    let host_path =
        spec.volumes.iter().any(|volume| volume.host_path.as_ref().is_some_and(|path| path.of_infrastructure));
    if host_path || containers.any(privileged) { HostAccess::Host } else { HostAccess::None }
}

fn containers(spec: &PodSpec) -> Vec<Container> {
    let init = spec.init_containers.iter().map(|container| match container.restart_policy.as_deref() {
        Some("Always") => (Role::Sidecar, container),
        _ => (Role::Init, container),
    });
    init.chain(spec.containers.iter().map(|container| (Role::App, container))).map(container).collect()
}

fn container((role, object): (Role, &object::Container)) -> Container {
    let limits = object.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let requests = object.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let env = object.env.iter().flat_map(|env| env.iter()).map(|entry| EnvEntry {
        name: entry.name.clone(),
        value: match (&entry.value, &entry.value_from) {
            (_, Some(_)) => None,
            (value, None) => Some(value.clone().unwrap_or_default()),
        },
        field: entry.value_from.as_ref().and_then(|source| Some(source.field_ref.as_ref()?.field_path.clone())),
    });
    let gpus = gpus(limits, requests);
    Container {
        name: object.name.clone(),
        role,
        software: if gpus.is_empty() { Software::default() } else { software(object) },
        gpus,
        vram_request: vram_request(limits, requests),
        env: env.collect(),
    }
}

fn software(object: &object::Container) -> Software {
    let [command, args] =
        [&object.command, &object.args].map(|list| list.iter().take(MOST_WORDS + 1).collect::<Vec<&str>>());
    recognise(&object.image, &command, &args)
}

fn gpus(limits: Option<&Quantities>, requests: Option<&Quantities>) -> Vec<(Resource, u64)> {
    let mut gpus: BTreeMap<&str, u64> = BTreeMap::new();
    let quantities = requests.into_iter().chain(limits).flat_map(|list| list.iter());
    for (name, quantity) in quantities.filter(|(name, _)| keys::is_gpu_resource(name)) {
        // The API server refuses a count that is not a number. Until it does, the container counts as requesting one
        // GPU.
        let count = quantity::count(&quantity.0).unwrap_or(1);
        let known = gpus.entry(name).or_default();
        *known = (*known).max(count);
    }
    gpus.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (Resource(name.into()), count)).collect()
}

fn vram_request(limits: Option<&Quantities>, requests: Option<&Quantities>) -> VramRequest {
    let of = |quantities: Option<&Quantities>| quantities.and_then(|q| q.get(keys::VRAM_RESOURCE)).map(|q| q.0.clone());
    // The API server copies a missing request from the limit, and refuses a missing limit.
    let (limit, request) = (of(limits), of(requests));
    let (Some(limit), Some(request)) = (limit.clone().or_else(|| request.clone()), request.or(limit)) else {
        return VramRequest::Absent;
    };
    match (quantity::bytes(&limit), quantity::bytes(&request)) {
        (Some(Bytes::Exactly(limit)), Some(Bytes::Exactly(request))) if limit == request => {
            VramRequest::Exactly(request)
        }
        (read_limit, read_request) => VramRequest::Irregular {
            text: if limit == request { request } else { format!("{request} (limit {limit})") },
            counted: read_request.or(read_limit).map(Bytes::vram),
        },
    }
}

/// Replicas of each GPU resource that a pod requests, as Kubernetes adds them up over its containers.
fn replicas(containers: &[Container]) -> Vec<(Resource, u64)> {
    let mut resources: Vec<&Resource> =
        containers.iter().flat_map(|c| c.gpus.iter().map(|(resource, _)| resource)).collect();
    resources.sort_unstable();
    resources.dedup();
    let of = |resource: &Resource| {
        let counts =
            containers.iter().flat_map(|c| c.gpus.iter().filter(|(r, _)| r == resource).map(|(_, n)| (c.role, *n)));
        demand::replicas_of_pod(counts)
    };
    resources.into_iter().map(|resource| (resource.clone(), of(resource))).collect()
}

/// How each container with a GPU or VRAM counts: by its request, else by a readable declaration, else by slots. A model
/// name needs a policy, and an existing pod may have been created without one. A container that declares only a model
/// therefore counts by slots.
fn parts(containers: &[Container], metadata: &ObjectMeta) -> Vec<Part> {
    let declarations = &Annotations::of(metadata).declarations;
    let all: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
    let with_gpu: Vec<&str> = containers.iter().filter(|c| !c.gpus.is_empty()).map(|c| c.name.as_str()).collect();
    let none = BTreeMap::new();
    let fallback = Fallback { models: &none, default: None };
    // The policy knew how much the model takes when it made the request.
    let has_model = declarations.model.is_some();
    let declarations = Declarations { model: None, ..declarations.clone() };
    let declared = resolve(&declarations, Names { all: &all, guarded: &with_gpu }, fallback, &mut Vec::new());
    let mut declared = declared.into_iter();
    let processes = match declarations.processes {
        None => Some(1),
        Some(Ok(processes)) => Some(processes),
        Some(Err(_)) => None,
    };
    let part = |container: &Container| {
        let figure =
            if container.gpus.is_empty() { None } else { declared.next().and_then(|figure| figure.ok().flatten()) };
        let requested = container.vram_request.counted().filter(|request| !request.is_zero());
        let replicas = container.gpus.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        let declares = figure.is_some() || has_model;
        let amount = match (requested, figure, processes) {
            (Some(request), _, _) if declares || replicas == 0 => Amount::Requested(request),
            (Some(request), _, _) => Amount::Injected(request),
            (None, Some(declared), Some(processes)) => Amount::Declared { declared, processes },
            (None, _, _) if replicas > 0 => Amount::Slots(replicas),
            (None, _, _) => return None,
        };
        let annotation = format!("{}{}", keys::GPU_OF, container.name);
        let gpu = metadata.annotations.as_ref().and_then(|annotations| annotations.get(&annotation));
        Some(Part {
            container: container.name.as_str().into(),
            role: container.role,
            amount,
            gpu: gpu.map(|id| GpuId::from(id.as_str())),
        })
    };
    containers.iter().filter_map(part).collect()
}

/// The annotations of a pod by kind: declarations, those that only vramguard writes, and unknown ones with our prefix.
#[derive(Default)]
struct Annotations {
    declarations: Declarations,
    reserved: Vec<String>,
    bounded_by: BTreeMap<String, String>,
    unknown: Vec<String>,
    own_pool: Option<OwnPool>,
}

impl Annotations {
    fn of(metadata: &ObjectMeta) -> Annotations {
        let mut sorted = Annotations::default();
        for (key, text) in metadata.annotations.iter().flatten() {
            sorted.sort(key, text);
        }
        sorted
    }

    fn sort(&mut self, key: &str, text: &str) {
        let declarations = &mut self.declarations;
        let ours = || written(key, text, |text| text.parse().map_err(|error: VramError| error.to_string()));
        if key == keys::VRAM {
            declarations.pod = Some(ours());
        } else if let Some(container) = key.strip_prefix(keys::VRAM_OF) {
            declarations.containers.insert(container.to_owned(), ours());
        } else if key == keys::MODEL {
            declarations.model = Some(text.to_owned());
        } else if key == keys::PROCESSES {
            let count = text.parse().ok().filter(|count| (1..=MAX_PROCESSES).contains(count));
            declarations.processes = Some(count.ok_or_else(|| text.to_owned()));
        } else if key == keys::FRAMEWORK {
            declarations.framework = Some(text.to_owned());
        } else if let Some(container) = key.strip_prefix(keys::FRAMEWORK_OF) {
            declarations.frameworks.insert(container.to_owned(), text.to_owned());
        } else if let Some(container) = key.strip_prefix(keys::BOUNDED_BY_OF) {
            self.bounded_by.insert(container.to_owned(), text.to_owned());
        } else if key == keys::GPU_TOTAL_MIB || key.starts_with(keys::GPU_OF) || key.starts_with(keys::VRAM_FRACTION_OF)
        {
            self.reserved.push(key.to_owned());
        } else if let Some(own) = (key == keys::OWN_POOL).then(|| OwnPool::parse(text)).flatten() {
            self.own_pool = Some(own);
        } else if key.starts_with(keys::PREFIX) {
            self.unknown.push(key.to_owned());
        } else if let Some(container) = foreign_container(key) {
            let read =
                |text: &str| quantity::bytes(text).map(Bytes::vram).ok_or_else(|| "is not a quantity".to_owned());
            declarations.foreign.entry(container.to_owned()).or_default().push(written(key, text, read));
        }
    }
}

fn foreign_container(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(keys::FOREIGN_OF)?;
    rest.strip_suffix(keys::FOREIGN_REQUEST).or_else(|| rest.strip_suffix(keys::FOREIGN_LIMIT))
}

fn written(key: &str, text: &str, read: impl Fn(&str) -> Result<Vram, String>) -> Written {
    Written { key: key.to_owned(), text: text.to_owned(), amount: read(text) }
}

fn placement(spec: &PodSpec) -> Placement {
    let required = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    Placement {
        node_name: spec.node_name.clone().filter(|node| !node.is_empty()),
        node_selector: (*spec.node_selector).clone(),
        required: required.map(|selector| selector.node_selector_terms.iter().map(term).collect()),
        tolerations: spec.tolerations.iter().map(toleration).collect(),
        priority: spec.priority.unwrap_or(0),
        preemption: match spec.preemption_policy.as_deref() {
            Some("Never") => Preemption::Never,
            _ => Preemption::LowerPriority,
        },
        own_pool: None,
    }
}

fn term(term: &object::NodeSelectorTerm) -> Term {
    let all = |list: &Option<object::Requirements>| list.iter().flat_map(|list| list.iter()).map(requirement).collect();
    Term { labels: all(&term.match_expressions), fields: all(&term.match_fields) }
}

fn requirement(requirement: &object::NodeSelectorRequirement) -> Requirement {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::Gt,
        "Lt" => Operator::Lt,
        _ => Operator::Unrecognised,
    };
    Requirement {
        key: requirement.key.clone(),
        operator,
        values: requirement.values.iter().map(str::to_owned).collect(),
    }
}

fn toleration(toleration: &object::Toleration) -> Toleration {
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let value = match toleration.operator.as_deref() {
        Some("Exists") => None,
        _ => Some(toleration.value.clone().unwrap_or_default()),
    };
    Toleration { key: filled(&toleration.key), value, effect: filled(&toleration.effect) }
}

#[cfg(test)]
mod tests;
