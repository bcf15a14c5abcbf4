//! Workloads and autoscalers as the API server sends them, reduced to the fields that are read. Owns how much of them is
//! kept: the template is bounded as a pod is, and of everything else only numbers and short texts are.

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Autoscaler, TARGETS};
use crate::capacity::admission::workload::{Scale, Template, Workload};
use crate::capacity::verdict::finding::Object;
use crate::k8s::bounded::{Bounded, Entry};
use crate::k8s::object::bounds::MAX_NAME;
use crate::k8s::object::{PodObject, null_as_default};
use crate::k8s::pod;
use crate::k8s::template::kinds;
use crate::k8s::template::scale;

/// Owners of an object that are read. The controller is the only one in practice.
const MAX_OWNERS: usize = 64;

/// A workload or autoscaler, reduced to the fields that are read. Serialized, it is the same object without its templates,
/// of which only the one that is optional leaves a mark, and without its owners.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadObject {
    api_version: Scalar,
    kind: Scalar,
    #[serde(deserialize_with = "null_as_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "null_as_default")]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Scalar,
    #[serde(deserialize_with = "null_as_default", skip_serializing)]
    owner_references: Bounded<Owner, MAX_OWNERS>,
}

/// An entry of `ownerReferences`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    controller: Scalar,
    kind: Scalar,
}

impl Entry for Owner {}

/// The spec of any of the kinds, or of the Jobs of a CronJob.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    replicas: Scalar,
    parallelism: Scalar,
    completions: Scalar,
    suspend: Scalar,
    paused: Scalar,
    #[serde(deserialize_with = "null_as_default")]
    strategy: Strategy,
    max_replicas: Scalar,
    #[serde(deserialize_with = "null_as_default")]
    scale_target_ref: TargetReference,
    #[serde(deserialize_with = "null_as_default")]
    job_template: JobTemplate,
    #[serde(deserialize_with = "null_as_default")]
    leader_worker_template: LeaderWorkerTemplate,
    #[serde(deserialize_with = "null_as_default")]
    rollout_strategy: RolloutStrategy,
    #[serde(skip_serializing)]
    template: Option<PodObject>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Strategy {
    #[serde(rename = "type")]
    kind: Scalar,
    #[serde(deserialize_with = "null_as_default")]
    rolling_update: RollingUpdate,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct RollingUpdate {
    max_surge: Scalar,
    max_unavailable: Scalar,
}

/// The groups of a LeaderWorkerSet.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct LeaderWorkerTemplate {
    size: Scalar,
    #[serde(serialize_with = "mark")]
    leader_template: Option<PodObject>,
    #[serde(skip_serializing)]
    worker_template: Option<PodObject>,
}

/// Says of a template only whether it is there.
#[expect(clippy::ref_option, reason = "serde calls it")]
fn mark<S: Serializer>(template: &Option<PodObject>, serializer: S) -> Result<S::Ok, S::Error> {
    template.is_some().then_some(true).serialize(serializer)
}

/// How a LeaderWorkerSet replaces its groups.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct RolloutStrategy {
    #[serde(deserialize_with = "null_as_default")]
    rolling_update_configuration: RollingUpdate,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct TargetReference {
    api_version: Scalar,
    kind: Scalar,
    name: Scalar,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct JobTemplate {
    #[serde(deserialize_with = "null_as_default")]
    spec: JobSpec,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct JobSpec {
    parallelism: Scalar,
    completions: Scalar,
    suspend: Scalar,
    #[serde(skip_serializing)]
    template: Option<PodObject>,
}

impl WorkloadObject {
    /// Reads an object.
    ///
    /// # Errors
    /// A field has a type that it cannot have. The text names the field.
    pub(super) fn read(text: &str) -> Result<WorkloadObject, String> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            // The error itself may repeat what the author wrote.
            format!("{}: is not of the type that it must have", error.path())
        })
    }

    /// The object without its template and its owners, as other modules read objects.
    fn numbers(&self) -> Value {
        serde_json::to_value(self).expect("numbers and short texts are JSON")
    }

    /// The name of the object.
    fn name(&self) -> Result<&str, String> {
        checked("metadata.name", self.metadata.name.text())
    }

    /// The autoscaler, if it is one whose target can be read.
    pub(super) fn autoscaler(&self, namespace: &str) -> Result<Option<Autoscaler>, String> {
        let is_one =
            self.kind.text() == "HorizontalPodAutoscaler" && self.api_version.text().starts_with("autoscaling/");
        if !is_one {
            return Ok(None);
        }
        let object = self.numbers();
        let scale::Autoscaler { kind, name, most } = scale::Autoscaler::of(&object)?;
        let group = self.spec.scale_target_ref.api_version.text().split_once('/').map(|(group, _)| group);
        if !TARGETS.iter().any(|target| target.kind == kind && group == Some(target.group)) {
            return Ok(None);
        }
        let kind = kind.into();
        let name = checked("spec.scaleTargetRef.name", name)?.into();
        let target = Object { kind, namespace: namespace.into(), name };
        Ok(Some(Autoscaler { name: self.name()?.into(), most, target }))
    }

    /// The workload. `None` for a kind without a template, for one whose nodes decide how many pods there are, and for an
    /// object that another workload made, whose template counts instead.
    ///
    /// # Errors
    /// A number or name cannot be read, or the template is missing. The text names the field.
    pub(super) fn workload(mut self, namespace: &str) -> Result<Option<Workload>, String> {
        let numbers = self.numbers();
        let Some(kind) = kinds::of(&numbers).filter(|kind| !kind.template.is_empty()) else { return Ok(None) };
        let makes_it = |owner: &Owner| owner.controller.0 == Value::Bool(true) && kind.is_made_by(owner.kind.text());
        if self.metadata.owner_references.iter().any(makes_it) {
            return Ok(None);
        }
        let Some((replicas, surge)) = scale::numbers(kind, &numbers)? else { return Ok(None) };
        let name = self.name()?.to_owned();
        let object = Object { kind: kind.kind.into(), namespace: namespace.into(), name: name.as_str().into() };
        let mut templates = Vec::new();
        for row in kinds::rows(&numbers).filter(|row| !row.is_left_out(&numbers)) {
            // A template that makes no pods, as that of the workers in groups of one, violates nothing.
            let each = row.each(&numbers)?;
            if each == 0 {
                continue;
            }
            let template = self.spec.take(row.template);
            let mut template = template.ok_or_else(|| format!("{}: is missing", kinds::field(row.template)))?;
            scale::as_made_by(&mut template, namespace, &name);
            let pod = pod::translate(&template, Some(namespace), None);
            templates.push(Template { members: row.members(&numbers), each, pod });
        }
        Ok(Some(Workload { object, templates, scale: Scale { replicas, surge, autoscaler: None } }))
    }
}

impl Spec {
    /// Takes the template that is at this place of the object, of those places that [`kinds`] knows.
    fn take(&mut self, pointer: &str) -> Option<PodObject> {
        match pointer {
            "/spec/template" => self.template.take(),
            "/spec/jobTemplate/spec/template" => self.job_template.spec.template.take(),
            "/spec/leaderWorkerTemplate/leaderTemplate" => self.leader_worker_template.leader_template.take(),
            "/spec/leaderWorkerTemplate/workerTemplate" => self.leader_worker_template.worker_template.take(),
            _ => None,
        }
    }
}

fn checked<'t>(field: &str, text: &'t str) -> Result<&'t str, String> {
    let fits = text.len() <= MAX_NAME;
    fits.then_some(text).ok_or_else(|| format!("{field}: is longer than any name in Kubernetes"))
}

/// A number, a boolean or the beginning of a text. A list or an object is kept empty, so that it is still one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
struct Scalar(Value);

impl Scalar {
    fn text(&self) -> &str {
        self.0.as_str().unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                // One character more than a name has, so that what is cut is still too long.
                Ok(value.chars().take(MAX_NAME + 1).collect::<String>().into())
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Array(Vec::new()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Object(Map::new()))
            }
        }
        deserializer.deserialize_any(Any).map(Scalar)
    }
}
