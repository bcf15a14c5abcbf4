//! An explanation for people, as lines of text. Owns layout and colours.

use super::{Container, Explanation, Group, Nodes, Origin, Pod, Quota, Setting, Source, Validate};
use crate::capacity::verdict::count;

use crate::keys;
use crate::report::ansi::{BOLD, BOLD_RED, DIM, GREEN, Style, YELLOW};
use crate::report::document::vram;
use crate::report::text::printable;

/// The most names of nodes in one line.
const NAMES: usize = 5;

/// The widest value for which the columns are aligned; a longer one moves the rest of its line.
const WIDEST: usize = 20;

/// The longest line of a list.
const LINE: usize = 70;

/// The explanation as text. `coloured` adds the codes of a terminal.
pub fn render(explanation: &Explanation, coloured: bool) -> String {
    let mut table = Table { out: String::new(), coloured };
    let namespace = printable(&explanation.namespace);
    table.line(0, &format!("{} {namespace}", table.styled(BOLD, "namespace")));
    if explanation.exempt {
        table.line(2, "is exempt: vramguard neither changes nor refuses its pods");
        let exempt = explanation.policy.iter().find(|setting| setting.field == "exemptNamespaces");
        let listed = |value: &str| value.split(", ").any(|name| name == explanation.namespace);
        match exempt.filter(|exempt| exempt.value.as_deref().is_some_and(listed)) {
            Some(exempt) => table.line(2, &format!("it is listed in exemptNamespaces ({})", from(exempt))),
            None => table.line(2, "it is the namespace of vramguard, which is always exempt"),
        }
    } else {
        table.line(0, "");
        table.policy(&explanation.policy);
    }
    for quota in &explanation.quotas {
        table.line(0, "");
        table.quota(quota);
    }
    if let Some(pod) = &explanation.pod {
        table.line(0, "");
        table.pod(&explanation.namespace, pod);
    }
    if let Some(nodes) = &explanation.nodes {
        table.line(0, "");
        table.nodes(nodes);
    }
    for note in &explanation.notes {
        table.line(0, "");
        table.line(0, &format!("{} {}", table.styled(YELLOW, "note:"), printable(note)));
    }
    table.out
}

struct Table {
    out: String,
    coloured: bool,
}

/// Where a value comes from, in words.
fn from(setting: &Setting) -> String {
    match (&setting.source, setting.origin) {
        (Some(source), _) => place(source),
        (None, Origin::Default) => "default".to_owned(),
        (None, Origin::Cluster) => "ClusterVramPolicy".to_owned(),
        (None, Origin::Namespace) => "VramPolicy".to_owned(),
    }
}

fn place(source: &Source) -> String {
    let file = printable(&source.file);
    source.line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"))
}

fn amount(mib: u64) -> String {
    vram(mib).to_string()
}

impl Table {
    fn styled(&self, style: Style, text: &str) -> String {
        style.of(text, self.coloured)
    }

    fn line(&mut self, indent: usize, text: &str) {
        let line = format!("{:indent$}{text}", "");
        self.out.push_str(line.trim_end());
        self.out.push('\n');
    }

    fn policy(&mut self, settings: &[Setting]) {
        let length = |text: &str| text.chars().count();
        let fields = settings.iter().map(|setting| length(&setting.field)).max().unwrap_or_default().max(5);
        let values = settings.iter().filter_map(|setting| setting.value.as_deref()).map(length);
        let values = values.filter(|length| *length <= WIDEST).max().unwrap_or_default().max(5);
        let header = format!("{:fields$}  {:values$}  FROM", "FIELD", "VALUE");
        self.line(0, &self.styled(BOLD, &header));
        for setting in settings {
            let value = setting.value.as_deref().map_or("-".to_owned(), printable);
            let (value, list) = if length(&value) > WIDEST && value.contains(", ") {
                (count(value.split(", ").count(), "name"), Some(value))
            } else {
                (value, None)
            };
            let from = from(setting);
            let from = if setting.origin == Origin::Default { self.styled(DIM, &from) } else { from };
            let mut notes = Vec::new();
            if setting.field == "mode" && setting.origin == Origin::Default {
                let exists = setting.value.as_deref() == Some("Enforce");
                let cause = if exists { "there is a ClusterVramPolicy" } else { "there is no ClusterVramPolicy" };
                notes.push(format!("because {cause}"));
            }
            if setting.locked {
                notes.push("locked by the ClusterVramPolicy".to_owned());
            }
            if let Some(ignored) = &setting.ignored {
                let at = ignored.source.as_ref().map_or_else(|| "the other document".to_owned(), place);
                let why = match ignored.why {
                    "locked" => "is ignored",
                    "replaced" => "is replaced",
                    _ => "is less strict",
                };
                notes.push(format!("{} of {at} {why}", printable(&ignored.value)));
            }
            let notes = match notes.is_empty() {
                true => String::new(),
                false => self.styled(YELLOW, &format!(" ({})", notes.join("; "))),
            };
            self.line(0, &format!("{:fields$}  {value:values$}  {from}{notes}", printable(&setting.field)));
            for line in list.iter().flat_map(|list| wrapped(list)) {
                self.line(fields + 2, &self.styled(DIM, &line));
            }
        }
    }

    fn quota(&mut self, quota: &Quota) {
        let known = |mib: Option<u64>| mib.map_or_else(|| "an unknown amount".to_owned(), amount);
        let keeper = if quota.kept_by_vramguard { "kept by vramguard" } else { "made by others" };
        let text = format!(
            "{} {} ({keeper}): {} of requests, {} used, {} left",
            self.styled(BOLD, "resourcequota"),
            printable(&quota.name),
            known(quota.hard_mib),
            known(quota.used_mib),
            known(quota.left_mib),
        );
        self.line(0, &text);
    }

    fn pod(&mut self, namespace: &str, pod: &Pod) {
        let name = printable(&format!("{namespace}/{}", pod.name));
        self.line(0, &format!("{} {name}", self.styled(BOLD, &pod.kind.to_lowercase())));
        for container in &pod.containers {
            self.container(container);
        }
        let demand = pod.demand_mib.map_or("-".to_owned(), amount);
        let several = pod.containers.iter().filter(|container| container.demand_mib.is_some()).count() > 1;
        let how = if several { ", as Kubernetes adds up containers that run at the same time" } else { "" };
        self.line(2, &format!("{} {demand}{how}", self.styled(BOLD, "demand of the pod")));
        self.mutate(pod);
        self.validate(&pod.validate);
    }

    fn container(&mut self, container: &Container) {
        let Container { name, role, why, .. } = container;
        let counts = if container.counts { "counts" } else { "does not count" };
        self.line(2, &format!("{} {} ({role}) {counts}: it {why}", self.styled(BOLD, "container"), printable(name)));
        if !container.counts {
            return;
        }
        let also: Vec<String> = container.also.iter().map(|source| printable(source)).collect();
        let also = if also.is_empty() { String::new() } else { format!(" (before {})", also.join(", ")) };
        let processes = container.processes.map_or_else(String::new, |processes| {
            let noun = if processes == 1 { "process" } else { "processes" };
            format!(" for {processes} CUDA {noun}")
        });
        match (container.declared_mib, container.slot, container.demand_mib) {
            (Some(declared), false, Some(demand)) => {
                self.line(4, &format!("declares {:>8}  {}{also}", amount(declared), printable(&container.source)));
                let overhead = container.overhead_mib.map_or("-".to_owned(), amount);
                self.line(4, &format!("overhead {overhead:>8}  perProcessOverhead{processes}"));
                self.line(4, &format!("demand   {:>8}", amount(demand)));
            }
            (_, true, Some(demand)) => {
                self.line(4, "declares  nothing, so it counts as one slot, overhead included");
                self.line(4, &format!("demand   {:>8}", amount(demand)));
            }
            _ => self.line(4, "has no demand: what it declares is refused, or depends on the nodes"),
        }
    }

    fn mutate(&mut self, pod: &Pod) {
        let mutate = &pod.mutate;
        let changes = if mutate.changes { "changes the pod" } else { "changes nothing" };
        self.line(2, &format!("{} {changes}", self.styled(BOLD, "/mutate/pods")));
        for container in &pod.containers {
            let name = printable(&container.name);
            if let Some(request) = container.injected_request_mib {
                self.line(4, &format!("{name}: requests {} of {}", amount(request), keys::VRAM_RESOURCE));
            }
            for variable in &container.injected_env {
                self.line(4, &format!("{name}: sets {}", printable(variable)));
            }
            for variable in &container.edited_env {
                self.line(4, &format!("{name}: changes to {}", printable(variable)));
            }
            if let Some(argument) = &container.appended_argument {
                self.line(4, &format!("{name}: appends {}", printable(argument)));
            }
            if let Some(variable) = &container.removed_env {
                self.line(4, &format!("{name}: removes {}", printable(variable)));
            }
            if !container.bound.is_empty() {
                let framework = container.framework.map_or_else(String::new, |framework| format!(" ({framework})"));
                self.line(4, &format!("{name}{framework} is {}", printable(&container.bound)));
            }
        }
        if !mutate.affinity.is_empty() {
            self.line(4, &format!("requires of the node: {}", printable(&mutate.affinity.join(", or "))));
        }
        if let Some(own) = &mutate.own_pool {
            self.line(4, &format!("prefers its own pool: {}", printable(own)));
            self.line(4, &format!("may also use: {}", printable(&mutate.further_pools.join(", then "))));
        }
        for key in &mutate.removed_annotations {
            self.line(4, &format!("removes the annotation {}", printable(key)));
        }
        self.warnings(&mutate.warnings);
    }

    fn validate(&mut self, validate: &Validate) {
        let verdict = match (validate.verdict, validate.violations.is_empty()) {
            ("Deny", _) => self.styled(BOLD_RED, "refuses the pod"),
            (_, true) => self.styled(GREEN, "admits the pod"),
            (_, false) => self.styled(YELLOW, "admits the pod, which mode Enforce would refuse"),
        };
        self.line(2, &format!("{} {verdict}", self.styled(BOLD, "/validate/pods")));
        for violation in &validate.violations {
            self.line(4, &format!("{}: {}", violation.reason, printable(&violation.message)));
        }
        for violation in &validate.depends_on_nodes {
            let reason = &violation.reason;
            self.line(4, &format!("depends on the nodes: without any, the answer would be {reason}"));
        }
        self.warnings(&validate.warnings);
    }

    fn warnings(&mut self, warnings: &[String]) {
        for warning in warnings {
            self.line(4, &format!("{} {}", self.styled(YELLOW, "warns:"), printable(warning)));
        }
    }

    fn nodes(&mut self, nodes: &Nodes) {
        let now = nodes.now.len();
        let text = format!("{now} of {} can take the pod now", nodes.total);
        let text = self.styled(if now == 0 { BOLD_RED } else { GREEN }, &text);
        self.line(0, &format!("{} {text}", self.styled(BOLD, "nodes:")));
        if now > 0 {
            self.line(2, &format!("now    {}", names(&nodes.now, now)));
        }
        for (label, groups) in [("later", &nodes.later), ("never", &nodes.never)] {
            for group in groups {
                self.group(label, group);
            }
        }
        if now == 0 && nodes.later.is_empty() && nodes.total > 0 {
            self.line(2, "as the cluster is, the pod fits no node, even if all other pods leave");
        }
    }

    fn group(&mut self, label: &str, group: &Group) {
        let nodes = names(&group.nodes, group.count);
        self.line(2, &format!("{label}  {}: {}", count(group.count, "node"), printable(&group.why)));
        self.line(9, &self.styled(DIM, &nodes));
        if let (Some(first), false) = (group.nodes.first(), group.example.is_empty()) {
            self.line(9, &format!("{} {}", printable(first), printable(&group.example)));
        }
    }
}

/// A list of names in lines of at most [`LINE`] characters.
fn wrapped(list: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for name in list.split(", ") {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(name),
            Some(line) if line.len() + name.len() + 2 <= LINE => {
                line.push_str(", ");
                line.push_str(name);
            }
            _ => lines.push(name.to_owned()),
        }
    }
    lines
}

fn names(nodes: &[String], all: usize) -> String {
    let mut shown: Vec<String> = nodes.iter().take(NAMES).map(|name| printable(name)).collect();
    if all > shown.len() {
        shown.push(format!("and {} more", all - shown.len()));
    }
    shown.join(", ")
}
