//! What the demo prints. Owns words, colours and bars.

use std::net::SocketAddr;

use anstream::{print, println};
use json_patch::{Patch, PatchOperation};
use owo_colors::OwoColorize;
use serde_json::Value;

use super::Reviewed;
use crate::capacity::gpu::{Accounting, Pool};
use crate::capacity::ledger::PoolStanding;
use crate::capacity::verdict::{Shortfall, count, waiting};
use crate::capacity::vram::Vram;
use crate::index::Index;
use crate::keys;

const BAR: u64 = 32;

pub fn opening(address: SocketAddr, index: &Index) {
    println!("{}", "vramguard demo: a team of LLM agents shares time-sliced GPUs".bold());
    println!();
    println!(
        "real:      the server on https://{address}, TLS 1.3, both webhooks, every verdict, patch and message below"
    );
    println!(
        "simulated: the cluster (an embedded picture of it), kube-scheduler (the node with the least room that fits),"
    );
    println!("           and the pods: nothing runs, and no GPU is needed or used");
    println!();
    bars(index);
}

pub fn closing(index: &Index, waiting: usize) {
    println!();
    println!("{}", "at the end".bold());
    bars(index);
    println!();
    println!("no GPU is promised more than it has; {} still waiting", count(waiting, "pod"));
    println!("next: README.md says how to put it on a cluster, policies/ how to set it up");
}

pub fn reviewed(number: u32, reviewed: &Reviewed) {
    let metadata = &reviewed.pod["metadata"];
    let name = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
    println!();
    println!("{} {}  {}", format!("{number:>2}.").bold(), name.bold(), asks(&reviewed.pod).dimmed());
    for change in &reviewed.changes {
        println!("    {} {change}", "patch".cyan());
    }
    for warning in &reviewed.warnings {
        println!("    {} {warning}", "warning".yellow());
    }
    match &reviewed.denial {
        Some((code, reason, message)) => println!("    {} {code} {reason}: {message}", "refused".red().bold()),
        None => print!("    {}", "admitted".green()),
    }
}

/// What the author wrote about VRAM.
fn asks(pod: &Value) -> String {
    let annotations = pod["metadata"]["annotations"].as_object();
    let written = annotations.into_iter().flatten().map(|(key, value)| format!("{key}: {}", text(value)));
    let written: Vec<String> = written.collect();
    if written.is_empty() { "declares nothing".to_owned() } else { written.join(", ") }
}

pub fn bound(node: &str) {
    println!(", bound to {}", node.bold());
}

pub fn waits(shortfall: Option<&Shortfall>) {
    let why = shortfall.map(waiting).unwrap_or_default();
    println!(", {}: {why}", "pending".yellow().bold());
}

pub fn again(pod: &Value) {
    print!("    {}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
}

pub fn finished(number: u32, namespace: &str, name: &str) {
    println!();
    println!(
        "{} {}  {}",
        format!("{number:>2}.").bold(),
        format!("{namespace}/{name}").bold(),
        "has finished".dimmed()
    );
}

/// The operations of a patch, in words, each with the container that it is about.
pub fn changes(patch: &Patch, pod: &Value) -> Vec<String> {
    let mut changes: Vec<String> = Vec::new();
    for operation in &patch.0 {
        let PatchOperation::Add(add) = operation else { continue };
        let path = add.path.to_string();
        let words = if path.ends_with("limits/vramguard.dev~1vram") {
            format!("{}: {}", keys::VRAM_RESOURCE, text(&add.value))
        } else if path.contains("/env") {
            let entries = add.value.as_array().cloned().unwrap_or_else(|| vec![add.value.clone()]);
            let each = entries.iter().map(|entry| format!("{}={}", text(&entry["name"]), text(&entry["value"])));
            each.collect::<Vec<_>>().join(" ")
        } else {
            continue; // the same figure once more, in requests
        };
        let container: String = path.split('/').take(4).collect::<Vec<_>>().join("/");
        let name = pod.pointer(&format!("{container}/name")).map(text).unwrap_or_default();
        changes.push(format!("{name}: {words}"));
    }
    changes
}

/// The bars of all nodes.
fn bars(index: &Index) {
    let names: Vec<String> = index.read().cluster.node_names().map(str::to_owned).collect();
    names.iter().for_each(|name| bar_of(index, name));
}

/// The bar of one node.
pub fn bar_of(index: &Index, name: &str) {
    let state = index.read();
    let Some((facts, _, standing)) = state.cluster.node(name) else {
        return;
    };
    for (pool, stands) in facts.pools.iter().zip(&standing.pools) {
        println!("    {}", bar(name, pool, stands));
    }
}

fn bar(name: &str, pool: &Pool, stands: &PoolStanding) -> String {
    let total = stands.allocatable.unwrap_or(Vram::ZERO);
    let filled = (stands.held.mib() * BAR).checked_div(total.mib()).unwrap_or(0).min(BAR);
    let bar: String = (0..BAR).map(|cell| if cell < filled { '█' } else { '░' }).collect();
    let gpus = pool.contents.as_ref().map_or(0, |contents| contents.gpus.len());
    let counted = match stands.accounting {
        Accounting::Slot => {
            format!("{gpus} GPUs, which pod is on which is not known: by slots of {}", stands.room)
        }
        mode => format!("{}, {mode}", count(gpus, "GPU")),
    };
    let held = format!("{:>7} of {total} held by {}", stands.held.to_string(), count(stands.holders, "pod"));
    format!("{name:<7} {} {held:<36} ({counted})", bar.blue())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
