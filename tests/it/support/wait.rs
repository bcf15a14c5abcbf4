//! Waiting with a bound, for what a cluster does in its own time.

use std::time::{Duration, Instant};

/// Time between two looks: short against what people notice, long against what a look costs.
const INTERVAL: Duration = Duration::from_millis(50);

/// Repeats `look` until it answers `Ok` and returns that; panics with `what` and the last refusal once `within` is over.
///
/// The error of a look is its observation, so write it as one: `bail!("phase is {phase:?}")`. A look that hangs counts
/// as a refusal too.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        let mut seen = "nothing: the first look did not end".to_owned();
        while let Some(left) = within.checked_sub(start.elapsed()) {
            match tokio::time::timeout(left, look()).await {
                Ok(Ok(found)) => return found,
                Ok(Err(refusal)) => seen = format!("{refusal:#}"),
                Err(_) => break,
            }
            tokio::time::sleep(INTERVAL.min(left)).await;
        }
        panic!("{caller}: waited {within:?} for {what}; last seen: {seen}");
    }
}
