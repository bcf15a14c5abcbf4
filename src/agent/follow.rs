//! The objects of this node that the agent follows: its Node, its pods and its `GpuLedger`. Owns the selectors; each
//! watch is that of [`crate::state::watch`], and shows the objects of one node only.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;

use super::node::{Ledger, Node, now};
use crate::capacity::gpu::Resource;
use crate::capacity::node::presence::AgentPod;
use crate::capacity::vram::Vram;
use crate::k8s::agent_pod::agent_pod;
use crate::k8s::gpu_ledger::GpuLedger;
use crate::k8s::node_pod::NodePod;
use crate::k8s::object::NodeObject;
use crate::k8s::quantity;
use crate::keys;
use crate::state::watch::LIVE_PODS;
use crate::state::watch::stream::{Event, Source};

/// Duration of one watch. Thousands of agents renew three or four of them, so it is as long as a client allows.
pub(super) const WATCH: Duration = Duration::from_secs(300);

fn source(client: Client, fields: String) -> Source {
    Source { watch: WATCH, ..Source::new(client, fields) }
}

/// Follows the pods of the node. `overhead` is what each process takes in addition to what it declares.
pub(super) async fn pods(client: Client, node: Arc<Node>, overhead: Vram) {
    let mut listed = Vec::new();
    let own = node.read(|state| state.observer.pod.as_ref().map(|own| own.uid.clone()));
    let tell = |event: Event<NodePod>| {
        if let Event::Listed(pod) | Event::Applied(pod) | Event::Deleted(pod) = &event
            && own.as_ref() == Some(&pod.uid())
            && let Some(seen) = agent_pod(&pod.object)
        {
            // A deletion by force may be all that the watch shows.
            let deleting = seen.deleting || matches!(event, Event::Deleted(_));
            node.update(|state| state.observer.sees_own(&AgentPod { deleting, ..seen }));
        }
        match event {
            Event::ListBegins => {
                listed.clear();
                return;
            }
            Event::Listed(pod) => {
                listed.push(pod.live(overhead));
                return;
            }
            Event::ListEnds => node.update(|state| state.observer.owners.reset(std::mem::take(&mut listed), now())),
            Event::Applied(pod) => node.update(|state| state.observer.owners.apply(pod.live(overhead))),
            Event::Deleted(pod) => node.update(|state| state.observer.owners.remove(&pod.uid(), now())),
            Event::Heard => return,
        }
        node.pods_changed.notify_one();
    };
    source(client, format!("spec.nodeName={},{LIVE_PODS}", node.name)).follow(tell).await;
}

/// Follows the Node object.
pub(super) async fn node(client: Client, node: Arc<Node>) {
    let seen = |object: &NodeObject| {
        let capacity = object.status.capacity.iter().filter(|(name, _)| keys::is_gpu_resource(name));
        let capacity = capacity
            .filter_map(|(name, count)| Some((Resource(name.as_str().into()), quantity::count(&count.0)?)))
            .collect();
        if let Some(version) = object.status.node_info.kubelet() {
            node.kubelet_version.send_if_modified(|known| known.replace(version) != Some(version));
        }
        let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(keys::DEVICE_PLUGIN_CONFIG));
        node.update(|state| {
            (state.uid, state.capacity) = (object.metadata.uid.clone(), capacity);
            let concluded = state.plugin_config.as_mut().and_then(|config| config.labelled(label.map(String::as_str)));
            if let Some(policy) = concluded {
                state.observer.names(policy);
            }
        });
    };
    let tell = |event: Event<NodeObject>| match event {
        Event::Listed(object) | Event::Applied(object) => seen(&object),
        Event::Deleted(_) => node.update(|state| state.uid = None),
        Event::ListBegins | Event::ListEnds | Event::Heard => {}
    };
    source(client, named(&node.name)).follow(tell).await;
}

/// Follows the `GpuLedger` of the node. The first one that is seen restores what an earlier run of the agent reported.
pub(super) async fn ledger(client: Client, node: Arc<Node>) {
    let mut restored = false;
    let mut listed = false;
    let mut present = |ledger: &GpuLedger| {
        let earlier = if std::mem::replace(&mut restored, true) { None } else { ledger.agent_report() };
        node.update(|state| {
            state.ledger = Ledger::Present;
            state.observer.stored(ledger.agent_pod().as_ref());
            if let Some(report) = earlier {
                state.observer.restore(report, now());
            }
        });
    };
    let tell = |event: Event<GpuLedger>| match event {
        Event::ListBegins => listed = false,
        Event::Listed(ledger) => {
            listed = true;
            present(&ledger);
        }
        Event::Applied(ledger) => present(&ledger),
        Event::ListEnds if !listed => node.update(|state| state.ledger = Ledger::Missing),
        Event::Deleted(_) => node.update(|state| state.ledger = Ledger::Missing),
        Event::ListEnds | Event::Heard => {}
    };
    source(client, named(&node.name)).follow(tell).await;
}

fn named(node: &str) -> String {
    format!("metadata.name={node}")
}
