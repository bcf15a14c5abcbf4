//! Tells pods that wait for VRAM what they wait for, as events with numbers. Owns how often; the sentence is
//! `capacity::verdict`'s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::Controller;
use crate::capacity::ledger::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict;

/// kube-scheduler has just said its own; ours follows within this time.
const PERIOD: Duration = Duration::from_secs(1);
/// A pod is told again when the numbers have changed, but not sooner.
const QUIET: Duration = Duration::from_secs(60);
/// Events in one period, so that a thousand waiting pods do not become a flood.
const BURST: usize = 50;

pub async fn run(controller: Controller) {
    let reporter = Reporter {
        controller: "vramguard".into(),
        instance: Some(controller.identity.clone()),
    };
    let recorder = Recorder::new(controller.client.clone(), reporter);
    let mut changed = controller.index.subscribe();
    let mut told: BTreeMap<PodUid, (String, Instant)> = BTreeMap::new();
    loop {
        let due = due(&controller, &mut told);
        for (uid, name, note) in due {
            tell(&recorder, &uid, name, &note).await;
            told.insert(uid, (note, Instant::now()));
        }
        tokio::time::sleep(PERIOD).await;
        // With pods left to be told, time alone is a reason to look again.
        let waiting = !controller.index.read().waiting.is_empty();
        if !waiting && changed.changed().await.is_err() {
            return;
        }
    }
}

/// Pods to be told now, with what; forgets those that wait no longer.
fn due(controller: &Controller, told: &mut BTreeMap<PodUid, (String, Instant)>) -> Vec<(PodUid, PodName, String)> {
    let state = controller.index.read();
    told.retain(|uid, _| state.waiting.contains_key(uid));
    let quiet = |uid: &PodUid| told.get(uid).is_some_and(|(_, when)| when.elapsed() < QUIET);
    let mut due = Vec::new();
    for (uid, waiting) in state.waiting.iter().filter(|(uid, _)| !quiet(uid)) {
        let Some(shortfall) = state
            .cluster
            .shortfall(&waiting.resource, waiting.demand, &waiting.placement)
        else {
            continue; // there is VRAM: it waits for something else
        };
        let note = verdict::waiting(&shortfall);
        if told.get(uid).is_none_or(|(before, _)| *before != note) {
            due.push((uid.clone(), waiting.name.clone(), note));
        }
        if due.len() == BURST {
            break;
        }
    }
    due
}

async fn tell(recorder: &Recorder, uid: &PodUid, name: PodName, note: &str) {
    let pod = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(name.namespace),
        name: Some(name.name),
        uid: Some(uid.0.clone()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: verdict::Reason::VramShortfall.to_string(),
        note: Some(note.to_owned()),
        action: "Scheduling".into(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &pod).await {
        tracing::warn!("event on a waiting pod: {error}");
    }
}
