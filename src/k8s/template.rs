//! Pods and pod templates in the objects of a manifest or snapshot. Owns what the containers of a template demand;
//! [`kinds`] knows where each kind of workload has its template, and how many pods it makes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::foreign::{self, ForeignDeclaration};
use super::object::PodObject;
use super::{counts, pod, wording};
use crate::capacity::admission::declaration::{Fallback, Names, resolve};
use crate::capacity::gpu::Resource;
use crate::capacity::pod::demand::{Demand, Role};
use crate::capacity::pod::placement::{Placement, Preemption};
use crate::capacity::policy::{Mode, Policies, Policy};
use crate::capacity::vram::Vram;
use crate::keys;
pub use kinds::{Copies, WorkloadKind};

pub mod kinds;
pub(in crate::k8s) mod scale;

/// The pod template of an object, or the object itself if it is a pod.
#[derive(Clone, Copy, Debug)]
pub struct Template<'o> {
    /// The kind of the object.
    pub kind: &'static WorkloadKind,
    /// The template, with `metadata` and `spec`.
    pub value: &'o Value,
}

/// The pod templates of an object: one for most kinds, and none for a kind that makes no pods.
pub fn all(object: &Value) -> impl Iterator<Item = Template<'_>> {
    let there = kinds::rows(object).filter(|kind| !kind.is_left_out(object));
    there.filter_map(|kind| object.pointer(kind.template).map(|value| Template { kind, value }))
}

/// `Kind namespace/name` of an object, for messages.
pub fn title(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("object");
    let name = text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or("without a name");
    match text("/metadata/namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// What the pods of the objects demand.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// The demands of containers with one GPU, in the order of the objects.
    pub declared: Vec<Declared>,
    /// Containers with a GPU that declare nothing, each with its object and number.
    pub undeclared: Vec<(String, Copies)>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// One container of an object, with its demand.
#[derive(Clone, Debug)]
pub struct Declared {
    /// `Kind namespace/name` of the object.
    pub object: String,
    /// Resource that the container requests.
    pub resource: Resource,
    /// What it takes.
    pub demand: Vram,
    /// How many there are.
    pub copies: Copies,
    /// Where its pod may be placed, whatever its node is now.
    pub placement: Placement,
}

/// Reads what the pods of all objects demand.
///
/// An object whose controller is among the objects is left out, because the controller's template counts. So are
/// pods that ended, and namespaces that are exempt or in mode Off.
pub fn demands(objects: &[Value], policies: &Policies) -> Demands {
    let id = |kind: &str, namespace: &str, name: &str| format!("{kind} {namespace}/{name}");
    let text = |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let known: BTreeSet<String> = objects
        .iter()
        .filter_map(|object| Some(id(&text(object, "/kind")?, &namespace(object), &text(object, "/metadata/name")?)))
        .collect();
    let owned = |object: &Value| {
        let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
        let mut owners = owners.filter(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true));
        owners.any(|owner| {
            let named = |key: &str| owner.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            known.contains(&id(&named("kind"), &namespace(object), &named("name")))
        })
    };
    let mut demands = Demands::default();
    for object in objects.iter().filter(|object| !owned(object)) {
        if matches!(text(object, "/status/phase").as_deref(), Some("Succeeded" | "Failed")) {
            continue;
        }
        for Template { kind, value } in all(object) {
            match kind.copies(object) {
                Ok(Copies::Exactly(0)) => {}
                Ok(copies) => demands.of_template(object, value, copies, policies),
                Err(what) => {
                    let what = format!("{}: {what}", title(object));
                    // Several templates have the same numbers.
                    if demands.left_out.last() != Some(&what) {
                        demands.left_out.push(what);
                    }
                }
            }
        }
    }
    demands
}

/// The namespace of an object.
fn namespace(object: &Value) -> String {
    object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default").to_owned()
}

/// What one container with a GPU demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDemand {
    /// Name of the container.
    pub container: String,
    /// When it runs.
    pub role: Role,
    /// The GPU resources that it requests, each with its number.
    pub gpus: Vec<(Resource, u64)>,
    /// What it takes; `None` if it declares nothing.
    pub demand: Option<Demand>,
    /// CUDA processes of the container.
    pub processes: u32,
}

/// What the containers with a GPU of a template demand, under the policy of its namespace.
///
/// # Errors
/// The template cannot be read, or a declaration is refused. The list has all reasons.
pub fn container_demands(
    template: &Value,
    namespace: &str,
    policy: &Policy,
) -> Result<(Vec<ContainerDemand>, Placement), Vec<String>> {
    let read = serde_path_to_error::deserialize(template).map_err(|error: serde_path_to_error::Error<_>| {
        vec![format!("cannot be read: {}: {}", error.path(), wording::json(error.inner()))]
    });
    let read: PodObject = read?;
    counts::check(template).map_err(|(field, what)| vec![format!("{}: {what}", field.trim_start_matches('.'))])?;
    let pod = pod::translate(&read, Some(namespace), None);
    let all: Vec<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
    let with_gpu: Vec<_> = pod.containers.iter().filter(|container| !container.gpus.is_empty()).collect();
    let guarded: Vec<&str> = with_gpu.iter().map(|container| container.name.as_str()).collect();
    let mut violations = Vec::new();
    let fallback = Fallback { models: &policy.models, default: policy.default };
    let figures = resolve(&pod.declarations, Names { all: &all, guarded: &guarded }, fallback, &mut violations);
    if !violations.is_empty() {
        return Err(violations.iter().map(ToString::to_string).collect());
    }
    let processes = match &pod.declarations.processes {
        None => 1,
        Some(Ok(processes)) => *processes,
        Some(Err(text)) => return Err(vec![format!("{}: {text:?} is not a number of processes", keys::PROCESSES)]),
    };
    let mut demands = Vec::new();
    for (container, figure) in with_gpu.iter().zip(figures) {
        let declared = figure.ok().flatten();
        let demand = declared.map(|declared| {
            let demand = Demand::declared(declared, policy.per_process_overhead, processes);
            demand.ok_or_else(|| vec!["its demand is larger than any amount of memory".to_owned()])
        });
        demands.push(ContainerDemand {
            container: container.name.clone(),
            role: container.role,
            gpus: container.gpus.clone(),
            demand: demand.transpose()?,
            processes,
        });
    }
    Ok((demands, pod.placement))
}

impl Demands {
    fn of_template(&mut self, object: &Value, template: &Value, copies: Copies, policies: &Policies) {
        let namespace = namespace(object);
        let Some(policy) = policies.of(&namespace).filter(|policy| policy.mode != Mode::Off) else { return };
        let title = title(object);
        if let Some(foreign) = only_foreign(template) {
            let what = format!("declares {} for {}; run `vramguard convert` on it first", foreign.key, foreign.scheme);
            self.left_out.push(format!("{title}: {what}"));
            return;
        }
        let (containers, placement) = match container_demands(template, &namespace, policy) {
            Ok(read) => read,
            Err(reasons) => {
                self.left_out.extend(reasons.iter().map(|reason| format!("{title}: {reason}")));
                return;
            }
        };
        let any_lasts = containers.iter().any(|container| container.role != Role::Init);
        for ContainerDemand { container, role, gpus, demand, .. } in containers {
            // An init container has ended before the others need its replica.
            if any_lasts && role == Role::Init {
                continue;
            }
            let [(resource, 1)] = gpus.as_slice() else {
                let what = "asks for several GPUs, which are not shared";
                self.left_out.push(format!("{title}: container {container:?} {what}"));
                continue;
            };
            match demand {
                None => self.undeclared.push((title.clone(), copies)),
                Some(demand) => self.declared.push(Declared {
                    object: title.clone(),
                    resource: resource.clone(),
                    demand: demand.total,
                    copies,
                    placement: Placement { node_name: None, ..placement.clone() },
                }),
            }
        }
    }
}

/// The first declaration of a template for another project, if it has none of vramguard's own.
fn only_foreign(template: &Value) -> Option<ForeignDeclaration> {
    let annotations = template.pointer("/metadata/annotations").and_then(Value::as_object);
    let mut names = annotations.into_iter().flat_map(|annotations| annotations.keys());
    let ours = |name: &String| name == keys::VRAM || name == keys::MODEL || name.starts_with(keys::VRAM_OF);
    let found = foreign::of_pod(template).into_iter().find(|declaration| !declaration.understood);
    found.filter(|_| !names.any(ours))
}

/// A demand without an object, such as one from the command line: it may be placed on any GPU.
pub fn anywhere() -> Placement {
    Placement::anywhere(0, Preemption::LowerPriority)
}

#[cfg(test)]
mod tests;
