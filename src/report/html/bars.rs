//! One bar: a GPU, or the GPUs of a node together where nobody knows which pod is on which. Owns its parts and their
//! widths.
//!
//! From left to right: what is kept back, the holders, what is free, the end. Holders that do not fit go past the end.

use maud::{Markup, html};

use super::text::{counted, gpu_name, room, room_or_unknown, taken, taken_or_unknown};
use crate::report::document::{Gpu, Holder};

/// Narrower parts show no name inside, in hundredths of a percent of the bar.
const NARROW: u64 = 600;

/// What one bar shows, in MiB.
pub(super) struct Bar<'a> {
    /// Name of the GPU; empty for several.
    pub(super) name: &'a str,
    /// Number of GPUs.
    pub(super) gpus: u64,
    /// Driver reserve and headroom.
    pub(super) headroom: u64,
    /// Memory that neither pods can be given nor the headroom contains, such as out-of-band use.
    pub(super) outside: u64,
    /// What pods can be given.
    pub(super) allocatable: u64,
    /// What the holders hold, as far as that is known.
    pub(super) held: u64,
    /// The largest demand that fits now.
    pub(super) free: Option<u64>,
    /// What is in use, as the node agent reports it.
    pub(super) used: Option<u64>,
    /// The containers on it.
    pub(super) holders: Vec<&'a Holder>,
}

impl<'a> Bar<'a> {
    /// The bar of a GPU whose holders are known.
    pub(super) fn of_gpu(gpu: &'a Gpu) -> Self {
        Self {
            name: &gpu.gpu,
            gpus: 1,
            headroom: gpu.headroom_mib,
            outside: outside(gpu),
            allocatable: gpu.allocatable_mib,
            held: gpu.held_mib,
            free: gpu.free_mib,
            used: gpu.used_mib,
            holders: gpu.holders.iter().collect(),
        }
    }

    /// The bar of GPUs together, whose holders are somewhere on them.
    pub(super) fn of_unassigned(gpus: &[&'a Gpu], unassigned: Vec<&'a Holder>, free: Option<u64>) -> Self {
        let sum = |amount: fn(&Gpu) -> u64| gpus.iter().map(|gpu| amount(gpu)).fold(0, u64::saturating_add);
        let used = gpus.iter().map(|gpu| gpu.used_mib).try_fold(0_u64, |sum, used| Some(sum.saturating_add(used?)));
        let mut holders = unassigned;
        holders.extend(gpus.iter().flat_map(|gpu| &gpu.holders)); // in mode slot none is known
        Self {
            name: "",
            gpus: gpus.len() as u64,
            headroom: sum(|gpu| gpu.headroom_mib),
            outside: sum(outside),
            allocatable: sum(|gpu| gpu.allocatable_mib),
            held: holders.iter().filter_map(|holder| holder.vram_mib).fold(0, u64::saturating_add),
            free,
            used,
            holders,
        }
    }

    /// By how much the holders exceed what can be given.
    pub(super) fn over(&self) -> u64 {
        self.held.saturating_sub(self.allocatable)
    }

    /// Where the holders begin.
    fn start(&self) -> u64 {
        self.headroom.saturating_add(self.outside)
    }

    /// Where the bar ends.
    fn end(&self) -> u64 {
        self.start().saturating_add(self.allocatable)
    }

    /// Where the last part of it ends.
    pub(super) fn extent(&self) -> u64 {
        self.end().max(self.start().saturating_add(self.held)).max(self.used.unwrap_or(0))
    }

    /// Which GPU it is.
    pub(super) fn place(&self) -> String {
        if self.name.is_empty() { format!("one of {}", self.gpus) } else { gpu_name(self.name) }
    }

    fn title(&self) -> String {
        if self.name.is_empty() { counted(self.gpus, "GPU") + " together" } else { gpu_name(self.name) }
    }

    /// The row of the bar. `domain` is the amount at its right edge. `page.js` builds the same elements.
    pub(super) fn markup(&self, domain: u64) -> Markup {
        let title = self.title();
        html! {
            @if self.name.is_empty() {
                p class="say" {
                    "It is not known which pod is on which GPU (mode slot: the device plugin chooses). "
                    "The bar shows the GPUs together. A pod fits only where a whole slot is left on one GPU."
                }
            }
            div class="gpu" {
                p class="label" title=[(!self.name.is_empty()).then_some(self.name)] { (title) }
                ol class="bar" aria-label={ "Memory of " (title) } {
                    li class="track" style=(span(0, self.end(), domain)) aria-hidden="true" {}
                    (self.parts(domain))
                }
                p class="amounts" {
                    b { (taken(self.held)) } " of " (room(self.allocatable))
                    @if self.over() > 0 { span class="by" { " over by " (taken(self.over())) } }
                    @else { span { " free " (room_or_unknown(self.free)) } }
                }
            }
        }
    }

    fn parts(&self, domain: u64) -> Markup {
        let mut at = self.start();
        let segments = self.holders.iter().filter_map(|holder| {
            let from = at;
            at = at.saturating_add(holder.vram_mib?);
            Some((from, at, *holder))
        });
        let segments: Vec<(u64, u64, &Holder)> = segments.collect();
        html! {
            @if self.headroom > 0 {
                (part("kept", 0, self.headroom, domain, None, &format!("Driver and headroom: {} GiB", taken(self.headroom))))
            }
            @if self.outside > 0 {
                (part("kept", self.headroom, self.start(), domain, None, &format!("Not for pods: {} GiB", taken(self.outside))))
            }
            @for (from, to, holder) in segments {
                (part(if holder.declared { "seg" } else { "seg undeclared" }, from, to, domain, Some(&holder.pod), &tip(holder)))
            }
            @if self.over() > 0 {
                li class="over" style=(span(self.end(), self.start().saturating_add(self.held), domain)) {
                    span class="tip" { "Over by " (taken(self.over())) " GiB" }
                }
            }
            @if let Some(used) = self.used {
                li class="used" style=(span(0, used, domain)) { span class="tip" { "In use now: " (taken(used)) " GiB" } }
            }
        }
    }
}

/// What neither the headroom contains nor pods can be given.
fn outside(gpu: &Gpu) -> u64 {
    gpu.total_mib.saturating_sub(gpu.headroom_mib).saturating_sub(gpu.allocatable_mib)
}

fn tip(holder: &Holder) -> String {
    let amount = taken_or_unknown(holder.vram_mib);
    let counted = if holder.declared { "" } else { ", declares nothing" };
    format!("{}/{}, container {}: {amount} GiB{counted}", holder.namespace, holder.pod, holder.container)
}

/// One part of a bar. Its tip is read by screen readers, and shown when it is pointed at or focused.
fn part(class: &str, from: u64, to: u64, domain: u64, name: Option<&str>, tip: &str) -> Markup {
    let (left, right) = (hundredths(from, domain), hundredths(to, domain));
    html! {
        li class={ (class) @if left > 5000 { " right" } } style=(span(from, to, domain)) tabindex="0" {
            @if right - left >= NARROW { @if let Some(name) = name { span class="name" aria-hidden="true" { (name) } } }
            span class="tip" { (tip) }
        }
    }
}

/// A place in a bar in hundredths of a percent, rounded down.
fn hundredths(amount: u64, domain: u64) -> u64 {
    let place = (u128::from(amount) * 10_000).checked_div(u128::from(domain)).unwrap_or(0);
    u64::try_from(place).unwrap_or(u64::MAX)
}

fn span(from: u64, to: u64, domain: u64) -> String {
    let (left, right) = (hundredths(from, domain), hundredths(to, domain));
    let width = right.saturating_sub(left);
    format!("left:{}.{:02}%;width:{}.{:02}%", left / 100, left % 100, width / 100, width % 100)
}

/// What the parts of a bar mean.
pub(super) fn legend() -> Markup {
    html! {
        ul class="legend" aria-label="What the bars show" {
            li { i class="seg" {} "pod with a declaration" }
            li { i class="seg undeclared" {} "pod that declares nothing, counted as a slot" }
            li { i class="kept" {} "driver and headroom" }
            li { i class="track" {} "free" }
            li { i class="over" {} "promised beyond the end" }
            li { i class="used" {} "in use now, where an agent reports it" }
        }
    }
}
