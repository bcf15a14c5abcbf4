//! All steps that can follow a state.

use std::collections::BTreeMap;

use super::core::{Answer, Core, View, uid};
use super::state::{Content, Index, Place, Pod, Proposal, Request, Stage, State, Version, Waits};
use super::{Protocol, Reads};

/// One step from a state to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A scheduler requests to bind a pod that is unbound according to a quorum read.
    Ask { pod: Index, node: Index },
    /// A replica reads the ledger.
    Read { pod: Index, asked: u8 },
    /// The replica decides with this view of the pods, writes, and allows the bind.
    Write { pod: Index, asked: u8, view: View },
    /// The replica writes, and does not know whether it did.
    WriteUnknown { pod: Index, asked: u8, view: View },
    /// The replica's write fails, because another one came first.
    Conflict { pod: Index, asked: u8 },
    /// The replica answers without a write: the pod has no place, or its reservation is confirmed or adopted.
    Answer { pod: Index, asked: u8, view: View },
    /// The replica dies or its answer is lost.
    Lose { pod: Index, asked: u8 },
    /// The API server times out, and the replica continues.
    GiveUp { pod: Index, asked: u8 },
    /// The bind commits.
    Commit { pod: Index, asked: u8 },
    /// The pod is deleted or finishes.
    End { pod: Index },
    /// A controller with this view has done its quorum reads and is about to write.
    Propose { node: Index, view: View, content: Content },
    /// The controller writes.
    Settle { node: Index },
    /// The controller dies before it writes.
    Drop { node: Index },
}

/// Returns all possible steps, each with the state that it leads to.
pub(super) fn steps(core: &mut Core, state: &State) -> Vec<(Step, State)> {
    let mut steps = Vec::new();
    schedule(core, state, &mut steps);
    for (at, request) in state.requests() {
        serve(core, state, at, request, &mut steps);
    }
    for (pod, truth) in (0..).zip(state.pods).take(core.pods().len()) {
        let place = match truth {
            Pod::Unbound => None,
            Pod::Bound(place) => Some(place),
            Pod::Ended(_) => continue,
        };
        let mut after = *state;
        after.pods[usize::from(pod)] = Pod::Ended(place);
        steps.push((Step::End { pod }, after));
    }
    control(core, state, &mut steps);
    steps.into_iter().map(|(step, after)| (step, core.canonical(after))).collect()
}

fn schedule(core: &Core, state: &State, steps: &mut Vec<(Step, State)>) {
    for pod in core.pods() {
        let asked = state.asked[usize::from(pod)];
        if asked == core.setup.attempts[usize::from(pod)] || state.pods[usize::from(pod)] != Pod::Unbound {
            continue;
        }
        let free = state.requests.iter().position(Option::is_none).expect("there are as many as may be asked");
        for node in core.nodes() {
            let request = Request { pod, node, asked: state.now + 1, waits: Waits::Yes, stage: Stage::Asked };
            let mut after = state.with_request(free, Some(request));
            after.asked[usize::from(pod)] += 1;
            steps.push((Step::Ask { pod, node }, after));
        }
    }
}

fn serve(core: &mut Core, state: &State, at: usize, request: Request, steps: &mut Vec<(Step, State)>) {
    let Request { pod, node, asked, waits, stage } = request;
    steps.push((Step::Lose { pod, asked }, state.with_request(at, None)));
    let to = |stage| state.with_request(at, Some(Request { stage, ..request }));
    match stage {
        Stage::Asked => {
            let content = state.ledgers[usize::from(node)];
            match core.setup.reads {
                Reads::AtOnce => decide(core, state, at, request, (content, Version::Last), steps),
                Reads::Apart => steps.push((Step::Read { pod, asked }, to(Stage::Read(content, Version::Last)))),
            }
        }
        Stage::Read(content, version) => decide(core, state, at, request, (content, version), steps),
        Stage::Allowed { gpu } => {
            let mut after = state.with_request(at, None);
            let truth = &mut after.pods[usize::from(pod)];
            if *truth == Pod::Unbound {
                *truth = Pod::Bound(Place { node, gpu });
                steps.push((Step::Commit { pod, asked }, after));
            }
            return;
        }
    }
    if waits == Waits::Yes {
        let after = state.with_request(at, Some(Request { waits: Waits::No, ..request }));
        steps.push((Step::GiveUp { pod, asked }, after));
    }
}

fn decide(
    core: &mut Core,
    state: &State,
    at: usize,
    request: Request,
    (content, version): (Content, Version),
    steps: &mut Vec<(Step, State)>,
) {
    let Request { pod, node, asked, waits, .. } = request;
    let mut answers = BTreeMap::new();
    for view in views(state) {
        answers.entry(core.assume(view, node, content, pod, asked)).or_insert(view);
    }
    for (answer, view) in answers {
        let Answer::Allowed { gpu, write } = answer else {
            steps.push((Step::Answer { pod, asked, view }, state.with_request(at, None)));
            continue;
        };
        let allowed = Some(Request { stage: Stage::Allowed { gpu }, ..request }).filter(|_| waits == Waits::Yes);
        let Some(write) = write else {
            steps.push((Step::Answer { pod, asked, view }, state.with_request(at, allowed)));
            continue;
        };
        if version == Version::Old && core.setup.protocol != Protocol::BlindWrite {
            let again = Some(Request { stage: Stage::Asked, ..request });
            steps.push((Step::Conflict { pod, asked }, state.with_request(at, again)));
            continue;
        }
        let unknown = Some(Request { stage: Stage::Asked, ..request });
        for (request, step) in
            [(allowed, Step::Write { pod, asked, view }), (unknown, Step::WriteUnknown { pod, asked, view })]
        {
            let mut after = write_ledger(core, state.with_request(at, request), node, write);
            if core.setup.protocol == Protocol::ForgetOnMove {
                for other in core.nodes().filter(|other| *other != node) {
                    let mut left = core.reservations(after.ledgers[usize::from(other)]).clone();
                    left.remove(&uid(pod));
                    let left = core.content(left);
                    after = write_ledger(core, after, other, left);
                }
            }
            steps.push((step, after));
        }
    }
}

/// Writes a ledger.
///
/// Reads from before this write become old. A controller whose pending write loses against this one starts over.
fn write_ledger(core: &Core, mut state: State, node: Index, content: Content) -> State {
    if state.ledgers[usize::from(node)] == content {
        return state; // a write that changes nothing keeps the version
    }
    state.ledgers[usize::from(node)] = content;
    for request in state.requests.iter_mut().flatten().filter(|request| request.node == node) {
        if let Stage::Read(_, version) = &mut request.stage {
            *version = Version::Old;
        }
    }
    if core.setup.protocol != Protocol::BlindWrite {
        for proposal in &mut state.proposals {
            *proposal = proposal.filter(|proposal| proposal.node != node);
        }
    }
    state
}

fn control(core: &mut Core, state: &State, steps: &mut Vec<(Step, State)>) {
    for (at, proposal) in state.proposals.into_iter().enumerate().filter_map(|(at, proposal)| Some((at, proposal?))) {
        let Proposal { node, content } = proposal;
        let without = state.with_proposal(at, None);
        steps.push((Step::Settle { node }, write_ledger(core, without, node, content)));
        steps.push((Step::Drop { node }, without));
    }
    let Some(free) = state.proposals.iter().take(core.setup.controllers).position(Option::is_none) else { return };
    for node in core.nodes() {
        let mut wanted = BTreeMap::new();
        for view in views(state) {
            for content in core.upkeep(view, node, state) {
                wanted.entry(content).or_insert(view);
            }
        }
        wanted.remove(&state.ledgers[usize::from(node)]);
        for (content, view) in wanted {
            let after = state.with_proposal(free, Some(Proposal { node, content }));
            steps.push((Step::Propose { node, view, content }, after));
        }
    }
}

/// Returns every view of the pods that a replica may have.
fn views(state: &State) -> Vec<View> {
    let mut views = vec![View::default()];
    for (pod, truth) in state.pods.iter().enumerate() {
        let with = |view: &View, seen: Pod| {
            let mut view = *view;
            view[pod] = seen;
            view
        };
        views = truth.seen().into_iter().flat_map(|seen| views.iter().map(move |view| with(view, seen))).collect();
    }
    views
}
