//! Tells pods that wait for VRAM what they wait for, as events with numbers. Owns how often; the sentence is
//! `capacity::verdict`'s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::{Controller, events};
use crate::capacity::ledger::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::{self, Reason, Shortfall};
use crate::index::Landing;

/// kube-scheduler has just said its own; ours follows within this time.
const PERIOD: Duration = Duration::from_secs(1);
/// A pod is told again when the numbers have changed, but not sooner.
const QUIET: Duration = Duration::from_secs(60);
/// And again when they have not: events are forgotten after an hour.
const REPEAT: Duration = Duration::from_secs(1800);
/// Pods looked at in one period. Each look is a lock of its own, so that reviews come in between.
const LOOKS: usize = 200;
/// Events in one period, so that a thousand waiting pods do not become a flood.
const BURST: usize = 50;
/// Events in flight.
const PARALLEL: usize = 8;

/// When a pod was looked at last, and what it was told.
struct Told {
    looked: Instant,
    said: Option<(String, Instant)>,
}

pub async fn run(controller: Controller) {
    let recorder = events::recorder(&controller);
    let mut changed = controller.index.subscribe();
    let mut told: BTreeMap<PodUid, Told> = BTreeMap::new();
    loop {
        let due = due(&controller, &mut told);
        let recorder = &recorder;
        let events = due.into_iter().map(|(uid, name, note)| async move {
            let about = events::pod(&uid, &name);
            let said = events::warn(recorder, &about, Reason::VramShortfall, note.clone(), "Scheduling").await;
            (uid, said.then_some((note, Instant::now())))
        });
        let mut events = futures::stream::iter(events).buffer_unordered(PARALLEL);
        while let Some((uid, said)) = events.next().await {
            // One that could not be said is said later.
            if let (Some(told), Some(said)) = (told.get_mut(&uid), said) {
                told.said = Some(said);
            }
        }
        tokio::time::sleep(PERIOD).await;
        // With pods left to be told, time alone is a reason to look again.
        let waiting = !controller.index.read().waiting.is_empty();
        if !waiting && changed.changed().await.is_err() {
            return;
        }
    }
}

/// Pods to be told now, with what; forgets those that wait no longer. A pod that was looked at is quiet for a while, so the
/// next period comes to others.
fn due(controller: &Controller, told: &mut BTreeMap<PodUid, Told>) -> Vec<(PodUid, PodName, String)> {
    let quiet = |uid: &PodUid| told.get(uid).is_some_and(|told| told.looked.elapsed() < QUIET);
    let next: Vec<PodUid> = {
        let state = controller.index.read();
        state.waiting.iter().map(|(uid, _)| uid).filter(|uid| !quiet(uid)).take(LOOKS).cloned().collect()
    };
    let mut due = Vec::new();
    for uid in next {
        let state = controller.index.read();
        let Some(waiting) = state.waiting.get(&uid) else { continue };
        let shortfall = state.cluster.shortfall(&waiting.resource, waiting.demand, &waiting.placement);
        let (name, landing) = (waiting.name.clone(), waiting.landing);
        drop(state);
        let entry = told.entry(uid.clone()).or_insert(Told { looked: Instant::now(), said: None });
        entry.looked = Instant::now();
        // Where there is VRAM, it waits for something else.
        let Some(note) = shortfall.as_ref().map(|shortfall| told_of(shortfall, landing)) else { continue };
        let said = |(before, when): &(String, Instant)| *before == note && when.elapsed() < REPEAT;
        if !entry.said.as_ref().is_some_and(said) {
            due.push((uid, name, note));
        }
        if due.len() == BURST {
            break;
        }
    }
    let state = controller.index.read();
    told.retain(|uid, _| state.waiting.get(uid).is_some());
    drop(state);
    due
}

fn told_of(shortfall: &Shortfall, landing: Landing) -> String {
    match landing {
        Landing::Kept => verdict::waiting(shortfall),
        Landing::TooLong => verdict::waiting_anywhere(shortfall),
    }
}
