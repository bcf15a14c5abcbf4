//! The policies in force: reads `--policies DIR`, keeps the last valid set, and notices changes. Owns files and time;
//! [`resources`] has the documents that are resources, `k8s::document` knows what all of them mean, and
//! `capacity::policy` decides which document and which field wins.
//!
//! The directory is read again every second and compared by content. That costs next to nothing at the size of
//! policies, and it notices what file events miss: the kubelet's symlink swap, editors that replace files, network file
//! systems.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::capacity::policy::{EXEMPT_BY_DEFAULT, Policies, Policy};
use crate::k8s::document::resource::Kind;
use crate::k8s::document::{self, Configuration, DocumentError};
use crate::k8s::node::Override;

pub mod resources;
use resources::{Resources, State};

/// How soon a changed file is in force.
const POLL: Duration = Duration::from_secs(1);

/// How long a pod may still conform to the previous policy. It was mutated just before the change, or by a replica to
/// which the kubelet has not brought the changed files yet.
const GRACE: Duration = Duration::from_secs(120);

/// Previous generations that are remembered: edits within the time that files take to reach every replica.
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
    /// Policies of previous generations, the latest first.
    pub earlier: Vec<Earlier>,
    /// What operators state about nodes in `GpuInventory` documents.
    pub overrides: Vec<Override>,
}

/// The policies of a previous generation.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// The policies.
    pub policies: Policies,
    /// When the next generation replaced them.
    pub until: Instant,
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
    /// The last files that could be read.
    files: Files,
    /// The documents of a static snapshot.
    snapshot: Files,
    resources: Resources,
    /// The kinds of resources that must be listed before any change is put in force; empty once they were.
    awaited: Vec<Kind>,
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

impl PolicyStore {
    /// Creates a store with these files in force. Without any documents the built-in default is in force.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors.
    pub fn new(files: &Files, own_namespace: &str) -> Result<PolicyStore, LoadError> {
        PolicyStore::of_snapshot(files, &Files::new(), own_namespace)
    }

    /// Creates a store with these files, and the documents of a static snapshot of a cluster. A resource in a snapshot
    /// has a uid.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors.
    pub fn of_snapshot(files: &Files, snapshot: &Files, own_namespace: &str) -> Result<PolicyStore, LoadError> {
        let configuration = document::read_with(texts(files), texts(snapshot)).map_err(LoadError::Documents)?;
        let unreadable: Vec<DocumentError> = configuration.unreadable().cloned().collect();
        if !unreadable.is_empty() {
            return Err(LoadError::Documents(unreadable));
        }
        let policies = Policies::new(&configuration.documents, own_namespace);
        report(&policies);
        let generation = Generation { number: 1, policies, earlier: Vec::new(), overrides: configuration.overrides };
        let inputs = Inputs { files: files.clone(), snapshot: snapshot.clone(), ..Inputs::default() };
        Ok(PolicyStore {
            current: ArcSwap::from_pointee(generation),
            changed: watch::Sender::new(1),
            reload_errors: AtomicU64::new(0),
            own_namespace: own_namespace.to_owned(),
            inputs: Mutex::new(inputs),
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
        let configuration = inputs.read(files).map_err(LoadError::Documents)?;
        inputs.files.clone_from(files);
        self.put_in_force(configuration, &mut inputs);
        Ok(())
    }

    /// Puts the documents in force that were read of `inputs`. Without a change in content there is no new generation.
    fn put_in_force(&self, configuration: Configuration, inputs: &mut Inputs) {
        let policies = Policies::new(&configuration.documents, &self.own_namespace);
        self.states.send_replace(Arc::new(inputs.resources.states(&configuration.resources, &policies)));
        let is_first = !inputs.awaited.is_empty();
        if is_first && !inputs.resources.are_complete(&inputs.awaited, configuration.documents.cluster.is_some()) {
            return;
        }
        inputs.awaited.clear();
        let before = self.current();
        if before.policies == policies && before.overrides == configuration.overrides {
            self.known.send_replace(true);
            return;
        }
        report(&policies);
        let (number, mut earlier) = (before.number + 1, Vec::new());
        // What was known of the policies before the resources were listed has never been in force.
        if !is_first {
            earlier.push(Earlier { policies: before.policies.clone(), until: Instant::now() });
            earlier.extend(before.earlier.iter().filter(|earlier| earlier.until.elapsed() < GRACE).cloned());
            earlier.truncate(MAX_EARLIER);
        }
        let overrides = configuration.overrides;
        self.current.store(Arc::new(Generation { number, policies, earlier, overrides }));
        self.changed.send_replace(number);
        self.known.send_replace(true);
        tracing::info!(generation = number, "policies changed");
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
    /// Reads all documents, with these files.
    fn read(&self, files: &Files) -> Result<Configuration, Vec<DocumentError>> {
        document::read_with(texts(files), texts(&self.snapshot).chain(self.resources.texts()))
    }
}

impl Generation {
    /// The policy in force in a namespace, and the policies of the last two minutes that differ from it. `None` if the
    /// namespace is exempt.
    pub fn of(&self, namespace: &str) -> Option<(&Policy, Vec<&Policy>)> {
        let current = self.policies.of(namespace)?;
        let lately = self.earlier.iter().filter(|earlier| earlier.until.elapsed() < GRACE);
        let policies = lately.filter_map(|earlier| earlier.policies.of(namespace));
        Some((current, policies.filter(|earlier| *earlier != current).map(Arc::as_ref).collect()))
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

fn texts(files: &Files) -> impl Iterator<Item = (&str, &str)> {
    files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
}

/// Logs what is written in the policies and is ignored, and which settings are risky.
fn report(policies: &Policies) {
    for (namespace, field) in policies.ignored() {
        let field = field.path();
        tracing::warn!("VramPolicy of namespace {namespace:?}: {field} is locked by the ClusterVramPolicy and ignored");
    }
    for name in EXEMPT_BY_DEFAULT.iter().filter(|name| !policies.exempt().contains(**name)) {
        tracing::warn!(
            "exemptNamespaces leaves out {name:?}: pods of Kubernetes or of the GPU stack may be refused there"
        );
    }
    let overcommit = policies.rules().overcommit;
    if overcommit.is_on() {
        tracing::warn!("overcommit is {overcommit}: more VRAM is promised than there is, pods may run out of memory");
    }
}

#[cfg(test)]
mod tests;
