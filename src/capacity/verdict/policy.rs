//! The conditions of a policy document that is a resource. Owns their wording; [`crate::k8s::document::resource`] turns
//! them into JSON.

use super::Condition;
use crate::capacity::policy::{DocumentState, Field};

/// The `reason` of the condition `InForce` while an earlier version of a document is in force.
pub const EARLIER_IN_FORCE: &str = "EarlierVersionInForce";

/// A policy document that is a resource and not in force.
pub fn not_in_force(document: &str, why: &str) -> String {
    format!("{document} is not in force: {why}")
}

/// A policy document that is a resource and cannot be read by this version.
pub fn unreadable_policy(document: &str, why: &str) -> String {
    format!("{document} cannot be read by this version: {why}; it is not used here")
}

impl Condition {
    /// The condition `InForce` of a policy document.
    pub fn in_force(state: &DocumentState) -> Condition {
        let (status, reason, message) = match state {
            DocumentState::InForce { .. } => ("True", "InForce", "the document is in force".to_owned()),
            DocumentState::FileInForce { file } => {
                let why = "a file is in force before a resource";
                let remedy = "remove it from the file to let this document take effect";
                ("False", "FileInForce", format!("{file} has the same document, and {why}; {remedy}"))
            }
            DocumentState::Exempt => {
                let why = "the namespace is exempt: no policy applies to its pods";
                ("False", "NamespaceExempt", why.to_owned())
            }
            DocumentState::Unreadable { why, earlier_in_force: true } => {
                let which = "its last readable version is in force until it is corrected or vramguard restarts";
                ("False", EARLIER_IN_FORCE, format!("{why}; {which}"))
            }
            DocumentState::Unreadable { why, earlier_in_force: false } => ("False", "Unreadable", why.clone()),
        };
        Condition { status, reason, message }
    }

    /// The condition `LockedFieldsIgnored` of a VramPolicy.
    pub fn locked_fields_ignored(state: &DocumentState) -> Condition {
        let ignored: &[Field] = if let DocumentState::InForce { ignored } = state { ignored } else { &[] };
        if ignored.is_empty() {
            let message = "no field that is in force here is locked by the ClusterVramPolicy".to_owned();
            return Condition { status: "False", reason: "NoneLocked", message };
        }
        let fields: Vec<&str> = ignored.iter().map(|field| field.path()).collect();
        let message = format!("the ClusterVramPolicy locks {}; its own values are in force", fields.join(", "));
        Condition { status: "True", reason: "Locked", message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_not_in_force_says_why_and_what_to_do() {
        let said = |state: DocumentState| {
            let condition = Condition::in_force(&state);
            format!("{} {}: {}", condition.status, condition.reason, condition.message)
        };
        let unreadable =
            |earlier_in_force| DocumentState::Unreadable { why: "spec.mode: is odd".into(), earlier_in_force };
        assert_eq!(said(DocumentState::InForce { ignored: vec![] }), "True InForce: the document is in force");
        let file = said(DocumentState::FileInForce { file: "cluster.yaml".into() });
        assert!(file.starts_with("False FileInForce: cluster.yaml has the same document"), "{file}");
        assert!(said(DocumentState::Exempt).starts_with("False NamespaceExempt: "));
        assert_eq!(said(unreadable(false)), "False Unreadable: spec.mode: is odd");
        let earlier = said(unreadable(true));
        assert!(earlier.starts_with("False EarlierVersionInForce: spec.mode: is odd; its last readable"), "{earlier}");
    }

    #[test]
    fn the_fields_that_are_locked_are_named() {
        let locked = DocumentState::InForce { ignored: vec![Field::Mode, Field::Quota] };
        let condition = Condition::locked_fields_ignored(&locked);
        let message = "the ClusterVramPolicy locks mode, quota; its own values are in force";
        assert_eq!((condition.status, condition.message.as_str()), ("True", message));
        assert_eq!(Condition::locked_fields_ignored(&DocumentState::Exempt).status, "False");
    }
}
