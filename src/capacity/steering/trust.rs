//! Trust that the next answer is by the ledger. Owns when answers without the ledger end the claim that a node is steered,
//! and when it is made again.
//!
//! Often only another question shows whether the cause is gone, and a node that is not steered may get none: its pods may
//! all be larger than a slot. So trust returns by itself. If the cause is still there, the pods that are bound until the
//! next report may get another GPU than was reserved for them, which is why trust returns more and more slowly.

use std::time::Duration;

use super::Fallback;
use crate::capacity::time::Moment;

/// Answers in a row without the ledger that end the trust. A single one may be due to a busy moment, or to a static
/// pod.
const IN_A_ROW: u32 = 2;
/// How long trust is away the first time, after the last such answer.
const FIRST: Duration = Duration::from_secs(30);
/// The longest that it is away. Each time is twice as long as the one before, until an answer is by the ledger.
const LONGEST: Duration = Duration::from_secs(600);

/// What the latest answers of one resource say about its steering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The number of latest answers in a row that were not by the ledger.
    in_a_row: u32,
    /// Why the latest of them was not.
    why: Option<Fallback>,
    /// The moment at which trust returns; `None` while there is trust.
    until: Option<Moment>,
    /// How long trust was away last; `None` if it was not since an answer by the ledger.
    length: Option<Duration>,
}

impl Trust {
    /// Notes an answer at a moment: why it was not by the ledger, or `None` if it was.
    pub fn answered(&mut self, why: Option<Fallback>, now: Moment) {
        let Some(why) = why else {
            *self = Trust::default();
            return;
        };
        (self.in_a_row, self.why) = (self.in_a_row.saturating_add(1), Some(why));
        // Once trust has returned, one such answer is enough: the cause is not gone.
        if self.in_a_row < IN_A_ROW && self.length.is_none() {
            return;
        }
        let length = match (self.until, self.length) {
            (Some(_), Some(length)) => length,
            (None, Some(length)) => (length * 2).min(LONGEST),
            (_, None) => FIRST,
        };
        (self.length, self.until) = (Some(length), Some(now.after(length)));
    }

    /// Whether the time has come at a moment for trust to return. It has also come if it is further away than it ever was:
    /// then the clock was set back.
    pub fn is_due(&self, now: Moment) -> bool {
        let furthest = now.after(self.length.unwrap_or_default());
        self.until.is_some_and(|until| until <= now || until > furthest)
    }

    /// Returns the trust if its time has come at a moment. `can_answer` is whether all that can be tried without a question
    /// works now; if not, trust stays away once more for as long.
    pub fn pass_time(&mut self, now: Moment, can_answer: bool) {
        if !self.is_due(now) {
            return;
        }
        if can_answer {
            (self.in_a_row, self.why, self.until) = (0, None, None);
        } else {
            self.until = self.length.map(|length| now.after(length));
        }
    }

    /// Why there is no trust, for the node's report; `None` if there is.
    pub fn lost(&self) -> Option<String> {
        self.until?;
        let (why, length) = (self.why?.label(), self.length?.as_secs());
        let answers = match self.in_a_row {
            1 => "the last answer was".to_owned(),
            answers => format!("the last {answers} answers were"),
        };
        Some(format!("{answers} not by the ledger ({why}); steering is tried again {length} s later"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment(1_000_000);

    fn after(seconds: u64) -> Moment {
        NOW.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_single_answer_without_the_ledger_costs_no_trust() {
        let mut trust = Trust::default();
        trust.answered(Some(Fallback::Late), NOW);
        assert_eq!(trust.lost(), None);
        trust.answered(None, NOW);
        trust.answered(Some(Fallback::Late), NOW);
        assert_eq!(trust.lost(), None, "not in a row");
    }

    #[test]
    fn trust_returns_without_another_question() {
        let mut trust = Trust::default();
        trust.answered(Some(Fallback::Late), NOW);
        trust.answered(Some(Fallback::PodNotFound), NOW);
        let reason = "the last 2 answers were not by the ledger (PodNotFound); steering is tried again 30 s later";
        assert_eq!(trust.lost().as_deref(), Some(reason));
        trust.pass_time(after(29), true);
        assert!(trust.lost().is_some());
        trust.pass_time(after(30), true);
        assert_eq!(trust.lost(), None);
    }

    #[test]
    fn trust_stays_away_while_what_can_be_tried_does_not_work() {
        let mut trust = Trust::default();
        trust.answered(Some(Fallback::ListFailed), NOW);
        trust.answered(Some(Fallback::ListFailed), NOW);
        trust.pass_time(after(30), false);
        trust.pass_time(after(59), true);
        assert!(trust.lost().is_some());
        trust.pass_time(after(60), true);
        assert_eq!(trust.lost(), None);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_keep_trust_away() {
        let mut trust = Trust::default();
        trust.answered(Some(Fallback::Late), NOW);
        trust.answered(Some(Fallback::Late), NOW);
        trust.pass_time(NOW, true);
        assert!(trust.lost().is_some());
        trust.pass_time(NOW.before(Duration::from_secs(3_600)), true);
        assert_eq!(trust.lost(), None);
    }

    #[test]
    fn a_cause_that_stays_is_tried_less_and_less_often() {
        let (mut trust, mut lengths, mut seconds) = (Trust::default(), Vec::new(), 0);
        trust.answered(Some(Fallback::Late), NOW);
        for _ in 0..7 {
            trust.answered(Some(Fallback::Late), after(seconds));
            let since = seconds;
            while trust.lost().is_some() {
                seconds += 1;
                trust.pass_time(after(seconds), true);
            }
            lengths.push(seconds - since);
        }
        assert_eq!(lengths, [30, 60, 120, 240, 480, 600, 600]);
        trust.answered(None, after(seconds));
        trust.answered(Some(Fallback::Late), after(seconds));
        assert_eq!(trust.lost(), None, "an answer by the ledger makes up for all");
    }

    proptest! {
        #[test]
        fn trust_is_lost_from_the_second_such_answer_until_a_good_one_or_time(
            steps in prop::collection::vec((0_u64..120, any::<bool>()), 1..40),
        ) {
            let (mut trust, mut seconds) = (Trust::default(), 0);
            // The oracle: the moments of the answers since the last good one.
            let mut bad: Vec<u64> = Vec::new();
            for (pause, good) in steps {
                seconds += pause;
                trust.pass_time(after(seconds), true);
                trust.answered((!good).then_some(Fallback::Late), after(seconds));
                if good { bad.clear() } else { bad.push(seconds) }
                prop_assert_eq!(trust.lost().is_some(), bad.len() >= 2, "{:?}", bad);
                let mut later = trust.clone();
                later.pass_time(after(seconds + 600), true);
                prop_assert_eq!(later.lost(), None, "it is never away for longer than ten minutes");
            }
        }
    }
}
