//! Tells pods that wait for VRAM what they wait for, or that waiting does not help, as events with numbers; and counts them.
//! Owns how often; the sentences are `capacity::verdict`'s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::{Controller, events};
use crate::capacity::cluster::Outlook;
use crate::capacity::ledger::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::{self, NeverFits, Reason, Shortfall};
use crate::index::{Landing, Waiting};
use crate::metrics::WaitsFor;

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

/// When a pod was looked at last, what it waits for, and what it was told.
struct Told {
    looked: Instant,
    waits_for: WaitsFor,
    said: Option<(String, Instant)>,
}

/// An event to be said.
struct Due {
    uid: PodUid,
    name: PodName,
    reason: Reason,
    note: String,
}

pub async fn run(controller: Controller) {
    let recorder = events::Recorder::new(&controller);
    let mut changed = controller.index.subscribe();
    let mut told: BTreeMap<PodUid, Told> = BTreeMap::new();
    loop {
        let due = due(&controller, &mut told);
        let recorder = &recorder;
        let events = due.into_iter().map(|Due { uid, name, reason, note }| async move {
            let said = recorder.warn_pod(&uid, &name, reason, note.clone(), "Scheduling").await;
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
        if !waiting && told.is_empty() && changed.changed().await.is_err() {
            return;
        }
    }
}

/// What one look at a pod showed.
struct Look {
    name: PodName,
    waits_for: WaitsFor,
    /// What to tell it.
    say: Option<(Reason, String)>,
}

fn look(controller: &Controller, uid: &PodUid) -> Option<Look> {
    let state = controller.index.read();
    let Waiting { name, demand, resource, placement, landing, makeup } = state.waiting.get(uid)?;
    let per_process = state.cluster.rules().per_process_overhead;
    let made_of = || makeup.and_then(|makeup| makeup.explains(*demand, per_process));
    let (waits_for, say) = match state.cluster.outlook(resource, *demand, placement) {
        // There is VRAM, so it waits for something else.
        Outlook::Fits => (WaitsFor::Other, None),
        Outlook::Waits(shortfall) => {
            let shortfall = Shortfall { made_of: made_of(), ..shortfall };
            (WaitsFor::VramShortfall, Some((Reason::VramShortfall, told_of(&shortfall, *landing))))
        }
        Outlook::NeverFits(never) => {
            let never = NeverFits { made_of: made_of(), ..never };
            (WaitsFor::NeverFits, Some((Reason::NeverFits, verdict::never_fits(&never))))
        }
    };
    Some(Look { name: name.clone(), waits_for, say })
}

/// Pods to be told now, with what; forgets those that wait no longer, and counts the others. A pod that was looked at is quiet
/// for a while, so the next period comes to others.
fn due(controller: &Controller, told: &mut BTreeMap<PodUid, Told>) -> Vec<Due> {
    let quiet = |uid: &PodUid| told.get(uid).is_some_and(|told| told.looked.elapsed() < QUIET);
    let next: Vec<PodUid> = {
        let state = controller.index.read();
        state.waiting.iter().map(|(uid, _)| uid).filter(|uid| !quiet(uid)).take(LOOKS).cloned().collect()
    };
    let mut due = Vec::new();
    for uid in next {
        let Some(Look { name, waits_for, say }) = look(controller, &uid) else { continue };
        let looked = Instant::now();
        let entry = told.entry(uid.clone()).or_insert(Told { looked, waits_for, said: None });
        (entry.looked, entry.waits_for) = (looked, waits_for);
        let Some((reason, note)) = say else { continue };
        let said = |(before, when): &(String, Instant)| *before == note && when.elapsed() < REPEAT;
        if !entry.said.as_ref().is_some_and(said) {
            due.push(Due { uid, name, reason, note });
        }
        if due.len() == BURST {
            break;
        }
    }
    let waiting = {
        let state = controller.index.read();
        told.retain(|uid, _| state.waiting.get(uid).is_some());
        state.waiting.len()
    };
    let count = |reason| told.values().filter(|told| told.waits_for == reason).count();
    controller.metrics.waiting(|reason| match reason {
        WaitsFor::Unexamined => waiting - told.len(),
        WaitsFor::VramShortfall | WaitsFor::NeverFits | WaitsFor::Other => count(reason),
    });
    due
}

fn told_of(shortfall: &Shortfall, landing: Landing) -> String {
    match landing {
        Landing::Kept => verdict::waiting(shortfall),
        Landing::TooLong => verdict::waiting_anywhere(shortfall),
    }
}
