//! The answer to `GetPreferredAllocation`. Owns its time limits, and what is answered if there is no decision.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use prost::Message as _;
use tonic::Code;

use super::Answer;
use super::placement::Asked;
use super::plugin::Plugin;
use crate::agent::kubelet::checkpoint;
use crate::agent::kubelet::messages::{
    ContainerPreferredAllocationRequest, DeviceIdLists, DeviceIds, ListPodResourcesResponse, PreferredAllocationRequest,
};
use crate::agent::node;
use crate::capacity::gpu::Resource;
use crate::capacity::pod::PodName;
use crate::capacity::steering::identify::{Allocations, ListedPod};
use crate::capacity::steering::pick::{Choice, Question, any_devices, is_listing_safe};
use crate::capacity::steering::{Decision, Fallback, Reading, Step};
use crate::k8s::checkpoint::Checkpoint;

/// Time limit of an answer. The kubelet admits no pod meanwhile.
pub(super) const DEADLINE: Duration = Duration::from_millis(280);
/// Time limit of a decision by what the agent knows. The rest is for the device plugin's own answer.
pub(super) const DECIDE: Duration = Duration::from_millis(200);
/// Time limit of a decision that also needs pods and the ledger from the API server. If they do not come, the agent still
/// chooses the GPU, and the device plugin is not asked.
const READ: Duration = Duration::from_millis(250);
/// Pause after the kubelet refused to list its pods because it was asked too often.
const REFUSED: Duration = Duration::from_millis(10);

/// Answers a question of the kubelet. Never later than [`DEADLINE`], and never with an error.
pub(super) async fn preferred(plugin: &Plugin, question: Bytes) -> Bytes {
    let started = Instant::now();
    // The kubelet asks about one container at a time.
    let decoded = PreferredAllocationRequest::decode(question.clone()).unwrap_or_default();
    let decision = match decoded.container_requests.as_slice() {
        [container] => decide_in_time(plugin, container, started).await,
        _ => stock(Fallback::Contradiction),
    };
    let devices = match &decision.choice {
        Choice::Devices { ids, .. } => Some(ids.clone()),
        Choice::Stock(_) => None,
    };
    let answer = match &devices {
        Some(ids) => encoded([ids.clone()].into_iter()),
        None => {
            let left = DEADLINE.saturating_sub(started.elapsed());
            match ask_plugin(plugin, question, left).await {
                Some(answer) => answer,
                None => encoded(decoded.container_requests.iter().map(|container| any_devices(&asked(container)))),
            }
        }
    };
    note(plugin, &decision);
    plugin.shared.steering.lock().remember(&decision);
    *plugin.asked.lock() = Some(Asked { caller: decision.caller.clone(), ids: devices.clone().unwrap_or_default() });
    tell(plugin, decision, devices.unwrap_or_default(), started.elapsed());
    answer
}

/// Keeps in the health whether the latest answers were by the ledger.
fn note(plugin: &Plugin, decision: &Decision) {
    let why = match decision.choice {
        // These say something about the container, and not about the agent.
        Choice::Stock(Fallback::SeveralGpus | Fallback::Contradiction | Fallback::Unrecorded) => return,
        Choice::Stock(why) => Some(why),
        Choice::Devices { fallback, .. } => fallback.filter(|_| decision.caller.is_none()),
    };
    plugin.shared.update_health(&plugin.resource.0, |health| health.trust.answered(why, node::now()));
}

async fn decide_in_time(
    plugin: &Plugin,
    container: &ContainerPreferredAllocationRequest,
    started: Instant,
) -> Decision {
    let known = async {
        match tokio::time::timeout(DECIDE, decide(plugin, container)).await {
            Ok(Known::Decided(decision)) => decision,
            Ok(Known::Lacks(names, allocations)) => {
                let left = READ.saturating_sub(started.elapsed());
                decide_with(plugin, container, names, &allocations, left).await
            }
            Err(_) => stock(Fallback::Late),
        }
    };
    // An answer is worth more than a crash: the kubelet would fail the pod, and its owner would create it again at once.
    AssertUnwindSafe(known).catch_unwind().await.unwrap_or_else(|_panic| stock(Fallback::Internal))
}

/// How far what the agent knows is enough.
enum Known {
    /// It is.
    Decided(Decision),
    /// It lacks these pods, of which the kubelet has allocated this.
    Lacks(Vec<PodName>, Allocations),
}

/// Decides by what the agent knows.
async fn decide(plugin: &Plugin, container: &ContainerPreferredAllocationRequest) -> Known {
    let shared = &plugin.shared;
    let question = asked(container);
    let recorded = match checkpoint::read(&shared.config.kubelet).await {
        Ok(checkpoint) => checkpoint.unwrap_or_default(),
        Err(error) => {
            // Only init containers that have ended are not known then.
            tracing::warn!("{error}");
            Checkpoint::default()
        }
    };
    let devices: BTreeSet<String> = recorded.of(&plugin.resource).flat_map(|entry| entry.devices.clone()).collect();
    if !is_listing_safe(&question, &devices) {
        return Known::Decided(stock(Fallback::Unrecorded));
    }
    let listed = loop {
        match shared.pod_resources.list(DECIDE).await {
            Ok(listed) => break listed,
            // The kubelet limits how often it is asked: ten times at once, and then every 10 ms.
            Err(error) if error.code() == Code::ResourceExhausted => tokio::time::sleep(REFUSED).await,
            Err(error) => {
                tracing::warn!("the kubelet does not list its pods: {}", error.message());
                return Known::Decided(stock(Fallback::ListFailed));
            }
        }
    };
    let allocations = allocations(&plugin.resource, listed, &recorded);
    let node = shared.inputs.node.borrow().clone();
    match shared.steering.lock().decide(&plugin.resource, &question, &node, &allocations, Reading::Due) {
        Step::Decided(decision) => Known::Decided(decision),
        Step::Read(names) => Known::Lacks(names, allocations),
    }
}

/// Decides with the pods that the agent lacked, as far as the API server answers in time.
async fn decide_with(
    plugin: &Plugin,
    container: &ContainerPreferredAllocationRequest,
    names: Vec<PodName>,
    allocations: &Allocations,
    limit: Duration,
) -> Decision {
    let shared = &plugin.shared;
    let reads = names.into_iter().map(|name| (shared.inputs.read_pod)(name));
    let read = tokio::time::timeout(limit, join_all(reads)).await.unwrap_or_default();
    // The watch may have shown them meanwhile.
    let mut node = (**shared.inputs.node.borrow()).clone();
    for pod in read.into_iter().flatten() {
        node.pods.retain(|known| known.uid != pod.uid);
        node.pods.push(pod);
    }
    match shared.steering.lock().decide(&plugin.resource, &asked(container), &node, allocations, Reading::Done) {
        Step::Decided(decision) => decision,
        Step::Read(_) => stock(Fallback::PodNotFound),
    }
}

/// What the kubelet has allocated of a resource.
pub(super) fn allocations(resource: &Resource, listed: ListPodResourcesResponse, recorded: &Checkpoint) -> Allocations {
    let listed = listed.pod_resources.into_iter().map(|pod| {
        let of_resource = |devices: &crate::agent::kubelet::messages::ContainerDevices| {
            resource.0 == devices.resource_name && !devices.device_ids.is_empty()
        };
        let containers = pod.containers.iter().filter(|container| container.devices.iter().any(of_resource));
        ListedPod {
            containers: containers.map(|container| container.name.as_str().into()).collect(),
            name: PodName { namespace: pod.namespace.into(), name: pod.name.into() },
        }
    });
    let recorded = recorded.of(resource).map(|entry| (entry.pod.clone(), entry.container.clone()));
    Allocations { listed: listed.collect(), recorded: recorded.collect() }
}

fn asked(container: &ContainerPreferredAllocationRequest) -> Question<'_> {
    Question {
        available: &container.available,
        must_include: &container.must_include,
        size: usize::try_from(container.size).unwrap_or_default(),
    }
}

fn stock(why: Fallback) -> Decision {
    Decision { caller: None, wanted: None, choice: Choice::Stock(why) }
}

/// The plugin's own answer; `None` if it gives none, or not in time.
async fn ask_plugin(plugin: &Plugin, question: Bytes, deadline: Duration) -> Option<Bytes> {
    if !plugin.options().get_preferred_allocation_available {
        return None;
    }
    let answer = plugin.client()?.preferred(question, deadline).await;
    answer.inspect_err(|error| tracing::warn!("the device plugin has no preference: {}", error.message())).ok()
}

fn encoded(containers: impl Iterator<Item = Vec<String>>) -> Bytes {
    DeviceIdLists { containers: containers.map(|ids| DeviceIds { ids }).collect() }.encode_to_vec().into()
}

fn tell(plugin: &Plugin, decision: Decision, given: Vec<String>, took: Duration) {
    let fallback = match decision.choice {
        Choice::Devices { fallback, .. } => fallback,
        Choice::Stock(why) => Some(why),
    };
    let caller = decision.caller.as_ref().map(|caller| format!("{}/{}", caller.pod, caller.container));
    let (caller, why) = (caller.unwrap_or_default(), fallback.map_or("", Fallback::label));
    tracing::info!(resource = %plugin.resource, caller, ?given, why, ms = took.as_secs_f64() * 1_000.0, "asked for a device");
    plugin.shared.outputs.counters.answered(fallback, took);
    let answer = Answer {
        resource: plugin.resource.clone(),
        caller: decision.caller,
        wanted: decision.wanted,
        given,
        fallback,
        took,
    };
    if plugin.shared.outputs.answers.try_send(answer).is_err() {
        plugin.shared.outputs.counters.answers_dropped.inc();
    }
}
