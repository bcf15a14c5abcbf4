//! The order and times at which nodes leave the queue.

use std::time::Duration;

use super::*;

const PLACES: usize = 16;

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn a_node_whose_write_hangs_keeps_no_other_one_waiting_and_is_in_hand_once() {
    let now = Instant::now();
    let mut turns = WorkQueue::new(PLACES);
    turns.add(names(&["hangs", "other"]));
    assert_eq!(turns.take(now), ["hangs", "other"]);
    turns.ended("other".into(), None);
    turns.add(names(&["hangs", "other"]));
    assert_eq!(turns.take(now), ["other"]);
    assert!(turns.take(now).is_empty());
    turns.ended("hangs".into(), None);
    assert_eq!(turns.take(now), ["hangs"], "what changed while it was in hand is written after it");
    turns.ended("hangs".into(), None);
    assert!(turns.take(now).is_empty());
}

#[test]
fn a_node_that_failed_waits_for_its_time_whatever_changes_and_is_then_written_once() {
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(2));
    let mut turns = WorkQueue::new(PLACES);
    turns.add(names(&["node"]));
    assert_eq!(turns.take(now), ["node"]);
    turns.ended("node".into(), Some(later));
    turns.add(names(&["node", "other"]));
    assert_eq!(turns.take(now), ["other"]);
    assert_eq!(turns.next_retry(), Some(later));
    assert_eq!(turns.take(later), ["node"]);
    assert_eq!(turns.next_retry(), None);
    turns.ended("node".into(), None);
    assert!(turns.take(later).is_empty());
}

#[test]
fn no_more_nodes_are_in_hand_than_there_are_places_and_each_gets_its_turn() {
    let now = Instant::now();
    let mut turns = WorkQueue::new(PLACES);
    let all: BTreeSet<String> = (0..3 * PLACES).map(|number| format!("node-{number:03}")).collect();
    turns.add(all.clone());
    let mut written = BTreeSet::new();
    let mut in_hand = turns.take(now);
    while let Some(name) = in_hand.pop() {
        turns.ended(name.clone(), None);
        assert!(written.insert(name), "twice");
        in_hand.extend(turns.take(now));
        assert!(in_hand.len() <= PLACES);
    }
    assert_eq!(written, all);
}
