//! An oracle that plays every way in which a device plugin may hand out replicas, one arrival at a time. Shares nothing
//! with the code under test: it uses plain numbers and no formula.

use std::collections::BTreeSet;

/// How the device plugin chooses among the GPUs with a free replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// A GPU with the fewest replicas taken.
    Fewest,
    /// A GPU with the most replicas taken.
    Most,
    /// Any GPU.
    Any,
}

impl Rule {
    /// The GPUs that the device plugin may choose.
    pub(super) fn choices(self, taken: &[usize], replicas: usize) -> Vec<usize> {
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

/// One state of the GPUs that the events may lead to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Outcome {
    /// Change of the amount on each GPU since the start, in MiB.
    pub load: Vec<i64>,
    /// The number of replicas taken on each GPU.
    pub taken: Vec<usize>,
    /// GPU of the newcomer; `None` while it has not arrived.
    pub newcomer: Option<usize>,
    /// GPU of the latest arrival; `None` if the last event was a departure.
    pub reached: Option<usize>,
    /// Bit set of the pods of the start that have left.
    pub gone: u32,
    /// Whether a starting pod was on the newcomer's GPU when the newcomer arrived.
    pub joins_starting: bool,
}

/// GPU and amount of a pod that is known to be there at the start, and whether it is starting.
pub(super) type Placed = (usize, u64, bool);

/// All states that may be reached. Unassigned pods arrive in any order, and any of them may never arrive. A newcomer
/// arrives too if `newcomers` is 1. If `leave` is set, any pod of the start may leave at any time.
pub(super) fn outcomes(
    rule: Rule,
    (gpus, replicas): (usize, usize),
    (placed, leave): (&[Placed], bool),
    unassigned: &[i64],
    newcomers: usize,
) -> BTreeSet<Outcome> {
    let taken = (0..gpus).map(|gpu| placed.iter().filter(|one| one.0 == gpu).count()).collect();
    let start = Outcome { load: vec![0; gpus], taken, newcomer: None, reached: None, gone: 0, joins_starting: false };
    let mut seen = BTreeSet::new();
    let mut open = vec![(0_usize, start)];
    while let Some((came, now)) = open.pop() {
        if !seen.insert((came, now.clone())) {
            continue;
        }
        let staying = || placed.iter().enumerate().filter(|(number, _)| now.gone >> number & 1 == 0);
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
                let joins_starting = staying().any(|(_, one)| one.0 == gpu && one.2);
                open.push((came, Outcome { newcomer: Some(gpu), joins_starting, ..after.clone() }));
            }
            for (number, amount) in unassigned.iter().enumerate().filter(|(number, _)| came >> number & 1 == 0) {
                let mut after = after.clone();
                after.load[gpu] += amount;
                open.push((came | 1 << number, after));
            }
        }
    }
    seen.into_iter().map(|(_, outcome)| outcome).collect()
}

/// The largest demand of the newcomer that fits on each GPU that it may get. `left` is what each GPU has left at the
/// start. `None` if the newcomer gets no GPU, or if its arrival may push another pod onto a GPU without room for that.
pub(super) fn free(left: &[i64], outcomes: &BTreeSet<Outcome>) -> Option<i64> {
    let over = |outcome: &Outcome| outcome.reached.is_some_and(|gpu| outcome.load[gpu] > left[gpu]);
    if outcomes.iter().any(over) {
        return None;
    }
    outcomes.iter().filter_map(|outcome| outcome.newcomer.map(|gpu| left[gpu] - outcome.load[gpu])).min()
}

/// The largest change of the amount on each GPU, over all states.
pub(super) fn worst(gpus: usize, outcomes: &BTreeSet<Outcome>) -> Vec<i64> {
    (0..gpus).map(|gpu| outcomes.iter().map(|outcome| outcome.load[gpu]).max().unwrap_or(0)).collect()
}
