//! The `/metrics` page of the agent: what it sees now, from the same report that it writes, and what it costs. Owns
//! names, labels and units.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::node::{Node, now};
use super::steer::metrics::Counters;
use crate::capacity::gpu::AllocationPolicy;
use crate::capacity::observation::finding::Problem;
use crate::capacity::observation::report::{ContainerReport, GpuReport, Report};
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;

/// The counters of an agent, and the page that shows them.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    writes: Counter,
    /// Reports that could not be written.
    pub(super) write_errors: Counter,
    written: Arc<AtomicI64>,
}

impl Metrics {
    /// Creates and registers all metrics, and those of the steering if the agent steers.
    pub(super) fn new(node: Arc<Node>, steering: Option<&Counters>) -> Metrics {
        let mut registry = Registry::with_prefix("vramguard_agent");
        let (writes, write_errors) = (Counter::default(), Counter::default());
        let written = Arc::new(AtomicI64::new(0));
        registry.register("build", "Version of the binary", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("report_writes", "Reports written to the GpuLedger of the node", writes.clone());
        registry.register("report_write_errors", "Reports that could not be written", write_errors.clone());
        if let Some(counters) = steering {
            counters.register(&mut registry);
        }
        let steers = steering.is_some();
        registry.register_collector(Box::new(Seen { node, written: written.clone(), steers }));
        Metrics { registry, writes, write_errors, written }
    }

    /// Counts a written report.
    pub(super) fn wrote(&self, at: Moment) {
        self.writes.inc();
        self.written.store(at.0 / 1000, Ordering::Relaxed);
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// A metric cannot be encoded.
    pub(super) fn page(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What the agent sees, read at each scrape.
#[derive(Debug)]
struct Seen {
    node: Arc<Node>,
    written: Arc<AtomicI64>,
    /// Whether the agent was told to steer.
    steers: bool,
}

impl Collector for Seen {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let report = self.node.report();
        let look = self.node.read(|state| state.look.clone());
        let age = match &look {
            Some(Ok((at, took))) => Some((at.elapsed(), *took)),
            Some(Err(_)) | None => None,
        };
        gauge(
            &mut encoder,
            "readable",
            "1 if the GPUs can be read, by the driver or the DCGM exporter",
            None,
            [(labels([]), f64::from(age.is_some()))],
        )?;
        let age_help = "Time since the GPUs were read; absent if they cannot be read";
        let ages = age.map(|(age, _)| (labels([]), age.as_secs_f64()));
        gauge(&mut encoder, "look_age", age_help, Some(&Unit::Seconds), ages)?;
        let took = age.map(|(_, took)| (labels([]), took.as_secs_f64()));
        gauge(&mut encoder, "look_duration", "Duration of the last look at the GPUs", Some(&Unit::Seconds), took)?;
        let written = Some(self.written.load(Ordering::Relaxed)).filter(|at| *at > 0);
        let written = written.map(|at| (labels([]), at as f64));
        let help = "When the last report was written, in seconds since 1970; absent before the first";
        gauge(&mut encoder, "report_timestamp_seconds", help, None, written)?;
        let help = "1 if each pod of the node gets the GPU that is reserved for it; absent without --steer";
        let steered = (labels([]), f64::from(report.allocation_policy == AllocationPolicy::Steered));
        gauge(&mut encoder, "steered", help, None, self.steers.then_some(steered))?;
        gpus(&mut encoder, &report)?;
        containers(&mut encoder, &report)?;
        idle(&mut encoder, &report, now())
    }
}

type Labels = Vec<(&'static str, String)>;

fn labels<const N: usize>(labels: [(&'static str, String); N]) -> Labels {
    labels.into()
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, unit, prometheus_client::metrics::MetricType::Gauge)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            return ConstGauge::new(value).encode(metric);
        }
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A metric: its name, its help, and the amount of one row; `None` if that is not known.
type Family<Row> = (&'static str, &'static str, fn(&Row) -> Option<Vram>);

fn bytes(amount: Vram) -> f64 {
    amount.bytes() as f64
}

fn gpus(encoder: &mut DescriptorEncoder<'_>, report: &Report) -> fmt::Result {
    // A GPU behind two resources is one GPU.
    let once: BTreeMap<&str, &GpuReport> = report.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu)).collect();
    let of = |gpu: &GpuReport| {
        let mut labels = labels([("gpu", gpu.uuid.to_string()), ("index", gpu.index.gpu.to_string())]);
        labels.extend(gpu.index.mig.map(|mig| ("mig_index", mig.to_string())));
        labels
    };
    let amounts: [Family<GpuReport>; 4] = [
        ("gpu_memory_total", "All memory of a GPU, including what the driver keeps", |gpu| Some(gpu.total)),
        ("gpu_memory_reserved", "Memory of a GPU that the driver keeps; absent if not told", |gpu| gpu.reserved),
        ("gpu_memory_used", "Memory of a GPU in use, as last read", |gpu| Some(gpu.used)),
        ("gpu_memory_out_of_band", "Memory of a GPU that no pod counts with; absent if not told", |gpu| gpu.outside),
    ];
    for (name, help, amount) in amounts {
        let samples = once.values().filter_map(|gpu| Some((of(gpu), bytes(amount(gpu)?))));
        gauge(encoder, name, help, Some(&Unit::Bytes), samples)?;
    }
    let unreadable = once.values().filter_map(|gpu| {
        let why = gpu.unreadable.as_ref().or(report.unreadable.as_ref())?;
        let mut labels = of(gpu);
        labels.push(("reason", why.reason().to_owned()));
        Some((labels, 1.0))
    });
    gauge(
        encoder,
        "gpu_unreadable",
        "1 for a GPU that cannot be read at present; its amounts are old",
        None,
        unreadable,
    )
}

fn container_labels(name: &str, container: &ContainerReport) -> Labels {
    labels([
        ("namespace", container.pod.namespace.to_string()),
        ("pod", container.pod.name.to_string()),
        ("container", name.to_owned()),
    ])
}

fn containers(encoder: &mut DescriptorEncoder<'_>, report: &Report) -> fmt::Result {
    let amounts: [Family<ContainerReport>; 3] = [
        (
            "container_memory_used",
            "GPU memory that a container uses; absent if the driver does not tell",
            |container| container.seen.used,
        ),
        ("container_memory_peak", "The most GPU memory that a container has used", |container| {
            Some(container.seen.peak)
        }),
        (
            "container_memory_demand",
            "GPU memory that a container counts with; absent if it declares none",
            |container| container.demand,
        ),
    ];
    for (name, help, amount) in amounts {
        let samples = report
            .containers
            .iter()
            .filter_map(|((_, name), row)| Some((container_labels(name, row), bytes(amount(row)?))));
        gauge(encoder, name, help, Some(&Unit::Bytes), samples)?;
    }
    let count = |problem| {
        report.containers.values().filter_map(|row| row.finding.as_ref()).filter(|f| f.problem == problem).count()
    };
    let findings = Problem::ALL.map(|problem| (labels([("problem", problem.to_string())]), count(problem) as f64));
    let findings = findings.into_iter().filter(|_| report.source.tells_processes());
    let help = "Containers with a finding, by its problem; absent if the source does not tell processes";
    gauge(encoder, "findings", help, None, findings)
}

fn idle(encoder: &mut DescriptorEncoder<'_>, report: &Report, at: Moment) -> fmt::Result {
    // While a GPU cannot be read, nobody knows whether its containers compute, and the time must not go on.
    let unread = |row: &ContainerReport| {
        let is_unread = |gpu: &GpuReport| gpu.uuid == row.seen.gpu && gpu.unreadable.is_some();
        report.unreadable.is_some() || report.gpus.iter().any(is_unread)
    };
    let samples = report.containers.iter().filter(|(_, row)| !unread(row)).filter_map(|((_, name), row)| {
        let since = row.seen.idle_since?;
        Some((container_labels(name, row), since.until(at).as_secs_f64()))
    });
    let help =
        "Time since a container last computed on a GPU; absent while it computes, and if the driver does not tell";
    gauge(encoder, "container_idle", help, Some(&Unit::Seconds), samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::PolicyName;
    use crate::capacity::node::inventory::Source;
    use crate::capacity::observation::owners::{LiveContainer, LivePod};
    use crate::capacity::observation::{GpuLook, GpuMemory, Listing, Look, Owner, Process};
    use crate::capacity::pod::PodName;
    use crate::capacity::verdict::Unreadable;

    fn pod(name: &str) -> LivePod {
        let container = LiveContainer {
            name: "main".into(),
            id: Some(format!("{name}-c").into()),
            demand: None,
            declares: false,
            overhead: Vram::ZERO,
            annotation: "vramguard.dev/vram".into(),
        };
        let pod = PodName { namespace: "ml".into(), name: name.into() };
        LivePod { uid: name.into(), cgroup_uid: name.into(), name: pod, containers: vec![container] }
    }

    /// A node whose GPU runs one process of each of these pods, as the driver tells whether it computes.
    fn node(pods: &[(&str, Option<bool>)], at: Moment) -> Arc<Node> {
        let node = Arc::new(Node::new("gpu-0".to_owned(), Source::Driver, PolicyName::Nowhere));
        let process = |(name, busy): &(&str, Option<bool>)| {
            let owner = Owner::Container { pod: (*name).into(), container: "main".into() };
            Process { owner, memory: Some(Vram::from_mib(1)), busy: *busy }
        };
        let gpu = GpuLook {
            uuid: "GPU-a".into(),
            index: 0.into(),
            mig: false,
            mps: false,
            memory: Ok(GpuMemory { total: Vram::from_mib(9), reserved: None, used: Vram::from_mib(3) }),
            processes: Listing::Listed(pods.iter().map(process).collect()),
        };
        node.update(|state| {
            state.observer.owners.reset(pods.iter().map(|(name, _)| pod(name)).collect(), at);
            state.observer.observe(&Look { at, gpus: vec![gpu] }, None);
        });
        node
    }

    #[test]
    fn idle_time_is_shown_of_containers_of_which_it_is_known() {
        let at = Moment(now().0 - 90_000);
        let node = node(&[("idle", Some(false)), ("computes", Some(true)), ("untold", None)], at);
        let metrics = Metrics::new(node.clone(), None);
        let idle = || -> Vec<String> {
            let page = metrics.page().unwrap();
            let is_sample = |line: &&str| line.starts_with("vramguard_agent_container_idle_seconds{");
            page.lines().filter(is_sample).map(str::to_owned).collect()
        };
        let shown = idle();
        let [sample] = shown.as_slice() else { panic!("{shown:?}") };
        let labels = "vramguard_agent_container_idle_seconds{namespace=\"ml\",pod=\"idle\",container=\"main\"} ";
        let seconds: f64 = sample.strip_prefix(labels).expect(sample).parse().unwrap();
        assert!((90.0..120.0).contains(&seconds), "{seconds}");

        node.update(|state| state.observer.failed(Unreadable::NoDriver));
        assert_eq!(idle(), [""; 0], "nobody knows whether it computes now");
    }
}
