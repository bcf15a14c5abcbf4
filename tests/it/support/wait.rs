//! Owns waiting: the bound within which something must happen, and the time for which something must hold.
//!
//! A deadline in seconds fails a good product on a busy machine, and a generous deadline makes a bad product slow to fail.
//! A [`Patience`] therefore counts quiet-machine time: while three tasks share each CPU, three seconds count as one.
//! [`eventually`] restarts its limit whenever its observation changes, because a state that still moves may yet arrive.
//! [`stays`] is the opposite: it fails at the first look that finds the state broken.

use std::fmt;
use std::time::{Duration, Instant};

/// Time between two looks: shorter than a person notices, longer than a look costs.
const INTERVAL: Duration = Duration::from_millis(50);
/// Largest load that stretches a wait: a machine busier than this is broken, and the wait ends.
const MOST_LOAD: f64 = 8.0;
/// Most limits that a wait may take in total. Some observations hold a log or an age, so they change at every look.
const MOST_RESETS: u32 = 4;
/// Most quiet-machine time that one look of [`stays`] may take.
const MOST_LOOK: Duration = Duration::from_secs(30);

/// A limit on waiting, in quiet-machine time.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    limit: Duration,
    spent: Duration,
    start: Instant,
    looked: Instant,
}

impl Patience {
    pub(crate) fn of(limit: Duration) -> Self {
        let now = Instant::now();
        Self { limit, spent: Duration::ZERO, start: now, looked: now }
    }

    /// Whether the limit is reached. Call it often: the load at a call counts for all the time since the previous call.
    pub(crate) fn is_over(&mut self) -> bool {
        self.spent() >= self.limit
    }

    /// Quiet-machine time since the start.
    pub(crate) fn spent(&mut self) -> Duration {
        let now = Instant::now();
        self.spend(now - self.looked, load());
        self.looked = now;
        self.spent
    }

    /// Average slowdown of this machine since the start; 1 on a quiet machine.
    pub(crate) fn slowness(&mut self) -> f64 {
        let spent = self.spent();
        if spent.is_zero() { 1.0 } else { self.elapsed().div_duration_f64(spent).max(1.0) }
    }

    /// Wall-clock time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn spend(&mut self, elapsed: Duration, load: f64) {
        self.spent += elapsed.div_f64(load.clamp(1.0, MOST_LOAD));
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1?} (worth {:.1?} of a quiet machine)", self.start.elapsed(), self.spent)
    }
}

/// Runnable and disk-blocked tasks per CPU; 1 if `/proc/stat` does not tell.
fn load() -> f64 {
    load_of(&std::fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or(1.0)
}

fn load_of(stat: &str) -> Option<f64> {
    let number = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let is_cpu =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let cpus = stat.lines().filter(is_cpu).count();
    let tasks = number("procs_running ")? + number("procs_blocked ").unwrap_or(0.0);
    (cpus > 0).then(|| tasks / cpus as f64)
}

/// The output of a future, or `None` if it takes longer than `limit` of quiet-machine time.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    ends(&mut Patience::of(limit), future).await
}

async fn ends<T>(patience: &mut Patience, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    loop {
        match tokio::time::timeout(INTERVAL, &mut future).await {
            Ok(ended) => return Some(ended),
            Err(_) if patience.is_over() => return None,
            Err(_) => {}
        }
    }
}

/// Lets `time` of quiet-machine time pass, for an effect that no test can observe. See also [`stays`].
pub(crate) async fn pause(time: Duration) {
    _ = within(time, std::future::pending::<()>()).await;
}

/// The latest observation of a wait, and since when it is unchanged.
struct Observation {
    text: String,
    since: Instant,
    changes: u32,
}

impl Observation {
    /// Records an observation; returns whether it differs from the previous one.
    fn note(&mut self, text: String) -> bool {
        let changed = text != self.text;
        if changed {
            *self = Observation { text, since: Instant::now(), changes: self.changes + 1 };
        }
        changed
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Observation { text, since, changes } = self;
        write!(f, "it changed {changes} times, last {:.1?} ago; last seen: {text}", since.elapsed())
    }
}

/// Repeats `look` until it returns `Ok`, and returns that value.
///
/// The error of a look is its observation, so write it as one: `bail!("phase is {phase:?}")`. A look that hangs counts as
/// an error.
///
/// # Panics
/// Once the error has stayed the same for `limit`, and at the latest after four times `limit`. The message holds the last
/// observation and whether it still changed.
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let (mut whole, mut still) = (Patience::of(limit * MOST_RESETS), Patience::of(limit));
        let text = "nothing: the first look did not end".to_owned();
        let mut seen = Observation { text, since: Instant::now(), changes: 0 };
        loop {
            match ends(&mut still, look()).await {
                Some(Ok(found)) => return found,
                Some(Err(refusal)) if seen.note(format!("{refusal:#}")) => still = Patience::of(limit),
                Some(Err(_)) => {}
                None => seen.text.push_str(" (and then a look that did not end)"),
            }
            if still.is_over() || whole.is_over() {
                panic!("{caller}: waited {whole} for {what}: {seen}");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// Asserts again and again for `how_long` that `look` returns `Ok`: for a state that must not change.
///
/// The first look comes at once and the last one after `how_long` of quiet-machine time, so a change at either end is seen.
/// The error of a look is its observation, as in [`eventually`].
///
/// # Panics
/// At the first look that returns an error, or that does not end. The message holds that observation.
#[track_caller]
pub(crate) fn stays(
    what: &str,
    how_long: Duration,
    look: impl AsyncFnMut() -> anyhow::Result<()>,
) -> impl Future<Output = ()> {
    holds(std::panic::Location::caller(), what, how_long, MOST_LOOK, look)
}

async fn holds(
    caller: &std::panic::Location<'_>,
    what: &str,
    how_long: Duration,
    most_look: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<()>,
) {
    let mut patience = Patience::of(how_long);
    loop {
        let is_last = patience.is_over();
        match within(most_look, look()).await {
            Some(Ok(())) if is_last => return,
            Some(Ok(())) => tokio::time::sleep(INTERVAL).await,
            Some(Err(broken)) => panic!("{caller}: {what} held for less than {patience}: {broken:#}"),
            None => panic!("{caller}: {what} is unknown after {patience}: a look did not end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    const STAT: &str = "cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\nctxt 17\nprocs_running 5\nprocs_blocked 1\n";

    async fn panic_of(wait: impl Future<Output = ()> + Send + 'static) -> String {
        let panicked = tokio::spawn(wait).await.expect_err("the wait gives up").into_panic();
        *panicked.downcast::<String>().expect("a message")
    }

    #[test]
    fn a_second_on_a_machine_that_three_share_counts_for_a_third() {
        assert_eq!(load_of(STAT), Some(3.0));
        assert_eq!(load_of("cpu  1 2 3\n"), None);
        let mut patience = Patience::of(Duration::from_secs(2));
        patience.spend(Duration::from_secs(3), load_of(STAT).unwrap());
        assert_eq!(patience.spent, Duration::from_secs(1));
        patience.spend(Duration::from_secs(1), 0.5);
        assert_eq!(patience.spent, Duration::from_secs(2), "an idle CPU makes nothing faster");
    }

    #[tokio::test]
    async fn a_wait_whose_observation_moves_outlasts_its_patience() {
        let (start, limit) = (Instant::now(), Duration::from_millis(400));
        // On a busy machine a look takes longer, and so does the limit.
        eventually("a number to grow", limit, async || {
            let (now, end) = (start.elapsed().as_millis() / 200, 5);
            ensure!(now >= end, "{now} of {end}");
            Ok(())
        })
        .await;
        assert!(start.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_wait_that_gives_up_says_whether_anything_still_moved() {
        let limit = Duration::from_millis(200);
        let wait = eventually("nothing", limit, async || bail!("phase is Pending"));
        let message = panic_of(wait).await;
        assert!(message.contains("for nothing: it changed 1 times, last "), "{message}");
        assert!(message.ends_with("ago; last seen: phase is Pending"), "{message}");
        let mut looks = 0;
        let message = panic_of(eventually("rest", limit, async move || {
            looks += 1;
            bail!("look {looks}")
        }));
        let message = message.await;
        assert!(!message.contains("it changed 1 times"), "{message}");
        let message = panic_of(eventually("an answer", limit, async || std::future::pending().await)).await;
        assert!(message.contains("last seen: nothing: the first look did not end"), "{message}");
    }
    #[tokio::test]
    async fn a_state_that_holds_is_looked_at_until_its_time_is_over() {
        let (mut looks, start, time) = (0, Instant::now(), Duration::from_millis(300));
        stays("the state", time, async || {
            looks += 1;
            Ok(())
        })
        .await;
        assert!(start.elapsed() >= time && looks >= 2, "{looks} looks in {:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_state_that_breaks_fails_at_the_first_look_that_sees_it() {
        let (start, time) = (Instant::now(), Duration::from_secs(60));
        let mut looks = 0;
        let broken = stays("the phase", time, async move || {
            looks += 1;
            ensure!(looks < 3, "phase is Failed at look {looks}");
            Ok(())
        });
        let message = panic_of(broken).await;
        assert!(message.contains("the phase held for less than "), "{message}");
        assert!(message.ends_with(": phase is Failed at look 3"), "{message}");
        assert!(message.contains("wait.rs:"), "which wait: {message}");
        assert!(start.elapsed() < time / 2, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_state_is_looked_at_once_more_when_its_time_is_over() {
        let (start, time) = (Instant::now(), Duration::from_millis(200));
        let message = panic_of(stays("the state", time, async move || {
            ensure!(start.elapsed() < time, "it ended with its time");
            Ok(())
        }))
        .await;
        assert!(message.ends_with(": it ended with its time"), "{message}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_breaks_the_state() {
        let (caller, most_look) = (std::panic::Location::caller(), Duration::from_millis(100));
        let hangs = async || std::future::pending().await;
        let message = panic_of(holds(caller, "the state", Duration::from_secs(60), most_look, hangs)).await;
        assert!(message.contains("the state is unknown after "), "{message}");
    }
}
