//! Plays every way in which a device plugin may hand out replicas, one arrival at a time, and reads off what could be. Shares
//! nothing with the code under test: plain numbers, no formula.

use std::collections::BTreeSet;

/// How the plugin chooses among the GPUs that have a replica left for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// One with the fewest replicas taken.
    Fewest,
    /// One with the most.
    Most,
    /// Any.
    Any,
}

impl Rule {
    /// The GPUs that it may choose.
    pub fn choices(self, taken: &[usize], replicas: usize) -> Vec<usize> {
        let open: Vec<usize> = (0..taken.len()).filter(|gpu| taken[*gpu] < replicas).collect();
        let counts = open.iter().map(|gpu| taken[*gpu]);
        let best = match self {
            Rule::Fewest => counts.min(),
            Rule::Most => counts.max(),
            Rule::Any => return open,
        };
        open.into_iter().filter(|gpu| Some(taken[*gpu]) == best).collect()
    }
}

/// What may have come of it at some moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// How much more lies on each GPU than at first, or less.
    pub load: Vec<i64>,
    /// How many replicas are taken on each.
    pub taken: Vec<usize>,
    /// Where the newcomer is, if it came.
    pub newcomer: Option<usize>,
    /// The GPU that one has just come to.
    pub reached: Option<usize>,
    /// Who of those at first is gone, a bit each.
    pub gone: u32,
    /// Whether somebody starts on the newcomer's GPU when it comes.
    pub beside_starting: bool,
}

/// Who is known to be where at first, how much it holds, and whether it starts.
pub type Seated = (usize, u64, bool);

/// All that may come of it: loose ones in any order, any of them never, and with them a newcomer, if `newcomers` is one. Where
/// they `leave`, any of those at first goes at any time, or not.
pub fn outcomes(
    rule: Rule,
    (gpus, replicas): (usize, usize),
    (seats, leave): (&[Seated], bool),
    loose: &[i64],
    newcomers: usize,
) -> BTreeSet<Outcome> {
    let taken = (0..gpus).map(|gpu| seats.iter().filter(|seat| seat.0 == gpu).count()).collect();
    let start = Outcome { load: vec![0; gpus], taken, newcomer: None, reached: None, gone: 0, beside_starting: false };
    let mut seen = BTreeSet::new();
    let mut open = vec![(0_usize, start)];
    while let Some((came, now)) = open.pop() {
        if !seen.insert((came, now.clone())) {
            continue;
        }
        let staying = || seats.iter().enumerate().filter(|(number, _)| now.gone >> number & 1 == 0);
        for (number, (gpu, amount, _)) in staying().filter(|_| leave) {
            let mut after = now.clone();
            after.reached = None;
            after.gone |= 1 << number;
            after.taken[*gpu] -= 1;
            after.load[*gpu] -= amount.cast_signed();
            open.push((came, after));
        }
        for gpu in rule.choices(&now.taken, replicas) {
            let mut after = now.clone();
            after.taken[gpu] += 1;
            after.reached = Some(gpu);
            if now.newcomer.is_none() && newcomers == 1 {
                let beside_starting = staying().any(|(_, seat)| seat.0 == gpu && seat.2);
                open.push((came, Outcome { newcomer: Some(gpu), beside_starting, ..after.clone() }));
            }
            for (number, amount) in loose.iter().enumerate().filter(|(number, _)| came >> number & 1 == 0) {
                let mut after = after.clone();
                after.load[gpu] += amount;
                open.push((came | 1 << number, after));
            }
        }
    }
    seen.into_iter().map(|(_, outcome)| outcome).collect()
}

/// The largest demand of the newcomer with which no GPU that it may get holds more than `left` of it when it comes there; `None`
/// where there is none, because it gets no GPU, or its coming may drive another one onto a GPU that has no room for that.
pub fn room(left: &[i64], outcomes: &BTreeSet<Outcome>) -> Option<i64> {
    let over = |outcome: &Outcome| outcome.reached.is_some_and(|gpu| outcome.load[gpu] > left[gpu]);
    if outcomes.iter().any(over) {
        return None;
    }
    outcomes.iter().filter_map(|outcome| outcome.newcomer.map(|gpu| left[gpu] - outcome.load[gpu])).min()
}

/// The most that may lie on each GPU.
pub fn worst(gpus: usize, outcomes: &BTreeSet<Outcome>) -> Vec<i64> {
    (0..gpus).map(|gpu| outcomes.iter().map(|outcome| outcome.load[gpu]).max().unwrap_or(0)).collect()
}
