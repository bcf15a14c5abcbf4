//! Reads all objects that an audit looks at, page by page. Owns which resources these are and what it means if one
//! cannot be read. It only reads: `get` and `list` are enough.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use super::watch::stream::{Source, StreamError};
use crate::k8s::document::resource::Kind;
use crate::keys::{self, POLICIES};
use crate::report::ReportApi;
use crate::report::document::Gap;

/// A resource that is read.
struct Resource {
    /// Path of the API group and version.
    path: &'static str,
    /// Kind of the objects; the items of a list do not state it.
    kind: &'static str,
    /// Name in the path.
    plural: &'static str,
    /// Whether its objects are in namespaces.
    namespaced: bool,
    /// What the report lacks without it; `None` if there is no report without it.
    lacks: Option<&'static str>,
}

const fn of(
    path: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    lacks: Option<&'static str>,
) -> Resource {
    Resource { path, kind, plural, namespaced, lacks }
}

/// What a gap is about that lacks pods.
const PODS: &str = "pods";
/// What a gap is about that lacks objects of any kind.
const OBJECTS: &str = "objects";
const APPS: &str = "/apis/apps/v1";
const BATCH: &str = "/apis/batch/v1";
const OWNERS: Option<&str> = Some("templates of this kind are not checked, and its pods may be named one by one");
const DRA: Option<&str> = Some("GPUs that claims share are missing");

const OURS: &str = "/apis/vramguard.dev/v1alpha1";
const OWN_POLICIES: Option<&str> =
    Some("policies that are resources are missing, so others may be used in their place");

/// All resources, in the order in which they are read: nodes before pods, and owners before what they own.
const RESOURCES: [Resource; 21] = [
    of("/api/v1", "Node", "nodes", false, None),
    of(OURS, "GpuLedger", "gpuledgers", false, Some("reservations and agents' reports are missing")),
    of(OURS, Kind::Cluster.name(), Kind::Cluster.plural(), false, OWN_POLICIES),
    of(OURS, Kind::Namespace.name(), Kind::Namespace.plural(), true, OWN_POLICIES),
    of(OURS, Kind::Inventory.name(), Kind::Inventory.plural(), false, Some("descriptions of nodes are missing")),
    // Only where its controller is installed.
    of("/apis/leaderworkerset.x-k8s.io/v1", keys::LWS_KIND, "leaderworkersets", true, OWNERS),
    of(APPS, "Deployment", "deployments", true, OWNERS),
    of(APPS, "ReplicaSet", "replicasets", true, OWNERS),
    of(APPS, "StatefulSet", "statefulsets", true, OWNERS),
    of(APPS, "DaemonSet", "daemonsets", true, OWNERS),
    of(BATCH, "CronJob", "cronjobs", true, OWNERS),
    of(BATCH, "Job", "jobs", true, OWNERS),
    of(
        "/apis/autoscaling/v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        true,
        Some("what autoscalers may ask for is not checked"),
    ),
    of("/api/v1", "ResourceQuota", "resourcequotas", true, Some("quotas are missing")),
    // An API server serves the newest version that it knows, and perhaps older ones.
    of("/apis/resource.k8s.io/v1", "ResourceSlice", "resourceslices", false, DRA),
    of("/apis/resource.k8s.io/v1beta2", "ResourceSlice", "resourceslices", false, DRA),
    of("/apis/resource.k8s.io/v1beta1", "ResourceSlice", "resourceslices", false, DRA),
    of("/apis/resource.k8s.io/v1", "ResourceClaim", "resourceclaims", true, DRA),
    of("/apis/resource.k8s.io/v1beta2", "ResourceClaim", "resourceclaims", true, DRA),
    of("/apis/resource.k8s.io/v1beta1", "ResourceClaim", "resourceclaims", true, DRA),
    of("/api/v1", "Pod", PODS, true, None),
];

/// The objects of a cluster.
pub struct Objects {
    /// Client of the API server.
    pub client: Client,
    /// The only namespace to read if not all may be read.
    pub namespace: Option<String>,
}

/// Called with the name of a resource and the number of its objects that were read so far.
pub type Progress<'a> = &'a (dyn Fn(&str, usize) + Sync);

/// Called with each object. An error ends the reading.
pub type Sink<'a> = &'a mut (dyn FnMut(Value) -> Result<(), String> + Send);

/// Time limit of a call that is no list.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Characters that are kept of the message about an object that cannot be read; it quotes the object.
const MAX_MESSAGE: usize = 500;

/// Objects of a cluster that could not be read. The object of one tenant does not end the reading of the others.
#[derive(Debug, Default)]
pub struct Unread {
    count: usize,
    first: String,
}

impl Unread {
    /// Notes why an object could not be read.
    pub fn note(&mut self, error: &str) {
        if self.count == 0 {
            self.first = error.chars().take(MAX_MESSAGE).collect();
        }
        self.count += 1;
    }

    /// What the report lacks because of them; `None` if all objects were read.
    pub fn gap(self) -> Option<Gap> {
        let Unread { count, first } = self;
        let why = match count {
            0 => return None,
            1 => format!("1 object could not be read: {first}; it is not counted"),
            _ => format!("{count} objects could not be read, the first: {first}; they are not counted"),
        };
        Some(Gap { what: OBJECTS.to_owned(), why })
    }
}

/// Why the objects could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// A resource without which there is no report may not be read.
    #[error(
        "{path} cannot be read: {error}\nnodes and pods are needed; ask for a role with get and list, such as that of \
         deploy/examples/auditor.yaml"
    )]
    Forbidden {
        /// Path of the request.
        path: String,
        /// The answer of the API server.
        error: String,
    },
    /// A request failed.
    #[error("{path} cannot be read: {error}")]
    Request {
        /// Path of the request.
        path: String,
        /// The error.
        error: String,
    },
    /// An object cannot be read.
    #[error("{0}")]
    Object(String),
}

/// Whether all pods of the cluster were read, as far as these gaps tell.
pub fn has_all_pods(gaps: &[Gap]) -> bool {
    gaps.iter().all(|gap| gap.what != PODS && gap.what != OBJECTS)
}

impl Objects {
    /// Reads everything, and hands each object over. Returns what could not be read.
    ///
    /// # Errors
    /// Nodes or pods cannot be read, or `sink` refuses an object.
    pub async fn read(&self, progress: Progress<'_>, sink: Sink<'_>) -> Result<Vec<Gap>, ObjectsError> {
        self.read_kinds(|_| true, progress, sink).await
    }

    /// [`Objects::read`], of these kinds alone.
    ///
    /// # Errors
    /// As [`Objects::read`].
    pub async fn read_kinds(
        &self,
        is_read: impl Fn(&str) -> bool,
        progress: Progress<'_>,
        sink: Sink<'_>,
    ) -> Result<Vec<Gap>, ObjectsError> {
        let (mut gaps, mut served) = (Vec::new(), BTreeSet::new());
        for resource in RESOURCES.iter().filter(|resource| is_read(resource.kind)) {
            if served.contains(resource.kind) {
                continue; // in a newer version
            }
            let path = format!("{}/{}", resource.path, resource.plural);
            match self.list(resource, &path, progress, sink).await {
                Ok(()) => {}
                Err(ListError::Sink(error)) => return Err(ObjectsError::Object(error)),
                // An API server without this group or version has no such objects in it.
                Err(ListError::Api(StreamError::Refused(status))) if status.code == 404 && resource.lacks.is_some() => {
                    continue;
                }
                Err(ListError::Api(error)) => gaps.push(self.unread(resource, &path, &error, progress, sink).await?),
            }
            served.insert(resource.kind);
        }
        Ok(gaps)
    }

    /// Goes on without a resource that cannot be read: with one namespace of it, or without it.
    async fn unread(
        &self,
        resource: &Resource,
        path: &str,
        error: &StreamError,
        progress: Progress<'_>,
        sink: Sink<'_>,
    ) -> Result<Gap, ObjectsError> {
        let forbidden = matches!(error, StreamError::Refused(status) if matches!(status.code, 401 | 403));
        if let (true, true, Some(namespace)) = (forbidden, resource.namespaced, &self.namespace) {
            let path = format!("{}/namespaces/{namespace}/{}", resource.path, resource.plural);
            match self.list(resource, &path, progress, sink).await {
                Ok(()) => {
                    let mut why = format!("forbidden outside of namespace {namespace:?}");
                    if resource.lacks.is_none() {
                        why.push_str(
                            "; what pods of other namespaces hold is missing, so GPUs look emptier than they are",
                        );
                    }
                    return Ok(Gap { what: resource.plural.to_owned(), why });
                }
                Err(ListError::Sink(error)) => return Err(ObjectsError::Object(error)),
                Err(ListError::Api(_)) => {}
            }
        }
        match resource.lacks {
            Some(lacks) => Ok(Gap { what: resource.plural.to_owned(), why: format!("{}; {lacks}", short(error)) }),
            None if forbidden => Err(ObjectsError::Forbidden { path: path.to_owned(), error: short(error) }),
            None => Err(ObjectsError::Request { path: path.to_owned(), error: short(error) }),
        }
    }

    async fn list(
        &self,
        resource: &Resource,
        path: &str,
        progress: Progress<'_>,
        sink: Sink<'_>,
    ) -> Result<(), ListError> {
        let source = Source::new(self.client.clone(), "");
        let (mut count, mut refused) = (0, None);
        let each = |mut object: Value| {
            // The items of a list do not state what they are.
            object["apiVersion"] = json!(api_version(resource.path));
            object["kind"] = json!(resource.kind);
            count += 1;
            progress(resource.plural, count);
            if refused.is_none() {
                refused = sink(object).err();
            }
        };
        source.values(path, each).await.map_err(ListError::Api)?;
        refused.map_or(Ok(()), |error| Err(ListError::Sink(error)))
    }

    /// The API of policy reports that the cluster serves, the newer one first; `None` if it serves neither.
    ///
    /// # Errors
    /// The cluster does not say whether it serves one; the text names the API.
    pub async fn report_api(&self) -> Result<Option<ReportApi>, String> {
        for api in [ReportApi::OpenReports, ReportApi::WgPolicy] {
            let asked = self.client.list_api_group_resources(api.api_version());
            let answer = tokio::time::timeout(CALL_DEADLINE, asked).await;
            match answer.map_err(|_| format!("no answer on whether {} is served", api.api_version()))? {
                Ok(_) => return Ok(Some(api)),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(format!("whether {} is served: {error}", api.api_version())),
            }
        }
        Ok(None)
    }

    /// Reads the policy files that the shipped manifests keep in a ConfigMap, as name and text.
    ///
    /// # Errors
    /// The ConfigMap may not be read; the gap says so.
    pub async fn policies(&self) -> Result<Vec<(String, String)>, Gap> {
        let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
            kube::Api::namespaced(self.client.clone(), keys::NAMESPACE);
        match maps.get_opt(POLICIES).await {
            Ok(found) => {
                let files = found.and_then(|map| map.data).unwrap_or_default();
                Ok(files.into_iter().map(|(name, text)| (format!("ConfigMap {POLICIES}: {name}"), text)).collect())
            }
            Err(error) => Err(Gap {
                what: format!("configmaps {}/{POLICIES}", keys::NAMESPACE),
                why: format!("{error}; the built-in policy is used in place of the cluster's own"),
            }),
        }
    }
}

enum ListError {
    Api(StreamError),
    Sink(String),
}

/// `apps/v1` of `/apis/apps/v1`, and `v1` of `/api/v1`.
fn api_version(path: &str) -> &str {
    path.trim_start_matches("/apis/").trim_start_matches("/api/")
}

/// The message of the API server without its wrapping.
fn short(error: &StreamError) -> String {
    match error {
        StreamError::Refused(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pods_were_read_unless_a_gap_may_be_about_one() {
        let gap = |what: &str| Gap { what: what.to_owned(), why: "forbidden".to_owned() };
        assert!(has_all_pods(&[]) && has_all_pods(&[gap("resourcequotas")]));
        assert!(!has_all_pods(&[gap("resourcequotas"), gap("pods")]), "those of one namespace only");
        let mut unread = Unread::default();
        unread.note("a field is too long");
        assert!(!has_all_pods(&[unread.gap().expect("an object was not read")]), "it may be a pod");
    }
}
