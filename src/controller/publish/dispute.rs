//! How often a node is written while somebody else keeps another value there. Owns the schedule; time is an argument.
//!
//! Each write of a node's status goes to the watches of its kubelet, of schedulers and autoscalers, so two writers that undo
//! each other at full speed are a load on the whole cluster. The first repair is immediate all the same: what undoes once is a
//! kubelet that starts, or a person.

use std::time::Duration;

use tokio::time::Instant;

/// Between the second time that a value was undone and its next write; doubles each time.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Between two writes at most, so that a node is right again soon after the other writer has stopped.
pub const MOST_DELAY: Duration = Duration::from_secs(30);
/// A value that stood for this long was accepted: the next one who undoes it is a new case.
const CALM: Duration = Duration::from_secs(30);

/// The case of one node.
#[derive(Clone, Debug, Default)]
pub struct Dispute {
    /// How many times in a row our value was undone.
    undone: u32,
    written: Option<Instant>,
    /// Since when the value may be written again, once it was found undone.
    owed: Option<Instant>,
}

impl Dispute {
    /// Our value was written.
    pub fn wrote(&mut self, now: Instant) {
        (self.written, self.owed) = (Some(now), None);
    }

    /// Our value was found undone. Returns how many times in a row that is.
    pub fn undone(&mut self, now: Instant) -> u32 {
        let stood = self.written.is_some_and(|written| now.duration_since(written) >= CALM);
        self.undone = if stood { 1 } else { self.undone.saturating_add(1) };
        let delay = match self.undone {
            0 | 1 => Duration::ZERO,
            times => FIRST_DELAY.saturating_mul(1 << (times - 2).min(16)).min(MOST_DELAY),
        };
        self.owed = Some(now + delay);
        self.undone
    }

    /// Since when the value may be written again, while it is undone.
    pub fn owed(&self) -> Option<Instant> {
        self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays an opponent who undoes each write after `reaction`; returns when our writes were.
    fn writes(reaction: Duration, lasting: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let (mut dispute, mut now, mut writes) = (Dispute::default(), start, Vec::new());
        while now < start + lasting {
            writes.push(now - start);
            dispute.wrote(now);
            now += reaction;
            dispute.undone(now);
            now = dispute.owed().unwrap();
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
        assert_eq!((dispute.undone(start), dispute.owed()), (1, Some(start)));
        dispute.wrote(start);
        assert_eq!((dispute.undone(start), dispute.owed()), (2, Some(start + FIRST_DELAY)));
        dispute.wrote(start + FIRST_DELAY);
        assert_eq!(dispute.owed(), None);
        let later = start + FIRST_DELAY + CALM;
        assert_eq!((dispute.undone(later), dispute.owed()), (1, Some(later)));
    }

    #[test]
    fn one_who_undoes_now_and_then_is_never_kept_waiting() {
        let slow = writes(CALM, Duration::from_secs(300));
        assert_eq!(slow.len(), 10, "each a case of its own: {slow:?}");
    }
}
