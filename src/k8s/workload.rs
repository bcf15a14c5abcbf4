//! A workload or autoscaler under review → the pods that it may have, and its answer. Owns which reviews ask for more
//! than before, and what the audit log of the API server gets. The core decides whether the pods fit.
//!
//! Nothing here refuses an object: one that cannot be read is allowed, and the audit log says why it was not judged.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

pub use self::object::WorkloadObject;
use super::review::{Answer, Request, Response};
use crate::capacity::admission::workload::{Scale, Workload, WorkloadJudgement};
use crate::capacity::name::Name;
use crate::capacity::policy::Mode;
use crate::capacity::verdict::finding::Object;
use crate::keys;

mod object;

/// The request of a review whose objects are not parsed yet: what is wrong in them must not fail the review.
pub type Unparsed<'b> = Request<&'b RawValue, &'b RawValue>;

/// What a review asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing that is judged: another kind or operation, or no more pods than before.
    Nothing,
    /// Whether the pods of a workload fit.
    Workload(Box<Workload>),
    /// Whether the pods fit that an autoscaler may ask for.
    Autoscaler(Autoscaler),
    /// The object cannot be read, for this reason.
    Unread(String),
}

/// A kind of targets of autoscalers that is read.
struct Target {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
}

/// All of them. Each kind is in one group, so a target is known by its kind.
const TARGETS: [Target; 4] = [
    Target { group: "apps", kind: "Deployment", plural: "deployments" },
    Target { group: "apps", kind: "StatefulSet", plural: "statefulsets" },
    Target { group: "apps", kind: "ReplicaSet", plural: "replicasets" },
    Target { group: keys::LWS_GROUP, kind: keys::LWS_KIND, plural: "leaderworkersets" },
];

/// A HorizontalPodAutoscaler. The template of its pods is in its target, which a review does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autoscaler {
    /// Name of the autoscaler.
    pub name: Name,
    /// `spec.maxReplicas`.
    pub most: u64,
    /// What it scales.
    pub target: Object,
}

impl Autoscaler {
    /// Whether it may ask for more pods than before.
    fn asks_more_than(&self, before: &Autoscaler) -> bool {
        self.target != before.target || self.most > before.most
    }

    /// The path of its target at the API server; `None` for a name that no object has.
    pub fn target_path(&self) -> Option<String> {
        let Object { kind, namespace, name } = &self.target;
        let Target { group, plural, .. } = TARGETS.iter().find(|target| *kind == *target.kind)?;
        let is_plain = |text: &str| {
            let of_names = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            text.bytes().all(of_names) && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        };
        (is_plain(namespace) && is_plain(name))
            .then(|| format!("/apis/{group}/v1/namespaces/{namespace}/{plural}/{name}"))
    }

    /// Its target with the number of pods that this autoscaler may ask for, and no other. `None` if nothing is known of
    /// the pods of the target.
    ///
    /// # Errors
    /// The target cannot be read. The text says why.
    pub fn scaled(self, target: WorkloadObject) -> Result<Option<Workload>, String> {
        let scale = Scale { autoscaler: Some((self.name, self.most)), ..Scale::default() };
        Ok(target.workload(&self.target.namespace)?.map(|workload| Workload { scale, ..workload }))
    }
}

/// Reads what a review asks.
pub fn asked(request: &Unparsed<'_>) -> Asked {
    read(request).unwrap_or_else(Asked::Unread)
}

/// What one version of an object is.
enum Version {
    /// Neither a workload whose pods are counted, nor an autoscaler.
    Other,
    Workload(Box<Workload>),
    Autoscaler(Autoscaler),
}

impl Version {
    fn read(object: &RawValue, namespace: &str) -> Result<Version, String> {
        let object = WorkloadObject::read(object.get())?;
        if let Some(autoscaler) = object.autoscaler(namespace)? {
            return Ok(Version::Autoscaler(autoscaler));
        }
        Ok(object.workload(namespace)?.map_or(Version::Other, |workload| Version::Workload(workload.into())))
    }
}

fn read(request: &Unparsed<'_>) -> Result<Asked, String> {
    let is_whole = request.sub_resource.as_deref().unwrap_or_default().is_empty();
    let is_update = request.operation == "UPDATE";
    let (true, Some(object)) = (is_whole && (is_update || request.operation == "CREATE"), request.object) else {
        return Ok(Asked::Nothing);
    };
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let before = request.old_object.filter(|_| is_update).map(|before| Version::read(before, namespace));
    let before = before.transpose().map_err(|error| format!("oldObject: {error}"))?;
    let now = Version::read(object, namespace).map_err(|error| format!("object: {error}"))?;
    Ok(match (now, before) {
        (Version::Other, _) => Asked::Nothing,
        (Version::Workload(now), Some(Version::Workload(before))) if !now.asks_more_than(&before) => Asked::Nothing,
        (Version::Workload(now), _) => Asked::Workload(now),
        (Version::Autoscaler(now), Some(Version::Autoscaler(before))) if !now.asks_more_than(&before) => Asked::Nothing,
        (Version::Autoscaler(now), _) => Asked::Autoscaler(now),
    })
}

/// Longest text of an audit annotation about an object that was not judged, in bytes.
const LONGEST_NOTE: usize = 512;

/// The answer to a workload that was judged. Under mode Audit only the audit log gets what is the matter.
pub fn told(uid: String, judgement: &WorkloadJudgement) -> Answer {
    let WorkloadJudgement { object, mode, demand, matter } = judgement;
    let mut audit_annotations = BTreeMap::from([("mode", mode.to_string())]);
    audit_annotations.extend(demand.map(|demand| ("demand", demand.to_string())));
    let mut warnings = Vec::new();
    if let Some(matter) = matter {
        let warning = matter.warning(object);
        if matches!(mode, Mode::Enforce | Mode::Warn) {
            warnings.push(format!("vramguard: {warning}"));
        }
        audit_annotations.extend([("reason", matter.reason().to_string()), ("warning", warning)]);
    }
    Answer::of(Response { uid, allowed: true, warnings, audit_annotations, ..Response::default() })
}

/// The answer to an object that was not judged, for this reason.
pub fn unread(uid: String, why: &str) -> Answer {
    let end = (0..=why.len().min(LONGEST_NOTE)).rev().find(|end| why.is_char_boundary(*end)).unwrap_or(0);
    let audit_annotations = BTreeMap::from([("unread", why[..end].to_owned())]);
    Answer::of(Response { uid, allowed: true, audit_annotations, ..Response::default() })
}

#[cfg(test)]
mod tests;
