//! Workloads with a pod template → [`Workload`]s and the subjects of their templates; autoscalers. [`scale`] reads how
//! many pods a workload may have.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pods::{About, counted};
use super::{Names, Reader, kept, owners, typed};
use crate::capacity::audit::scene::{Stage, Subject, Template, Workload};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::verdict::finding::{Members, Object, Place};
use crate::k8s::object::PodObject;
use crate::k8s::template::kinds::{self, WorkloadKind};
use crate::k8s::template::scale::{self, Autoscaler};

/// The templates and autoscalers that were read.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    templates: Vec<Subject>,
    /// Each with the indexes of its templates, and named as itself.
    workloads: Vec<Workload>,
    /// By target: name of the autoscaler, and `maxReplicas`.
    autoscalers: BTreeMap<Object, (Name, u64)>,
}

impl Workloads {
    /// Drops a workload that was read.
    pub(super) fn forget(&mut self, id: &Object) {
        self.workloads.retain(|workload| workload.object != *id);
        while let Some(position) = self.templates.iter().position(|template| template.object == *id) {
            self.templates.remove(position);
            let others = self.workloads.iter_mut().flat_map(|workload| &mut workload.templates);
            others.filter(|template| template.subject > position).for_each(|template| template.subject -= 1);
        }
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
        let is_made = owner.as_ref().is_some_and(|owner| kind.is_made_by(&owner.kind));
        self.owners.note(id, owner);
        if is_made || is_finished(value) {
            return Ok(());
        }
        let numbers = scale::numbers(kind, value)?;
        let (mut templates, known) = (Vec::new(), self.workloads.templates.len());
        for row in kinds::rows(value).filter(|row| !row.is_left_out(value)) {
            // A template that makes no pods, as that of the workers in groups of one, violates nothing.
            if row.each(value)? == 0 {
                continue;
            }
            let read = self.template(row, id, place.clone(), value);
            // An object that cannot be read leaves nothing behind.
            templates.extend(read.inspect_err(|_| self.workloads.templates.truncate(known))?);
        }
        if let Some((replicas, surge)) = numbers.filter(|_| !templates.is_empty()) {
            let object = id.clone();
            self.workloads.workloads.push(Workload { object, templates, replicas, surge, autoscaler: None });
        }
        Ok(())
    }

    /// Keeps a template that has to do with GPUs. Returns it if it requests one.
    fn template(
        &mut self,
        kind: &WorkloadKind,
        id: &Object,
        place: Option<Place>,
        value: &Value,
    ) -> Result<Option<Template>, String> {
        let field = || kinds::field(kind.template);
        let template = value.pointer(kind.template).ok_or_else(|| format!("{}: is missing", field()))?;
        let mut object: PodObject = typed(template).map_err(|error| format!("{}.{error}", field()))?;
        counted(template).map_err(|error| format!("{}.{error}", field()))?;
        scale::as_made_by(&mut object, &id.namespace, &id.name);
        let (members, each) = (kind.members(value), kind.each(value)?);
        let Some(about) = About::of(template, &object, &mut self.names) else { return Ok(None) };
        let requests_gpu = about.pod.containers.iter().any(|container| !container.gpus.is_empty());
        let subject = about.subject(place, PodUid::from(""), Stage::Template, id.clone());
        let owner_kind = Some(self.names.share(kind.owner_of_pods));
        let index = self.workloads.templates.len();
        self.workloads.templates.push(Subject { owner_kind, ..subject });
        Ok(requests_gpu.then_some(Template { subject: index, members, each, bound: 0 }))
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
            // Above a worker of a group there is its leader.
            let member =
                if chain.iter().any(|owner| owner.kind == "Pod") { Members::Workers } else { Members::Leaders };
            let is_its = |template: &&mut Template| {
                template.members.is_none_or(|members| members == Members::All || members == member)
            };
            workloads[*workload].templates.iter_mut().filter(is_its).for_each(|template| template.bound += 1);
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
    let all = workloads.iter_mut().flat_map(|workload| &mut workload.templates);
    all.for_each(|template| template.subject += pods.len());
    pods.append(&mut templates);
    pods.shrink_to_fit();
    (pods, workloads)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::capacity::audit::scene::Scene;
    use crate::capacity::policy::{Documents, Policies};

    fn template() -> Value {
        json!({"metadata": {"annotations": {"vramguard.dev/vram": "8Gi"}},
            "spec": {"containers": [{"name": "m", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}})
    }

    fn object(version: &str, kind: &str, name: &str, owner: Option<(&str, &str)>, spec: Value) -> Value {
        let owners: Vec<Value> =
            owner.iter().map(|(kind, name)| json!({"kind": kind, "name": name, "controller": true})).collect();
        json!({"apiVersion": version, "kind": kind, "spec": spec,
            "metadata": {"name": name, "namespace": "ml", "uid": name, "ownerReferences": owners}})
    }

    /// The objects of a LeaderWorkerSet with one group of a leader and two workers, as its controller makes them.
    fn groups(pods: &Value) -> Vec<Value> {
        let set = json!({"replicas": 2, "leaderWorkerTemplate": pods});
        let of_set = json!({"replicas": 2, "template": template()});
        let pod = |name: &str, set: &str, is_labelled: bool| {
            let mut pod = object("v1", "Pod", name, Some(("StatefulSet", set)), template()["spec"].clone());
            pod["spec"]["nodeName"] = json!("gpu-0");
            if is_labelled {
                pod["metadata"]["labels"] = json!({"leaderworkerset.sigs.k8s.io/name": "vllm"});
            }
            pod
        };
        vec![
            object("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "vllm", None, set),
            object("apps/v1", "StatefulSet", "vllm", Some(("LeaderWorkerSet", "vllm")), of_set.clone()),
            object("apps/v1", "StatefulSet", "vllm-0", Some(("Pod", "vllm-0")), of_set),
            pod("vllm-0", "vllm", true),
            pod("vllm-0-1", "vllm-0", true),
            pod("vllm-0-2", "vllm-0", true),
            pod("other-0", "other", false),
        ]
    }

    fn scene(objects: &[Value]) -> Scene {
        let mut reader = Reader::new();
        objects.iter().for_each(|object| reader.add(None, object).expect("readable"));
        reader.finish(Policies::new(&Documents::default(), "vramguard-system"), &[])
    }

    #[test]
    fn leaders_and_workers_are_pods_of_their_leader_worker_set_in_any_order() {
        let mut objects = groups(&json!({"size": 3, "workerTemplate": template(), "leaderTemplate": template()}));
        for _ in 0..2 {
            let scene = scene(&objects);
            let mut owners: Vec<String> = scene
                .subjects
                .iter()
                .map(|subject| format!("{} {}", subject.object.kind, subject.object.name))
                .collect();
            owners.sort_unstable();
            // Three pods and two templates. Its StatefulSets are not counted again.
            assert_eq!(owners, [["LeaderWorkerSet vllm"; 5].as_slice(), &["StatefulSet other"]].concat());
            let [workload] = scene.workloads.as_slice() else { panic!("{:?}", scene.workloads) };
            let counts = workload.templates.iter().map(|template| (template.members, template.each, template.bound));
            let expected = [(Some(Members::Workers), 2, 2), (Some(Members::Leaders), 1, 1)];
            assert_eq!(counts.collect::<Vec<_>>(), expected);
            assert!(
                workload.templates.iter().all(|template| scene.subjects[template.subject].stage == Stage::Template)
            );
            objects.reverse();
        }
        let without = scene(&groups(&json!({"size": 1, "workerTemplate": template(), "leaderTemplate": template()})));
        assert_eq!(without.workloads[0].templates.len(), 1, "a group of one has no workers");
        let alone = scene(&groups(&json!({"size": 3, "workerTemplate": template()})));
        assert_eq!((alone.workloads[0].templates[0].each, alone.workloads[0].templates[0].bound), (3, 3));
    }

    #[test]
    fn a_leader_worker_set_that_cannot_be_read_leaves_no_template() {
        let pods = json!({"size": 3, "workerTemplate": template(), "leaderTemplate": {"spec": "none"}});
        let mut reader = Reader::new();
        let error = reader.add(None, &groups(&pods)[0]).unwrap_err();
        let expected = "LeaderWorkerSet ml/vllm: spec.leaderWorkerTemplate.leaderTemplate.spec: ";
        assert!(error.starts_with(expected), "{error}");
        assert!(reader.workloads.templates.is_empty());
    }

    #[test]
    fn a_later_file_takes_the_place_of_all_templates_of_a_workload() {
        let pods = json!({"size": 3, "workerTemplate": template(), "leaderTemplate": template()});
        let place = |file: &str| Some(Place { file: file.into(), line: 1 });
        let other = object("apps/v1", "Deployment", "other", None, json!({"template": template()}));
        let mut reader = Reader::new();
        for (file, object) in [("a", &groups(&pods)[0]), ("a", &other), ("b", &groups(&pods)[0])] {
            reader.add(place(file), object).expect("readable");
        }
        let scene = reader.finish(Policies::new(&Documents::default(), "vramguard-system"), &[]);
        let indexes: Vec<Vec<usize>> = scene
            .workloads
            .iter()
            .map(|workload| workload.templates.iter().map(|template| template.subject).collect())
            .collect();
        assert_eq!(indexes, [vec![0], vec![1, 2]]);
        assert_eq!(scene.subjects.len(), 3);
    }
}
