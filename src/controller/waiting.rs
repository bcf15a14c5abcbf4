//! Explains to waiting pods, in events with numbers, what they wait for, or that waiting does not help; and counts
//! these pods. Owns how often; `capacity::verdict` owns the sentences.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::{Controller, events};
use crate::capacity::cluster::Outlook;
use crate::capacity::name::PodUid;
use crate::capacity::pod::PodName;
use crate::capacity::verdict::{self, NeverFits, Reason, Shortfall};
use crate::metrics::WaitsFor;
use crate::state::index::{PlacementKept, Waiting};

/// Interval between two passes. The event of kube-scheduler comes first, and ours follows within this time.
const PERIOD: Duration = Duration::from_secs(1);
/// Least time between two looks at a pod. An event with changed numbers comes no sooner.
const QUIET: Duration = Duration::from_secs(60);
/// Time after which an unchanged event is repeated: the API server deletes events after an hour.
const REPEAT: Duration = Duration::from_secs(1800);
/// Pods that one pass looks at. Each look takes the lock by itself, so that reviews get it in between.
const LOOKS: usize = 200;
/// Events of one pass, so that a thousand waiting pods do not cause a flood of events.
const BURST: usize = 50;
/// Events in flight.
const PARALLEL: usize = 8;

/// When a pod was last looked at, what it waits for, and its last event.
struct Notified {
    looked: Instant,
    waits_for: WaitsFor,
    said: Option<(String, Instant)>,
}

/// An event that is to be recorded.
struct Due {
    uid: PodUid,
    name: PodName,
    reason: Reason,
    note: String,
}

pub(super) async fn run(controller: Controller) {
    let recorder = events::Recorder::new(&controller);
    let mut changed = controller.index.subscribe();
    let mut told: BTreeMap<PodUid, Notified> = BTreeMap::new();
    loop {
        let due = due(&controller, &mut told);
        let recorder = &recorder;
        let events = due.into_iter().map(|Due { uid, name, reason, note }| async move {
            let said = recorder.warn_pod(&uid, &name, reason, note.clone(), "Scheduling").await;
            (uid, said.then_some((note, Instant::now())))
        });
        let mut events = futures::stream::iter(events).buffer_unordered(PARALLEL);
        while let Some((uid, said)) = events.next().await {
            // An event that failed is retried in a later pass.
            if let (Some(told), Some(said)) = (told.get_mut(&uid), said) {
                told.said = Some(said);
            }
        }
        tokio::time::sleep(PERIOD).await;
        // While pods wait, time alone is a reason for another pass.
        let waiting = !controller.index.read().waiting.is_empty();
        if !waiting && told.is_empty() && changed.changed().await.is_err() {
            return;
        }
    }
}

/// Result of one look at a pod.
struct Look {
    name: PodName,
    waits_for: WaitsFor,
    /// Reason and text of the event that the pod should get.
    say: Option<(Reason, String)>,
}

fn look(controller: &Controller, uid: &PodUid) -> Option<Look> {
    let state = controller.index.read();
    let Waiting { name, demand, resource, placement, landing, makeup } = state.waiting.get(uid)?;
    let per_process = state.cluster.rules().per_process_overhead;
    let made_of = || makeup.and_then(|makeup| makeup.explains(*demand, per_process));
    let (waits_for, say) = match state.cluster.outlook(resource, *demand, placement) {
        // VRAM is free, so the pod waits for something else.
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

/// The events that are due now. Also forgets the pods that wait no longer, and updates the metric. A pod that was
/// looked at is skipped for [`QUIET`], so that the next pass gets to other pods.
fn due(controller: &Controller, told: &mut BTreeMap<PodUid, Notified>) -> Vec<Due> {
    let quiet = |uid: &PodUid| told.get(uid).is_some_and(|told| told.looked.elapsed() < QUIET);
    let next: Vec<PodUid> = {
        let state = controller.index.read();
        state.waiting.iter().map(|(uid, _)| uid).filter(|uid| !quiet(uid)).take(LOOKS).cloned().collect()
    };
    let mut due = Vec::new();
    for uid in next {
        let Some(Look { name, waits_for, say }) = look(controller, &uid) else { continue };
        let looked = Instant::now();
        let entry = told.entry(uid.clone()).or_insert(Notified { looked, waits_for, said: None });
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

fn told_of(shortfall: &Shortfall, landing: PlacementKept) -> String {
    match landing {
        PlacementKept::Yes => verdict::waiting(shortfall),
        PlacementKept::Dropped => verdict::waiting_anywhere(shortfall),
    }
}
