//! The `/metrics` page: counters of answers, and the state of every node. The state is computed from the index at each
//! scrape, so that the two cannot differ. Owns names, labels and units (bytes and seconds, as is usual for Prometheus),
//! and the sharing of scrapes: any number of scrapers costs no more than one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use k8s_openapi::jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::capacity::cluster::Undeclared;
use crate::capacity::verdict::Reason;
use crate::report::document::Report;
use crate::state::index::{Index, Kind};
use crate::state::policies::PolicyStore;
use crate::tls::CertificateStore;

mod audit;
mod bounded;
mod quotas;
mod usage;

use audit::Audits;
use bounded::Bounded;
use quotas::Quotas;
pub use usage::Detail;
use usage::Usage;

/// Series of answered reviews. A cluster has some thousands at most, but anyone who reaches the port can send reviews.
const MAX_ANSWERS: usize = 20_000;
/// Field managers that are counted by name. Few of them write nodes, but each writer may choose its name.
const MAX_UNDOERS: usize = 32;
/// Label value for a namespace that cannot exist, for all namespaces past [`MAX_ANSWERS`], and for all field managers
/// past [`MAX_UNDOERS`].
const OTHER: &str = "(other)";

/// Labels of an answered review.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answered {
    /// `mutate`, `validate`, `bind` or `filter`.
    pub webhook: &'static str,
    /// `allowed`, `denied`, `patched` or, under Warn and Audit, `would_deny`. A filter request is `denied` if no node
    /// can take the pod.
    pub verdict: &'static str,
    /// Machine-readable reason; empty if nothing was wrong.
    pub reason: String,
    /// Namespace of the pod.
    pub namespace: String,
}

/// What an unschedulable pod waits for. The name of the variant is the value of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum WaitsFor {
    /// A node that the pod may land on could take it, but has too little free VRAM now.
    VramShortfall,
    /// No node that the pod may land on could take it, even when empty.
    NeverFits,
    /// VRAM is free; something else is missing.
    Other,
    /// The leader has not examined the pod yet.
    Unexamined,
}

impl WaitsFor {
    const ALL: [WaitsFor; 4] = [WaitsFor::VramShortfall, WaitsFor::NeverFits, WaitsFor::Other, WaitsFor::Unexamined];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waits {
    reason: WaitsFor,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: String,
}

/// The field manager that changed what a node publishes; empty if managedFields name none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Undoer {
    manager: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    webhook: &'static str,
}

/// The counters that handlers and the controller increment, and the page that shows them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    index: Arc<Index>,
    detail: Detail,
    /// The latest page and when its rendering began, kept while another scraper waits for it.
    rendered: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
    scrapers: AtomicUsize,
    answers: Family<Answered, Counter>,
    distinct_answers: AtomicUsize,
    refused_bodies: Counter,
    /// The containers of new pods, by what bounds them.
    pub bounded: Bounded,
    latency: Family<Webhook, Histogram>,
    /// Successful writes of the published amount of a node.
    pub published: Counter,
    /// Failed attempts to publish on a node.
    pub publish_errors: Counter,
    undone: Family<Undoer, Counter>,
    refused_if_created: Family<Refused, Gauge>,
    distinct_undoers: AtomicUsize,
    /// Pods that were bound without a review by the binding guard, on nodes with a ledger.
    pub slips: Counter,
    /// Pods that were bound outside of their own pool while this replica led.
    pub rerouted: Counter,
    /// Connections that were closed to make room for new ones.
    pub displaced_connections: Counter,
    /// Connections that were refused because of the client's certificate, or because it sent none.
    pub refused_clients: Counter,
    /// Open connections.
    pub connections: Gauge<i64>,
    waiting: Family<Waits, Gauge>,
    /// 1 while this replica leads, otherwise 0.
    pub leading: Gauge<i64>,
    audits: Audits,
    /// The ResourceQuotas that limit VRAM.
    pub quotas: Quotas,
}

impl Metrics {
    /// Creates and registers all metrics of a server.
    pub fn new(index: Arc<Index>, policies: Arc<PolicyStore>, certificates: Arc<CertificateStore>) -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("vramguard"),
            index: index.clone(),
            detail: Detail::default(),
            rendered: tokio::sync::Mutex::default(),
            scrapers: AtomicUsize::new(0),
            answers: Family::default(),
            distinct_answers: AtomicUsize::new(0),
            refused_bodies: Counter::default(),
            bounded: Bounded::default(),
            latency: Family::new_with_constructor(latencies),
            published: Counter::default(),
            publish_errors: Counter::default(),
            undone: Family::default(),
            refused_if_created: Family::default(),
            distinct_undoers: AtomicUsize::new(0),
            slips: Counter::default(),
            rerouted: Counter::default(),
            displaced_connections: Counter::default(),
            refused_clients: Counter::default(),
            connections: Gauge::default(),
            waiting: Family::default(),
            leading: Gauge::default(),
            audits: Audits::default(),
            quotas: Quotas::default(),
        };
        let r = &mut metrics.registry;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of the binary", build);
        r.register("reviews", "Admission reviews and filter requests that were answered", metrics.answers.clone());
        r.register(
            "refused_bodies",
            "Requests refused because their body is malformed or of another kind",
            metrics.refused_bodies.clone(),
        );
        let help = "Time from the complete body of a request to its answer";
        r.register_with_unit("review_duration", help, Unit::Seconds, metrics.latency.clone());
        r.register("node_publications", "Writes of published VRAM to nodes", metrics.published.clone());
        r.register("node_publication_errors", "Failed writes of published VRAM", metrics.publish_errors.clone());
        let help = "Times that another writer changed what a node publishes, by its field manager";
        r.register("node_publications_undone", help, metrics.undone.clone());
        metrics.bounded.register(r);
        let help = "Running pods that would be refused if they were created again, at the last check of the leader";
        r.register("pods_refused_if_created", help, metrics.refused_if_created.clone());
        let help = "Pods that request VRAM and were bound without the binding guard, on nodes with a ledger";
        r.register("bindings_past_guard", help, metrics.slips.clone());
        let help = "Pods that were bound outside of their own pool, as onShortfall: Reroute allows; only on the leader";
        r.register("pods_rerouted", help, metrics.rerouted.clone());
        let help = "Connections closed to make room for new ones; API servers alone never open that many";
        r.register("displaced_connections", help, metrics.displaced_connections.clone());
        let help = "Connections refused because the client's certificate is missing or not accepted";
        r.register("refused_clients", help, metrics.refused_clients.clone());
        r.register("connections", "Open HTTPS connections", metrics.connections.clone());
        let help = "Unschedulable pods that request VRAM, by what they wait for; only on the leader";
        r.register("waiting_pods", help, metrics.waiting.clone());
        r.register("leader", "1 while this replica leads", metrics.leading.clone());
        metrics.audits.register(r);
        metrics.quotas.register(r);
        r.register_collector(Box::new(State { index, policies, certificates }));
        metrics
    }

    /// Counts an answered review, and records how long it took.
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

    /// Sets the numbers of waiting pods, by what they wait for.
    pub fn waiting(&self, count: impl Fn(WaitsFor) -> usize) {
        for reason in WaitsFor::ALL {
            let pods = i64::try_from(count(reason)).unwrap_or(i64::MAX);
            self.waiting.get_or_create(&Waits { reason }).set(pods);
        }
    }

    /// Sets the numbers of running pods that would be refused if they were created again, by reason.
    pub fn refused_if_created(&self, pods: &BTreeMap<Reason, usize>) {
        self.refused_if_created.clear();
        for (reason, pods) in pods {
            let labels = Refused { reason: reason.to_string() };
            self.refused_if_created.get_or_create(&labels).set(i64::try_from(*pods).unwrap_or(i64::MAX));
        }
    }

    /// Sets the numbers of the last audit and when it was; `None` once this replica does not lead any more.
    pub fn audited(&self, audit: Option<(&Report, Timestamp)>) {
        match audit {
            Some((report, at)) => self.audits.set(report, at),
            None => self.audits.clear(),
        }
    }

    /// Counts an audit that failed, or whose policy reports could not all be kept.
    pub fn audit_failed(&self) {
        self.audits.failed();
    }

    /// Counts that another writer changed what a node publishes. `manager` is its field manager, if managedFields name
    /// one.
    pub fn undone(&self, manager: Option<&str>) {
        let mut undoer = Undoer { manager: manager.unwrap_or_default().to_owned() };
        if self.undone.get(&undoer).is_none() && self.distinct_undoers.fetch_add(1, Ordering::Relaxed) >= MAX_UNDOERS {
            OTHER.clone_into(&mut undoer.manager);
        }
        self.undone.get_or_create(&undoer).inc();
    }

    /// Counts a request whose body is malformed or of another kind.
    pub fn refused_body(&self) {
        self.refused_bodies.inc();
    }

    /// Sets whether a scrape names each GPU, or only nodes and pools.
    #[must_use]
    pub fn with_detail(self, detail: Detail) -> Metrics {
        Metrics { detail, ..self }
    }

    /// Returns the text that Prometheus scrapes. One page is rendered at a time. Scrapers that wait meanwhile all get
    /// the next page, whose values are all read after their requests.
    ///
    /// # Errors
    /// If a metric cannot be encoded as text.
    pub async fn scrape(&self) -> Result<Bytes, std::fmt::Error> {
        let asked = Instant::now();
        let _scraper = Scraper::of(&self.scrapers);
        let mut rendered = self.rendered.lock().await;
        let (began, text) = match rendered.take() {
            Some((began, text)) if began >= asked => (began, text),
            _ => (Instant::now(), Bytes::from(self.render().await?)),
        };
        if self.scrapers.load(Ordering::Relaxed) > 1 {
            *rendered = Some((began, text.clone()));
        }
        Ok(text)
    }

    async fn render(&self) -> Result<String, std::fmt::Error> {
        let usage = Usage::read(&self.index, self.detail).await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)?;
        usage.write(&mut text).await?;
        prometheus_client::encoding::text::encode_eof(&mut text)?;
        Ok(text)
    }
}

/// A scraper that waits for a page.
struct Scraper<'m>(&'m AtomicUsize);

impl Scraper<'_> {
    fn of(scrapers: &AtomicUsize) -> Scraper<'_> {
        scrapers.fetch_add(1, Ordering::Relaxed);
        Scraper(scrapers)
    }
}

impl Drop for Scraper<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the API server could have a namespace of this name. The empty name stands for objects without a namespace.
fn may_be_namespace(name: &str) -> bool {
    name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Buckets from 25 µs to 1.6 s: a review takes tens of microseconds, and one that takes a second must be visible.
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

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let generation = self.policies.current();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let number = i64::try_from(generation.number).unwrap_or(i64::MAX);
        gauge("policy_generation", "Number of the policy generation in force; each change adds one", number)?;
        let overcommit = i64::from(generation.policies.rules().overcommit.is_on());
        gauge("overcommit_enabled", "1 if the policies overcommit VRAM", overcommit)?;
        gauge(
            "index_synced",
            "1 once policies, nodes, pods and ledgers have been listed",
            i64::from(self.index.is_synced()),
        )?;
        let oversized = i64::try_from(self.index.oversized_pods()).unwrap_or(i64::MAX);
        gauge("oversized_pods", "Pods that may hold a GPU and are too large to be read completely", oversized)?;
        if let Some(not_after) = self.certificates.not_after() {
            let help = "Expiry of the serving certificate, in seconds since 1970";
            gauge("certificate_not_after_timestamp_seconds", help, not_after.as_second())?;
        }
        let not_kept = i64::try_from(self.index.read().waiting.not_kept()).unwrap_or(i64::MAX);
        let help = "Pods that wait for VRAM and get no event, because more pods wait than are kept";
        gauge("waiting_pods_not_kept", help, not_kept)?;
        let help = "Time since the API server last sent anything about a kind, even if no object changed";
        let gauge = ConstGauge::new(0.0);
        let mut ages = encoder.encode_descriptor("watch_age", help, Some(&Unit::Seconds), gauge.metric_type())?;
        for kind in Kind::ALL {
            if let Some(silent) = self.index.silent_for(kind) {
                ConstGauge::new(silent.as_secs_f64()).encode(ages.encode_family(&[("kind", kind.plural())])?)?;
            }
        }
        let undeclared = self.index.read().cluster.undeclared();
        let help = "Demand of a pod that declares nothing and may land on any node: the smallest slot";
        let gauge = ConstGauge::new(0_u64);
        let mut demands =
            encoder.encode_descriptor("undeclared_demand", help, Some(&Unit::Bytes), gauge.metric_type())?;
        for (resource, Undeclared { demand, .. }) in &undeclared {
            let bytes = u64::try_from(demand.bytes()).unwrap_or(u64::MAX);
            ConstGauge::new(bytes).encode(demands.encode_family(&[("resource", resource.0.as_str())])?)?;
        }
        let help = "Nodes with the resource, by whether a pod that declares nothing fits on them when they are empty";
        let mut nodes = encoder.encode_descriptor("undeclared_nodes", help, None, gauge.metric_type())?;
        for (resource, Undeclared { fitting, nodes: all, .. }) in &undeclared {
            for (fits, count) in [("true", *fitting), ("false", all.saturating_sub(*fitting))] {
                let labels = [("resource", resource.0.as_str()), ("fits", fits)];
                ConstGauge::new(count as u64).encode(nodes.encode_family(&labels)?)?;
            }
        }
        let errors = ConstCounter::new(self.policies.reload_errors());
        let help = "Changes of policy files that could not be put in force";
        errors.encode(encoder.encode_descriptor("policy_reload_errors", help, None, errors.metric_type())?)
    }
}

#[cfg(test)]
mod tests;
