//! The looks of an agent at its GPUs. Owns the thread that talks to the driver, and the time that it may take: a driver
//! that hangs must not stop the agent, which then says so. A DCGM exporter needs no thread, and has a deadline of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::dcgm::Exporter;
use super::node::{Node, now};
use super::nvml;
use super::processes::Processes;
use super::reading::{GpuReading, ProcessReading, Reading};
use crate::capacity::observation::owners::Owners;
use crate::capacity::observation::{GpuLook, Listing, Look, Process};
use crate::capacity::time::Moment;
use crate::capacity::verdict::{MIG_NOT_TOLD, Unreadable};
use crate::k8s::cgroup::InPod;

/// Time within which the driver must answer. Some of its calls wait for a GPU that wakes up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pod and container of processes, by id.
pub(super) type Places = BTreeMap<u32, Option<InPod>>;

/// A reading, and the pod and container of each of its processes.
pub(super) struct Found {
    /// What the driver told.
    pub reading: Reading,
    /// The pod and container of each process, GPU by GPU, in the order of the reading.
    pub places: Vec<Vec<Option<InPod>>>,
}

impl Found {
    /// Reads the driver once, and the cgroups of the processes. Of processes that are in `known`, the cgroup is read
    /// again only where all processes were listed again, because another process may have got the id.
    ///
    /// # Errors
    /// The driver as a whole cannot be read.
    pub(super) fn read(
        source: &mut nvml::Source,
        processes: &Processes,
        known: &mut Places,
    ) -> Result<Found, Unreadable> {
        let reading = source.read()?;
        let before = if reading.full { std::mem::take(known) } else { Places::new() };
        let mut of = |gpu: &GpuReading| {
            let listed = gpu.processes.listed().unwrap_or_default().iter();
            listed.map(|process| place(processes, known, &before, process.pid)).collect()
        };
        let places = reading.gpus.iter().map(&mut of).collect();
        Ok(Found { reading, places })
    }

    /// A reading of a source that does not tell processes.
    pub(super) fn without_processes(reading: Reading) -> Found {
        let places = reading.gpus.iter().map(|_| Vec::new()).collect();
        Found { reading, places }
    }

    /// What was found, with the owner of each process.
    pub(super) fn look(&self, owners: &mut Owners, at: Moment) -> Look {
        let gpus = self.reading.gpus.iter().zip(&self.places).map(|(gpu, places)| {
            let mut process = |(process, place): (&ProcessReading, &Option<InPod>)| {
                let place = place.as_ref().map(|place| (place.pod.clone(), place.container.as_str()));
                let busy = process.utilization.map(|percent| percent > 0);
                Process { owner: owners.owner(place, at), memory: process.memory, busy }
            };
            GpuLook {
                uuid: gpu.uuid.clone(),
                index: gpu.index,
                mig: gpu.mig,
                mps: gpu.mps,
                memory: gpu.memory.clone(),
                processes: match &gpu.processes {
                    Listing::Listed(listed) => Listing::Listed(listed.iter().zip(places).map(&mut process).collect()),
                    Listing::Unreadable(why) => Listing::Unreadable(why.clone()),
                    Listing::NotTold => Listing::NotTold,
                },
            }
        });
        Look { at, gpus: gpus.collect() }
    }
}

/// The pod and container of a process. `before` are the places of an earlier look: the driver lists a process for a moment
/// after it has ended, and then it is where it was.
fn place(processes: &Processes, known: &mut Places, before: &Places, pid: u32) -> Option<InPod> {
    let read = || if processes.runs(pid) { processes.pod_of(pid) } else { before.get(&pid).cloned().flatten() };
    known.entry(pid).or_insert_with(read).clone()
}

type Request = oneshot::Sender<Result<Found, Unreadable>>;

/// Reads a DCGM exporter until cancelled.
pub(super) async fn follow_exporter(exporter: Exporter, every: Duration, node: Arc<Node>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut logged, mut has_mig) = (None, false);
    loop {
        ticks.tick().await;
        let started = Instant::now();
        let found = exporter.read().await.map(Found::without_processes);
        let is_mig = found.as_ref().is_ok_and(|found| found.reading.gpus.iter().any(|gpu| gpu.mig));
        if is_mig && !std::mem::replace(&mut has_mig, true) {
            tracing::warn!("MIG devices are not reported: {MIG_NOT_TOLD}");
        }
        take(&node, found, started, &mut logged);
    }
}

/// Reads the driver until cancelled.
///
/// # Errors
/// The thread cannot be started.
pub(super) async fn follow_driver(
    mut source: nvml::Source,
    processes: Processes,
    every: Duration,
    node: Arc<Node>,
) -> anyhow::Result<()> {
    let (ask, asked) = mpsc::channel::<Request>();
    // One thread for all calls: NVML keeps state for each thread, and a hanging call takes a thread with it.
    std::thread::Builder::new().name("nvml".to_owned()).stack_size(512 << 10).spawn(move || {
        let mut known = Places::new();
        for answer in asked {
            // The receiver is gone if the agent stops.
            _ = answer.send(Found::read(&mut source, &processes, &mut known));
        }
    })?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut logged = None;
    loop {
        ticks.tick().await;
        let started = Instant::now();
        let (answer, mut answered) = oneshot::channel();
        ask.send(answer).map_err(|_| anyhow::anyhow!("the thread that reads NVML ended"))?;
        let found = loop {
            match timeout(PATIENCE, &mut answered).await {
                Ok(found) => break found?,
                Err(_) => take(&node, Err(Unreadable::Silent), started, &mut logged),
            }
        };
        take(&node, found, started, &mut logged);
    }
}

/// Takes the result of a look into the state of the node. A change of the reason for a failure is logged.
fn take(node: &Node, found: Result<Found, Unreadable>, started: Instant, logged: &mut Option<Unreadable>) {
    let failure = found.as_ref().err().cloned();
    node.update(|state| match found {
        Ok(found) => {
            let look = found.look(&mut state.observer.owners, now());
            state.observer.observe(&look, found.reading.driver);
            state.look = Some(Ok((Instant::now(), started.elapsed())));
        }
        Err(why) => {
            state.observer.failed(why.clone());
            state.look = Some(Err(why));
        }
    });
    if *logged != failure {
        match &failure {
            Some(why) => tracing::warn!(reason = why.reason(), "the GPUs cannot be read: {why}"),
            None => tracing::info!("the GPUs can be read again"),
        }
        *logged = failure;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_and_is_still_listed_is_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let processes = Processes::new(folder.path());
        let of = |pid: u32| folder.path().join(pid.to_string());
        std::fs::create_dir(of(7)).unwrap();
        std::fs::write(of(7).join("cgroup"), "0::/kubepods/pod0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e/4c01db0b339c4de2\n")
            .unwrap();
        let mut known = Places::new();
        let there = place(&processes, &mut known, &Places::new(), 7);
        assert!(there.is_some());
        std::fs::remove_dir_all(of(7)).unwrap();
        let before = std::mem::take(&mut known);
        assert_eq!(place(&processes, &mut known, &before, 7), there, "it did not leave its pod");
        assert_eq!(place(&processes, &mut known, &before, 8), None, "nobody knew it");
    }
}
