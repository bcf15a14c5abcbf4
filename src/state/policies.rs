//! The policies in force: reads `--policies DIR`, keeps the last valid set, and notices changes. Owns files and time;
//! `k8s::document` knows what the documents mean, and `capacity::policy` decides which field wins.
//!
//! The directory is read again every second and compared by content. That costs next to nothing at the size of
//! policies, and it notices what file events miss: the kubelet's symlink swap, editors that replace files, network file
//! systems.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::capacity::policy::{EXEMPT_BY_DEFAULT, Policies, Policy};
use crate::k8s::document::{self, Configuration, DocumentError};
use crate::k8s::node::Override;

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
    /// Creates a store with these documents in force. Without any documents the built-in default is in force.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors.
    pub fn new(files: &Files, own_namespace: &str) -> Result<PolicyStore, LoadError> {
        let configuration = parse(files)?;
        let policies = Policies::new(&configuration.documents, own_namespace);
        report(&policies);
        let generation = Generation { number: 1, policies, earlier: Vec::new(), overrides: configuration.overrides };
        Ok(PolicyStore {
            current: ArcSwap::from_pointee(generation),
            changed: watch::Sender::new(1),
            reload_errors: AtomicU64::new(0),
            own_namespace: own_namespace.to_owned(),
        })
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

    /// Puts other documents in force. Without a change in content there is no new generation.
    ///
    /// # Errors
    /// [`LoadError::Documents`] if a document has errors; the policies in force then stay.
    pub fn replace(&self, files: &Files) -> Result<(), LoadError> {
        let configuration = parse(files)?;
        let policies = Policies::new(&configuration.documents, &self.own_namespace);
        let before = self.current();
        if before.policies == policies && before.overrides == configuration.overrides {
            return Ok(());
        }
        report(&policies);
        let number = before.number + 1;
        let last = Earlier { policies: before.policies.clone(), until: Instant::now() };
        let still = before.earlier.iter().filter(|earlier| earlier.until.elapsed() < GRACE).cloned();
        let earlier = std::iter::once(last).chain(still).take(MAX_EARLIER).collect();
        let overrides = configuration.overrides;
        self.current.store(Arc::new(Generation { number, policies, earlier, overrides }));
        self.changed.send_replace(number);
        tracing::info!(generation = number, "policies changed");
        Ok(())
    }

    /// Follows the directory until cancelled. The `fixed` files (from snapshots) are added to those of the directory.
    pub async fn follow(&self, directory: &Path, fixed: &Files, mut seen: Files) {
        let mut ticks = tokio::time::interval(POLL);
        let mut complained = None;
        loop {
            ticks.tick().await;
            let owned = directory.to_owned();
            let read =
                tokio::task::spawn_blocking(move || files_of(&owned)).await.expect("reading files does not panic");
            let files = match read {
                Ok(files) => [fixed.clone(), files].concat(),
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

fn parse(files: &Files) -> Result<Configuration, LoadError> {
    document::read(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))).map_err(LoadError::Documents)
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
mod tests {
    use super::*;
    use crate::capacity::policy::Mode;

    fn cluster(mode: &str) -> String {
        format!(
            "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {{name: c}}\nspec: {{mode: {mode}}}\n"
        )
    }

    fn store(directory: &Path) -> PolicyStore {
        PolicyStore::new(&files_of(directory).unwrap(), "own").unwrap()
    }

    fn mode(store: &PolicyStore) -> Mode {
        store.current().of("ml").unwrap().0.mode
    }

    #[test]
    fn a_broken_file_leaves_the_last_good_policies_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.yaml");
        std::fs::write(&file, cluster("Warn")).unwrap();
        let store = store(directory.path());
        std::fs::write(&file, cluster("Wran")).unwrap();
        let error = store.replace(&files_of(directory.path()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("cluster.yaml:4: spec.mode"), "{error}");
        assert_eq!((mode(&store), store.current().number), (Mode::Warn, 1));
    }

    #[test]
    fn the_policies_of_the_last_two_minutes_are_remembered_the_last_one_first() {
        let store = PolicyStore::new(&vec![("c".into(), cluster("Warn"))], "own").unwrap();
        for mode in ["Audit", "Enforce"] {
            store.replace(&vec![("c".into(), cluster(mode))]).unwrap();
        }
        let current = store.current();
        let (now, before) = current.of("ml").unwrap();
        let modes: Vec<Mode> = before.iter().map(|policy| policy.mode).collect();
        assert_eq!((now.mode, &modes[..]), (Mode::Enforce, &[Mode::Audit, Mode::Warn][..]));
        assert!(current.of("kube-system").is_none());
        for number in 0..20 {
            store.replace(&vec![("c".into(), cluster(["Warn", "Audit"][number % 2]))]).unwrap();
        }
        assert_eq!(store.current().earlier.len(), MAX_EARLIER);
    }

    #[test]
    fn the_same_content_is_no_new_generation() {
        let store = PolicyStore::new(&vec![("c".into(), cluster("Warn"))], "own").unwrap();
        store.replace(&vec![("other-name".into(), format!("# a comment\n{}", cluster("Warn")))]).unwrap();
        assert_eq!(store.current().number, 1);
    }

    #[test]
    fn a_directory_that_is_missing_is_an_error_and_not_an_empty_one() {
        assert!(files_of(Path::new("/nonexistent/policies")).is_err());
    }

    #[tokio::test]
    async fn the_kubelets_symlink_swap_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        for (version, mode) in [("..1", "Warn"), ("..2", "Audit")] {
            std::fs::create_dir(root.join(version)).unwrap();
            std::fs::write(root.join(version).join("cluster.yaml"), cluster(mode)).unwrap();
        }
        std::os::unix::fs::symlink("..1", root.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/cluster.yaml", root.join("cluster.yaml")).unwrap();
        let files = files_of(&root).unwrap();
        let store = Arc::new(PolicyStore::new(&files, "own").unwrap());
        let mut changed = store.subscribe();
        let follower = tokio::spawn({
            let (store, root) = (store.clone(), root.clone());
            async move { store.follow(&root, &Files::new(), files).await }
        });
        std::os::unix::fs::symlink("..2", root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.expect("a new generation").unwrap();
        assert_eq!(mode(&store), Mode::Audit);
        follower.abort();
    }
}
