//! A model of the protocol by which replicas of the server write a ledger, checked exhaustively.
//!
//! The world is small. So the model visits and checks every state that any interleaving of requests, binds, faults and
//! controllers can reach.
//!
//! The states hold the [`Reservations`](super::Reservations) of the core, and each step asks the core what to write,
//! so the model cannot diverge from the code. The model adds the surroundings of the core. There is an API server with
//! pods and versioned ledgers. There are schedulers that ask again, also for another node, while their first bind is
//! still in progress. And there are these faults:
//!
//! - A replica dies, or its answer is lost: before it wrote, after it wrote, and without knowing whether it wrote.
//! - The API server times out a bind while a replica still works on it, and the replica then writes anyway.
//! - A bind that was allowed commits late or never. Its pod may end in the meantime.
//! - A replica's cache of the pods lags, for each pod by any amount.
//! - Several controllers write at once, based on what they saw some time ago.
//!
//! A replica keeps nothing between two requests except its cache of the pods. The model answers each request with
//! every cache that can result from lag. So it covers at least one replica for each concurrent request and controller.
//! It also covers a replica that restarted between two requests and lags more than before.
//!
//! Time is only the order in which binds were requested. The passing of time matters in one place: where a controller
//! may treat a reservation as expired. It may do so when no bind that was requested at or before the reservation's
//! `since` can commit any more. In the real system, the API server's request timeout and [`Patience`] ensure this. The
//! model tries every duration that this rule allows.
//!
//! Variants of the protocol with one mistake each show that the model can find mistakes: see [`Protocol`].
//!
//! [`Patience`]: crate::capacity::node::reservation::Patience

use std::collections::BTreeSet;

mod core;
mod state;
mod step;

use self::core::{Core, Wrong};
use state::State;
use step::Step;

/// The size of a world, and the rules by which ledgers are written in it.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// The sizes of each node's GPUs, in MiB.
    nodes: &'static [&'static [u64]],
    /// The demand of each pod, in MiB.
    pods: &'static [u64],
    /// How often each pod may be requested to be bound.
    attempts: &'static [u8],
    /// How many controllers may have a pending write at once.
    controllers: usize,
    reads: Reads,
    protocol: Protocol,
}

/// Whether other steps can happen between a replica's read of a ledger and its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Apart,
    /// Read and write are one step.
    ///
    /// No outcome is lost. If another write comes in between, the conditional write fails and changes nothing. If none
    /// does, the two steps are equal to one.
    AtOnce,
}

/// The protocol as it is built, and variants with one mistake each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    AsBuilt,
    /// A ledger is written even if it was written by another client since it was read.
    BlindWrite,
    /// An old reservation is dropped without a quorum read that finds its pod unbound.
    ExpireUnread,
    /// A reservation expires while a bind that it was made for may still commit.
    ExpireEarly,
    /// Assuming a pod again does not advance the `since` of its reservation.
    NeverYounger,
    /// Assuming a pod again sets `since` to the time of that request, even if that is earlier.
    MaybeOlder,
    /// A pod that is assumed on one node loses its reservations on the other nodes at once.
    ForgetOnMove,
}

/// The result of an exploration, which is complete unless there is a violation.
#[derive(Debug)]
struct Explored {
    states: usize,
    steps: usize,
    violation: Option<Violation>,
}

/// A violation, and a shortest sequence of steps that leads to it.
#[derive(Debug)]
struct Violation {
    what: Wrong,
    trace: Vec<Step>,
}

/// Visits all states breadth first, so that a violation is found by a shortest sequence of steps.
///
/// Violations that `minds` rejects are ignored.
fn explore(setup: Setup, minds: fn(&Wrong) -> bool) -> Explored {
    let mut core = Core::new(setup);
    let mut visited = vec![(State::default(), 0, None)];
    let mut known = BTreeSet::from([State::default()]);
    let mut calm = BTreeSet::new();
    let mut explored = Explored { states: 0, steps: 0, violation: None };
    let mut at = 0;
    while let Some(&(state, _, _)) = visited.get(at) {
        let wrong = core.wrong(&state).filter(minds);
        let fresh = calm.insert((state.pods, state.ledgers));
        let wrong = wrong.or_else(|| fresh.then(|| core.wrong_when_calm(&state)).flatten().filter(minds));
        if let Some(what) = wrong {
            explored.violation = Some(Violation { what, trace: trace(&visited, at) });
            break;
        }
        let steps = step::steps(&mut core, &state);
        explored.steps += steps.len();
        for (step, after) in steps {
            if known.insert(after) {
                visited.push((after, at, Some(step)));
            }
        }
        at += 1;
    }
    explored.states = visited.len();
    explored
}

fn trace(visited: &[(State, usize, Option<Step>)], mut at: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while let (_, before, Some(step)) = &visited[at] {
        steps.push(step.clone());
        at = *before;
    }
    steps.reverse();
    steps
}

/// Two nodes, each with a GPU that can take one of the two pods.
///
/// The second GPU of each node can take no pod. It is there because a node with only one GPU leaves nothing to choose.
/// The first pod is requested twice, on the same node or on both.
const MOVING: Setup = Setup {
    nodes: &[&[10, 1], &[10, 1]],
    pods: &[6, 6],
    attempts: &[2, 1],
    controllers: 1,
    reads: Reads::AtOnce,
    protocol: Protocol::AsBuilt,
};

/// Three pods at once, and one GPU that can take one of them.
const CROWDED: Setup = Setup {
    nodes: &[&[10, 1]],
    pods: &[6, 6, 6],
    attempts: &[1, 1, 1],
    controllers: 1,
    reads: Reads::AtOnce,
    protocol: Protocol::AsBuilt,
};

/// One GPU, and two pods that are both requested twice.
const RETRIED: Setup = Setup { pods: &[6, 6], attempts: &[2, 2], ..CROWDED };

/// Large enough for the mistakes that need neither a race nor a second node.
const SMALL: Setup = Setup { attempts: &[2, 1], ..RETRIED };

/// Other steps can happen between a read and its write, and two controllers can have a pending write.
const RACING: Setup = Setup { attempts: &[1, 1], controllers: 2, reads: Reads::Apart, ..RETRIED };

fn assert_holds(name: &str, setup: Setup) {
    let explored = explore(setup, |_| true);
    println!("{name}: {} states, {} steps", explored.states, explored.steps);
    assert!(explored.violation.is_none(), "{:#?}", explored.violation);
}

#[test]
#[ignore = "minutes, after a change of the protocol: `just model`"]
fn larger_worlds_hold() {
    assert_holds("racing, asked again", Setup { attempts: &[2, 1], ..RACING });
    assert_holds("crowded, one smaller", Setup { pods: &[6, 6, 3], ..CROWDED });
    assert_holds("crowded, two GPUs", Setup { nodes: &[&[10, 7]], ..CROWDED });
    assert_holds("retried, two controllers", Setup { controllers: 2, ..RETRIED });
    assert_holds("moving, both", Setup { attempts: &[2, 2], ..MOVING });
}

/// Asserts that a protocol overcommits a GPU.
///
/// Other violations, such as a lost reservation on the way, are ignored.
fn assert_overcommits(setup: Setup, protocol: Protocol) {
    let explored = explore(Setup { protocol, ..setup }, |wrong| matches!(wrong, Wrong::Overcommitted { .. }));
    let Violation { what, trace } = explored.violation.unwrap_or_else(|| panic!("{protocol:?} goes unnoticed"));
    println!("{protocol:?}: {what:?} after {} states:", explored.states);
    trace.iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn a_pod_that_moves_between_two_nodes_overcommits_neither() {
    assert_holds("moving", MOVING);
}

#[test]
fn three_pods_at_once_get_no_more_than_there_is() {
    assert_holds("crowded", CROWDED);
}

#[test]
fn pods_that_are_asked_for_again_do_not_overcommit() {
    assert_holds("retried", RETRIED);
}

#[test]
fn replicas_that_race_do_not_overcommit() {
    assert_holds("racing", RACING);
}

#[test]
fn without_the_version_condition_a_gpu_is_promised_twice() {
    assert_overcommits(RACING, Protocol::BlindWrite);
}

#[test]
fn without_the_quorum_read_a_bound_pod_loses_its_place() {
    assert_overcommits(SMALL, Protocol::ExpireUnread);
}

#[test]
fn with_less_patience_than_the_api_server_a_late_bind_finds_its_place_taken() {
    assert_overcommits(SMALL, Protocol::ExpireEarly);
}

#[test]
fn unless_assuming_again_makes_it_younger_a_second_bind_finds_its_place_taken() {
    assert_overcommits(SMALL, Protocol::NeverYounger);
}

#[test]
fn unless_the_later_time_counts_a_slow_replica_makes_a_reservation_older() {
    assert_overcommits(SMALL, Protocol::MaybeOlder);
}

#[test]
fn forgetting_a_moved_pod_before_it_is_seen_bound_lets_its_first_bind_overcommit() {
    assert_overcommits(MOVING, Protocol::ForgetOnMove);
}
