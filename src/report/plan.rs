//! A plan of replicas, as text for people and as JSON. Owns how it looks; what is planned is decided in
//! [`capacity::plan`](crate::capacity::plan).

use std::fmt::Write;

use serde::Serialize;

use crate::capacity::gpu::{Accounting, Pool, Rules};
use crate::capacity::plan::{Bound, EqualPools, Plan, THUMB, Wanted};
use crate::capacity::verdict::count;
use crate::capacity::vram::Vram;
use crate::report::text::{printable, room_gib, taken_gib, width};

/// The version of the JSON.
const SCHEMA_VERSION: &str = "v1";
/// Names that one line lists.
const LISTED: usize = 3;

/// A plan with the names that it is told by.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    schema_version: &'static str,
    /// The pools of equal nodes.
    pub pools: Vec<PoolRow>,
    /// The demands, the largest first.
    pub demands: Vec<DemandRow>,
    /// A choice with which more VRAM is used.
    pub alternative: Option<AlternativeRow>,
    /// Pools whose GPUs are not known.
    pub unknown: Vec<String>,
    /// Pods that declare nothing.
    pub undeclared: Vec<String>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// The ConfigMap of the device plugin, as YAML.
    pub config_map: String,
    /// What to run, in this order. Without a demand there is no plan, and nothing to run.
    pub commands: Vec<String>,
}

/// What is told if there is nothing to plan for.
const NO_DEMAND: &str =
    "There is no demand to plan for: give manifests, --snapshot with workloads, --demand, or --policies with models.";

/// One pool of equal nodes.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolRow {
    /// What its nodes are.
    pub name: String,
    /// The named config for its nodes.
    pub config: String,
    /// The resource.
    pub resource: String,
    /// Number of nodes.
    pub nodes: u64,
    /// GPUs of one node.
    pub gpus: usize,
    /// Accounting mode with the new replicas.
    pub mode: String,
    /// Replicas now.
    pub current_replicas: u32,
    /// Replicas as planned; 1 means not shared.
    pub replicas: u32,
    /// One slot as planned.
    pub slot_mib: u64,
    /// Allocatable memory of all nodes.
    pub allocatable_mib: u64,
    /// Pods that are placed.
    pub pods: u64,
    /// What they take.
    pub held_mib: u64,
    /// What is free and of no use for any of the demands.
    pub stranded_mib: u64,
    /// Why this many replicas.
    pub why: String,
}

/// One demand.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DemandRow {
    /// Who demands it.
    pub names: Vec<String>,
    /// What one takes, overhead included.
    pub demand_mib: u64,
    /// How many there are; `null` for as many as fit.
    pub wanted: Option<u64>,
    /// How many fit.
    pub fits: u64,
    /// The pools that take them.
    pub on: Vec<String>,
    /// Why none fits.
    pub why: Option<String>,
}

/// Another choice.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AlternativeRow {
    /// Replicas of each pool.
    pub replicas: Vec<u32>,
    /// Pods that fit then.
    pub pods: u64,
    /// What it is about.
    pub text: String,
}

/// What a report is made of, in addition to the plan.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The pools, as they were planned.
    pub pools: &'a [EqualPools],
    /// Name and config of each pool.
    pub names: &'a [(String, String)],
    /// The demands, as they were planned.
    pub wanted: &'a [Wanted],
    /// Who has each demand.
    pub who: &'a [Vec<String>],
    /// The rules that amounts are computed by.
    pub rules: &'a Rules,
}

/// The parts of a report that are not about numbers.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Pools whose GPUs are not known.
    pub unknown: Vec<String>,
    /// Pods that declare nothing.
    pub undeclared: Vec<String>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// The ConfigMap of the device plugin.
    pub config_map: String,
    /// The command that applies the ConfigMap.
    pub apply: String,
    /// What to run then.
    pub commands: Vec<String>,
}

impl Report {
    /// Makes the report of a plan.
    pub fn of(plan: &Plan, input: Input<'_>, extras: Extras) -> Report {
        let mut demands: Vec<DemandRow> = (0..input.wanted.len()).map(|index| demand(plan, input, index)).collect();
        demands.sort_by_key(|row| std::cmp::Reverse(row.demand_mib));
        let Extras { unknown, undeclared, left_out, config_map, apply, commands } = extras;
        let is_planned = !demands.is_empty();
        let commands = std::iter::once(apply).chain(commands).filter(|_| is_planned).collect();
        let config_map = if is_planned { config_map } else { String::new() };
        Report {
            schema_version: SCHEMA_VERSION,
            pools: (0..input.pools.len()).map(|index| pool(plan, input, index)).collect(),
            demands,
            alternative: alternative(plan, input),
            unknown,
            undeclared,
            left_out,
            config_map,
            commands,
        }
    }

    /// Whether something needs a person: no demand at all, one without a place, one that cannot be read, or a pool that is
    /// not known.
    pub fn has_findings(&self) -> bool {
        self.demands.is_empty()
            || self.demands.iter().any(|row| row.why.is_some())
            || !self.left_out.is_empty()
            || !self.unknown.is_empty()
    }

    /// The report for programs.
    pub fn json(&self) -> String {
        crate::report::json::pretty(self)
    }

    /// The ConfigMap alone, with what to run then as comments. Without a demand, a comment that says so.
    pub fn yaml(&self) -> String {
        if self.demands.is_empty() {
            return format!("# {NO_DEMAND}\n");
        }
        // The first command applies this.
        let commands: String = self.commands.iter().skip(1).map(|command| format!("# {command}\n")).collect();
        format!("# then:\n{commands}{}", self.config_map)
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let nodes: u64 = self.pools.iter().map(|row| row.nodes).sum();
        let gpus: u64 = self.pools.iter().map(|row| row.nodes * row.gpus as u64).sum();
        let _ = writeln!(
            text,
            "{} on {} · {} · {}\n",
            number(gpus, "GPU"),
            number(nodes, "node"),
            number(self.pools.len() as u64, "pool"),
            number(self.demands.len() as u64, "kind of demand"),
        );
        self.pool_table(&mut text);
        self.demand_table(&mut text);
        self.notes(&mut text);
        if !self.commands.is_empty() {
            text.push_str("\nNext\n");
            for command in &self.commands {
                let _ = writeln!(text, "  {}", printable(&shortened(command)));
            }
            text.push_str("The last command is for the GPU Operator. Without it, give the ConfigMap to the plugin's chart: config.name.\n");
        }
        text
    }

    fn pool_table(&self, text: &mut String) {
        let head = ["POOL", "NODES", "GPUS", "MODE", "REPLICAS", "SLOT", "PODS", "HELD", "STRANDED", "ALLOC"];
        let rows = self.pools.iter().map(|row| {
            let replicas = if row.current_replicas == row.replicas {
                row.replicas.to_string()
            } else {
                format!("{} -> {}", row.current_replicas, row.replicas)
            };
            let slot = if row.mode == Accounting::Slot.to_string() { room(row.slot_mib) } else { "-".to_owned() };
            vec![
                row.name.clone(),
                row.nodes.to_string(),
                row.gpus.to_string(),
                row.mode.clone(),
                replicas,
                slot,
                row.pods.to_string(),
                taken(row.held_mib),
                room(row.stranded_mib),
                room(row.allocatable_mib),
            ]
        });
        columns(text, &head, rows.collect(), &[1, 2, 4, 5, 6, 7, 8, 9]);
        text.push_str("\nWhy\n");
        for row in &self.pools {
            wrapped(text, &format!("{}: {}", row.name, row.why));
        }
        if let Some(alternative) = &self.alternative {
            wrapped(text, &alternative.text);
        }
    }

    fn demand_table(&self, text: &mut String) {
        if self.demands.is_empty() {
            let _ = writeln!(text, "\n{NO_DEMAND}");
            return;
        }
        text.push('\n');
        let head = ["DEMAND", "WANTED", "FITS", "ON", "WHO"];
        let rows = self.demands.iter().map(|row| {
            let wanted = row.wanted.map_or_else(|| "any".to_owned(), |wanted| wanted.to_string());
            let on = if row.on.is_empty() { "-".to_owned() } else { row.on.join(", ") };
            vec![taken(row.demand_mib), wanted, row.fits.to_string(), on, listed(&row.names)]
        });
        columns(text, &head, rows.collect(), &[0, 1, 2]);
        for row in &self.demands {
            if let Some(why) = &row.why {
                wrapped(text, &format!("{}: {why}", listed(&row.names)));
            }
        }
    }

    fn notes(&self, text: &mut String) {
        let groups = [
            ("Not planned, because nothing is declared (vramguard.dev/vram):", &self.undeclared),
            ("Not planned, because it cannot be read:", &self.left_out),
            ("Not planned, because the GPUs are not known:", &self.unknown),
        ];
        for (head, lines) in groups.into_iter().filter(|(_, lines)| !lines.is_empty()) {
            let _ = writeln!(text, "\n{head}");
            lines.iter().for_each(|line| wrapped(text, line));
        }
    }
}

fn pool(plan: &Plan, input: Input<'_>, index: usize) -> PoolRow {
    let (equal, planned) = (&input.pools[index], &plan.pools[index]);
    let (name, config) = &input.names[index];
    let contents = equal.pool.contents.as_ref();
    PoolRow {
        name: name.clone(),
        config: config.clone(),
        resource: equal.pool.resource.to_string(),
        nodes: equal.nodes,
        gpus: contents.map_or(0, |contents| contents.gpus.len()),
        mode: planned.accounting.to_string(),
        current_replicas: contents.map_or(1, |contents| contents.replicas.get()),
        replicas: planned.replicas.get(),
        slot_mib: planned.slot.mib(),
        allocatable_mib: planned.allocatable.mib(),
        pods: planned.placed,
        held_mib: planned.held.mib(),
        stranded_mib: planned.stranded.mib(),
        why: why(plan, input, index),
    }
}

/// Why a pool has its replicas.
fn why(plan: &Plan, input: Input<'_>, index: usize) -> String {
    let (equal, planned) = (&input.pools[index], &plan.pools[index]);
    let replicas = planned.replicas.get();
    let named = |demand: usize| format!("{} ({})", listed(&input.who[demand]), input.wanted[demand].demand);
    let gpu = equal.pool.smallest_gpu(input.rules).unwrap_or(Vram::ZERO);
    let mut text = match planned.bound {
        Bound::Slot { demand } if replicas == 1 => {
            format!("not shared. With 2 replicas a slot would be too small for {}.", named(demand))
        }
        Bound::Slot { demand } => format!(
            "{}. {}, so a pod takes one slot at most: {gpu} / {replicas} = {}. With one more, {} would not fit.",
            count(replicas as usize, "replica"),
            several(&equal.pool),
            planned.slot,
            named(demand)
        ),
        Bound::Memory { demand } => format!(
            "{}. The sum on a GPU decides (mode {}), and every pod needs a replica: {gpu} holds {replicas} of the smallest \
             demand, {}.",
            count(replicas as usize, "replica"),
            planned.accounting,
            named(demand)
        ),
        Bound::Cap { by_memory } => {
            format!("{} by --max-replicas; memory allows {by_memory}.", count(replicas as usize, "replica"))
        }
        Bound::Saturated { by_memory } => format!(
            "{}, because its GPUs are busy ({} %): more would only slow all pods down. Memory allows {by_memory}.",
            count(replicas as usize, "replica"),
            equal.utilisation.unwrap_or_default()
        ),
        Bound::NoDemand => {
            format!("stays at {}: no demand is for it, or fits it.", count(replicas as usize, "replica"))
        }
    };
    if replicas > *THUMB.end() && planned.bound != Bound::NoDemand {
        let _ = write!(
            text,
            " That is above the rule of thumb of {} to {} for agents: when all are busy, each gets 1/{replicas} of the \
             compute. --max-replicas {} keeps to it.",
            THUMB.start(),
            THUMB.end(),
            THUMB.end()
        );
    }
    text
}

/// Why a pool counts by slots.
fn several(pool: &Pool) -> &'static str {
    match pool.contents.as_ref().map_or(0, |contents| contents.gpus.len()) {
        0 | 1 => "MPS limits each client to total / replicas",
        _ => "Its nodes have several GPUs, and nothing verifies which one a pod gets (mode slot)",
    }
}

fn demand(plan: &Plan, input: Input<'_>, index: usize) -> DemandRow {
    let (wanted, outcome) = (&input.wanted[index], &plan.demands[index]);
    let none = outcome.fits == 0 && wanted.count != Some(0);
    let why = match outcome.too_large_for {
        _ if !none => None,
        Some(gpu) => Some(format!("{} is more than a GPU has for pods, {gpu}", wanted.demand)),
        None if wanted.pools.is_empty() => Some(
            "no node with a GPU may take it: see its resource name, nodeSelector, affinity and tolerations".to_owned(),
        ),
        None => Some("larger demands take all that its pools have".to_owned()),
    };
    DemandRow {
        names: input.who[index].clone(),
        demand_mib: wanted.demand.mib(),
        wanted: wanted.count,
        fits: outcome.fits,
        on: outcome.on.iter().map(|(pool, pods)| format!("{} ×{pods}", input.names[*pool].0)).collect(),
        why,
    }
}

fn alternative(plan: &Plan, input: Input<'_>) -> Option<AlternativeRow> {
    let other = plan.alternative.as_ref()?;
    let changed = input.names.iter().zip(&other.replicas).zip(&plan.pools);
    let changed = changed.filter(|((_, replicas), planned)| **replicas != planned.replicas);
    let changed: Vec<String> = changed
        .map(|(((name, _), replicas), _)| format!("{} of {name}", count(replicas.get() as usize, "replica")))
        .collect();
    let homeless = format!("{} ({})", listed(&input.who[other.homeless]), input.wanted[other.homeless].demand);
    let pods: u64 = plan.pools.iter().map(|planned| planned.placed).sum();
    Some(AlternativeRow {
        replicas: other.replicas.iter().map(|replicas| replicas.get()).collect(),
        pods: other.placed,
        text: format!(
            "Without {homeless} there could be {}: {} pods would fit, not {pods}, and take {}, not {}. Keep nodes of their \
             own for so large a demand (a taint, or a nodeSelector).",
            changed.join(" and "),
            other.placed,
            taken(other.held.mib()),
            taken(plan.held().mib()),
        ),
    })
}

/// What is taken, with its unit.
fn taken(mib: u64) -> String {
    taken_gib(mib) + " GiB"
}

/// What can be taken, with its unit.
fn room(mib: u64) -> String {
    room_gib(mib) + " GiB"
}

fn number(number: u64, noun: &str) -> String {
    match noun {
        "kind of demand" if number != 1 => format!("{number} kinds of demand"),
        _ => count(usize::try_from(number).unwrap_or(usize::MAX), noun),
    }
}

/// The first names, and how many more there are.
fn listed(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(LISTED).cloned().collect();
    if names.len() > LISTED {
        shown.push(format!("and {} more", names.len() - LISTED));
    }
    shown.join(", ")
}

/// Longest command in a table. One that labels thousands of nodes is whole in the other formats.
const LONGEST_COMMAND: usize = 400;

fn shortened(command: &str) -> String {
    match command.char_indices().nth(LONGEST_COMMAND) {
        Some((end, _)) => {
            let end = command[..end].rfind(' ').unwrap_or(end);
            format!("{} … (the whole command is in --output yaml)", &command[..end])
        }
        None => command.to_owned(),
    }
}

/// Columns that are as wide as their widest cell; those in `right` are aligned to the right.
pub(super) fn columns(text: &mut String, head: &[&str], rows: Vec<Vec<String>>, right: &[usize]) {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    // Names are text from strangers.
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&rows).collect();
    let widest = |column: usize| all.iter().map(|row| width(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(widest).collect();
    for row in all {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| {
            let space = " ".repeat(width - self::width(cell).min(width));
            if right.contains(&at) { format!("{space}{cell}") } else { format!("{cell}{space}") }
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Widest line of a sentence.
const WIDTH: usize = 100;

/// A sentence in lines, indented.
fn wrapped(text: &mut String, sentence: &str) {
    let mut line = String::from(" ");
    // Names in it are text from strangers.
    for word in printable(sentence).split(' ').filter(|word| !word.is_empty()) {
        if width(&line) + 1 + width(word) > WIDTH && line.trim() != "" {
            let _ = writeln!(text, "{line}");
            line = String::from("   ");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests;
