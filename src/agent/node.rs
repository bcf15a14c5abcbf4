//! [`Node`]: what the tasks of one agent share. Owns the lock, and who is woken by what; all conclusions are those of
//! [`Observer`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::PolicyName;
use super::plugin_config::PluginConfig;
use crate::capacity::gpu::Resource;
use crate::capacity::node::inventory::Source;
use crate::capacity::observation::observer::Observer;
use crate::capacity::observation::report::Report;
use crate::capacity::time::Moment;
use crate::capacity::verdict::Unreadable;

/// The state that the tasks of an agent share.
#[derive(Debug)]
pub(super) struct Node {
    /// Name of the node.
    pub name: String,
    state: Mutex<State>,
    /// Wakes the task that asks the kubelet.
    pub pods_changed: Notify,
    /// Wakes the task that writes.
    pub changed: Notify,
    /// Major and minor version of the kubelet; `None` as long as the Node object does not tell it.
    pub kubelet_version: watch::Sender<Option<(u32, u32)>>,
}

/// What is known of the node.
#[derive(Debug)]
pub(super) struct State {
    /// What was seen, and what follows from it.
    pub observer: Observer,
    /// The uid of the Node object; `None` before it was seen.
    pub uid: Option<String>,
    /// The device plugin's configuration in a ConfigMap; `None` if the agent was not told to look for one.
    pub plugin_config: Option<PluginConfig>,
    /// GPU resources in the capacity of the node.
    pub capacity: BTreeMap<Resource, u64>,
    /// The node's `GpuLedger`.
    pub ledger: Ledger,
    /// The last look: when it ended and how long it took, or why it failed.
    pub look: Option<Result<(Instant, Duration), Unreadable>>,
    /// Why the kubelet cannot be asked.
    pub kubelet: Result<(), String>,
    /// Whether the kubelet has ever answered.
    pub kubelet_answered: bool,
}

/// What is known of the node's `GpuLedger`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ledger {
    /// The API server was not reached yet.
    Unknown,
    /// It does not exist.
    Missing,
    /// It exists.
    Present,
}

impl Node {
    /// A node of which nothing was seen. `source` is what its GPUs are read from, and `policy` where the device plugin's
    /// allocation policy is named.
    pub(super) fn new(name: String, source: Source, policy: PolicyName) -> Node {
        let (named, plugin_config) = match policy {
            PolicyName::Nowhere => (None, None),
            PolicyName::Known(named) => (Some(named), None),
            PolicyName::ConfigMap(config) => (None, Some(PluginConfig::new(config))),
        };
        let state = State {
            observer: Observer::new(source, named),
            uid: None,
            plugin_config,
            capacity: BTreeMap::new(),
            ledger: Ledger::Unknown,
            look: None,
            kubelet: Err("the kubelet was not asked yet".to_owned()),
            kubelet_answered: false,
        };
        Node {
            name,
            state: Mutex::new(state),
            pods_changed: Notify::new(),
            changed: Notify::new(),
            kubelet_version: watch::Sender::new(None),
        }
    }

    /// Changes the state, and wakes the task that writes.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.changed.notify_one();
        changed
    }

    /// Reads the state.
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.lock())
    }

    /// The report that would be written now.
    pub(super) fn report(&self) -> Report {
        self.read(|state| state.observer.report(now()))
    }
}

/// Current time. The agent reads the clock only here.
pub(super) fn now() -> Moment {
    Moment(k8s_openapi::jiff::Timestamp::now().as_millisecond())
}
