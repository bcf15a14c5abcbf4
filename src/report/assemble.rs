//! From the results of an audit to its document. Owns how typed results become names, numbers and ids of the contract.

use super::document::{
    Agent, Assumed, Enforced, Finding, Gap, Gpu, Holder, Moved, Namespace, Node, Refused, Report, SCHEMA_VERSION,
    Severity, Source, Status, Summary, Workload,
};
use crate::capacity::audit::outcome::{
    self, AgentState, Audit, GpuState, Held, NamespaceState, NodeState, Sharing, State,
};
use crate::capacity::gpu::Accounting;
use crate::capacity::verdict::{TOTALS_ONLY, finding};
use crate::capacity::vram::Vram;
use crate::k8s::gpu_ledger;

/// Facts about a report that an audit does not know.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// When the cluster was read, in RFC 3339.
    pub generated_at: String,
    /// The name of the cluster.
    pub cluster: String,
    /// What could not be read.
    pub gaps: Vec<Gap>,
}

/// Makes the document of an audit.
pub fn report(audit: &Audit, origin: &Origin) -> Report {
    let findings: Vec<Finding> = audit.findings.iter().map(finding).collect();
    Report {
        schema_version: SCHEMA_VERSION.to_owned(),
        generated_at: origin.generated_at.clone(),
        generated_by: concat!("vramguard ", env!("CARGO_PKG_VERSION")).to_owned(),
        cluster: origin.cluster.clone(),
        gaps: origin.gaps.clone(),
        summary: summary(audit, &findings),
        gpus: audit.gpus.iter().map(gpu).collect(),
        nodes: audit.nodes.iter().map(node).collect(),
        namespaces: audit.namespaces.iter().map(namespace).collect(),
        workloads: audit.workloads.iter().map(workload).collect(),
        findings,
        enforced: enforced(&audit.enforced),
        assumed: None,
        baseline: None,
    }
}

impl Report {
    /// Adds the report of the same cluster under assumptions, as they were given.
    pub fn assume(&mut self, assumptions: Vec<String>, report: Report) {
        self.assumed = Some(Assumed { assumptions, report: Box::new(report) });
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn mib(amount: Vram) -> u64 {
    amount.mib()
}

fn summary(audit: &Audit, findings: &[Finding]) -> Summary {
    let of = |severity| number(findings.iter().filter(|finding| finding.severity == severity).count());
    let totals = &audit.totals;
    Summary {
        gpus: number(totals.gpus),
        overcommitted_gpus: number(totals.overcommitted),
        deny: of(Severity::Deny),
        warn: of(Severity::Warn),
        info: of(Severity::Info),
        overcommitted_mib: mib(totals.overcommitted_by),
        nodes: number(totals.nodes),
        maybe_overcommitted_nodes: number(totals.maybe_overcommitted),
        unknown_nodes: number(totals.unknown),
        gpu_pods: number(totals.pods),
        waiting_pods: number(totals.waiting),
        undeclared_pods: number(totals.undeclared),
        refused_pods: number(totals.refused),
        allocatable_mib: mib(totals.allocatable),
        held_mib: mib(totals.held),
        stranded_mib: totals.stranded.map(mib),
        used_mib: totals.used.map(mib),
        used_gpus: number(totals.used_gpus),
    }
}

/// The name of an accounting mode in reports.
fn mode(accounting: Accounting) -> &'static str {
    match accounting {
        Accounting::Exact => "exact",
        Accounting::Exclusive => "exclusive",
        Accounting::Steered => "steered",
        Accounting::Confirmed => "confirmed",
        Accounting::Slot => "slot",
        Accounting::Unknown => "unknown",
    }
}

/// The mode of GPUs that claims share.
const CLAIMS: &str = "dra";

fn gpu(state: &GpuState) -> Gpu {
    Gpu {
        node: state.node.clone(),
        gpu: state.id.clone(),
        mode: match state.sharing {
            Sharing::Plugin(accounting) => mode(accounting).to_owned(),
            Sharing::Claims => CLAIMS.to_owned(),
        },
        total_mib: mib(state.total),
        allocatable_mib: mib(state.allocatable),
        held_mib: mib(state.held),
        free_mib: state.free.map(mib),
        overcommitted: state.state == State::Overcommitted,
        holders: state.holders.iter().map(holder).collect(),
        resource: state.resource.clone(),
        product: state.product.clone(),
        replicas: u64::from(state.replicas),
        headroom_mib: mib(state.headroom),
        used_mib: state.in_use.used.map(mib),
        outside_mib: state.in_use.outside.map(mib),
        stale: state.in_use.outdated.as_ref().map(ToString::to_string),
        status: status(state.state),
    }
}

fn status(state: State) -> Status {
    match state {
        State::Ok => Status::Ok,
        State::Full => Status::Full,
        State::Unknown => Status::Unknown,
        State::MaybeOvercommitted => Status::MaybeOvercommitted,
        State::Overcommitted => Status::Overcommitted,
    }
}

fn holder(held: &Held) -> Holder {
    Holder {
        namespace: held.pod.namespace.to_string(),
        pod: held.pod.name.to_string(),
        container: held.container.to_string(),
        vram_mib: held.amount.map(mib),
        declared: held.declared,
        seen: held.seen,
        bounded_by: held.bounded_by.map(|by| by.word().to_owned()),
        used_mib: held.in_use.as_ref().and_then(|seen| seen.used).map(mib),
        peak_mib: held.in_use.as_ref().map(|seen| mib(seen.peak)),
        idle_seconds: held.in_use.as_ref().and_then(|seen| seen.idle).map(|idle| idle.as_secs()),
        problem: held.in_use.as_ref().and_then(|seen| seen.problem).map(|problem| problem.to_string()),
        stale: held.in_use.as_ref().and_then(|seen| seen.outdated.as_ref()).map(ToString::to_string),
    }
}

fn agent(state: &AgentState) -> Agent {
    Agent {
        reported_at: state.reported.map(gpu_ledger::time),
        age_seconds: state.age.map(|age| age.as_secs()),
        totals_only: (!state.source.tells_processes()).then(|| TOTALS_ONLY.to_owned()),
        stale: state.outdated.as_ref().map(ToString::to_string),
    }
}

fn node(state: &NodeState) -> Node {
    Node {
        node: state.name.clone(),
        mode: state.accounting.map_or(CLAIMS, mode).to_owned(),
        published_mib: state.published.map(mib),
        placeable_mib: state.placeable.map(mib),
        unassigned: state.unassigned.iter().map(holder).collect(),
        gpus: number(state.gpus),
        product: state.product.clone(),
        resources: state.resources.iter().map(ToString::to_string).collect(),
        allocatable_mib: state.allocatable.map(mib),
        held_mib: mib(state.held),
        free_mib: state.free.map(mib),
        pod_max_mib: state.pod_max.map(mib),
        stranded_mib: state.stranded.map(mib),
        pods: number(state.pods),
        undeclared_pods: number(state.undeclared),
        unknown: state.unknown.clone(),
        status: status(state.state),
        agent: state.agent.as_ref().map(agent),
    }
}

fn namespace(state: &NamespaceState) -> Namespace {
    Namespace {
        namespace: state.name.to_string(),
        mode: state.mode.map_or_else(|| "Exempt".to_owned(), |mode| mode.to_string()),
        declared_mib: mib(state.declared),
        quota_mib: state.quota.map(mib),
        undeclared_pods: number(state.undeclared),
        pods: number(state.pods),
        held_mib: mib(state.held),
        refused_pods: number(state.refused),
        waiting_pods: number(state.waiting),
    }
}

fn workload(state: &outcome::WorkloadState) -> Workload {
    Workload {
        kind: state.object.kind.to_string(),
        namespace: state.object.namespace.to_string(),
        name: state.object.name.to_string(),
        demand_mib: state.demand.map(mib),
        replicas: state.replicas,
        max_replicas: state.most,
        fits_more: state.fits,
    }
}

fn finding(found: &finding::Finding) -> Finding {
    let object = &found.object;
    let reason = found.matter.reason().to_string();
    let node = found.node.as_ref().map(ToString::to_string);
    let detail = found.matter.detail();
    let about =
        [&reason, &*object.kind, &*object.namespace, &*object.name, &detail, node.as_deref().unwrap_or_default()];
    Finding {
        severity: match found.severity {
            finding::Severity::Deny => Severity::Deny,
            finding::Severity::Warn => Severity::Warn,
            finding::Severity::Info => Severity::Info,
        },
        id: id(&about),
        kind: object.kind.to_string(),
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
        message: found.matter.to_string(),
        remedy: found.matter.remedy(),
        container: found.matter.container().map(str::to_owned),
        node,
        pods: found.pods,
        numbers: found.matter.numbers().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        source: found.place.as_ref().map(|place| Source { file: place.file.to_string(), line: place.line }),
        reason,
    }
}

/// The id of a finding: the FNV-1a hash, in 64 bits, of what it is about. The hashers of the standard library may give
/// another value in the next release, and ids are compared between reports.
fn id(about: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for text in about {
        // A byte that is in no UTF-8 text keeps ("a", "b") and ("ab", "") apart.
        for byte in text.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

fn enforced(enforced: &outcome::Enforced) -> Enforced {
    let refused = enforced.refused.iter().filter_map(|(pod, violations)| {
        let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        Some(Refused {
            namespace: pod.namespace.to_string(),
            pod: pod.name.to_string(),
            reason: violations.first()?.reason().to_string(),
            message: all.join("; also, "),
        })
    });
    let moved = |pod: &crate::capacity::pod::PodName, from: &str, to: Option<&String>| Moved {
        namespace: pod.namespace.to_string(),
        pod: pod.name.to_string(),
        from: from.to_owned(),
        to: to.cloned(),
    };
    Enforced {
        refused: refused.collect(),
        waiting: enforced.waiting.iter().map(|(pod, from)| moved(pod, from, None)).collect(),
        elsewhere: enforced.elsewhere.iter().map(|(pod, from, to)| moved(pod, from, Some(to))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_where_one_text_ends_and_the_next_begins() {
        assert_eq!(id(&["a", "b"]), id(&["a", "b"]));
        assert_ne!(id(&["ab", ""]), id(&["a", "b"]));
        // A known value of FNV-1a: ids must be the same in every version.
        assert_eq!(id(&[]), "cbf29ce484222325");
    }
}
