//! The creation of a pod in the steps of an API server: mutate, patch, validate. Owns the review that is sent and the
//! effect of each answer on the pod. It has no connection: the caller gets the answers from the core in this process or
//! from a server over HTTP.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use json_patch::Patch;
use serde_json::{Value, json};

use super::SimulationError;
use crate::k8s::object::PodObject;
use crate::k8s::review::{Answered, Denied};

/// A pod during its creation: before, between or after the webhooks.
#[derive(Clone, Debug)]
pub struct Creation {
    pod: Value,
    user: String,
    patch: Patch,
    warnings: Vec<String>,
}

/// The outcome of the creation of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The pod as the mutating webhook left it.
    pub pod: Value,
    /// The patch of the mutating webhook; empty if it changed nothing.
    pub patch: Patch,
    /// Warnings of both webhooks, in order.
    pub warnings: Vec<String>,
    /// Why the validating webhook refused the pod; `None` if the pod is admitted.
    pub denial: Option<Denied>,
    /// Audit annotations of the validating webhook.
    pub record: BTreeMap<String, String>,
}

impl Creation {
    /// Starts with a pod as `user` sends it.
    pub fn new(pod: Value, user: &str) -> Creation {
        Creation { pod, user: user.to_owned(), patch: Patch(Vec::new()), warnings: Vec::new() }
    }

    /// The pod in its current state.
    pub fn pod(&self) -> &Value {
        &self.pod
    }

    /// The AdmissionReview for the pod in its current state.
    pub fn review(&self) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "simulated", "operation": "CREATE",
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "namespace": namespace(&self.pod), "userInfo": { "username": self.user }, "object": self.pod,
            },
        })
    }

    /// Applies the answer of `/mutate/pods`.
    ///
    /// # Errors
    /// The patch in the answer is not a JSON Patch, or does not apply to the pod.
    pub fn mutated(&mut self, answer: Answered) -> Result<(), SimulationError> {
        if let Some(encoded) = &answer.patch {
            let decoded =
                BASE64_STANDARD.decode(encoded).map_err(|error| SimulationError::NoPatch(error.to_string()))?;
            self.patch =
                serde_json::from_slice(&decoded).map_err(|error| SimulationError::NoPatch(error.to_string()))?;
            json_patch::patch(&mut self.pod, &self.patch).map_err(SimulationError::Patch)?;
        }
        self.warnings.extend(answer.warnings);
        Ok(())
    }

    /// Ends the creation with the answer of `/validate/pods`.
    pub fn validated(mut self, answer: Answered) -> Admission {
        self.warnings.extend(answer.warnings);
        let denial = if answer.allowed { None } else { Some(answer.status.unwrap_or_default()) };
        Admission {
            pod: self.pod,
            patch: self.patch,
            warnings: self.warnings,
            denial,
            record: answer.audit_annotations,
        }
    }
}

impl Admission {
    /// The pod as the mutating webhook left it, reduced to the fields that vramguard reads.
    ///
    /// # Errors
    /// The patched object can no longer be read as a pod.
    pub fn object(&self) -> Result<PodObject, SimulationError> {
        object(&self.pod)
    }
}

/// Reads a pod.
pub(super) fn object(pod: &Value) -> Result<PodObject, SimulationError> {
    serde::Deserialize::deserialize(pod).map_err(SimulationError::Pod)
}

/// The namespace that a pod is created in; `default` where the object has none.
pub(super) fn namespace(pod: &Value) -> &str {
    pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("default")
}
