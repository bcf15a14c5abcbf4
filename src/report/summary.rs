//! What every format for people says first and last: the verdict, the groups of findings, and what to do next.

use std::collections::BTreeMap;

use crate::keys;

use super::document::{Finding, Node, Report, Severity, Status, Summary, Workload};
use super::text::{count, in_words, room_gib, shell_word, taken_gib};

/// How a part of a text is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Something is broken.
    Bad,
    /// Something needs a look.
    Doubtful,
    /// All is well.
    Good,
    /// Neither.
    Plain,
}

impl Tone {
    pub(super) fn of(severity: Severity) -> Tone {
        match severity {
            Severity::Deny => Tone::Bad,
            Severity::Warn => Tone::Doubtful,
            Severity::Info => Tone::Plain,
        }
    }
}

/// The verdict of a report in parts. What is zero is left out, except overcommitted GPUs.
pub(super) fn verdict(summary: &Summary) -> Vec<(String, Tone)> {
    if summary.gpus == 0 && summary.nodes == 0 {
        let mut parts = vec![("no GPUs found".to_owned(), Tone::Doubtful)];
        parts.extend(about_pods(summary));
        return parts;
    }
    let mut parts = vec![(format!("{} on {}", count(summary.gpus, "GPU"), count(summary.nodes, "node")), Tone::Plain)];
    match summary.overcommitted_gpus {
        0 => parts.push(("none overcommitted".to_owned(), Tone::Good)),
        overcommitted => parts.push((format!("{overcommitted} overcommitted"), Tone::Bad)),
    }
    let doubtful =
        [(summary.maybe_overcommitted_nodes, "maybe overcommitted"), (summary.unknown_nodes, "with unknown GPUs")];
    for (nodes, what) in doubtful.into_iter().filter(|(nodes, _)| *nodes > 0) {
        parts.push((format!("{} {what}", count(nodes, "node")), Tone::Doubtful));
    }
    parts.extend(about_pods(summary));
    let (held, allocatable) = (in_words(taken_gib(summary.held_mib)), in_words(room_gib(summary.allocatable_mib)));
    parts.push((format!("{held} of {allocatable} GiB held"), Tone::Plain));
    if let Some(used) = summary.used_mib {
        let used = in_words(taken_gib(used));
        parts.push((format!("{used} GiB in use on {}", count(summary.used_gpus, "GPU")), Tone::Plain));
    }
    if let Some(stranded) = summary.stranded_mib.filter(|stranded| *stranded > 0) {
        parts.push((format!("{} GiB stranded", in_words(room_gib(stranded))), Tone::Plain));
    }
    parts
}

fn about_pods(summary: &Summary) -> Vec<(String, Tone)> {
    let parts = [
        (summary.refused_pods, format!("{} would be refused", count(summary.refused_pods, "pod")), Tone::Bad),
        (summary.undeclared_pods, format!("{} undeclared", summary.undeclared_pods), Tone::Doubtful),
        (summary.waiting_pods, format!("{} waiting", summary.waiting_pods), Tone::Doubtful),
    ];
    parts.into_iter().filter(|(number, ..)| *number > 0).map(|(_, text, tone)| (text, tone)).collect()
}

/// The number of findings by severity, without those that are zero.
pub(super) fn severities(summary: &Summary) -> Vec<(String, Tone)> {
    let counts = [
        (summary.deny, "deny", Tone::Bad),
        (summary.warn, "warn", Tone::Doubtful),
        (summary.info, "info", Tone::Plain),
    ];
    counts.into_iter().filter(|(number, ..)| *number > 0).map(|(n, name, tone)| (format!("{n} {name}"), tone)).collect()
}

/// The findings of one reason and severity.
pub(super) struct Group<'r> {
    pub(super) severity: Severity,
    pub(super) reason: &'r str,
    pub(super) findings: Vec<&'r Finding>,
}

impl Group<'_> {
    /// How many objects and pods it is about: `14 objects, 31 pods`.
    pub(super) fn extent(&self) -> String {
        // Several findings may be about the same pods of an object.
        let mut of_object: BTreeMap<[&str; 3], u64> = BTreeMap::new();
        for finding in &self.findings {
            let pods = of_object.entry([&finding.kind, &finding.namespace, &finding.name]).or_default();
            *pods = finding.pods.max(*pods);
        }
        let pods = of_object.into_values().fold(0_u64, u64::saturating_add);
        let findings = u64::try_from(self.findings.len()).unwrap_or(u64::MAX);
        match pods {
            0 => count(findings, "finding"),
            pods => format!("{}, {}", count(findings, "finding"), count(pods, "pod")),
        }
    }
}

/// The findings by severity and reason: the most severe first, then in the order of the report.
pub(super) fn groups(report: &Report) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for finding in &report.findings {
        let same = |group: &&mut Group<'_>| group.severity == finding.severity && group.reason == finding.reason;
        match groups.iter_mut().find(same) {
            Some(group) => group.findings.push(finding),
            None => {
                let Finding { severity, reason, .. } = finding;
                groups.push(Group { severity: *severity, reason, findings: vec![finding] });
            }
        }
    }
    groups.sort_by_key(|group| group.severity);
    groups
}

/// What the pods of a node hold in GiB; `None` if it is not known of any. `≥` if it is not known of all.
pub(super) fn held(node: &Node) -> Option<String> {
    let is_least = node.unassigned.iter().any(|holder| holder.vram_mib.is_none());
    at_least(node.held_mib, is_least)
}

/// An amount in GiB that may be more; `None` if nothing of it is known.
pub(super) fn at_least(mib: u64, is_least: bool) -> Option<String> {
    match (is_least, mib) {
        (true, 0) => None,
        (true, mib) => Some(format!("≥{}", taken_gib(mib))),
        (false, mib) => Some(taken_gib(mib)),
    }
}

/// The most nodes that are named in a sentence about their reports.
const STALE_NODES: usize = 3;

/// What an amount in use with the sign `*` means: the nodes whose reports are not current, and why.
pub(super) fn stale(report: &Report) -> String {
    let mut nodes: BTreeMap<&str, &str> = BTreeMap::new();
    for gpu in &report.gpus {
        nodes.extend(gpu.stale.as_deref().map(|why| (gpu.node.as_str(), why)));
    }
    let named = nodes.iter().map(|(node, why)| format!("{node} ({why})"));
    format!("* not what is used now: {}", first(named.collect()))
}

/// The nodes whose agents do not tell what each pod uses, and why; `None` if there are none.
pub(super) fn totals_only(report: &Report) -> Option<String> {
    let of = |node: &Node| Some((node.node.clone(), node.agent.as_ref()?.totals_only.clone()?));
    let (nodes, why): (Vec<String>, Vec<String>) = report.nodes.iter().filter_map(of).unzip();
    let why = why.into_iter().next()?;
    Some(format!("in use on {}: {why}", first(nodes)))
}

/// The first of these nodes, and how many more there are.
fn first(nodes: Vec<String>) -> String {
    let named = nodes.iter().take(STALE_NODES).cloned().collect::<Vec<_>>().join(", ");
    match nodes.len().saturating_sub(STALE_NODES) {
        0 => named,
        more => format!("{named}, and {}", count(u64::try_from(more).unwrap_or(u64::MAX), "more node")),
    }
}

/// The workloads of which fewer pods fit than they may have.
pub(super) fn cramped(report: &Report) -> Vec<&Workload> {
    let is_cramped = |workload: &&Workload| missing(workload).is_some_and(|missing| missing > 0);
    let mut cramped: Vec<&Workload> = report.workloads.iter().filter(is_cramped).collect();
    cramped.sort_by_key(|workload| std::cmp::Reverse(missing(workload)));
    cramped
}

/// How many pods of a workload would not fit if it grew to its largest size; `None` if its demand is not known.
pub(super) fn missing(workload: &Workload) -> Option<u64> {
    let growth = workload.max_replicas.saturating_sub(workload.replicas);
    workload.fits_more.map(|fits| growth.saturating_sub(fits))
}

/// The rows of a comparison of two summaries: what is counted, and whether more of it is worse.
pub(super) type Counted = (&'static str, fn(&Summary) -> u64, bool);

/// What is compared with the summary under assumptions.
pub(super) const COUNTED: [Counted; 11] = [
    ("overcommitted GPUs", |s| s.overcommitted_gpus, true),
    ("maybe overcommitted nodes", |s| s.maybe_overcommitted_nodes, true),
    ("nodes with unknown GPUs", |s| s.unknown_nodes, true),
    ("pods that would be refused", |s| s.refused_pods, true),
    ("undeclared pods", |s| s.undeclared_pods, true),
    ("waiting pods", |s| s.waiting_pods, true),
    ("findings: deny", |s| s.deny, true),
    ("findings: warn", |s| s.warn, true),
    ("findings: info", |s| s.info, false),
    ("pods with a shared GPU", |s| s.gpu_pods, false),
    ("GPUs", |s| s.gpus, false),
];

/// What to do next, and the command to do it with.
pub(super) fn next(report: &Report) -> (String, String) {
    let summary = &report.summary;
    let worst = |status: Status| report.nodes.iter().find(|node| node.status == status);
    if let Some(node) = worst(Status::Overcommitted) {
        let field = shell_word(&format!("spec.nodeName={}", node.node));
        return (
            "move a pod off each overcommitted GPU; list those of the first node".to_owned(),
            format!("kubectl get pods -A --field-selector {field}"),
        );
    }
    if let Some(node) = worst(Status::Unknown).or_else(|| worst(Status::MaybeOvercommitted)) {
        return (
            "find out what the node's labels and capacity say about its GPUs".to_owned(),
            format!("kubectl describe node {}", shell_word(&node.node)),
        );
    }
    if let Some(refused) = report.enforced.refused.first() {
        return (
            "add the lines above before you enforce; see the policy behind the first".to_owned(),
            format!("vramguard explain --namespace {}", shell_word(&refused.namespace)),
        );
    }
    let grave = |finding: &&Finding| finding.severity == Severity::Deny && !finding.namespace.is_empty();
    if let Some(grave) = report.findings.iter().find(grave) {
        let sentence = "mend what is marked deny; see what the policy makes of the first";
        return (sentence.to_owned(), format!("vramguard explain --namespace {}", shell_word(&grave.namespace)));
    }
    if summary.deny + summary.warn > 0 {
        let compared = report.baseline.is_some();
        let sentence = if compared {
            "mend what is new, then keep this report as the next baseline"
        } else {
            "keep this report, and fail only on what is new from now on, by --baseline audit.json --fail-on new"
        };
        return (sentence.to_owned(), "vramguard audit --output json=audit.json".to_owned());
    }
    if !report.gaps.is_empty() {
        let sentence = "this report is not complete; see what you may read";
        return (sentence.to_owned(), "kubectl auth can-i --list".to_owned());
    }
    if summary.gpus == 0 && summary.nodes == 0 {
        return (
            "no node offers GPUs that are known here; see which nodes are labelled".to_owned(),
            format!("kubectl get nodes -L {}", keys::GFD_PRODUCT),
        );
    }
    (
        "nothing stands in the way of mode Enforce; keep it so in CI".to_owned(),
        "vramguard audit --fail-on warn".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::sample;
    use super::*;

    fn text(summary: &Summary) -> String {
        verdict(summary).into_iter().map(|(text, _)| text).collect::<Vec<_>>().join(" · ")
    }

    #[test]
    fn the_verdict_says_what_is_there_and_leaves_out_what_is_not() {
        insta::assert_snapshot!(text(&sample().summary), @"4 GPUs on 4 nodes · 1 overcommitted · 1 node with unknown GPUs · 2 pods would be refused · 3 undeclared · 1 waiting · 119 of 148.3 GiB held · 24.8 GiB in use on 1 GPU · 1.2 GiB stranded");
        let clean = Summary { gpus: 1, nodes: 1, allocatable_mib: 24_576, held_mib: 8192, ..Summary::default() };
        insta::assert_snapshot!(text(&clean), @"1 GPU on 1 node · none overcommitted · 8 of 24 GiB held");
        insta::assert_snapshot!(text(&Summary { undeclared_pods: 2, ..Summary::default() }), @"no GPUs found · 2 undeclared");
    }

    #[test]
    fn findings_of_one_reason_and_severity_are_one_group_and_the_most_severe_is_first() {
        let mut report = sample();
        report.findings.reverse();
        let mut second = report.findings[0].clone();
        second.severity = Severity::Warn;
        report.findings.push(second);
        let listed: Vec<(Severity, &str, String)> =
            groups(&report).iter().map(|group| (group.severity, group.reason, group.extent())).collect();
        assert_eq!(listed[0], (Severity::Deny, "VramUnreadable", "1 finding, 1 pod".to_owned()));
        assert_eq!(listed[7], (Severity::Info, "StrandedVram", "1 finding".to_owned()));
        assert_eq!(listed.iter().filter(|(_, reason, _)| *reason == "StrandedVram").count(), 2);
    }

    #[test]
    fn each_format_for_people_says_of_which_nodes_the_use_of_pods_is_not_told() {
        let mut report = sample();
        assert_eq!(totals_only(&report), None);
        let agent = report.nodes[0].agent.as_mut().expect("the sample has an agent");
        agent.totals_only = Some(crate::capacity::verdict::TOTALS_ONLY.into());
        let table = super::super::table::render(&report, &super::super::Options::default());
        let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = "as read from a DCGM exporter, which does not tell what each pod uses, nor what no pod counts with";
        assert!(table.contains(&format!("in use on gke-agents-a100-pool-7f3d9c2b-x4kq: {said}")), "{table}");
        let markdown = super::super::markdown::render(&report);
        assert!(markdown.contains(said), "{markdown}");
        let html = super::super::html::render(&[report]);
        assert!(html.contains(&format!("In use is what the node agent reports, {said}.")), "{html}");
    }

    #[test]
    fn a_workload_is_cramped_if_fewer_pods_fit_than_it_may_have() {
        let mut report = sample();
        report.workloads[1].max_replicas = 8;
        report.workloads.push(Workload { fits_more: None, max_replicas: 90, ..report.workloads[0].clone() });
        let listed: Vec<_> =
            cramped(&report).iter().map(|workload| (workload.name.as_str(), missing(workload))).collect();
        assert_eq!(listed, [("researcher", Some(8)), ("writer", Some(1))]);
    }

    #[test]
    fn what_to_do_next_follows_from_the_worst_that_was_found() {
        let mut report = sample();
        let mut steps = vec![next(&report)];
        report.nodes.remove(0);
        steps.push(next(&report));
        report.nodes.clear();
        steps.push(next(&report));
        report.enforced.refused.clear();
        steps.push(next(&report));
        report.findings.clear();
        steps.push(next(&report));
        report.summary = Summary { gpus: 1, nodes: 1, ..Summary::default() };
        steps.push(next(&report));
        report.gaps.clear();
        steps.push(next(&report));
        report.summary = Summary::default();
        steps.push(next(&report));
        let commands: Vec<String> = steps.into_iter().map(|(_, command)| command).collect();
        insta::assert_snapshot!(commands.join("\n"), @"
        kubectl get pods -A --field-selector spec.nodeName=gke-agents-a100-pool-7f3d9c2b-x4kq
        kubectl describe node gpu-d
        vramguard explain --namespace notebooks
        vramguard explain --namespace notebooks
        vramguard audit --output json=audit.json
        kubectl auth can-i --list
        vramguard audit --fail-on warn
        kubectl get nodes -L nvidia.com/gpu.product
        ");
    }

    #[test]
    fn a_name_cannot_end_the_command() {
        let mut report = sample();
        report.nodes[0].node = "x; rm -rf ~\n#".into();
        assert_eq!(next(&report).1, r"kubectl get pods -A --field-selector 'spec.nodeName=x; rm -rf ~\n#'");
    }
}
