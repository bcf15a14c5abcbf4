//! `/metrics`: counters of what was answered, and the state of every GPU computed from the index when it is scraped, so that
//! the two cannot differ. Owns names, labels and units (bytes and seconds, as Prometheus wants them).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::capacity::vram::Vram;
use crate::index::Index;
use crate::policies::PolicyStore;
use crate::tls::CertificateStore;

/// Series of answered reviews. A cluster has some thousands at most; reviews are anyone's who reaches the port.
const MAX_ANSWERS: usize = 20_000;
/// Field managers that are counted by name. A cluster has a few that write nodes, but each may choose its name.
const MAX_UNDOERS: usize = 32;
/// Stands for a namespace that cannot be one, and for all that came after [`MAX_ANSWERS`].
const OTHER: &str = "(other)";

/// Which review was answered how.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// `mutate`, `validate` or `filter`.
    pub webhook: &'static str,
    /// `allowed`, `denied`, `patched` or, under Warn and Audit, `would_deny`. Of a filter `denied` where no node can take the
    /// pod.
    pub verdict: &'static str,
    /// Machine reason; empty where nothing was wrong.
    pub reason: String,
    /// Namespace of the pod.
    pub namespace: String,
}

/// What an unschedulable pod waits for. The variant's name is the value of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum WaitsFor {
    /// Others to leave.
    VramShortfall,
    /// In vain, as the cluster is.
    NeverFits,
    /// Something else than VRAM.
    Other,
    /// It has not been looked at yet.
    Unexamined,
}

impl WaitsFor {
    const ALL: [WaitsFor; 4] = [WaitsFor::VramShortfall, WaitsFor::NeverFits, WaitsFor::Other, WaitsFor::Unexamined];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waits {
    reason: WaitsFor,
}

/// Field manager that changed what a node publishes; empty where managedFields name none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Undoer {
    manager: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    webhook: &'static str,
}

/// The counters that handlers and controller add to.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    answers: Family<Answered, Counter>,
    distinct_answers: AtomicUsize,
    refused_bodies: Counter,
    latency: Family<Webhook, Histogram>,
    /// Writes of a node's published figure.
    pub published: Counter,
    /// Writes that the API server refused.
    pub publish_errors: Counter,
    undone: Family<Undoer, Counter>,
    distinct_undoers: AtomicUsize,
    /// Pods seen bound without the guard on nodes with a ledger.
    pub slips: Counter,
    /// Connections that had to close for others.
    pub displaced_connections: Counter,
    /// Clients refused for their certificate.
    pub refused_clients: Counter,
    /// Connections that are open.
    pub connections: Gauge<i64>,
    waiting: Family<Waits, Gauge>,
    /// 1 while this replica leads.
    pub leading: Gauge<i64>,
}

impl Metrics {
    /// All metrics of a server.
    pub fn new(index: Arc<Index>, policies: Arc<PolicyStore>, certificates: Arc<CertificateStore>) -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("vramguard"),
            answers: Family::default(),
            distinct_answers: AtomicUsize::new(0),
            refused_bodies: Counter::default(),
            latency: Family::new_with_constructor(latencies),
            published: Counter::default(),
            publish_errors: Counter::default(),
            undone: Family::default(),
            distinct_undoers: AtomicUsize::new(0),
            slips: Counter::default(),
            displaced_connections: Counter::default(),
            refused_clients: Counter::default(),
            connections: Gauge::default(),
            waiting: Family::default(),
            leading: Gauge::default(),
        };
        let r = &mut metrics.registry;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of the binary", build);
        r.register("reviews", "Admission reviews answered, and questions of kube-scheduler", metrics.answers.clone());
        r.register(
            "refused_bodies",
            "Requests with a body that is not what was asked for there",
            metrics.refused_bodies.clone(),
        );
        let help = "Time from the whole body of a request to its answer";
        r.register_with_unit("review_duration", help, Unit::Seconds, metrics.latency.clone());
        r.register("node_publications", "Writes of a node's published VRAM", metrics.published.clone());
        r.register("node_publication_errors", "Writes of it that failed", metrics.publish_errors.clone());
        let help = "Times that somebody else changed what a node publishes, by the field manager that did";
        r.register("node_publications_undone", help, metrics.undone.clone());
        let help = "Pods with a VRAM request that were bound without the binding guard, where a node has a ledger";
        r.register("bindings_past_guard", help, metrics.slips.clone());
        let help = "Connections closed to make room for others: more than any number of API servers opens";
        r.register("displaced_connections", help, metrics.displaced_connections.clone());
        let help = "Connections refused for their certificate, or for none";
        r.register("refused_clients", help, metrics.refused_clients.clone());
        r.register("connections", "Open HTTPS connections", metrics.connections.clone());
        let help =
            "Pods that kube-scheduler found no node for and that request VRAM, by what they wait for; on the leader";
        r.register("waiting_pods", help, metrics.waiting.clone());
        r.register("leader", "1 while this replica leads", metrics.leading.clone());
        r.register_collector(Box::new(State { index, policies, certificates }));
        metrics
    }

    /// A review was answered.
    pub fn answered(&self, mut answered: Answered, took: Duration) {
        self.latency.get_or_create(&Webhook { webhook: answered.webhook }).observe(took.as_secs_f64());
        if let Some(counter) = self.answers.get(&answered) {
            counter.inc();
            return;
        }
        if !may_be_namespace(&answered.namespace)
            || self.distinct_answers.fetch_add(1, Ordering::Relaxed) >= MAX_ANSWERS
        {
            OTHER.clone_into(&mut answered.namespace);
        }
        self.answers.get_or_create(&answered).inc();
    }

    /// How many pods wait for what.
    pub fn waiting(&self, count: impl Fn(WaitsFor) -> usize) {
        for reason in WaitsFor::ALL {
            let pods = i64::try_from(count(reason)).unwrap_or(i64::MAX);
            self.waiting.get_or_create(&Waits { reason }).set(pods);
        }
    }

    /// Somebody changed what a node publishes.
    pub fn undone(&self, manager: Option<&str>) {
        let mut undoer = Undoer { manager: manager.unwrap_or_default().to_owned() };
        if self.undone.get(&undoer).is_none() && self.distinct_undoers.fetch_add(1, Ordering::Relaxed) >= MAX_UNDOERS {
            OTHER.clone_into(&mut undoer.manager);
        }
        self.undone.get_or_create(&undoer).inc();
    }

    /// A body was not what was asked for.
    pub fn refused_body(&self) {
        self.refused_bodies.inc();
    }

    /// The text that Prometheus scrapes.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Whether the API server could have such a namespace; none is that of an object without one.
fn may_be_namespace(name: &str) -> bool {
    name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// 25 µs to 1.6 s: a review takes tens of microseconds, and what takes a second is what one wants to see.
fn latencies() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(25e-6, 4.0, 9))
}

/// Reads the state at each scrape.
#[derive(Debug)]
struct State {
    index: Arc<Index>,
    policies: Arc<PolicyStore>,
    certificates: Arc<CertificateStore>,
}

/// One figure of a GPU, a pool or a node.
struct Figure {
    labels: Vec<(&'static str, String)>,
    value: Vram,
}

/// All figures by metric, in the order of [`FIGURES`].
type Figures = [Vec<Figure>; FIGURES.len()];

const FIGURES: [(&str, &str); 10] = [
    ("gpu_total", "Memory of a GPU, driver-reserved included"),
    ("gpu_allocatable", "What a GPU can be promised"),
    ("pool_allocatable", "What all GPUs behind a resource of a node can be promised"),
    ("pool_held", "What is promised of them"),
    ("pool_free", "The largest demand that can be placed on them now"),
    ("pool_deficit", "By how much they are overcommitted, or may be where the GPU of each pod is not known"),
    ("node_published", "What a node should advertise of vramguard.dev/vram"),
    ("node_bound", "Requests of the pods on a node, or promised to be"),
    ("gpu_held", "What is known to be promised of a GPU"),
    ("gpu_free", "What a GPU can still take in the worst case, where that is known GPU by GPU"),
];

impl State {
    fn figures(&self) -> Figures {
        let mut figures: Figures = Default::default();
        let state = self.index.read();
        let rules = *state.cluster.rules();
        for name in state.cluster.node_names() {
            let Some((facts, _, standing)) = state.cluster.node(name) else {
                continue;
            };
            let node = || ("node", name.to_owned());
            for (pool, stands) in facts.pools.iter().zip(&standing.pools) {
                let resource = || ("resource", pool.resource.0.clone());
                let mode = || ("mode", stands.accounting.to_string());
                for gpu in pool.contents.iter().flat_map(|contents| &contents.gpus) {
                    let labels = vec![node(), resource(), ("gpu", gpu.id.to_string()), mode()];
                    figures[0].push(Figure { labels: labels.clone(), value: gpu.total });
                    figures[1].push(Figure { labels, value: gpu.allocatable(&rules).room() });
                }
                for gpu in &stands.gpus {
                    let labels = vec![node(), resource(), ("gpu", gpu.id.to_string()), mode()];
                    figures[8].push(Figure { labels: labels.clone(), value: gpu.held });
                    figures[9].extend(gpu.free.map(|value| Figure { labels, value }));
                }
                let labels = || vec![node(), resource(), mode()];
                figures[2].extend(stands.allocatable.map(|value| Figure { labels: labels(), value }));
                figures[3].push(Figure { labels: labels(), value: stands.held });
                figures[4].push(Figure { labels: labels(), value: stands.room });
                let deficit = stands.deficit.as_ref().map_or(Vram::ZERO, |deficit| deficit.by);
                figures[5].push(Figure { labels: labels(), value: deficit });
            }
            figures[6].extend(standing.published.map(|value| Figure { labels: vec![node()], value }));
            figures[7].push(Figure { labels: vec![node()], value: standing.bound });
        }
        figures
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for ((name, help), figures) in FIGURES.iter().zip(self.figures()) {
            let gauge = ConstGauge::new(0_u64);
            let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), gauge.metric_type())?;
            for figure in figures {
                let bytes = u64::try_from(figure.value.bytes()).unwrap_or(u64::MAX);
                ConstGauge::new(bytes).encode(family.encode_family(&figure.labels)?)?;
            }
        }
        let generation = self.policies.current();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let number = i64::try_from(generation.number).unwrap_or(i64::MAX);
        gauge("policy_generation", "Counts the changes of the policies in force", number)?;
        let overcommit = i64::from(generation.policies.rules().overcommit.is_on());
        gauge("overcommit_enabled", "1 where policy promises more than there is", overcommit)?;
        gauge("index_synced", "1 once nodes and pods have been listed", i64::from(self.index.is_synced()))?;
        let oversized = i64::try_from(self.index.oversized_pods()).unwrap_or(i64::MAX);
        gauge("oversized_pods", "Pods that may hold a GPU and are larger than what is read of them", oversized)?;
        if let Some(not_after) = self.certificates.not_after() {
            let help = "When the serving certificate ends, in seconds since 1970";
            gauge("certificate_not_after_timestamp_seconds", help, not_after.as_second())?;
        }
        let errors = ConstCounter::new(self.policies.reload_errors());
        let help = "Changed policies that could not be put in force";
        errors.encode(encoder.encode_descriptor("policy_reload_errors", help, None, errors.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_namespaces_do_not_add_up() {
        let policies = Arc::new(PolicyStore::new(&Vec::new(), "own").unwrap());
        let index = Arc::new(Index::new(*policies.current().policies.rules(), Vec::new()));
        let metrics = Metrics::new(index, policies, Arc::default());
        for number in 0..MAX_ANSWERS * 2 {
            let answered = Answered {
                webhook: "mutate",
                verdict: "allowed",
                reason: String::new(),
                namespace: format!("forged-{number}"),
            };
            metrics.answered(answered, Duration::ZERO);
        }
        let text = metrics.encode().unwrap();
        let series = text.lines().filter(|line| line.starts_with("vramguard_reviews_total{"));
        assert_eq!(series.count(), MAX_ANSWERS + 1);
        let others = format!("namespace=\"{OTHER}\"}} {MAX_ANSWERS}");
        assert!(text.contains(&others), "the last ones are counted together");
    }
}
