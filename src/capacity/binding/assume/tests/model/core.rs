//! Asks the core, in one state, what a replica and a controller write, and checks the state for violations.
//!
//! Answers are cached, because the same question comes up in many states.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::state::{Content, Index, PODS, Place, Pod, Request, Stage, State};
use super::{Protocol, Setup};
use crate::capacity::binding::assume::Assumed;
use crate::capacity::binding::assume::tests::fixture::{self, annotated, node, pod as holder, rules};
use crate::capacity::binding::upkeep::Upkeep;
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{AllocationPolicy, GpuId, Pool};
use crate::capacity::name::PodUid;
use crate::capacity::node::ledger::NodeLedger;
use crate::capacity::node::reservation::{Found, Patience, Reservation, Reservations, State as Stands};
use crate::capacity::time::Moment;

/// A replica's cache of the pods.
pub(super) type View = [Pod; PODS];

/// A moment after every possible request.
const LATE: Moment = Moment(100);

/// With no patience, a reservation expires at its `since`.
///
/// The model decides whether it may expire, by the value of `now` that it passes.
const NO_PATIENCE: Patience = Patience { request_timeout: Duration::ZERO, skew: Duration::ZERO };

/// A replica's answer to a request to bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    Refused,
    /// Allowed. If there is a `write`, it has to be written first.
    Allowed {
        gpu: Index,
        write: Option<Content>,
    },
}

/// A violation of what the protocol guarantees.
#[derive(Debug)]
#[expect(dead_code, reason = "read where it is printed")]
pub(super) enum Wrong {
    /// The pods that are bound to a GPU demand more than it has. Amounts are in MiB.
    Overcommitted { node: Index, gpu: Index, held: u64, size: u64 },
    /// A bound pod has no reservation on its node, or one of another GPU.
    Unreserved { pod: Index },
    /// After everything has settled, the reservations of a node are not those of the pods that are bound to it.
    Unsettled { node: Index, reservations: Reservations, bound: Vec<PodUid> },
}

/// The number of rounds after which a controller has nothing more to write.
const ROUNDS: usize = 3;

pub(super) struct Core {
    pub setup: Setup,
    contents: Vec<Reservations>,
    /// The moments in each of `contents`, one bit for each moment.
    times: Vec<u16>,
    places: BTreeMap<Reservations, Content>,
    pictures: BTreeMap<View, Cluster>,
    answers: BTreeMap<(View, Index, Content, Index, u8), Answer>,
    upkeeps: BTreeMap<Question, Vec<Content>>,
    renumbered: BTreeMap<(Content, Times), Content>,
}

/// The input of a controller's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    view: View,
    at: Index,
    content: Content,
    /// The pods as a quorum read finds them.
    pods: [Pod; PODS],
    /// For each pod, the time of the first request for this node whose bind may still commit.
    waiting: [Option<u8>; PODS],
}

/// Maps each moment to its new number.
type Times = [u8; 16];

pub(super) fn uid(pod: Index) -> PodUid {
    PodUid::from(format!("pod-{pod}"))
}

fn name(node: Index) -> &'static str {
    ["a", "b"][usize::from(node)]
}

impl Core {
    pub(super) fn new(setup: Setup) -> Core {
        let mut core = Core {
            setup,
            contents: Vec::new(),
            times: Vec::new(),
            places: BTreeMap::new(),
            pictures: BTreeMap::new(),
            answers: BTreeMap::new(),
            upkeeps: BTreeMap::new(),
            renumbered: BTreeMap::new(),
        };
        core.content(Reservations::default());
        core
    }

    pub(super) fn nodes(&self) -> std::ops::Range<Index> {
        0..Index::try_from(self.setup.nodes.len()).unwrap()
    }

    pub(super) fn pods(&self) -> std::ops::Range<Index> {
        0..Index::try_from(self.setup.pods.len()).unwrap()
    }

    fn demand(&self, pod: Index) -> u64 {
        self.setup.pods[usize::from(pod)]
    }

    pub(super) fn reservations(&self, content: Content) -> &Reservations {
        &self.contents[usize::from(content)]
    }

    /// Returns the index of these reservations, and stores them if they are new.
    ///
    /// Reservations that are not assumed get the same `since`, because it no longer matters.
    pub(super) fn content(&mut self, reservations: Reservations) -> Content {
        let timeless = |(uid, reservation): (&PodUid, &Reservation)| {
            let since = if reservation.state == Stands::Assumed { reservation.since } else { Moment(0) };
            (uid.clone(), Reservation { since, ..reservation.clone() })
        };
        let reservations: Reservations = reservations.iter().map(timeless).collect();
        let next = Content::try_from(self.contents.len()).expect("a small world has few ledgers");
        let place = *self.places.entry(reservations.clone()).or_insert(next);
        if place == next {
            self.times.push(reservations.iter().fold(0, |times, (_, reservation)| times | 1 << reservation.since.0));
            self.contents.push(reservations);
        }
        place
    }

    /// Returns the canonical form of a state, so that states without a relevant difference are equal.
    ///
    /// Of moments only the order counts. Of requests and proposals not even the order counts. A bind that cannot
    /// commit any more is removed.
    pub(super) fn canonical(&mut self, mut state: State) -> State {
        for request in &mut state.requests {
            let void = |request: &Request| {
                matches!(request.stage, Stage::Allowed { .. }) && state.pods[usize::from(request.pod)] != Pod::Unbound
            };
            *request = request.filter(|request| !void(request));
        }
        let mut seen = 0;
        for request in state.requests.iter().flatten() {
            seen |= 1 << request.asked;
            if let Stage::Read(content, _) = request.stage {
                seen |= self.times[usize::from(content)];
            }
        }
        let proposals = state.proposals.iter().flatten().map(|proposal| proposal.content);
        for content in proposals.chain(state.ledgers) {
            seen |= self.times[usize::from(content)];
        }
        let mut times: Times = [0; 16];
        let mut last = 0;
        let mut in_place = true;
        for time in (1..16).filter(|time| seen >> time & 1 == 1) {
            last += 1;
            times[time] = last;
            in_place &= usize::from(last) == time;
        }
        if !in_place {
            for request in state.requests.iter_mut().flatten() {
                request.asked = times[usize::from(request.asked)];
                if let Stage::Read(content, _) = &mut request.stage {
                    *content = self.renumber(*content, times);
                }
            }
            for content in &mut state.ledgers {
                *content = self.renumber(*content, times);
            }
            for proposal in state.proposals.iter_mut().flatten() {
                proposal.content = self.renumber(proposal.content, times);
            }
        }
        state.now = last;
        state.requests.sort_unstable();
        // Free slots come last, because the limit on controllers counts slots from the front.
        state.proposals.sort_unstable_by(|a, b| b.cmp(a));
        state
    }

    fn renumber(&mut self, content: Content, times: Times) -> Content {
        if let Some(renumbered) = self.renumbered.get(&(content, times)) {
            return *renumbered;
        }
        let renumber = |(uid, reservation): (&PodUid, &Reservation)| {
            let since = Moment(times[usize::try_from(reservation.since.0).unwrap()].into());
            (uid.clone(), Reservation { since, ..reservation.clone() })
        };
        let reservations = self.reservations(content).iter().map(renumber).collect();
        let renumbered = self.content(reservations);
        self.renumbered.insert((content, times), renumbered);
        renumbered
    }

    /// Returns the ledger of a node with this content, together with this view of its pods.
    fn ledger(&mut self, view: View, at: Index, content: Content) -> (NodeLedger, Vec<Pool>) {
        let setup = self.setup;
        let picture = self.pictures.entry(view).or_insert_with(|| picture(&setup, &view));
        let content = fixture::content(AllocationPolicy::Steered, self.contents[usize::from(content)].clone());
        picture.with_content(name(at), content).expect("every picture has all nodes")
    }

    /// Returns what a replica with this view answers to a request after it read this content.
    pub(super) fn assume(&mut self, view: View, at: Index, content: Content, pod: Index, asked: u8) -> Answer {
        let question = (view, at, content, pod, asked);
        if let Some(answer) = self.answers.get(&question) {
            return *answer;
        }
        let (ledger, pools) = self.ledger(view, at, content);
        let holder = holder(self.demand(pod));
        let answer = match ledger.assume(&uid(pod), &holder, &pools, &rules(), Moment(asked.into())) {
            Err(_) => Answer::Refused,
            Ok(Assumed { gpu, write }) => {
                let write = write.map(|write| self.spoilt(write, content, pod, asked));
                Answer::Allowed { gpu: index(gpu.as_ref()), write: write.map(|write| self.content(write)) }
            }
        };
        self.answers.insert(question, answer);
        answer
    }

    /// Changes a write in the way of the protocols that set `since` wrongly.
    fn spoilt(&self, write: Reservations, before: Content, pod: Index, asked: u8) -> Reservations {
        let Some(before) = self.reservations(before).of(&uid(pod)) else { return write };
        let since = match self.setup.protocol {
            Protocol::NeverYounger => before.since,
            Protocol::MaybeOlder => Moment(asked.into()),
            Protocol::AsBuilt
            | Protocol::BlindWrite
            | Protocol::ExpireUnread
            | Protocol::ExpireEarly
            | Protocol::ForgetOnMove => return write,
        };
        let aged = |(uid, reservation): (&PodUid, &Reservation)| {
            let since =
                if reservation.state == Stands::Assumed && *uid == self::uid(pod) { since } else { reservation.since };
            (uid.clone(), Reservation { since, ..reservation.clone() })
        };
        write.iter().map(aged).collect()
    }

    /// Returns all that a controller with this view may want to write now, depending on how much time has passed.
    pub(super) fn upkeep(&mut self, view: View, at: Index, state: &State) -> Vec<Content> {
        let mut waiting = [None; PODS];
        for request in state.may_commit().filter(|request| request.node == at) {
            let since = &mut waiting[usize::from(request.pod)];
            *since = Some(since.map_or(request.asked, |since: u8| since.min(request.asked)));
        }
        let question = Question { view, at, content: state.ledgers[usize::from(at)], pods: state.pods, waiting };
        if let Some(wanted) = self.upkeeps.get(&question) {
            return wanted.clone();
        }
        let wanted = self.look_after(&question);
        self.upkeeps.insert(question, wanted.clone());
        wanted
    }

    fn look_after(&mut self, question: &Question) -> Vec<Content> {
        let (ledger, pools) = self.ledger(question.view, question.at, question.content);
        let Upkeep { reservations, doubtful, .. } = ledger.upkeep(&pools, &rules(), |_| true, &NO_PATIENCE, LATE);
        let mut times: Vec<Moment> = reservations.iter().map(|(_, reservation)| reservation.since).collect();
        times.push(Moment(0));
        let kept_at = |now: Moment| {
            let mut kept = reservations.clone();
            for (uid, _) in &doubtful {
                let pod = self.pods().find(|pod| self::uid(*pod) == *uid).expect("reservations are of pods");
                let reservation = &reservations.of(uid).expect("doubtful ones are left as they are");
                let found = self.found(question, pod, reservation.state);
                let settled = reservation.state != Stands::Assumed;
                assert!(!settled || found != Found::Unbound, "it was seen bound, so it is not unbound: {question:?}");
                // If a bind that the reservation was made for is still in progress, the time is before its expiry.
                let since = reservation.since;
                let under_way = question.waiting[usize::from(pod)].is_some_and(|asked| Moment(asked.into()) <= since);
                let early = self.setup.protocol == Protocol::ExpireEarly;
                let now = if under_way && !early { now.min(Moment(since.0 - 1)) } else { now };
                if !reservation.survives(found, &NO_PATIENCE, now) {
                    kept.remove(uid);
                }
            }
            kept
        };
        let wanted: BTreeSet<Reservations> = times.into_iter().map(kept_at).collect();
        wanted.into_iter().map(|wanted| self.content(wanted)).collect()
    }

    /// What a quorum read finds for a pod.
    fn found(&self, question: &Question, pod: Index, state: Stands) -> Found {
        match question.pods[usize::from(pod)] {
            _ if self.setup.protocol == Protocol::ExpireUnread && state == Stands::Assumed => Found::Unbound,
            Pod::Unbound => Found::Unbound,
            Pod::Bound(place) if place.node == question.at => Found::Here,
            Pod::Bound(_) => Found::Elsewhere,
            Pod::Ended(_) => Found::Gone,
        }
    }

    /// Returns the violation in this state, if there is one.
    pub(super) fn wrong(&self, state: &State) -> Option<Wrong> {
        for node in self.nodes() {
            for (gpu, size) in (0..).zip(self.setup.nodes[usize::from(node)]) {
                let on = |pod: &Index| state.pods[usize::from(*pod)] == Pod::Bound(Place { node, gpu });
                let held: u64 = self.pods().filter(on).map(|pod| self.demand(pod)).sum();
                if held > *size {
                    return Some(Wrong::Overcommitted { node, gpu, held, size: *size });
                }
            }
        }
        let promised = |pod: Index, node: Index, gpu: Index| {
            let reservations = self.reservations(state.ledgers[usize::from(node)]);
            reservations.of(&uid(pod)).is_some_and(|reservation| index(reservation.gpu.as_ref()) == gpu)
        };
        let lost = |pod: &Index| match state.pods[usize::from(*pod)] {
            Pod::Bound(Place { node, gpu }) => !promised(*pod, node, gpu),
            Pod::Unbound | Pod::Ended(_) => false,
        };
        self.pods().find(lost).map(|pod| Wrong::Unreserved { pod })
    }

    /// Returns the violation that remains after everything has settled.
    ///
    /// Nothing is in progress, all caches are current, and a controller has nothing more to do. The controller is one
    /// that saw everything, or one that has just started and does not know the pods that are gone.
    pub(super) fn wrong_when_calm(&mut self, state: &State) -> Option<Wrong> {
        let listed = state.pods.map(|pod| if let Pod::Ended(_) = pod { Pod::Unbound } else { pod });
        let calm = State { pods: state.pods, ledgers: state.ledgers, ..State::default() };
        [state.pods, listed].into_iter().find_map(|view| self.wrong_after(view, calm))
    }

    fn wrong_after(&mut self, view: View, mut calm: State) -> Option<Wrong> {
        for node in self.nodes() {
            for _ in 0..ROUNDS {
                // Enough time has passed for everything to expire.
                let wanted = self.upkeep(view, node, &calm);
                let last = wanted.into_iter().min_by_key(|content| self.reservations(*content).len());
                calm.ledgers[usize::from(node)] = last.expect("a controller always has an opinion");
            }
            let reservations = self.reservations(calm.ledgers[usize::from(node)]);
            let bound = |pod: &Index| matches!(calm.pods[usize::from(*pod)], Pod::Bound(place) if place.node == node);
            let bound: Vec<PodUid> = self.pods().filter(bound).map(uid).collect();
            let settled = reservations.iter().all(|(_, reservation)| reservation.state != Stands::Assumed);
            if !settled || !reservations.iter().map(|(uid, _)| uid).eq(&bound) {
                return Some(Wrong::Unsettled { node, reservations: reservations.clone(), bound });
            }
        }
        self.wrong(&calm)
    }
}

fn index(gpu: Option<&GpuId>) -> Index {
    match gpu {
        Some(GpuId::Index(index)) => Index::try_from(*index).unwrap(),
        other => panic!("a steered pod has a GPU by its position, not {other:?}"),
    }
}

fn picture(setup: &Setup, view: &View) -> Cluster {
    let mut cluster = Cluster::new(rules(), BTreeSet::new());
    for (at, sizes) in (0..).zip(setup.nodes) {
        cluster.apply_node(name(at), node(sizes, 4));
    }
    for ((pod, demand), seen) in (0..).zip(setup.pods).zip(view) {
        match seen {
            Pod::Unbound => {}
            Pod::Bound(place) => {
                let holder = annotated(*demand, Some(place.gpu.into()));
                cluster.apply_pod(&uid(pod), name(place.node), holder);
            }
            Pod::Ended(_) => cluster.delete_pod(&uid(pod)),
        }
    }
    cluster
}
