//! One state of the model: the API server, and the requests and writes in progress.
//!
//! It is small, plain and ordered, so that a state that was visited before is recognized.

/// An index into the lists of the [`Setup`](super::Setup).
pub(super) type Index = u8;
/// A ledger's reservations, as an index into those that [`Core`](super::Core) stores.
pub(super) type Content = u16;

pub(super) const NODES: usize = 2;
pub(super) const PODS: usize = 3;
pub(super) const REQUESTS: usize = 6;
pub(super) const PROPOSALS: usize = 2;

/// A pod in the API server, or in a replica's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pod {
    #[default]
    Unbound,
    Bound(Place),
    /// With the place that it had, if it was bound.
    Ended(Option<Place>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub node: Index,
    pub gpu: Index,
}

impl Pod {
    /// All that a lagging cache may contain for this pod.
    pub(super) fn seen(self) -> Vec<Pod> {
        let bound = |place: Place| Pod::Bound(place);
        match self {
            Pod::Unbound => vec![Pod::Unbound],
            Pod::Bound(_) => vec![Pod::Unbound, self],
            Pod::Ended(place) => {
                let mut seen = vec![Pod::Unbound, self];
                seen.extend(place.map(bound));
                seen
            }
        }
    }
}

/// A scheduler's request to bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Request {
    pub pod: Index,
    pub node: Index,
    /// The moment at which it was made.
    pub asked: u8,
    /// Whether the API server still waits for its answer.
    pub waits: Waits,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waits {
    Yes,
    /// The API server has timed out. It no longer binds, whatever the answer.
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// A replica is about to read the ledger.
    Asked,
    /// The replica has read this content, which is or was that of the ledger.
    Read(Content, Version),
    /// The replica has allowed the bind, and the API server may commit it.
    Allowed { gpu: Index },
}

/// Whether a ledger was written since it was read.
///
/// A condition on the version of the ledger cannot tell more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    Last,
    Old,
}

/// A pending write of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Proposal {
    pub node: Index,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    pub pods: [Pod; PODS],
    pub ledgers: [Content; NODES],
    /// How often each pod was requested to be bound.
    pub asked: [u8; PODS],
    /// Sorted, so that the same requests in another order are the same state.
    pub requests: [Option<Request>; REQUESTS],
    pub proposals: [Option<Proposal>; PROPOSALS],
    /// The last moment that matters. It follows from the other fields.
    pub now: u8,
}

impl State {
    /// All requests, each with its slot.
    pub(super) fn requests(&self) -> impl Iterator<Item = (usize, Request)> + use<> {
        self.requests.into_iter().enumerate().filter_map(|(at, request)| Some((at, request?)))
    }

    /// Replaces or clears the request in a slot.
    pub(super) fn with_request(mut self, at: usize, request: Option<Request>) -> State {
        self.requests[at] = request;
        self
    }

    pub(super) fn with_proposal(mut self, at: usize, proposal: Option<Proposal>) -> State {
        self.proposals[at] = proposal;
        self
    }

    /// Requests whose bind the API server may still commit.
    pub(super) fn may_commit(&self) -> impl Iterator<Item = Request> + use<> {
        self.requests.into_iter().flatten().filter(|request| request.waits == Waits::Yes)
    }
}
