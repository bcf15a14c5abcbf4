//! Doubt whether a resource is steered, after answers that were not by the ledger. Owns when a node stops to count as steered
//! for that reason, and when it counts again.
//!
//! Only another question shows whether the cause is gone, and a node that is not steered may get none: its pods may all be
//! larger than a slot. So a doubt ends by itself.

use std::time::Duration;

use super::Fallback;
use crate::capacity::time::Moment;

/// Answers in a row without the ledger that are a reason to doubt. A single one may be due to a busy moment, or to a static
/// pod.
const IN_A_ROW: u32 = 2;
/// How long the first doubt lasts after the last such answer.
const FIRST: Duration = Duration::from_secs(30);
/// The longest doubt. Each one is twice as long as the one before, until an answer is by the ledger.
const LONGEST: Duration = Duration::from_secs(600);

/// What the latest answers of one resource say about its steering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// The number of latest answers in a row that were not by the ledger.
    in_a_row: u32,
    /// Why the latest of them was not.
    why: Option<Fallback>,
    /// The end of the doubt; `None` without one.
    until: Option<Moment>,
    /// How long the last doubt was; `None` if no doubt came since an answer by the ledger.
    length: Option<Duration>,
}

impl Doubt {
    /// Notes an answer at a moment: why it was not by the ledger, or `None` if it was.
    pub fn answered(&mut self, why: Option<Fallback>, now: Moment) {
        let Some(why) = why else {
            *self = Doubt::default();
            return;
        };
        (self.in_a_row, self.why) = (self.in_a_row.saturating_add(1), Some(why));
        // After a doubt, one such answer is enough: the cause is not gone.
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

    /// Ends a doubt whose time is over at a moment.
    pub fn pass_time(&mut self, now: Moment) {
        if self.until.is_some_and(|until| until <= now) {
            (self.in_a_row, self.why, self.until) = (0, None, None);
        }
    }

    /// Why the resource is doubted, for the node's report; `None` if it is not.
    pub fn reason(&self) -> Option<String> {
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
    fn a_single_answer_without_the_ledger_is_no_reason_to_doubt() {
        let mut doubt = Doubt::default();
        doubt.answered(Some(Fallback::Late), NOW);
        assert_eq!(doubt.reason(), None);
        doubt.answered(None, NOW);
        doubt.answered(Some(Fallback::Late), NOW);
        assert_eq!(doubt.reason(), None, "not in a row");
    }

    #[test]
    fn a_doubt_ends_without_another_question() {
        let mut doubt = Doubt::default();
        doubt.answered(Some(Fallback::Late), NOW);
        doubt.answered(Some(Fallback::PodNotFound), NOW);
        let reason = "the last 2 answers were not by the ledger (PodNotFound); steering is tried again 30 s later";
        assert_eq!(doubt.reason().as_deref(), Some(reason));
        doubt.pass_time(after(29));
        assert!(doubt.reason().is_some());
        doubt.pass_time(after(30));
        assert_eq!(doubt.reason(), None);
    }

    #[test]
    fn a_cause_that_stays_is_tried_less_and_less_often() {
        let (mut doubt, mut lengths, mut seconds) = (Doubt::default(), Vec::new(), 0);
        doubt.answered(Some(Fallback::Late), NOW);
        for _ in 0..7 {
            doubt.answered(Some(Fallback::Late), after(seconds));
            let since = seconds;
            while doubt.reason().is_some() {
                seconds += 1;
                doubt.pass_time(after(seconds));
            }
            lengths.push(seconds - since);
        }
        assert_eq!(lengths, [30, 60, 120, 240, 480, 600, 600]);
        doubt.answered(None, after(seconds));
        doubt.answered(Some(Fallback::Late), after(seconds));
        assert_eq!(doubt.reason(), None, "an answer by the ledger makes up for all");
    }

    proptest! {
        #[test]
        fn a_resource_is_doubted_from_the_second_such_answer_until_a_good_one_or_time(
            steps in prop::collection::vec((0_u64..120, any::<bool>()), 1..40),
        ) {
            let (mut doubt, mut seconds) = (Doubt::default(), 0);
            // The oracle: the moments of the answers since the last good one.
            let mut bad: Vec<u64> = Vec::new();
            for (pause, good) in steps {
                seconds += pause;
                doubt.pass_time(after(seconds));
                doubt.answered((!good).then_some(Fallback::Late), after(seconds));
                if good { bad.clear() } else { bad.push(seconds) }
                prop_assert_eq!(doubt.reason().is_some(), bad.len() >= 2, "{:?}", bad);
                let mut later = doubt.clone();
                later.pass_time(after(seconds + 600));
                prop_assert_eq!(later.reason(), None, "no doubt is longer than ten minutes");
            }
        }
    }
}
