//! Limits how often a node is written while another writer keeps another value there. Owns the schedule; time is an
//! argument.
//!
//! Each write of a node's status goes to the watches of its kubelet, of schedulers and of autoscalers. So two writers
//! that undo each other at full speed are a load on the whole cluster. Still, the first repair is immediate: a value
//! that is undone once was usually undone by a starting kubelet or a person.

use std::time::Duration;

use tokio::time::Instant;

/// Delay after a value was undone for the second time in a row; it doubles each further time.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Longest delay between two writes, so that a node is right soon after the other writer stops.
pub(super) const MOST_DELAY: Duration = Duration::from_secs(30);
/// A value that lasted this long counts as accepted. If it is undone later, a new dispute begins.
const CALM: Duration = Duration::from_secs(30);

/// The dispute about one node.
#[derive(Clone, Debug, Default)]
pub(super) struct Dispute {
    /// How many times in a row the value was undone.
    undone: u32,
    written: Option<Instant>,
    /// When the next write is allowed. Set once the value was found undone.
    owed: Option<Instant>,
}

impl Dispute {
    /// Notes that the value was written.
    pub(super) fn wrote(&mut self, now: Instant) {
        (self.written, self.owed) = (Some(now), None);
    }

    /// Notes that the value was found undone. Returns how many times in a row that happened.
    pub(super) fn undone(&mut self, now: Instant) -> u32 {
        let stood = self.written.is_some_and(|written| now.duration_since(written) >= CALM);
        self.undone = if stood { 1 } else { self.undone.saturating_add(1) };
        let delay = match self.undone {
            0 | 1 => Duration::ZERO,
            times => FIRST_DELAY.saturating_mul(1 << (times - 2).min(16)).min(MOST_DELAY),
        };
        self.owed = Some(now + delay);
        self.undone
    }

    /// When the value may be written again; `None` unless it is undone.
    pub(super) fn next_write(&self) -> Option<Instant> {
        self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a writer that undoes each write after `reaction`. Returns the times of our writes.
    fn writes(reaction: Duration, lasting: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let (mut dispute, mut now, mut writes) = (Dispute::default(), start, Vec::new());
        while now < start + lasting {
            writes.push(now - start);
            dispute.wrote(now);
            now += reaction;
            dispute.undone(now);
            now = dispute.next_write().unwrap();
        }
        writes
    }

    #[test]
    fn somebody_who_keeps_another_value_makes_few_writes_however_fast_he_is() {
        let writes = |seconds| writes(Duration::from_millis(1), Duration::from_secs(seconds)).len();
        assert_eq!(writes(10), 7, "0, 0, 0.25, 0.75, 1.75, 3.75, 7.75 s");
        assert_eq!(writes(3600), 127, "one in 30 s in the end");
    }

    #[test]
    fn the_first_repair_is_immediate_and_a_value_that_stood_for_a_while_begins_anew() {
        let start = Instant::now();
        let mut dispute = Dispute::default();
        dispute.wrote(start);
        assert_eq!((dispute.undone(start), dispute.next_write()), (1, Some(start)));
        dispute.wrote(start);
        assert_eq!((dispute.undone(start), dispute.next_write()), (2, Some(start + FIRST_DELAY)));
        dispute.wrote(start + FIRST_DELAY);
        assert_eq!(dispute.next_write(), None);
        let later = start + FIRST_DELAY + CALM;
        assert_eq!((dispute.undone(later), dispute.next_write()), (1, Some(later)));
    }

    #[test]
    fn one_who_undoes_now_and_then_is_never_kept_waiting() {
        let slow = writes(CALM, Duration::from_secs(300));
        assert_eq!(slow.len(), 10, "each a case of its own: {slow:?}");
    }
}
