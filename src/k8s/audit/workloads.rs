//! Workloads with a pod template → [`Workload`]s and the subjects of their templates; autoscalers. Owns how many more
//! pods a rollout makes; [`kinds`] knows how many a workload should have.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pods::{About, counted};
use super::{Names, Reader, kept, owners, typed};
use crate::capacity::audit::scene::{Stage, Subject, Workload};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::verdict::finding::{Object, Place};
use crate::k8s::object::PodObject;
use crate::k8s::quantity;
use crate::k8s::template::kinds::{self, Copies, WorkloadKind};

/// The number of pods that a workload should have, and how many a rollout adds; `None` if its nodes decide.
fn numbers(kind: &WorkloadKind, object: &Value) -> Result<Option<(u64, u64)>, String> {
    Ok(match kind.copies(object)? {
        Copies::PerNode => None,
        Copies::Exactly(_) if kind.is_suspended(object) => Some((0, 0)),
        Copies::Exactly(replicas) => Some((replicas, if kind.surges { surge(object, replicas)? } else { 0 })),
    })
}

/// The pods for which a rollout of a Deployment needs room beside the old ones. Kubernetes never scales the new ReplicaSet
/// above `replicas`. If pods may be unavailable, old ones make room for new ones.
fn surge(object: &Value, replicas: u64) -> Result<u64, String> {
    let strategy = object.pointer("/spec/strategy");
    let is_recreated = strategy.and_then(|strategy| strategy.get("type")?.as_str()) == Some("Recreate");
    if is_recreated || object.pointer("/spec/paused") == Some(&Value::Bool(true)) {
        return Ok(0);
    }
    let bound = |field: &str| IntOrPercent::of(strategy.and_then(|strategy| strategy.get("rollingUpdate")?.get(field)));
    let bound = |field: &str| bound(field).map_err(|error| format!("spec.strategy.rollingUpdate.{field}: {error}"));
    let surge = bound("maxSurge")?.of_replicas(replicas, u64::div_ceil);
    let unavailable = bound("maxUnavailable")?.of_replicas(replicas, |share, all| share / all);
    // If both are zero, Kubernetes lets one pod be unavailable, and then the surge is zero anyway.
    Ok(if unavailable > 0 { 0 } else { surge.min(replicas) })
}

/// A bound of a rollout.
#[derive(Clone, Copy, Debug)]
enum IntOrPercent {
    Int(u64),
    Percent(u64),
}

impl IntOrPercent {
    /// Reads a bound; 25 % if it is absent. A percentage that is too large for a number is the largest one.
    fn of(value: Option<&Value>) -> Result<IntOrPercent, String> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(IntOrPercent::Percent(25)) };
        let percent = |text: &str| {
            let digits = text.strip_suffix('%')?;
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| IntOrPercent::Percent(digits.parse().unwrap_or(u64::MAX)))
        };
        match value.as_str() {
            Some(text) => {
                percent(text).ok_or_else(|| format!("{value} is neither a whole number nor a percentage, as in 25%"))
            }
            None => quantity::whole(value).map(IntOrPercent::Int).map_err(|why| format!("{why} or a percentage")),
        }
    }

    /// The number of pods. `divide` rounds a share.
    fn of_replicas(self, replicas: u64, divide: impl Fn(u64, u64) -> u64) -> u64 {
        match self {
            IntOrPercent::Int(pods) => pods,
            IntOrPercent::Percent(percent) => divide(replicas.saturating_mul(percent), 100),
        }
    }
}

/// The templates and autoscalers that were read.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    templates: Vec<Subject>,
    /// Each with the index of its template, and named as itself.
    workloads: Vec<Workload>,
    /// By target: name of the autoscaler, and `maxReplicas`.
    autoscalers: BTreeMap<Object, (Name, u64)>,
}

impl Workloads {
    /// Drops a workload that was read.
    pub(super) fn forget(&mut self, id: &Object) {
        let Some(position) = self.templates.iter().position(|template| template.object == *id) else { return };
        self.templates.remove(position);
        self.workloads.retain(|workload| workload.template != position);
        let later = self.workloads.iter_mut().filter(|workload| workload.template > position);
        later.for_each(|workload| workload.template -= 1);
    }

    pub(super) fn autoscaler(&mut self, id: &Object, object: &Value, names: &mut Names) -> Result<(), String> {
        let most = kinds::number(object, "/spec/maxReplicas")?.ok_or("spec.maxReplicas: is missing")?;
        let text = |field: &str| {
            let text = object.pointer(&format!("/spec/scaleTargetRef/{field}")).and_then(Value::as_str);
            let text = text.ok_or_else(|| format!("spec.scaleTargetRef.{field}: is missing, or no text"))?;
            kept::name(&format!("spec.scaleTargetRef.{field}"), text).map(|()| text)
        };
        let kind = names.share(text("kind")?);
        let target = Object { kind, namespace: id.namespace.clone(), name: text("name")?.into() };
        let known = self.autoscalers.entry(target).or_insert_with(|| (id.name.clone(), most));
        if most > known.1 {
            *known = (id.name.clone(), most);
        }
        Ok(())
    }
}

impl Reader {
    pub(super) fn workload(
        &mut self,
        kind: &WorkloadKind,
        id: &Object,
        place: Option<Place>,
        value: &Value,
    ) -> Result<(), String> {
        let owner = owners::controller(value, &id.namespace, &mut self.names);
        let is_made = kind.is_made && owner.is_some();
        self.owners.note(id, owner);
        if is_made || is_finished(value) {
            return Ok(());
        }
        let field = || kinds::field(kind.template);
        let template = value.pointer(kind.template).ok_or_else(|| format!("{}: is missing", field()))?;
        let mut object: PodObject = typed(template).map_err(|error| format!("{}.{error}", field()))?;
        counted(template).map_err(|error| format!("{}.{error}", field()))?;
        object.metadata.namespace = Some(id.namespace.to_string());
        object.metadata.name = None;
        object.metadata.generate_name = Some(format!("{}-", id.name));
        let numbers = numbers(kind, value)?;
        let Some(about) = About::of(template, &object, &mut self.names) else { return Ok(()) };
        let requests_gpu = about.pod.containers.iter().any(|container| !container.gpus.is_empty());
        let subject = about.subject(place, PodUid::from(""), Stage::Template, id.clone());
        let owner_kind = Some(self.names.share(kind.owner_of_pods));
        let template = self.workloads.templates.len();
        self.workloads.templates.push(Subject { owner_kind, ..subject });
        if let Some((replicas, surge)) = numbers.filter(|_| requests_gpu) {
            let object = id.clone();
            self.workloads.workloads.push(Workload { object, template, replicas, surge, autoscaler: None, bound: 0 });
        }
        Ok(())
    }
}

/// Whether a Job completed or failed, so that it makes no more pods.
fn is_finished(object: &Value) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        let text = |field: &str| condition.get(field).and_then(Value::as_str);
        matches!(text("type"), Some("Complete" | "Failed")) && text("status") == Some("True")
    })
}

/// Completes subjects and workloads, now that all owners and autoscalers are known. Templates come last.
pub(super) fn finish(
    read: Workloads,
    mut pods: Vec<Subject>,
    owners: &owners::Owners,
) -> (Vec<Subject>, Vec<Workload>) {
    let Workloads { mut templates, mut workloads, mut autoscalers } = read;
    let mut index: BTreeMap<Object, usize> = BTreeMap::new();
    for (number, workload) in workloads.iter_mut().enumerate() {
        workload.autoscaler = autoscalers.remove(&workload.object);
        index.insert(workload.object.clone(), number);
    }
    for subject in &mut pods {
        let mut chain = owners.chain(&subject.object);
        if matches!(subject.stage, Stage::Bound(_))
            && let Some(workload) = chain.iter().find_map(|owner| index.get(owner))
        {
            workloads[*workload].bound += 1;
        }
        subject.object = chain.pop().unwrap_or_else(|| subject.object.clone());
    }
    for object in templates
        .iter_mut()
        .map(|template| &mut template.object)
        .chain(workloads.iter_mut().map(|workload| &mut workload.object))
    {
        *object = owners.chain(object).pop().unwrap_or_else(|| object.clone());
    }
    // There are far fewer templates than pods, so they are moved.
    workloads.iter_mut().for_each(|workload| workload.template += pods.len());
    pods.append(&mut templates);
    pods.shrink_to_fit();
    (pods, workloads)
}
