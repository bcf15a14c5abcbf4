//! Workloads with a pod template → [`Workload`]s and the subjects of their templates; autoscalers. [`scale`] reads how
//! many pods a workload may have.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pods::{About, counted};
use super::{Names, Reader, kept, owners, typed};
use crate::capacity::audit::scene::{Stage, Subject, Workload};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::verdict::finding::{Object, Place};
use crate::k8s::object::PodObject;
use crate::k8s::template::kinds::{self, WorkloadKind};
use crate::k8s::template::scale::{self, Autoscaler};

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
        let Autoscaler { kind, name, most } = Autoscaler::of(object)?;
        for (field, text) in [("kind", kind), ("name", name)] {
            kept::name(&format!("spec.scaleTargetRef.{field}"), text)?;
        }
        let target = Object { kind: names.share(kind), namespace: id.namespace.clone(), name: name.into() };
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
        scale::as_made_by(&mut object, &id.namespace, &id.name);
        let numbers = scale::numbers(kind, value)?;
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
