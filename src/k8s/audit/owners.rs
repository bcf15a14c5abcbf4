//! ownerReferences → the topmost owner of a pod. Owns the climb, and the name of a Deployment whose ReplicaSet is not
//! among the objects.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Names, kept};
use crate::capacity::name::Name;
use crate::capacity::verdict::finding::Object;

/// Owners above a pod that are followed; more than any controller makes.
const MAX_STEPS: usize = 8;

/// The owners of the workloads that were seen.
///
/// Both maps have at most one entry for each object that was added; [`super::Reader::objects`] counts these. Names have at
/// most 253 bytes.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// The owner of each workload; `None` for one without an owner.
    of: BTreeMap<Object, Option<Object>>,
    /// The value of the label `pod-template-hash` of the pods of each ReplicaSet, with which the name of the ReplicaSet
    /// ends.
    hashes: BTreeMap<Object, Name>,
}

/// The controller of an object, by its ownerReferences. The API server bounds no name there, so one that no object can
/// have is no owner.
pub(super) fn controller(object: &Value, namespace: &Name, names: &mut Names) -> Option<Object> {
    let references = object.get("metadata")?.get("ownerReferences")?.as_array()?;
    let owner = references.iter().find(|reference| reference.get("controller") == Some(&Value::Bool(true)))?;
    let text = |field: &str| owner.get(field).and_then(Value::as_str);
    let (kind, name) = (text("kind")?, text("name")?);
    if !kept::may_be_name(kind) || !kept::may_be_name(name) {
        return None;
    }
    Some(Object { kind: names.share(kind), namespace: namespace.clone(), name: names.share(name) })
}

impl Owners {
    /// Notes the owner of a workload.
    pub(super) fn note(&mut self, workload: &Object, owner: Option<Object>) {
        self.of.insert(workload.clone(), owner);
    }

    /// Notes the hash of a ReplicaSet, as one of its pods carries it.
    pub(super) fn note_hash(&mut self, replica_set: &Object, hash: &str, names: &mut Names) {
        if !self.hashes.contains_key(replica_set) {
            self.hashes.insert(replica_set.clone(), names.share(hash));
        }
    }

    /// The owners from an object up, itself first.
    pub(super) fn chain(&self, object: &Object) -> Vec<Object> {
        let mut chain = vec![object.clone()];
        while chain.len() < MAX_STEPS {
            let last = &chain[chain.len() - 1];
            let owner = match self.of.get(last) {
                Some(owner) => owner.clone(),
                None => self.deployment(last),
            };
            match owner {
                Some(owner) if !chain.contains(&owner) => chain.push(owner),
                _ => break,
            }
        }
        chain
    }

    /// The Deployment of a ReplicaSet that was not seen: it named the ReplicaSet after itself and the hash.
    fn deployment(&self, object: &Object) -> Option<Object> {
        let hash = self.hashes.get(object)?;
        let name = object.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
        Some(Object { kind: "Deployment".into(), namespace: object.namespace.clone(), name: name.into() })
    }
}
