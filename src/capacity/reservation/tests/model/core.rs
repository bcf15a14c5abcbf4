//! What the core says in a state: what a replica would write, what a controller would, and whether all is as it should be.
//! Remembers its answers: the same question comes up in many states.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::state::{Content, Index, PODS, Place, Pod, Request, Stage, State};
use super::{Protocol, Setup};
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{GpuId, Handout, Pool};
use crate::capacity::ledger::{NodeLedger, PodUid};
use crate::capacity::moment::Moment;
use crate::capacity::reservation::tests::fixture::{annotated, node, pinned, rules, shared};
use crate::capacity::reservation::{Assumed, Found, Patience, Reservation, Reservations, State as Stands, Upkeep};

/// A picture of the pods.
pub type View = [Pod; PODS];

/// After every request that there may be.
const LATE: Moment = Moment(100);

/// A reservation is expired from its `since` on; whether it may be is the model's to say, by what it takes for now.
const NO_PATIENCE: Patience = Patience { request_timeout: Duration::ZERO, skew: Duration::ZERO };

/// What a replica answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Refused,
    /// Allowed, with what has to be written first.
    Allowed {
        gpu: Index,
        write: Option<Content>,
    },
}

/// What must not be.
#[derive(Debug)]
#[expect(dead_code, reason = "read where it is printed")]
pub enum Wrong {
    /// Pods are bound to a GPU that demand more than it has.
    Overcommitted { node: Index, gpu: Index, held: u64, size: u64 },
    /// A pod is bound and has no reservation there, of that GPU.
    Unreserved { pod: Index },
    /// In the end the reservations of a node are not those of the pods that are bound to it.
    Unsettled { node: Index, reservations: Reservations, bound: Vec<PodUid> },
}

/// In which a controller comes to rest.
const ROUNDS: usize = 3;

pub struct Core {
    pub setup: Setup,
    contents: Vec<Reservations>,
    /// The moments in each, a bit for each.
    times: Vec<u16>,
    places: BTreeMap<Reservations, Content>,
    pictures: BTreeMap<View, Cluster>,
    answers: BTreeMap<(View, Index, Content, Index, u8), Answer>,
    upkeeps: BTreeMap<Question, Vec<Content>>,
    renumbered: BTreeMap<(Content, Times), Content>,
}

/// What a controller goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    view: View,
    at: Index,
    content: Content,
    /// As a quorum has them.
    pods: [Pod; PODS],
    /// When the first bind of each pod to that node was asked for that may still commit.
    waiting: [Option<u8>; PODS],
}

/// For each moment, the one that it becomes.
type Times = [u8; 16];

pub fn uid(pod: Index) -> PodUid {
    PodUid::from(format!("pod-{pod}"))
}

fn name(node: Index) -> &'static str {
    ["a", "b"][usize::from(node)]
}

impl Core {
    pub fn new(setup: Setup) -> Core {
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

    pub fn nodes(&self) -> std::ops::Range<Index> {
        0..Index::try_from(self.setup.nodes.len()).unwrap()
    }

    pub fn pods(&self) -> std::ops::Range<Index> {
        0..Index::try_from(self.setup.pods.len()).unwrap()
    }

    fn demand(&self, pod: Index) -> u64 {
        self.setup.pods[usize::from(pod)]
    }

    pub fn reservations(&self, content: Content) -> &Reservations {
        &self.contents[usize::from(content)]
    }

    /// When a place that is settled was promised is of no interest any more.
    pub fn content(&mut self, reservations: Reservations) -> Content {
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

    /// The same state, if it is: of moments only their order counts, of requests and proposals not even that, and a bind that
    /// cannot commit any more is none.
    pub fn canonical(&mut self, mut state: State) -> State {
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
        // Free places last: how many controllers there may be is counted from the front.
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

    /// The ledger of a node as it was read, with what such a picture says of its pods.
    fn ledger(&mut self, view: View, at: Index, content: Content) -> (NodeLedger, Vec<Pool>) {
        let setup = self.setup;
        let picture = self.pictures.entry(view).or_insert_with(|| picture(&setup, &view));
        let shared = shared(Handout::Pinned, self.contents[usize::from(content)].clone());
        picture.with_shared(name(at), shared).expect("every picture has all nodes")
    }

    /// What a replica with such a picture answers to a request, having read that.
    pub fn assume(&mut self, view: View, at: Index, content: Content, pod: Index, asked: u8) -> Answer {
        let question = (view, at, content, pod, asked);
        if let Some(answer) = self.answers.get(&question) {
            return *answer;
        }
        let (ledger, pools) = self.ledger(view, at, content);
        let holder = pinned(self.demand(pod));
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

    /// The write, as protocols that get younger wrong would have it.
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

    /// What controllers with such a picture may want to write now, depending on how much time has passed.
    pub fn upkeep(&mut self, view: View, at: Index, state: &State) -> Vec<Content> {
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
                // A bind that it was made for and that is still under way keeps the time before it.
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

    /// What a quorum says.
    fn found(&self, question: &Question, pod: Index, state: Stands) -> Found {
        match question.pods[usize::from(pod)] {
            _ if self.setup.protocol == Protocol::ExpireUnread && state == Stands::Assumed => Found::Unbound,
            Pod::Unbound => Found::Unbound,
            Pod::Bound(place) if place.node == question.at => Found::Here,
            Pod::Bound(_) => Found::Elsewhere,
            Pod::Ended(_) => Found::Gone,
        }
    }

    /// What must not be and is.
    pub fn wrong(&self, state: &State) -> Option<Wrong> {
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

    /// What is wrong once nothing is under way, everybody sees what is, and a controller has nothing more to do; be it one that
    /// saw it all, or one that has just started and never heard of pods that are gone.
    pub fn wrong_when_calm(&mut self, state: &State) -> Option<Wrong> {
        let listed = state.pods.map(|pod| if let Pod::Ended(_) = pod { Pod::Unbound } else { pod });
        let calm = State { pods: state.pods, ledgers: state.ledgers, ..State::default() };
        [state.pods, listed].into_iter().find_map(|view| self.wrong_after(view, calm))
    }

    fn wrong_after(&mut self, view: View, mut calm: State) -> Option<Wrong> {
        for node in self.nodes() {
            for _ in 0..ROUNDS {
                // All the time there is has passed.
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
        other => panic!("a pinned pod has a GPU by its position, not {other:?}"),
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
