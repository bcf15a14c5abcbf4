//! What a policy document applies to, and whether one that is a resource is in force. Owns the order of files and
//! resources.

use std::fmt;

use super::{Documents, Field, Policies};

/// What a document applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The cluster: the ClusterVramPolicy.
    Cluster,
    /// One namespace: its VramPolicy.
    Namespace(String),
    /// Nodes: a GpuInventory, of which there may be several.
    Nodes,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Cluster => f.write_str("the ClusterVramPolicy"),
            Scope::Namespace(namespace) => write!(f, "the VramPolicy of namespace {namespace:?}"),
            Scope::Nodes => f.write_str("a GpuInventory"),
        }
    }
}

/// Whether a document that is a resource is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentState {
    /// It is in force, without these fields, which the ClusterVramPolicy locks.
    InForce {
        /// Locked fields that the document sets anyway.
        ignored: Vec<Field>,
    },
    /// A file is in force in its place.
    FileInForce {
        /// The file.
        file: String,
    },
    /// Its namespace is exempt, so no policy applies there.
    Exempt,
    /// It cannot be read.
    Unreadable {
        /// The field, and the problem with it.
        why: String,
        /// Whether its last readable version is in force.
        earlier_in_force: bool,
    },
}

impl Documents {
    /// These documents, which are files, and each resource for which there is no file.
    ///
    /// A file is written by those who administer vramguard. A resource may be written by anyone with rights in its
    /// namespace, and must not replace what they have decided.
    #[must_use]
    pub fn or(mut self, resources: Documents) -> Documents {
        self.cluster = self.cluster.or(resources.cluster);
        for (namespace, layer) in resources.namespaces {
            self.namespaces.entry(namespace).or_insert(layer);
        }
        self
    }
}

impl Policies {
    /// Whether a readable resource of this scope is in force. `file` is the file of the same scope, if there is one.
    pub fn state_of(&self, scope: &Scope, file: Option<&str>) -> DocumentState {
        match (scope, file) {
            (_, Some(file)) => DocumentState::FileInForce { file: file.to_owned() },
            (Scope::Namespace(namespace), None) if self.exempt().contains(namespace) => DocumentState::Exempt,
            (Scope::Namespace(namespace), None) => {
                let ignored = self.ignored().iter().filter(|(of, _)| of == namespace).map(|(_, field)| *field);
                DocumentState::InForce { ignored: ignored.collect() }
            }
            (Scope::Cluster | Scope::Nodes, None) => DocumentState::InForce { ignored: Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::policy::{ClusterPolicy, Layer, Mode};

    fn namespace(name: &str, mode: Mode) -> Documents {
        let layer = Layer { mode: Some(mode), ..Layer::default() };
        Documents { cluster: None, namespaces: [(name.to_owned(), layer)].into() }
    }

    fn cluster(mode: Mode, locked: &[Field]) -> Documents {
        let layer = Layer { mode: Some(mode), ..Layer::default() };
        let policy = ClusterPolicy { layer, locked: locked.iter().copied().collect(), ..ClusterPolicy::default() };
        Documents { cluster: Some(policy), namespaces: Default::default() }
    }

    fn mode(documents: &Documents, namespace: &str) -> Mode {
        Policies::new(documents, "own").of(namespace).unwrap().mode
    }

    #[test]
    fn a_file_is_in_force_before_a_resource_of_the_same_scope_and_no_other() {
        let files = cluster(Mode::Warn, &[]).or(namespace("a", Mode::Audit));
        let resources = cluster(Mode::Off, &[]).or(namespace("a", Mode::Off)).or(namespace("b", Mode::Enforce));
        let both = files.or(resources);
        assert_eq!([mode(&both, "a"), mode(&both, "b"), mode(&both, "c")], [Mode::Audit, Mode::Enforce, Mode::Warn]);
    }

    #[test]
    fn a_resource_alone_is_in_force_as_a_file_would_be() {
        let both = Documents::default().or(cluster(Mode::Warn, &[])).or(namespace("b", Mode::Off));
        assert_eq!([mode(&both, "b"), mode(&both, "c")], [Mode::Off, Mode::Warn]);
    }

    #[test]
    fn a_resource_says_what_keeps_it_from_being_in_force() {
        let both = cluster(Mode::Warn, &[Field::Mode]).or(namespace("a", Mode::Off)).or(namespace("own", Mode::Off));
        let policies = Policies::new(&both, "own");
        let state = |name: &str, file| policies.state_of(&Scope::Namespace(name.to_owned()), file);
        assert_eq!(state("a", None), DocumentState::InForce { ignored: vec![Field::Mode] });
        assert_eq!(state("own", None), DocumentState::Exempt);
        assert_eq!(state("a", Some("a.yaml")), DocumentState::FileInForce { file: "a.yaml".to_owned() });
        assert_eq!(policies.state_of(&Scope::Cluster, None), DocumentState::InForce { ignored: Vec::new() });
        assert_eq!(policies.state_of(&Scope::Nodes, None), DocumentState::InForce { ignored: Vec::new() });
    }
}
