//! The pods of the steering tests: their demands, and the GPUs that the test reserves for them.
//!
//! Owns its own arithmetic of demands, which uses nothing of the product.

use serde_json::{Map, Value, json};

use crate::support::RealNode;

/// A pod of the test, and the GPU that is reserved for it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub name: String,
    pub gpu: String,
    /// In the order in which the kubelet allocates: init containers and sidecars, then app containers.
    pub containers: Vec<Container>,
    /// The pod has a node selector that its node does not match.
    pub another_node: bool,
}

/// A container that requests one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    pub name: String,
    pub role: Role,
    /// What it requests of `vramguard.dev/vram`, in MiB. `None`: it requests nothing, and counts as one slot.
    pub mib: Option<u64>,
}

/// When a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Init,
    Sidecar,
    App,
}

impl Wanted {
    /// A pod whose only container requests no VRAM.
    pub(super) fn pod(name: &str, gpu: &str) -> Wanted {
        let pod = Wanted { name: name.to_owned(), gpu: gpu.to_owned(), containers: Vec::new(), another_node: false };
        pod.with_app("main")
    }

    pub(super) fn with_app(self, name: &str) -> Wanted {
        self.with(name, Role::App)
    }

    pub(super) fn with_init(self, name: &str, sidecar: bool) -> Wanted {
        self.with(name, if sidecar { Role::Sidecar } else { Role::Init })
    }

    fn with(mut self, name: &str, role: Role) -> Wanted {
        self.containers.push(Container { name: name.to_owned(), role, mib: None });
        self.containers.sort_by_key(|container| container.role == Role::App);
        self
    }

    /// Gives the pod a node selector that its node does not match.
    pub(super) fn for_another_node(mut self) -> Wanted {
        self.another_node = true;
        self
    }

    /// Gives each container what `mib` returns.
    pub(super) fn demanding(mut self, mut mib: impl FnMut() -> u64) -> Wanted {
        self.containers.iter_mut().for_each(|container| container.mib = Some(mib()));
        self
    }

    /// The most that the pod holds at any time: all that run for long, or an init container with all sidecars.
    ///
    /// # Panics
    /// If a container requests no VRAM.
    pub(super) fn mib(&self) -> u64 {
        let of = |role: Role| self.containers.iter().filter(move |container| container.role == role);
        let mib = |container: &Container| container.mib.expect("each container of this test has a demand");
        let sidecars: u64 = of(Role::Sidecar).map(mib).sum();
        let apps: u64 = of(Role::App).map(mib).sum();
        sidecars + of(Role::Init).map(mib).max().unwrap_or_default().max(apps)
    }

    /// Raises the demand of the first app container, so that the pod holds `more` MiB more than now.
    pub(super) fn grow(&mut self, more: u64) {
        let target = self.mib() + more;
        let first = self.containers.iter().position(|container| container.role == Role::App).expect("an app container");
        let rest = self.containers.iter().enumerate();
        let rest = rest.filter(|(place, container)| *place != first && container.role != Role::Init);
        let rest: u64 = rest.filter_map(|(_, container)| container.mib).sum();
        self.containers[first].mib = Some(target - rest);
    }

    /// The number of devices that the kubelet allocates. An app container uses the device of an init container again.
    pub(super) fn devices(&self) -> u64 {
        self.containers.iter().filter(|container| container.role != Role::Init).count() as u64
    }

    /// The rows of the ledger for this pod.
    pub(super) fn reservations(&self, uid: &str) -> Vec<Value> {
        let row = |container: &Container| {
            let role = format!("{:?}", container.role);
            let mut row = json!({ "uid": uid, "namespace": "ml", "pod": self.name, "container": container.name,
                "role": role, "resource": "nvidia.com/gpu", "replicas": 1, "gpu": self.gpu, "basis": "Slot",
                "state": "Confirmed", "since": jiff::Timestamp::now() });
            if let Some(mib) = container.mib {
                row["basis"] = json!("Request");
                row["mib"] = json!(mib);
            }
            row
        };
        self.containers.iter().map(row).collect()
    }

    /// The annotation that names the GPU of a container.
    pub(super) fn annotation(container: &str) -> String {
        format!("vramguard.dev/gpu.{container}")
    }

    /// The binding, with the annotations that the binding guard adds.
    pub(super) fn binding(&self) -> Value {
        let annotations =
            self.containers.iter().map(|container| (Wanted::annotation(&container.name), json!(self.gpu)));
        let annotations: Map<String, Value> = annotations.collect();
        json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": self.name, "annotations": annotations },
            "target": { "apiVersion": "v1", "kind": "Node", "name": RealNode::NAME } })
    }

    pub(super) fn object(&self) -> Value {
        let container = |container: &Container| {
            let mut limits = json!({ "nvidia.com/gpu": "1" });
            if let Some(mib) = container.mib {
                limits["vramguard.dev/vram"] = json!(format!("{mib}Mi"));
            }
            let mut object = json!({ "name": container.name, "image": RealNode::IMAGE, "imagePullPolicy": "Never",
                "resources": { "limits": limits } });
            match container.role {
                Role::Init => object["command"] = json!(["sh", "-c", "true"]),
                Role::Sidecar => object["restartPolicy"] = json!("Always"),
                Role::App => {}
            }
            object
        };
        let (apps, inits): (Vec<&Container>, Vec<&Container>) =
            self.containers.iter().partition(|container| container.role == Role::App);
        let selector = if self.another_node { json!({ "kubernetes.io/hostname": "another" }) } else { json!({}) };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": self.name, "namespace": "ml" },
            "spec": {
                "schedulerName": "the-test", "nodeSelector": selector,
                "hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1,
                "initContainers": inits.into_iter().map(container).collect::<Vec<_>>(),
                "containers": apps.into_iter().map(container).collect::<Vec<_>>(),
            },
        })
    }
}
