//! AdmissionReview ↔ verdict, for `admission.k8s.io/v1`. Owns both wire forms; the core makes the decisions. The
//! response is written here, because the type of kube writes a patch as an array of numbers and has no status code.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use json_patch::Patch;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::object::{BindingObject, PodObject};
use super::patch;
use crate::capacity::admission::{Changes, Judgement};
use crate::capacity::binding::Binding;
use crate::capacity::name::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::policy::Mode;
use crate::capacity::verdict::{self, Advice, Reason, Refusal, Verdict, Violation};
use crate::keys;

const API_VERSION: &str = "admission.k8s.io/v1";

/// An AdmissionReview with a request about an object of type `T`, which was of type `O` before.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Deserialize<'de>, O: Deserialize<'de>"))]
struct Review<T, O> {
    api_version: String,
    kind: String,
    #[serde(deserialize_with = "from_map")]
    request: Request<T, O>,
}

/// The request of an AdmissionReview. The object before an update is read for workloads only.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "T: Deserialize<'de>, O: Deserialize<'de>"))]
pub struct Request<T = PodObject, O = IgnoredAny> {
    /// Uid of the request, which the answer repeats.
    pub uid: String,
    /// Resource of the object.
    #[serde(default)]
    pub resource: GroupResource,
    /// Subresource, such as `status` or `binding`; absent or empty for the object itself.
    #[serde(default)]
    pub sub_resource: Option<String>,
    /// Operation; of pods and bindings only `CREATE` is reviewed.
    #[serde(default)]
    pub operation: String,
    /// Namespace of the request; the object may lack its own.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The user who sent the request to the API server.
    #[serde(default)]
    pub user_info: UserInfo,
    /// Name of the object; the object may lack its own.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether the request is a dry run.
    #[serde(default)]
    pub dry_run: Option<bool>,
    /// The pod, the Binding or the workload.
    #[serde(default = "none")]
    pub object: Option<T>,
    /// The object before an update.
    #[serde(default = "none")]
    pub old_object: Option<O>,
}

fn none<T>() -> Option<T> {
    None
}

/// API group and plural of a resource.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GroupResource {
    /// API group; empty for the core group.
    pub group: String,
    /// Plural of the resource, such as `pods`.
    pub resource: String,
}

/// The user who sent a request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// Name of the user.
    pub username: String,
}

/// Why a body is not a review. The error names the position and never the content, which may be anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The body is not JSON, or does not have the shape of a review.
    #[error("the body is not an {API_VERSION} AdmissionReview (line {line}, column {column})")]
    Malformed {
        /// Line of the body, from 1.
        line: usize,
        /// Column of that line, from 1.
        column: usize,
    },
    /// The body has the shape of a review, and another apiVersion or kind.
    #[error("the body is not an {API_VERSION} AdmissionReview: apiVersion or kind differ")]
    OtherKind,
}

/// Reads a struct from a JSON object only. A derived `Deserialize` also accepts a list with the values of its fields.
pub(super) fn from_map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Fields<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(Fields(PhantomData))
}

/// Reads the request of a review.
///
/// # Errors
/// The body is not an `admission.k8s.io/v1` AdmissionReview.
pub fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<Request<T>, ReviewError> {
    read_update(body)
}

/// Reads the request of a review, with the object before an update.
///
/// # Errors
/// The body is not an `admission.k8s.io/v1` AdmissionReview.
pub fn read_update<'b, T: Deserialize<'b>, O: Deserialize<'b>>(body: &'b [u8]) -> Result<Request<T, O>, ReviewError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let review: Review<T, O> = from_map(&mut deserializer)
        .and_then(|review| deserializer.end().map(|()| review))
        .map_err(|error| ReviewError::Malformed { line: error.line(), column: error.column() })?;
    if review.api_version != API_VERSION || review.kind != "AdmissionReview" {
        return Err(ReviewError::OtherKind);
    }
    Ok(review.request)
}

impl Request {
    /// The pod, if the request creates one.
    pub fn created_pod(&self) -> Option<&PodObject> {
        let about_pods = self.resource.group.is_empty() && self.resource.resource == "pods";
        let whole = self.sub_resource.as_deref().unwrap_or_default().is_empty();
        self.object.as_ref().filter(|_| about_pods && whole && self.operation == "CREATE")
    }
}

impl Request<BindingObject> {
    /// The binding, if the request creates one, as `pods/binding` or as the legacy `bindings`.
    pub fn created_binding(&self) -> Option<(&BindingObject, Binding)> {
        let kind = (self.resource.resource.as_str(), self.sub_resource.as_deref().unwrap_or_default());
        let about = self.resource.group.is_empty() && matches!(kind, ("pods", "binding") | ("bindings", ""));
        let object = self.object.as_ref().filter(|_| about && self.operation == "CREATE")?;
        let metadata = &object.metadata;
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let ours = |key: &&String| key.starts_with(keys::PREFIX);
        Some((
            object,
            Binding {
                pod: PodName {
                    namespace: named(&self.namespace).or_else(|| named(&metadata.namespace))?.into(),
                    name: named(&metadata.name).or_else(|| named(&self.name))?.into(),
                },
                uid: named(&metadata.uid).map(PodUid::from),
                node: object.target.name.clone(),
                reserved_annotations: metadata
                    .annotations
                    .iter()
                    .flat_map(BTreeMap::keys)
                    .filter(ours)
                    .cloned()
                    .collect(),
                binder: self.user_info.username.clone(),
            },
        ))
    }
}

/// An AdmissionReview with a response.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

/// The response of an AdmissionReview.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Uid of the request.
    pub uid: String,
    /// Whether the pod is admitted, or the binding allowed.
    pub allowed: bool,
    /// Status of the denial, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// JSON Patch in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<String>,
    /// `JSONPatch`, if there is a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_type: Option<&'static str>,
    /// Warnings for the author of the pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Annotations for the audit log of the API server.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub audit_annotations: BTreeMap<&'static str, String>,
}

/// `metav1.Status` of a denial.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Always `Failure`.
    pub status: &'static str,
    /// HTTP status code.
    pub code: u16,
    /// Reason for machines, in CamelCase.
    pub reason: String,
    /// Message for people.
    pub message: String,
}

impl Answer {
    /// Allows an object that vramguard does not judge.
    pub fn untouched(uid: String) -> Answer {
        Answer::of(Response { uid, allowed: true, ..Response::default() })
    }

    /// Answers `/mutate/pods`.
    pub fn mutated(uid: String, patch: &Patch, changes: &Changes) -> Answer {
        let mut response = Response { uid, allowed: true, warnings: warnings(&changes.advice), ..Response::default() };
        if !patch.0.is_empty() {
            let operations = serde_json::to_vec(patch).expect("a patch of strings and maps is JSON");
            response.patch = Some(BASE64_STANDARD.encode(operations));
            response.patch_type = Some("JSONPatch");
        }
        Answer::of(response)
    }

    /// Allows a binding, and patches these annotations onto it; the API server copies them to the pod.
    pub fn bound(
        uid: String,
        binding: &BindingObject,
        pod: Option<&PodUid>,
        annotations: &BTreeMap<String, String>,
    ) -> Answer {
        let mut response = Response { uid, allowed: true, ..Response::default() };
        let patch = patch::of_binding(binding, pod, annotations);
        if !patch.0.is_empty() {
            let operations = serde_json::to_vec(&patch).expect("a patch of strings is JSON");
            response.patch = Some(BASE64_STANDARD.encode(operations));
            response.patch_type = Some("JSONPatch");
        }
        Answer::of(response)
    }

    /// Refuses a binding.
    pub fn refused(uid: String, pod: &PodName, refusal: &Refusal) -> Answer {
        let status = Status {
            status: "Failure",
            code: code(refusal.reason()),
            reason: refusal.reason().to_string(),
            message: refusal.message(pod),
        };
        Answer::of(Response { uid, status: Some(status), ..Response::default() })
    }

    /// Answers `/validate/pods`.
    pub fn judged(uid: String, pod: &PodName, judgement: Judgement) -> Answer {
        let audit_annotations = record(&judgement, pod);
        let (allowed, status, advice) = match judgement.verdict() {
            Verdict::Allow { advice } => (true, None, advice),
            Verdict::Deny { violations, advice } => (false, Some(denial(pod, &violations)), advice),
        };
        Answer::of(Response {
            uid,
            allowed,
            status,
            warnings: warnings(&advice),
            audit_annotations,
            ..Response::default()
        })
    }

    pub(super) fn of(response: Response) -> Answer {
        Answer { api_version: API_VERSION, kind: "AdmissionReview", response }
    }

    /// The response that is sent.
    pub fn response(&self) -> &Response {
        &self.response
    }
}

/// The response of an AdmissionReview as the API server reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Answered {
    /// Whether the object is admitted.
    pub allowed: bool,
    /// Status of the denial, if it is one.
    pub status: Option<Denied>,
    /// JSON Patch in base64.
    pub patch: Option<String>,
    /// Warnings for the author of the object.
    pub warnings: Vec<String>,
    /// Annotations for the audit log.
    pub audit_annotations: BTreeMap<String, String>,
}

/// The status of a denial as the API server reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Denied {
    /// HTTP status code.
    pub code: u16,
    /// Reason for machines, in CamelCase.
    pub reason: String,
    /// Message for people.
    pub message: String,
}

/// Reads the response of an AdmissionReview.
///
/// # Errors
/// The body is not an AdmissionReview with a response.
pub fn answered(body: &[u8]) -> Result<Answered, serde_json::Error> {
    #[derive(Deserialize)]
    struct Review {
        response: Answered,
    }
    serde_json::from_slice(body).map(|review: Review| review.response)
}

/// The HTTP status code of a denial. It is 422 if the pod cannot be read as written, 403 if a policy or rule forbids
/// it, and 409 if a binding conflicts with the pod's state or cannot be decided now. It is never 404, which clients
/// take for a missing object.
fn code(reason: Reason) -> u16 {
    match reason {
        Reason::VramUnreadable
        | Reason::VramZero
        | Reason::VramConflict
        | Reason::VramAmbiguous
        | Reason::UnknownContainer
        | Reason::UnknownModel
        | Reason::BadProcesses
        | Reason::VramTooLarge
        | Reason::TooManyEntries => 422,
        Reason::VramUndeclared
        | Reason::VramWithoutGpu
        | Reason::VramUnaccounted
        | Reason::VramBelowMinimum
        | Reason::VramAboveMaximum
        | Reason::SlotUnknown
        | Reason::RequestMismatch
        | Reason::PodMaxUnchecked
        | Reason::SharedReplicas
        | Reason::NodeNameSet
        | Reason::VramShortfall
        | Reason::NeverFits
        | Reason::VisibleDevicesWithoutGpu
        | Reason::EnvironmentConflict
        | Reason::ReservedAnnotation
        | Reason::ForeignBinder
        | Reason::NodeUnaccounted
        | Reason::GpuStarting
        | Reason::BoundPastGuard
        | Reason::RefusedIfCreated
        | Reason::GpuOvercommitted
        | Reason::PublicationUndone
        // Findings of an audit, which refuses nothing.
        | Reason::GpuMayBeOvercommitted
        | Reason::GpusUnknown
        | Reason::GpusUnusable
        | Reason::TooManyReplicas
        | Reason::VramStranded
        | Reason::UnknownAnnotation
        | Reason::UnknownFramework
        | Reason::Unbounded
        | Reason::NotGuarded
        | Reason::ForeignDeclaration
        | Reason::DeadEnvironment
        | Reason::DangerousEnvironment
        | Reason::GpuBypass
        | Reason::OnlySharedGpus
        | Reason::AutoscalerExceedsRoom
        | Reason::RolloutExceedsRoom
        | Reason::ReplicasExceedRoom
        | Reason::NoNodeAllowed
        | Reason::QuotaNotKept
        | Reason::Rerouted
        | Reason::NotRerouted
        | Reason::QuotaExceeded
        | Reason::DeviceOvercommitted
        | Reason::DeviceWithoutHeadroom
        | Reason::ClaimWithoutMemory
        | Reason::NodeInBothWorlds
        | Reason::OverDeclaration
        | Reason::Undeclared
        | Reason::Idle
        | Reason::FarUnder
        | Reason::AgentStale
        | Reason::AgentUnreadable => 403,
        Reason::OtherUid | Reason::AlreadyBound | Reason::Undecided => 409,
    }
}

fn denial(pod: &PodName, violations: &[Violation]) -> Status {
    let reason = violations.first().expect("a denial has a violation").reason();
    Status {
        status: "Failure",
        code: code(reason),
        reason: reason.to_string(),
        message: verdict::denial(pod, violations),
    }
}

/// The audit annotations: the decision, or under modes Warn and Audit the violations that were admitted.
fn record(judgement: &Judgement, pod: &PodName) -> BTreeMap<&'static str, String> {
    let mut record = BTreeMap::new();
    if judgement.mode == Mode::Off || judgement.demand.is_none() && judgement.violations.is_empty() {
        return record;
    }
    record.insert("mode", judgement.mode.to_string());
    if let Some(demand) = judgement.demand {
        record.insert("demand", demand.to_string());
    }
    if let Some(first) = judgement.violations.first() {
        record.insert("reason", first.reason().to_string());
        record.insert("violations", verdict::denial(pod, &judgement.violations));
    }
    record
}

fn warnings(advice: &[Advice]) -> Vec<String> {
    advice.iter().map(|advice| format!("vramguard: {advice}")).collect()
}
