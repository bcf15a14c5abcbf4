//! What is true at one moment, in the API server and on the way to it and from it. Small, plain and ordered, so that each state
//! is known again.

/// By its place in the [`Setup`](super::Setup).
pub type Index = u8;
/// A ledger's reservations, by their place in [`Core`](super::Core).
pub type Content = u16;

pub const NODES: usize = 2;
pub const PODS: usize = 3;
pub const REQUESTS: usize = 6;
pub const PROPOSALS: usize = 2;

/// A pod as the API server has it, or as a replica has seen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pod {
    #[default]
    Unbound,
    Bound(Place),
    /// With where it was.
    Ended(Option<Place>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub node: Index,
    pub gpu: Index,
}

impl Pod {
    /// What a picture of it may show that lags behind.
    pub fn seen(self) -> Vec<Pod> {
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
pub struct Request {
    pub pod: Index,
    pub node: Index,
    /// When it was asked.
    pub asked: u8,
    /// Whether somebody waits for its answer.
    pub waits: Waits,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waits {
    Yes,
    /// The API server has given up. It binds nothing any more, whatever the answer.
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A replica is about to read the ledger.
    Asked,
    /// It has read this, which is what there is, or was.
    Read(Content, Version),
    /// It wrote, and the API server may commit the bind.
    Allowed { gpu: Index },
}

/// Whether a ledger was written since it was read. All that a condition on its version can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Last,
    Old,
}

/// What a controller is about to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proposal {
    pub node: Index,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub pods: [Pod; PODS],
    pub ledgers: [Content; NODES],
    /// How often each pod was asked for.
    pub asked: [u8; PODS],
    /// In order, so that the same ones are the same state.
    pub requests: [Option<Request>; REQUESTS],
    pub proposals: [Option<Proposal>; PROPOSALS],
    /// The last moment of interest. Follows from the others.
    pub now: u8,
}

impl State {
    /// All requests, each with its place.
    pub fn requests(&self) -> impl Iterator<Item = (usize, Request)> + use<> {
        self.requests.into_iter().enumerate().filter_map(|(at, request)| Some((at, request?)))
    }

    /// With another one in its place, or none.
    pub fn with_request(mut self, at: usize, request: Option<Request>) -> State {
        self.requests[at] = request;
        self
    }

    pub fn with_proposal(mut self, at: usize, proposal: Option<Proposal>) -> State {
        self.proposals[at] = proposal;
        self
    }

    /// Requests whose bind the API server may commit one day.
    pub fn may_commit(&self) -> impl Iterator<Item = Request> + use<> {
        self.requests.into_iter().flatten().filter(|request| request.waits == Waits::Yes)
    }
}
