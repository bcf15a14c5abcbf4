//! The watchdog of an agent that steers: it ends the process when the runtime no longer runs its tasks. Owns the thread
//! and its time limits.
//!
//! The kubelet sets no time limit when it asks which devices a container should get, and it acts on a failed liveness
//! probe in the same loop that admits pods. So nothing but the agent itself can end an agent that hangs while the
//! kubelet waits for it. When the process ends, its connections close: the kubelet fails the pod that it asked for, and
//! goes on.
//!
//! The thread is one of the operating system, and not a task, so that it runs while the runtime does not. A process
//! that was stopped as a whole or got no CPU time does not hang. The thread recognises such a process by itself,
//! because then its own sleep takes too long.

use std::io;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

/// Time limit for the message before the end. The log may be what hangs.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The time limits of a watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Time between two heartbeats of the runtime, and between two looks of the thread.
    every: Duration,
    /// How much later than that a look may come and still count. A later one shows that the process itself did not run.
    late: Duration,
    /// How long the runtime may be silent. Far more than a busy node delays a task, because pods fail when the agent
    /// ends.
    patience: Duration,
}

/// The limits of the agent.
pub(super) const LIMITS: Limits =
    Limits { every: Duration::from_secs(1), late: Duration::from_secs(1), patience: Duration::from_secs(5) };

/// How long the runtime has been silent after a look. `before` is the result of the look before, `gap` the time since
/// then, and `beaten` whether a heartbeat came in that time.
///
/// A look that came too late starts anew, so the result is the time in which the thread could have heard a heartbeat.
fn silence(before: Duration, gap: Duration, beaten: bool, limits: Limits) -> Duration {
    let is_late = gap > limits.every + limits.late;
    if beaten || is_late { Duration::ZERO } else { before + gap }
}

/// Whether a runtime that has been silent for so long hangs.
fn hangs(silence: Duration, limits: Limits) -> bool {
    silence >= limits.patience
}

/// Watches the runtime that this is called in, until that runtime is shut down. If it hangs, the thread calls `end`
/// with the time for which it was silent.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn start(limits: Limits, end: impl FnOnce(Duration) + Send + 'static) -> io::Result<()> {
    let (beat, beats) = mpsc::channel();
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || watch(limits, &beats, end))?;
    tokio::spawn(async move {
        let mut ticks = interval(limits.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if beat.send(()).is_err() {
                return; // the thread has called `end`
            }
        }
    });
    Ok(())
}

fn watch(limits: Limits, beats: &Receiver<()>, end: impl FnOnce(Duration)) {
    let (mut silent, mut last) = (Duration::ZERO, Instant::now());
    while !hangs(silent, limits) {
        thread::sleep(limits.every);
        let mut beaten = false;
        loop {
            match beats.try_recv() {
                Ok(()) => beaten = true,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return, // the runtime is shut down, and the task with it
            }
        }
        // This clock is monotonic, and stands still while the machine is suspended.
        let now = Instant::now();
        silent = silence(silent, now - last, beaten, limits);
        last = now;
    }
    end(silent);
}

/// Ends the process, and logs why.
pub(super) fn end(silent: Duration) {
    let (said, heard) = mpsc::channel();
    let say = move || {
        tracing::error!(
            "the agent hangs: its runtime has run no task for {} s; ending the process, because the kubelet may be waiting \
             for it and admits no pod meanwhile",
            silent.as_secs()
        );
        _ = said.send(()); // nobody listens after the time limit
    };
    // A log that nobody reads blocks each thread that writes to it, so another thread writes.
    if thread::Builder::new().spawn(say).is_ok() {
        _ = heard.recv_timeout(LAST_WORDS);
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::sync::mpsc::RecvTimeoutError;

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const WORKERS: usize = 2;

    /// The number of the look after which the process is ended; `None` if it goes on. Each look has the time since the
    /// one before, and whether a heartbeat came.
    fn ended_after(looks: impl IntoIterator<Item = (Duration, bool)>) -> Option<usize> {
        let mut silent = Duration::ZERO;
        let ends = |(gap, beaten)| {
            silent = silence(silent, gap, beaten, LIMITS);
            hangs(silent, LIMITS)
        };
        looks.into_iter().map(ends).position(|ends| ends).map(|at| at + 1)
    }

    #[test]
    fn five_seconds_without_a_heartbeat_are_the_end_and_four_are_not() {
        assert_eq!(ended_after([(SECOND, false); 9]), Some(5));
        let slow = [(SECOND, false), (SECOND, false), (SECOND, false), (SECOND, false), (SECOND, true)];
        assert_eq!(ended_after(slow.repeat(9)), None, "each heartbeat starts anew");
    }

    #[test]
    fn a_process_that_was_stopped_has_all_its_time_again() {
        let stopped = (Duration::from_secs(3_600), false);
        let looks = [[(SECOND, false); 4].as_slice(), &[stopped], &[(SECOND, false); 9]].concat();
        assert_eq!(ended_after(looks), Some(4 + 1 + 5));
    }

    #[test]
    fn a_process_without_cpu_time_is_never_ended() {
        let starved = (LIMITS.every + LIMITS.late + Duration::from_millis(1), false);
        assert_eq!(ended_after([starved; 100]), None);
    }

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap()
    }

    /// Blocks every thread of the runtime that runs tasks.
    fn block(runtime: &Runtime, time: Duration) {
        for _ in 0..WORKERS {
            runtime.spawn(async move { thread::sleep(time) });
        }
    }

    /// Limits for a busy machine, which may delay a test for longer than an agent.
    const QUICK: Limits =
        Limits { every: Duration::from_millis(50), late: Duration::from_secs(4), patience: Duration::from_secs(2) };

    /// Watches a runtime, and sends the time for which it was silent in place of ending the process.
    fn watched(runtime: &Runtime) -> Receiver<Duration> {
        let (sender, ended) = mpsc::channel();
        runtime.block_on(async { start(QUICK, move |silent| sender.send(silent).unwrap()).unwrap() });
        ended
    }

    #[test]
    fn a_runtime_is_ended_when_all_its_threads_block_and_not_before() {
        let runtime = runtime();
        let ended = watched(&runtime);
        assert_eq!(ended.recv_timeout(3 * SECOND), Err(RecvTimeoutError::Timeout), "it beats");
        block(&runtime, 6 * SECOND);
        let silent = ended.recv_timeout(10 * SECOND).expect("it hangs");
        assert!(silent >= QUICK.patience, "{silent:?}");
    }

    #[test]
    fn the_end_of_the_runtime_ends_the_watchdog_and_not_the_process() {
        let runtime = runtime();
        let ended = watched(&runtime);
        drop(runtime);
        assert_eq!(ended.recv_timeout(10 * SECOND), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_process_whose_runtime_hangs_says_why_and_aborts() {
        /// Tells the process that it is the one that hangs.
        const HANGS: &str = "VRAMGUARD_TEST_HANGS";
        if std::env::var_os(HANGS).is_some() {
            tracing_subscriber::fmt().with_writer(io::stderr).init();
            let runtime = runtime();
            runtime.block_on(async { start(LIMITS, end).unwrap() });
            block(&runtime, 60 * SECOND);
            thread::sleep(60 * SECOND); // the watchdog ends it before
            return;
        }
        let name = "agent::watchdog::tests::a_process_whose_runtime_hangs_says_why_and_aborts";
        let folder = tempfile::tempdir().unwrap(); // where a core dump may be written
        let started = Instant::now();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(HANGS, "1").current_dir(folder.path());
        let ended = child.output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), Some(6), "SIGABRT: {}, {said}", ended.status);
        assert!(said.contains("the agent hangs: its runtime has run no task for 5 s"), "{said}");
        assert!(started.elapsed() >= LIMITS.patience, "{:?}", started.elapsed());
    }
}
