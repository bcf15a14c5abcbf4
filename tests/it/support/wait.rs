//! Waiting with a bound that follows the machine: the one place where a test decides that something does not come.
//!
//! A deadline in seconds fails a good product on a busy machine, and a generous one makes a bad product slow to fail. So a
//! [`Patience`] is counted in the time that the machine has for us: while three tasks share each CPU, three seconds count
//! for one. And [`eventually`] begins anew whenever what it sees has changed, because what moves may yet arrive.

use std::fmt;
use std::time::{Duration, Instant};

/// Time between two looks: short against what people notice, long against what a look costs.
const INTERVAL: Duration = Duration::from_millis(50);
/// A machine busier than this is out of order, and the wait ends.
const MOST_LOAD: f64 = 8.0;
/// What a wait may take as a multiple of its patience, however often its observation changes: some observations hold a log
/// or an age and never stay the same.
const MOST_RESETS: u32 = 4;

/// A limit on waiting, in time of a machine that has nothing else to do.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    spent: Duration,
    start: Instant,
    looked: Instant,
}

impl Patience {
    pub fn of(limit: Duration) -> Self {
        let now = Instant::now();
        Self { limit, spent: Duration::ZERO, start: now, looked: now }
    }

    /// Whether the limit is reached. Ask often: the load of this moment counts for all the time since the last question.
    pub fn is_over(&mut self) -> bool {
        self.spent() >= self.limit
    }

    /// How long it has taken, in time of a machine that has nothing else to do.
    pub fn spent(&mut self) -> Duration {
        let now = Instant::now();
        self.spend(now - self.looked, load());
        self.looked = now;
        self.spent
    }

    /// How many times longer everything takes than on a quiet machine, on average since the start.
    pub fn slowness(&mut self) -> f64 {
        let spent = self.spent();
        if spent.is_zero() { 1.0 } else { self.elapsed().div_duration_f64(spent).max(1.0) }
    }

    /// How long it has taken by the clock.
    pub fn elapsed(&self) -> Duration {
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

/// Tasks that want a CPU or wait for a disk, for each CPU; 1 where the machine does not say.
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

/// The end of a future, or `None` if it has not come within that much time of a quiet machine.
pub async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
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

/// Lets that much time of a quiet machine pass: for what shows itself by not happening, or cannot be seen to have happened.
pub async fn pause(time: Duration) {
    _ = within(time, std::future::pending::<()>()).await;
}

/// What was seen last, and since when it is so.
struct Observation {
    text: String,
    since: Instant,
    changes: u32,
}

impl Observation {
    /// Notes what is seen; returns whether it has changed.
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

/// Repeats `look` until it answers `Ok` and returns that. Panics once the refusal has stayed the same for `limit`, and at
/// the latest after four times that; the panic says what was seen last and whether anything still moved.
///
/// The error of a look is its observation, so write it as one: `bail!("phase is {phase:?}")`. A look that hangs counts
/// as a refusal too.
#[track_caller]
pub fn eventually<T>(
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

#[cfg(test)]
mod tests {
    use anyhow::{bail, ensure};

    use super::*;

    const STAT: &str = "cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\nctxt 17\nprocs_running 5\nprocs_blocked 1\n";

    async fn panic_of(wait: impl Future<Output = ()> + Send + 'static) -> String {
        let panicked = tokio::spawn(wait).await.expect_err("it gives up").into_panic();
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
        // On a busy machine it takes longer, but then the limit is longer too.
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
}
