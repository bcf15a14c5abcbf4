//! The policies in force: reads `--policies DIR`, keeps the last valid set, and notices changes. Owns files and time;
//! [`resources`] has the documents that are resources, `k8s::document` knows what all of them mean, and
//! `capacity::policy` decides which document and which field wins.
//!
//! The directory is read again every second and compared by content. That costs next to nothing at the size of
//! policies, and it notices what file events miss: the kubelet's symlink swap, editors that replace files, network file
//! systems.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::capacity::policy::{Documents, EXEMPT_BY_DEFAULT, Policies, Policy};
use crate::k8s::document::resource::Kind;
use crate::k8s::document::{self, Configuration, DocumentError, FileDocuments, PolicyResource, texts};
use crate::k8s::node::Override;
use crate::k8s::snapshot::Snapshot;

pub mod resources;
use resources::{Resources, State};

/// How soon a changed file is in force.
const POLL: Duration = Duration::from_secs(1);

/// How long a pod may still conform to the previous policy. It was mutated just before the change, or by a replica to
/// which the kubelet has not brought the changed files yet.
const GRACE: Duration = Duration::from_secs(120);

/// Previous policies of one namespace that are remembered: edits within the time that files take to reach every replica.
const MAX_EARLIER: usize = 8;

/// Bytes of all policy files together. The bound exists because they are read every second.
const MAX_BYTES: u64 = 8 << 20;

/// One generation of policies.
#[derive(Debug)]
pub struct Generation {
    /// Number of the generation, counting up from 1.
    pub number: u64,
    /// The policies in force in this generation.
    pub policies: Policies,
    /// What operators state about nodes in `GpuInventory` documents.
    pub overrides: Vec<Override>,
    /// The policies that were in force lately.
    earlier: Earlier,
}

/// Policies that were in force lately, the latest first. They are kept for each namespace, so that changes in one use up
/// nothing of what is remembered of another.
#[derive(Clone, Debug, Default)]
struct Earlier {
    /// Of namespaces without a VramPolicy.
    everywhere: Vec<Past>,
    /// Of namespaces that have a VramPolicy, or had one.
    namespaces: BTreeMap<String, Vec<Past>>,
}

/// A policy that was in force.
#[derive(Clone, Debug)]
struct Past {
    policy: Arc<Policy>,
    /// When another one replaced it.
    until: Instant,
}

/// The policies in force, shared by all parts of a server.
#[derive(Debug)]
pub struct PolicyStore {
    current: ArcSwap<Generation>,
    changed: watch::Sender<u64>,
    reload_errors: AtomicU64,
    own_namespace: String,
    /// What the policies in force were read from. The lock is held while a change is put in force.
    inputs: Mutex<Inputs>,
    /// Whether every resource is in force, for their status.
    states: watch::Sender<Arc<Vec<State>>>,
    resources_changed: Notify,
    /// Whether no kind of resource is awaited.
    known: watch::Sender<bool>,
}

/// Everything that policies are read from.
#[derive(Debug, Default)]
struct Inputs {
    /// The last files that could be read, those of a static snapshot included.
    files: FileDocuments,
    fixed: Fixed,
    resources: Resources,
    /// The kinds of resources that must be listed before any change is put in force; empty once they were.
    awaited: Vec<Kind>,
    /// The documents in force.
    documents: Documents,
}

/// Why policies could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A directory or file cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The policy files exceed their size limit.
    #[error("{path}: more than {} MiB of policies", MAX_BYTES >> 20)]
    TooLarge {
        /// The directory.
        path: PathBuf,
    },
    /// Documents have errors.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Documents(Vec<DocumentError>),
}

/// Name and text of each policy file.
pub type Files = Vec<(String, String)>;

/// The documents of a static snapshot.
#[derive(Debug, Default)]
struct Fixed {
    files: Files,
    resources: Vec<PolicyResource>,
}

impl Fixed {
    /// Reads these files and those of the snapshot.
    fn read(&self, files: &Files) -> Result<FileDocuments, LoadError> {
        document::read_files(texts(files).chain(texts(&self.files))).map_err(LoadError::Documents)
    }
}

impl PolicyStore {
    /// Creates a store with these files in force. Without any documents the built-in default is in force.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors.
    pub fn new(files: &Files, own_namespace: &str) -> Result<PolicyStore, LoadError> {
        PolicyStore::with(files, Fixed::default(), own_namespace)
    }

    /// Creates a store with the files of a directory, and the documents of a static snapshot of a cluster.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors.
    pub fn of_snapshot(files: &Files, snapshot: &Snapshot, own_namespace: &str) -> Result<PolicyStore, LoadError> {
        let fixed = Fixed { files: snapshot.policies.clone(), resources: snapshot.policy_resources.clone() };
        PolicyStore::with(files, fixed, own_namespace)
    }

    fn with(files: &Files, fixed: Fixed, own_namespace: &str) -> Result<PolicyStore, LoadError> {
        let files = fixed.read(files)?;
        let configuration = Configuration::of(&files, &fixed.resources);
        let unreadable: Vec<DocumentError> = configuration.unreadable().cloned().collect();
        if !unreadable.is_empty() {
            return Err(LoadError::Documents(unreadable));
        }
        let Configuration { documents, overrides, .. } = configuration;
        let policies = Policies::new(&documents, own_namespace);
        report(&policies, None);
        let generation = Generation { number: 1, policies, overrides, earlier: Earlier::default() };
        Ok(PolicyStore {
            current: ArcSwap::from_pointee(generation),
            changed: watch::Sender::new(1),
            reload_errors: AtomicU64::new(0),
            own_namespace: own_namespace.to_owned(),
            inputs: Mutex::new(Inputs { files, fixed, documents, ..Inputs::default() }),
            states: watch::Sender::new(Arc::default()),
            resources_changed: Notify::new(),
            known: watch::Sender::new(true),
        })
    }

    /// The store of a server that follows these kinds of resources too. Until all of them have been listed, it knows the
    /// files alone, and must not answer.
    #[must_use]
    pub fn awaiting(mut self, kinds: &[Kind]) -> PolicyStore {
        self.inputs.get_mut().awaited = kinds.to_vec();
        self.known.send_replace(kinds.is_empty());
        self
    }

    /// The store of a node agent: a ClusterVramPolicy that is a resource counts if its status says that it is in force,
    /// and then before any file. Only the server knows all files; the agent may have a copy of them, or none.
    #[must_use]
    pub fn following_status(mut self) -> PolicyStore {
        self.inputs.get_mut().resources.follow_status();
        self
    }

    /// Waits until no kind of resource is awaited.
    pub async fn known(&self) {
        _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// The generation in force.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Subscribes to the number of each new generation.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How often changed files could not be put in force.
    pub fn reload_errors(&self) -> u64 {
        self.reload_errors.load(Ordering::Relaxed)
    }

    /// Puts other files in force. Without a change in content there is no new generation.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors; the policies in force then stay.
    pub fn replace(&self, files: &Files) -> Result<(), LoadError> {
        let mut inputs = self.inputs.lock();
        inputs.files = inputs.fixed.read(files)?;
        self.put_in_force(&mut inputs);
        Ok(())
    }

    /// Puts all documents in force. Without a change in content there is no new generation.
    fn put_in_force(&self, inputs: &mut Inputs) {
        let Configuration { documents, overrides, resources } = inputs.read();
        let before = self.current();
        let policies = Policies::after(Some((&inputs.documents, &before.policies)), &documents, &self.own_namespace);
        let is_complete = inputs.resources.are_complete(&inputs.awaited, documents.cluster.is_some());
        let in_force = if is_complete { &policies } else { &before.policies };
        self.states.send_replace(Arc::new(inputs.resources.states(resources, in_force, !is_complete)));
        if !is_complete {
            return;
        }
        let is_first = !std::mem::take(&mut inputs.awaited).is_empty();
        inputs.documents = documents;
        if before.policies != policies || before.overrides != overrides {
            report(&policies, Some(&before.policies));
            // What was known of the policies before the resources were listed has never been in force.
            let earlier = if is_first { Earlier::default() } else { before.earlier.after(&before.policies, &policies) };
            let number = before.number + 1;
            self.current.store(Arc::new(Generation { number, policies, overrides, earlier }));
            self.changed.send_replace(number);
            tracing::info!(generation = number, "policies changed");
        }
        self.known.send_replace(true);
    }

    /// Follows the directory until cancelled. `seen` are its files as they were last read.
    pub async fn follow(&self, directory: &Path, mut seen: Files) {
        let mut ticks = tokio::time::interval(POLL);
        let mut complained = None;
        loop {
            ticks.tick().await;
            let owned = directory.to_owned();
            let read =
                tokio::task::spawn_blocking(move || files_of(&owned)).await.expect("reading files does not panic");
            let files = match read {
                Ok(files) => files,
                Err(error) => {
                    // The same error is reported once, not every second.
                    if complained.as_ref() != Some(&error.to_string()) {
                        self.complain(&error);
                        complained = Some(error.to_string());
                    }
                    continue;
                }
            };
            complained = None;
            if files == seen {
                continue;
            }
            if let Err(error) = self.replace(&files) {
                self.complain(&error);
            }
            seen = files;
        }
    }

    fn complain(&self, error: &LoadError) {
        self.reload_errors.fetch_add(1, Ordering::Relaxed);
        for line in error.to_string().lines() {
            tracing::error!("policy error, the last good policies stay in force: {line}");
        }
    }
}

impl Inputs {
    /// Puts all documents together.
    fn read(&self) -> Configuration {
        let mut read = Configuration::of(&self.files, self.fixed.resources.iter().chain(self.resources.readable()));
        if let Some(cluster) = self.resources.cluster_by_status() {
            read.documents.cluster = Some(cluster.clone());
        }
        read
    }
}

impl Generation {
    /// The policy in force in a namespace, and the policies of the last two minutes that differ from it. `None` if the
    /// namespace is exempt.
    pub fn of(&self, namespace: &str) -> Option<(&Policy, Vec<&Policy>)> {
        let current = self.policies.of(namespace)?;
        let own = self.earlier.namespaces.get(namespace).into_iter().flatten();
        let of_all = (!self.policies.has_own(namespace)).then_some(&self.earlier.everywhere).into_iter().flatten();
        let lately = own.chain(of_all).filter(|past| past.until.elapsed() < GRACE).map(|past| past.policy.as_ref());
        Some((current, lately.filter(|past| *past != current.as_ref()).collect()))
    }
}

impl Earlier {
    /// What is remembered once `policies` have replaced `before`.
    fn after(&self, before: &Policies, policies: &Policies) -> Earlier {
        let mut earlier = self.clone();
        let names: BTreeSet<&str> = before.with_own().chain(policies.with_own()).collect();
        for name in names {
            let past = before.of(name).filter(|past| Some(*past) != policies.of(name));
            if let Some(past) = past {
                let known = earlier.namespaces.entry(name.to_owned());
                // A namespace without a policy of its own had that of all others, and their earlier ones.
                let known =
                    known.or_insert_with(|| if before.has_own(name) { Vec::new() } else { self.everywhere.clone() });
                known.insert(0, Past { policy: past.clone(), until: Instant::now() });
            }
        }
        if before.everywhere() != policies.everywhere() {
            earlier.everywhere.insert(0, Past { policy: before.everywhere().clone(), until: Instant::now() });
        }
        for pasts in earlier.namespaces.values_mut().chain([&mut earlier.everywhere]) {
            pasts.retain(|past| past.until.elapsed() < GRACE);
            pasts.truncate(MAX_EARLIER);
        }
        earlier.namespaces.retain(|_, pasts| !pasts.is_empty());
        earlier
    }
}

/// Reads the policy files of a directory, sorted by path. Hidden files are skipped, because the kubelet keeps the real
/// files behind `..data`.
///
/// # Errors
/// [`LoadError::Io`] if the directory or a file cannot be read, [`LoadError::TooLarge`] if the files exceed their size
/// limit.
pub fn files_of(directory: &Path) -> Result<Files, LoadError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |error| LoadError::Io { path, error }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io(directory))? {
        let path = entry.map_err(io(directory))?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let named = path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if named && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut bytes = 0;
    let mut files = Files::new();
    for path in paths {
        bytes += std::fs::metadata(&path).map_err(io(&path))?.len();
        if bytes > MAX_BYTES {
            return Err(LoadError::TooLarge { path: directory.to_owned() });
        }
        let text = std::fs::read_to_string(&path).map_err(io(&path))?;
        files.push((path.display().to_string(), text));
    }
    Ok(files)
}

/// Logs what is written in the policies and is ignored, and which settings are risky, unless `before` was the same.
fn report(policies: &Policies, before: Option<&Policies>) {
    let known = before.map_or(&[][..], Policies::ignored);
    for ignored in policies.ignored().iter().filter(|ignored| !known.contains(ignored)) {
        let (namespace, field) = (&ignored.0, ignored.1.path());
        tracing::warn!("VramPolicy of namespace {namespace:?}: {field} is locked by the ClusterVramPolicy and ignored");
    }
    let is_new = |name: &str| before.is_none_or(|before| before.exempt().contains(name));
    for name in EXEMPT_BY_DEFAULT.iter().filter(|name| !policies.exempt().contains(**name) && is_new(name)) {
        tracing::warn!(
            "exemptNamespaces leaves out {name:?}: pods of Kubernetes or of the GPU stack may be refused there"
        );
    }
    let overcommit = policies.rules().overcommit;
    if overcommit.is_on() && before.is_none_or(|before| before.rules().overcommit != overcommit) {
        tracing::warn!("overcommit is {overcommit}: more VRAM is promised than there is, pods may run out of memory");
    }
}

#[cfg(test)]
mod tests;
