//! The output of the demo. Owns texts, colours and bars; knows nothing of how pods are reviewed and placed.

use std::io::{Error, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::sync::OnceLock;

use json_patch::{Patch, PatchOperation};
use owo_colors::OwoColorize;
use serde_json::Value;

use crate::capacity::cluster::NodeView;
use crate::capacity::gpu::{Accounting, Pool};
use crate::capacity::node::usage::PoolUsage;
use crate::capacity::verdict::{Shortfall, count, waiting};
use crate::capacity::vram::Vram;
use crate::k8s::review::Denied;
use crate::keys;
use crate::state::index::Index;

const BAR: u64 = 32;

/// The first failure to write. The story goes on without a reader, as a server would.
static FAILED: OnceLock<Error> = OnceLock::new();

/// Writes to stdout, with colours only where they are wanted.
fn say(text: &str) {
    if let Err(error) = anstream::stdout().write_all(text.as_bytes()) {
        _ = FAILED.set(error);
    }
}

macro_rules! print {
    ($($text:tt)*) => { say(&format!($($text)*)) };
}

macro_rules! println {
    () => { say("\n") };
    ($($text:tt)*) => { say(&(format!($($text)*) + "\n")) };
}

/// Whether all was written. A reader that has seen enough, as `head` has, is no failure.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn written() -> anyhow::Result<()> {
    _ = anstream::stdout().flush().map_err(|error| FAILED.set(error));
    match FAILED.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("stdout cannot be written: {error}"))
        }
        _ => Ok(()),
    }
}

pub(super) fn opening(address: SocketAddr, index: &Index) {
    println!("{}", "vramguard demo: a team of LLM agents shares time-sliced GPUs".bold());
    println!();
    println!(
        "real:      the server on https://{address}, TLS 1.3, both webhooks, every verdict, patch and message below"
    );
    println!(
        "simulated: the cluster (an embedded example), kube-scheduler (the node with the least free VRAM that fits),"
    );
    println!("           and the pods: nothing runs, and no GPU is needed or used");
    println!();
    bars(index);
}

pub(super) fn closing(index: &Index, waiting: usize) {
    println!();
    println!("{}", "at the end".bold());
    bars(index);
    println!();
    println!("no GPU is overcommitted; {} still waiting", count(waiting, "pod"));
    println!("next: README.md describes the installation on a cluster, and policies/ has examples of policies");
}

pub(super) fn reviewed(number: u32, pod: &Value, changes: &[String], warnings: &[String], denial: Option<&Denied>) {
    let metadata = &pod["metadata"];
    let name = format!("{}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
    println!();
    println!("{} {}  {}", format!("{number:>2}.").bold(), name.bold(), asks(pod).dimmed());
    for change in changes {
        println!("    {} {change}", "patch".cyan());
    }
    for warning in warnings {
        println!("    {} {warning}", "warning".yellow());
    }
    match denial {
        Some(Denied { code, reason, message }) => {
            println!("    {} {code} {reason}: {message}", "refused".red().bold());
        }
        None => print!("    {}", "admitted".green()),
    }
}

/// The annotations that the pod declares its VRAM with.
fn asks(pod: &Value) -> String {
    let annotations = pod["metadata"]["annotations"].as_object();
    let written = annotations.into_iter().flatten().map(|(key, value)| format!("{key}: {}", text(value)));
    let written: Vec<String> = written.collect();
    if written.is_empty() { "declares nothing".to_owned() } else { written.join(", ") }
}

pub(super) fn bound(node: &str) {
    println!(", bound to {}", node.bold());
}

pub(super) fn waits(shortfall: Option<&Shortfall>) {
    let why = shortfall.map(waiting).unwrap_or_default();
    println!(", {}: {why}", "pending".yellow().bold());
}

pub(super) fn again(pod: &Value) {
    print!("    {}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
}

pub(super) fn finished(number: u32, namespace: &str, name: &str) {
    println!();
    println!(
        "{} {}  {}",
        format!("{number:>2}.").bold(),
        format!("{namespace}/{name}").bold(),
        "has finished".dimmed()
    );
}

/// Describes the operations of a patch, each with the name of its container.
pub(super) fn changes(patch: &Patch, pod: &Value) -> Vec<String> {
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
            continue; // requests repeat the amount of limits
        };
        let container: String = path.split('/').take(4).collect::<Vec<_>>().join("/");
        let name = pod.pointer(&format!("{container}/name")).map(text).unwrap_or_default();
        changes.push(format!("{name}: {words}"));
    }
    changes
}

/// Prints the bars of all nodes.
fn bars(index: &Index) {
    let names: Vec<String> = index.read().cluster.node_names().map(str::to_owned).collect();
    names.iter().for_each(|name| bar_of(index, name));
}

/// Prints one bar for each pool of a node.
pub(super) fn bar_of(index: &Index, name: &str) {
    let state = index.read();
    let Some(NodeView { facts, usage, .. }) = state.cluster.node(name) else {
        return;
    };
    for (pool, pool_usage) in facts.pools.iter().zip(&usage.pools) {
        println!("    {}", bar(name, pool, pool_usage));
    }
}

fn bar(name: &str, pool: &Pool, pool_usage: &PoolUsage) -> String {
    let total = pool_usage.allocatable.unwrap_or(Vram::ZERO);
    let filled = (pool_usage.held.mib() * BAR).checked_div(total.mib()).unwrap_or(0).min(BAR);
    let bar: String = (0..BAR).map(|cell| if cell < filled { '█' } else { '░' }).collect();
    let gpus = pool.contents.as_ref().map_or(0, |contents| contents.gpus.len());
    let counted = match pool_usage.accounting {
        Accounting::Slot => {
            format!("{gpus} GPUs, the GPU of each pod is not known: counted in slots of {}", pool_usage.free)
        }
        mode => format!("{}, {mode}", count(gpus, "GPU")),
    };
    let held = format!("{:>7} of {total} held by {}", pool_usage.held.to_string(), count(pool_usage.holders, "pod"));
    format!("{name:<7} {} {held:<36} ({counted})", bar.blue())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
