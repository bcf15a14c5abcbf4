//! `/mutate/pods` and `/validate/pods`: the handlers for reviews of new pods.
//!
//! Owns the verdict that is counted and logged. `k8s::pod_review` owns the steps from a pod to its answer.

use axum::extract::State;
use axum::response::Response;

use super::intake::Received;
use super::{Decided, Webhook};
use crate::capacity::policy::Mode;
use crate::k8s::object::PodObject;
use crate::k8s::pod_review::{self, Subject};
use crate::k8s::review::{Answer, Request};

pub(super) async fn mutate(State(webhook): State<Webhook>, body: Received) -> Response {
    webhook.answer("mutate", body, Webhook::mutated).await
}

pub(super) async fn validate(State(webhook): State<Webhook>, body: Received) -> Response {
    webhook.answer("validate", body, Webhook::validated).await
}

impl Decided {
    fn untouched(request: &Request) -> Decided {
        Decided { answer: Answer::untouched(request.uid.clone()), verdict: "allowed", reason: String::new() }
    }
}

impl Webhook {
    fn mutated(&self, request: &Request) -> Decided {
        let generation = self.policies.current();
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let (Some(object), Some((policy, _))) = (request.created_pod(), generation.of(namespace)) else {
            return Decided::untouched(request);
        };
        let mutation = pod_review::mutate(subject(request, object), policy, || self.cluster());
        for bound in mutation.changes.containers.iter().filter_map(|change| change.bound.as_ref()) {
            self.metrics.bounded.count(bound);
        }
        let verdict = if mutation.patch.0.is_empty() { "allowed" } else { "patched" };
        Decided { answer: mutation.answer(request.uid.clone()), verdict, reason: String::new() }
    }

    fn validated(&self, request: &Request) -> Decided {
        let generation = self.policies.current();
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let (Some(object), Some((policy, earlier))) = (request.created_pod(), generation.of(namespace)) else {
            return Decided::untouched(request);
        };
        let subject = subject(request, object);
        let Some(validation) = pod_review::validate(subject, policy, &earlier, || self.cluster()) else {
            return Decided::untouched(request);
        };
        let (pod, judgement) = (&validation.pod, &validation.judgement);
        let reason = judgement.violations.first().map(|violation| violation.reason().to_string());
        let verdict = match (&reason, judgement.mode) {
            (None, _) => "allowed",
            (Some(_), Mode::Enforce) => "denied",
            (Some(_), Mode::Warn | Mode::Audit | Mode::Off) => "would_deny",
        };
        if let Some(reason) = &reason {
            // Debug formatting, because names come from users and must not break the log line.
            tracing::info!(namespace = ?pod.namespace, pod = ?pod.name, mode = %judgement.mode, %reason, verdict, "policy violated");
        }
        let answer = validation.answer(request.uid.clone());
        Decided { answer, verdict, reason: reason.unwrap_or_default() }
    }
}

fn subject<'a>(request: &'a Request, object: &'a PodObject) -> Subject<'a> {
    Subject { object, namespace: request.namespace.as_deref(), user: &request.user_info.username }
}
