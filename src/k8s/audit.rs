//! Objects of a cluster, or manifests, → [`Scene`]: what an audit looks at. Owns which objects an audit reads, and how
//! little of each is kept: a cluster may have 150,000 pods. [`super::manifests`] takes files apart.
//!
//! Objects may come in any order: nodes after their pods, ReplicaSets after their pods, autoscalers before their
//! targets. So whatever needs another object is decided in [`Reader::finish`].
//!
//! | module | reads |
//! |---|---|
//! | `pods` | pods and pod templates → subjects and holders |
//! | `owners` | ownerReferences → the topmost owner |
//! | `workloads` | Deployments, Jobs and others → templates with their numbers; autoscalers |
//! | `environment` | variables that have no effect, or a dangerous one |
//! | `bypasses` | ways to a GPU past the device plugin |
//! | `devices` | ResourceSlices and ResourceClaims → shared devices |
//! | `hami` and `kai` | what HAMi and KAI write about GPUs |
//! | `ledgers` | GpuLedgers: reservations, what node agents report, and the time of that |
//! | `kept` | how long the texts are that are kept |

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{self, PolicyResource};
use super::gpu_ledger::GpuLedger;
use super::node::{self, Override};
use super::object::NodeObject;
use super::resource_quota;
use super::template::kinds::{self, WorkloadKind};
use super::wording;
use crate::capacity::audit::scene::Scene;
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{Resource, Rules};
use crate::capacity::name::Name;
use crate::capacity::policy::Policies;
use crate::capacity::recommend::Observations;
use crate::capacity::time::Moment;
use crate::capacity::verdict::finding::{Object, Place};
use crate::capacity::vram::Vram;
use crate::keys;

mod bypasses;
mod devices;
mod environment;
mod hami;
mod kai;
mod kept;
mod ledgers;
mod owners;
mod pods;
mod workloads;

/// Collects the objects of a cluster one at a time.
#[derive(Debug)]
pub struct Reader {
    /// The holders. Nodes and rules follow at the end.
    cluster: Cluster,
    names: Names,
    /// Where each object was read: one entry for each object of a kind that an audit reads, so their number bounds it
    /// ([`Reader::objects`]). A name has at most 253 bytes.
    seen: BTreeMap<Object, Option<Place>>,
    /// Number of objects that were noted.
    objects: usize,
    /// Number of pods among them, whether or not they request GPUs.
    pods_seen: usize,
    nodes: Vec<SeenNode>,
    ledgers: Vec<GpuLedger>,
    policies: Vec<(String, String)>,
    policy_resources: Vec<PolicyResource>,
    /// Whether the ConfigMap with the policies of the cluster was among the objects, which may be empty.
    has_policy_files: bool,
    pods: pods::Pods,
    owners: owners::Owners,
    workloads: workloads::Workloads,
    quotas: BTreeMap<String, Vram>,
    devices: devices::Devices,
    kai: kai::Groups,
    /// Objects that ask for GPUs and are not read, by kind.
    unread: BTreeMap<String, usize>,
    /// When the objects were read, if the caller knows that.
    read_at: Option<Moment>,
    /// The newest time that nodes and reports of agents name.
    newest: Option<Moment>,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new()
    }
}

/// A node, until policies and overrides are known.
#[derive(Debug)]
struct SeenNode {
    object: NodeObject,
    /// What HAMi registered on it.
    hami: Option<Vec<hami::Device>>,
}

/// Texts of which each is kept once.
#[derive(Debug, Default)]
struct Names(BTreeSet<Name>);

impl Names {
    fn share(&mut self, text: &str) -> Name {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let name = Name::from(text);
        self.0.insert(name.clone());
        name
    }
}

impl Reader {
    /// A reader without objects.
    pub fn new() -> Reader {
        let mut cluster = Cluster::new(Rules::default(), BTreeSet::new());
        cluster.defer_ranking();
        Reader {
            cluster,
            names: Names::default(),
            seen: BTreeMap::new(),
            objects: 0,
            pods_seen: 0,
            nodes: Vec::new(),
            ledgers: Vec::new(),
            policies: Vec::new(),
            policy_resources: Vec::new(),
            has_policy_files: false,
            pods: pods::Pods::default(),
            owners: owners::Owners::default(),
            workloads: workloads::Workloads::default(),
            quotas: BTreeMap::new(),
            devices: devices::Devices::default(),
            kai: kai::Groups::default(),
            unread: BTreeMap::new(),
            read_at: None,
            newest: None,
        }
    }

    /// Adds an object. Kinds that an audit does not read are ignored. `place` is where the object is written, if it was
    /// read from a file.
    ///
    /// # Errors
    /// The object cannot be read, or was added before. The text names the object and the field.
    pub fn add(&mut self, place: Option<Place>, object: &Value) -> Result<(), String> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        if kind.is_empty() {
            return Err("holds no Kubernetes object: kind is missing".to_owned());
        }
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let Some(reads) = Reads::of(group, kind) else {
            self.note_unread(kind, object);
            return Ok(());
        };
        let is_policies = || (text("/metadata/namespace"), text("/metadata/name")) == (keys::NAMESPACE, keys::POLICIES);
        if reads == Reads::PolicyFiles && !is_policies() {
            return Ok(());
        }
        if let Err(error) = kept::names(object) {
            return Err(format!("{} {}: {error}", kept::cut(kind), kept::cut(text("/metadata/name"))));
        }
        let id = self.id(reads, object);
        let what = described(&id);
        self.objects += 1;
        if id.name.is_empty() && text("/metadata/generateName").is_empty() {
            return Err(format!("{what}metadata.name: is missing"));
        }
        if !id.name.is_empty() {
            self.note(reads, &id, place.clone()).map_err(|error| format!("{} {error}", what.trim_end_matches(": ")))?;
        }
        self.read(reads, &id, place, object).map_err(|error| format!("{what}{}", kept::error(&error)))
    }

    /// Kind, namespace and name. An object of a namespaced kind without a namespace is in `default`, as for `kubectl`.
    fn id(&mut self, reads: Reads, object: &Value) -> Object {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let namespace = match text("/metadata/namespace") {
            "" if reads.is_namespaced() => "default",
            namespace => namespace,
        };
        Object {
            kind: self.names.share(text("/kind")),
            namespace: self.names.share(namespace),
            name: text("/metadata/name").into(),
        }
    }

    /// Notes an object of a kind that is not read, if it asks for GPUs. A file may have any number of kinds.
    fn note_unread(&mut self, kind: &str, object: &Value) {
        if requests_gpu(object) && (self.unread.len() < MAX_KINDS || self.unread.contains_key(kind)) {
            *self.unread.entry(kept::cut(kind)).or_default() += 1;
        }
    }

    /// The kinds of objects that ask for GPUs and are not read, each with their number.
    pub fn unread(&self) -> &BTreeMap<String, usize> {
        &self.unread
    }

    /// Notes where an object is. A workload of a later file takes the place of that of an earlier one: the manifest of a
    /// change is read next to the cluster that it changes.
    fn note(&mut self, reads: Reads, id: &Object, place: Option<Place>) -> Result<(), String> {
        let is_later = |first: &Place| place.as_ref().is_some_and(|place| place.file != first.file);
        match self.seen.get(id) {
            Some(Some(first)) if matches!(reads, Reads::Workload(_)) && is_later(first) => {
                self.workloads.forget(id);
                self.seen.insert(id.clone(), place);
                Ok(())
            }
            None => {
                self.seen.insert(id.clone(), place);
                Ok(())
            }
            Some(Some(first)) => {
                Err(format!("is there twice, the first time in {}:{}; keep one", first.file, first.line))
            }
            Some(None) => Err("is there twice".to_owned()),
        }
    }

    fn read(&mut self, reads: Reads, id: &Object, place: Option<Place>, object: &Value) -> Result<(), String> {
        match reads {
            Reads::Node => self.node(object),
            Reads::Pod => {
                self.pods_seen += 1;
                self.pod(id, place, object)
            }
            Reads::Workload(kind) => self.workload(kind, id, place, object),
            Reads::Autoscaler => self.workloads.autoscaler(id, object, &mut self.names),
            Reads::Quota => self.quota(&id.namespace, object),
            Reads::Slice => self.devices.slice(object, &mut self.names),
            Reads::Claim => self.devices.claim(id, object, &mut self.names),
            Reads::Ledger => {
                self.note_time(object.pointer("/status/agent/time").and_then(Value::as_str));
                self.ledgers.push(typed(object)?);
                Ok(())
            }
            Reads::Policy => {
                let name = described(id).trim_end_matches(": ").to_owned();
                let name = place.map_or_else(|| name.clone(), |place| format!("{} ({name})", place.file));
                if document::is_resource(object) {
                    self.policy_resources.push(document::read_resource(&name, object));
                } else {
                    self.policies.push((name, object.to_string()));
                }
                Ok(())
            }
            Reads::PolicyFiles => self.policy_files(place.as_ref(), object),
        }
    }

    /// Reads the files of the ConfigMap of the shipped manifests.
    fn policy_files(&mut self, place: Option<&Place>, object: &Value) -> Result<(), String> {
        #[derive(serde::Deserialize)]
        struct Files {
            data: Option<BTreeMap<String, String>>,
        }
        let Files { data } = typed(object)?;
        self.has_policy_files = true;
        for (name, text) in data.into_iter().flatten() {
            let file = format!("ConfigMap {}: {}", keys::POLICIES, kept::cut(&name));
            let file = place.map_or_else(|| file.clone(), |place| format!("{} ({file})", place.file));
            self.policies.push((file, text));
        }
        Ok(())
    }

    fn node(&mut self, object: &Value) -> Result<(), String> {
        let mut node: NodeObject = typed(object)?;
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        for condition in conditions.into_iter().flatten() {
            self.note_time(condition.get("lastHeartbeatTime").and_then(Value::as_str));
        }
        // Conditions and other amounts do not matter, and are half of a node.
        node.status.conditions = Vec::new();
        node.status.allocatable.retain(|name, _| keys::is_gpu_resource(name));
        node.status.capacity.retain(|name, _| keys::is_gpu_resource(name) || name == keys::VRAM_RESOURCE);
        let hami = annotation(object, keys::HAMI_REGISTERED).and_then(hami::registered);
        self.nodes.push(SeenNode { object: node, hami });
        Ok(())
    }

    /// Keeps the smallest hard limit of a namespace. A quota with scopes limits only some of its pods, so it is left out.
    fn quota(&mut self, namespace: &str, object: &Value) -> Result<(), String> {
        let spec = |field: &str| object.get("spec").and_then(|spec| spec.get(field));
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        if spec("scopes").is_some_and(|scopes| !is_empty(scopes)) || spec("scopeSelector").is_some() {
            return Ok(());
        }
        let Some(hard) = spec("hard").and_then(|hard| hard.get(keys::VRAM_QUOTA)) else { return Ok(()) };
        let limit = hard.as_str().and_then(resource_quota::limited);
        let limit = limit.ok_or_else(|| format!("spec.hard[{}]: {hard} is not a quantity", keys::VRAM_QUOTA))?;
        let known = self.quotas.entry(namespace.to_owned()).or_insert(limit);
        *known = limit.min(*known);
        Ok(())
    }

    /// The policy documents among the objects that are files, as name and text, for [`document::read_with`].
    pub fn policies(&self) -> &[(String, String)] {
        &self.policies
    }

    /// The policy documents among the objects that the API server has stored.
    pub fn policy_resources(&self) -> &[PolicyResource] {
        &self.policy_resources
    }

    /// Whether the policies of the cluster are among the objects.
    pub fn has_policies(&self) -> bool {
        self.has_policy_files || !self.policies.is_empty() || !self.policy_resources.is_empty()
    }

    /// Whether there are nodes and no pods at all, so that nobody knows what the nodes hold.
    pub fn lacks_pods(&self) -> bool {
        !self.nodes.is_empty() && self.pods_seen == 0
    }

    /// The number of objects of kinds that an audit reads. Each takes memory until [`Reader::finish`], whether or not it
    /// has to do with GPUs: some hundred bytes if it has not.
    pub fn objects(&self) -> usize {
        self.objects
    }

    /// Declares that all pods of the cluster were added, and after the ledgers. A report then claims nothing whose agent is in
    /// none of them.
    pub fn follow_agent_pods(&mut self) {
        self.cluster.follow_agent_pods();
    }

    /// What the node agents have reported.
    pub fn observed(&self) -> Observations {
        let mut observed = Observations::default();
        self.ledgers.iter().for_each(|ledger| ledger.add_uses(&mut observed));
        observed
    }

    /// The number of pods and templates that were kept so far.
    pub fn subjects(&self) -> usize {
        self.pods.len()
    }

    /// Makes the scene of what was added. `overrides` describe nodes whose labels are missing or wrong.
    pub fn finish(mut self, policies: Policies, overrides: &[Override]) -> Scene {
        let mut seen = std::mem::take(&mut self.seen);
        // Objects of a live cluster have no place, so this memory is freed before the scene takes more.
        if seen.values().all(Option::is_none) {
            seen.clear();
        }
        self.cluster.set_rules(*policies.rules(), node::guarded_by(overrides));
        let mut inventories = BTreeMap::new();
        let mut installed = false;
        let mut of_hami = self.pods.take_of_hami();
        let mut unusable = Vec::new();
        for SeenNode { object, hami } in std::mem::take(&mut self.nodes) {
            let facts = node::facts(&object, overrides);
            installed |= facts.advertises_vram;
            unusable.extend(node::unusable(&object, overrides));
            let groups = self.kai.settle(object.name(), &facts.pools, &mut self.cluster);
            let inventory = hami.map(|devices| {
                let pods = of_hami.remove(object.name()).unwrap_or_default();
                hami::settle(&devices, &object, pods, &mut self.cluster)
            });
            let inventory = inventory.or(groups);
            inventories.extend(inventory.map(|inventory| (object.name().to_owned(), inventory)));
            self.cluster.apply_node(object.name(), facts);
        }
        for (node, pods) in of_hami {
            pods.into_iter().for_each(|(uid, holder, _)| self.cluster.apply_pod(&uid, &node, holder));
        }
        self.kai.settle_rest(&mut self.cluster);
        let at = self.read_at.or(self.newest);
        let observed = self.apply_ledgers(inventories, at);
        if let Some(at) = at {
            self.cluster.tick(at);
        }
        self.cluster.rank_all();
        _ = (self.cluster.take_changed(), self.cluster.take_touched());
        let (mut subjects, workloads) = workloads::finish(self.workloads, self.pods.finish(), &self.owners);
        // A finding is about the owner of a pod, so it points at the owner, if that was read too.
        for subject in &mut subjects {
            let place = seen.get(&subject.object).cloned().flatten();
            subject.place = place.or_else(|| subject.place.take());
        }
        let devices = self.devices.finish();
        let (cluster, quotas) = (self.cluster, self.quotas);
        Scene { cluster, policies, installed, subjects, workloads, quotas, devices, unusable, observed, at }
    }
}

/// Kinds that are named in a report although their objects are not read.
const MAX_KINDS: usize = 32;

/// Whether an object has a GPU resource anywhere, as templates of custom resources have at various places.
fn requests_gpu(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(key, value)| keys::is_gpu_resource(key) || requests_gpu(value)),
        Value::Array(items) => items.iter().any(requests_gpu),
        _ => false,
    }
}

/// What is read of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Node,
    Pod,
    Workload(&'static WorkloadKind),
    Autoscaler,
    Quota,
    Slice,
    Claim,
    Ledger,
    Policy,
    /// The ConfigMap with the policies of the cluster; no other is read.
    PolicyFiles,
}

impl Reads {
    fn of(group: &str, kind: &str) -> Option<Reads> {
        Some(match (group, kind) {
            ("", "Node") => Reads::Node,
            ("", "Pod") => Reads::Pod,
            ("", "ConfigMap") => Reads::PolicyFiles,
            ("", "ResourceQuota") => Reads::Quota,
            ("autoscaling", "HorizontalPodAutoscaler") => Reads::Autoscaler,
            ("resource.k8s.io", "ResourceSlice") => Reads::Slice,
            ("resource.k8s.io", "ResourceClaim") => Reads::Claim,
            (keys::API_GROUP, "GpuLedger") => Reads::Ledger,
            (keys::API_GROUP, _) => Reads::Policy,
            _ => Reads::Workload(kinds::find(group, kind)?),
        })
    }

    fn is_namespaced(self) -> bool {
        match self {
            Reads::Pod | Reads::Workload(_) | Reads::Autoscaler | Reads::Quota | Reads::Claim | Reads::PolicyFiles => {
                true
            }
            // A VramPolicy without a namespace is an error, which its own parser reports.
            Reads::Node | Reads::Slice | Reads::Ledger | Reads::Policy => false,
        }
    }
}

/// An object as the beginning of a message.
fn described(id: &Object) -> String {
    let Object { kind, namespace, name } = id;
    if namespace.is_empty() { format!("{kind} {name}: ") } else { format!("{kind} {namespace}/{name}: ") }
}

/// Reads a value. The error begins with the field.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    // The second attempt finds the field, which would take time for each of many good objects.
    T::deserialize(value).or_else(|_| {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let field = error.path().to_string();
            let field = field.trim_end_matches(".?");
            let what = wording::json(error.inner());
            if field == "." { what } else { format!("{field}: {what}") }
        })
    })
}

/// The text of an annotation.
fn annotation<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// The text of a label. No label has a value that is too long for a name.
fn label<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str().filter(|value| kept::may_be_name(value))
}

/// The entries of a list of the pod's spec.
fn listed<'v>(object: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> {
    let list = object.get("spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// The resource of HAMi's and KAI's GPUs.
fn gpu() -> Resource {
    Resource(keys::GPU_RESOURCE.into())
}

#[cfg(test)]
mod tests;
