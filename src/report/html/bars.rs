//! One bar: a GPU, or the GPUs of a node together where nobody knows which pod is on which. Owns its parts and their
//! widths.
//!
//! From left to right: what is kept back, the holders, what is free, the end. Holders that do not fit go past the end.

use maud::{Markup, html};

use super::text::{counted, gpu_name, room_or_unknown, taken, taken_or_unknown};
use crate::capacity::audit::amounts::{self, Amounts, Layout};
use crate::capacity::vram::Vram;
use crate::report::document::{Gpu, Holder, vram};

/// Narrower parts show no name inside, in hundredths of a percent of the bar.
const NARROW: u64 = 600;

/// What one bar shows.
pub(super) struct Bar<'a> {
    /// Name of the GPU; empty for several.
    pub(super) name: &'a str,
    /// Number of GPUs.
    pub(super) gpus: u64,
    /// Its amounts. What the holders hold is a sum as far as their amounts are known.
    pub(super) amounts: Amounts,
    /// Where its parts are.
    pub(super) layout: Layout,
    /// The containers on it.
    pub(super) holders: Vec<&'a Holder>,
    /// What is in use, in words; `None` if that is not known.
    pub(super) in_use: Option<String>,
    /// Why what is in use is not that of now.
    pub(super) stale: Option<&'a str>,
}

impl<'a> Bar<'a> {
    /// The bar of a GPU whose holders are known.
    pub(super) fn of_gpu(gpu: &'a Gpu) -> Self {
        Self::new(&gpu.gpu, &[gpu], gpu.amounts(), gpu.holders.iter().collect())
    }

    /// The bar of GPUs together, whose holders are somewhere on them.
    pub(super) fn of_unassigned(gpus: &[&'a Gpu], unassigned: Vec<&'a Holder>, free: Option<u64>) -> Self {
        let mut holders = unassigned;
        holders.extend(gpus.iter().flat_map(|gpu| &gpu.holders)); // in mode slot none is known
        let all: Vec<Amounts> = gpus.iter().map(|gpu| gpu.amounts()).collect();
        let held = amounts::sum(holders.iter().filter_map(|holder| holder.amount()));
        let amounts = Amounts { held: Some(held), free: free.map(vram), ..Amounts::together(&all) };
        Self::new("", gpus, amounts, holders)
    }

    fn new(name: &'a str, gpus: &[&'a Gpu], amounts: Amounts, holders: Vec<&'a Holder>) -> Self {
        let layout = amounts.layout(holders.iter().map(|holder| holder.amount()));
        let stale = gpus.iter().find_map(|gpu| gpu.stale.as_deref());
        let outside = amounts::sum_of_known(gpus.iter().map(|gpu| gpu.outside()));
        let in_use = amounts.used.map(|used| in_use(used, outside, stale));
        Self { name, gpus: gpus.len() as u64, amounts, layout, holders, in_use, stale }
    }

    /// Which GPU it is.
    pub(super) fn place(&self) -> String {
        if self.name.is_empty() { format!("one of {}", self.gpus) } else { gpu_name(self.name) }
    }

    /// The name of the bar.
    pub(super) fn title(&self) -> String {
        if self.name.is_empty() { counted(self.gpus, "GPU") + " together" } else { gpu_name(self.name) }
    }

    /// The row of the bar. `domain` is the amount at its right edge. `page.js` builds the same elements.
    pub(super) fn markup(&self, domain: Vram) -> Markup {
        let title = self.title();
        let Amounts { allocatable, held, free, used, .. } = self.amounts;
        let over = self.amounts.over();
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
                    li class="track" style=(span(Vram::ZERO, self.layout.end, domain)) aria-hidden="true" {}
                    (self.parts(domain))
                }
                p class="amounts" {
                    b { (taken_or_unknown(held.map(Vram::mib))) } " of " (room_or_unknown(allocatable.map(Vram::mib)))
                    @if !over.is_zero() { span class="by" { " over by " (taken(over.mib())) } }
                    @else { span { " free " (room_or_unknown(free.map(Vram::mib))) } }
                    @if let Some(used) = used {
                        span class="use" { "in use " (taken(used.mib())) @if self.stale.is_some() { ", not current" } }
                    }
                }
            }
        }
    }

    fn parts(&self, domain: Vram) -> Markup {
        let Layout { start, end, held, .. } = self.layout;
        let headroom = self.amounts.headroom.unwrap_or_default();
        let (outside, over) = (self.amounts.outside(), self.amounts.over());
        let places = self.holders.iter().zip(&self.layout.holders);
        html! {
            @if !headroom.is_zero() {
                (part("kept", (Vram::ZERO, headroom), domain, None, &format!("Driver and headroom: {} GiB", taken(headroom.mib()))))
            }
            @if !outside.is_zero() {
                (part("kept", (headroom, start), domain, None, &format!("Not for pods: {} GiB", taken(outside.mib()))))
            }
            @for (holder, place) in places {
                @if let Some(place) = place {
                    (part(if holder.declared && !holder.seen { "seg" } else { "seg undeclared" }, *place, domain, Some(&holder.pod), &tip(holder)))
                }
            }
            @if !over.is_zero() {
                li class="over" style=(span(end, held, domain)) {
                    span class="tip" { "Over by " (taken(over.mib())) " GiB" }
                }
            }
            @if let (Some(place), Some(words)) = (self.layout.used, &self.in_use) {
                (part(if self.stale.is_some() { "used stale" } else { "used" }, place, domain, None, words))
            }
        }
    }
}

fn tip(holder: &Holder) -> String {
    let amount = taken_or_unknown(holder.vram_mib);
    let counted = match (holder.seen, holder.declared) {
        (true, _) => ", declares nothing and was seen to use it",
        (false, true) => "",
        (false, false) => ", declares nothing",
    };
    let uses = holder.used_mib.map_or_else(String::new, |used| format!(", uses {} GiB", taken(used)));
    let peak = holder.peak_mib.map_or_else(String::new, |peak| format!(", at most {} GiB so far", taken(peak)));
    format!("{}/{}, container {}: {amount} GiB{counted}{uses}{peak}", holder.namespace, holder.pod, holder.container)
}

/// What is in use, in words.
fn in_use(used: Vram, outside: Option<Vram>, stale: Option<&str>) -> String {
    let outside = outside.filter(|outside| !outside.is_zero());
    let outside = outside.map_or_else(String::new, |amount| format!(", {} GiB of it by no pod", taken(amount.mib())));
    match stale {
        None => format!("In use now: {} GiB{outside}", taken(used.mib())),
        Some(why) => format!("In use, {why}: {} GiB{outside}", taken(used.mib())),
    }
}

/// One part of a bar. Its tip is read by screen readers, and shown when it is pointed at or focused.
fn part(class: &str, (from, to): (Vram, Vram), domain: Vram, name: Option<&str>, tip: &str) -> Markup {
    let (left, right) = (hundredths(from, domain), hundredths(to, domain));
    html! {
        li class={ (class) @if left > 5000 { " right" } } style=(span(from, to, domain)) tabindex="0" {
            @if right - left >= NARROW { @if let Some(name) = name { span class="name" aria-hidden="true" { (name) } } }
            span class="tip" { (tip) }
        }
    }
}

/// A place in a bar in hundredths of a percent, rounded down.
fn hundredths(amount: Vram, domain: Vram) -> u64 {
    let place = (u128::from(amount.mib()) * 10_000).checked_div(u128::from(domain.mib())).unwrap_or(0);
    u64::try_from(place).unwrap_or(u64::MAX)
}

fn span(from: Vram, to: Vram, domain: Vram) -> String {
    let (left, right) = (hundredths(from, domain), hundredths(to, domain));
    let width = right.saturating_sub(left);
    format!("left:{}.{:02}%;width:{}.{:02}%", left / 100, left % 100, width / 100, width % 100)
}

/// What the parts of a bar mean.
pub(super) fn legend(has_stale: bool) -> Markup {
    html! {
        ul class="legend" aria-label="What the bars show" {
            li { i class="seg" {} "pod with a declaration" }
            li { i class="seg undeclared" {} "pod that declares nothing, counted as a slot, or as what it was seen to use" }
            li { i class="kept" {} "driver and headroom" }
            li { i class="track" {} "free" }
            li { i class="over" {} "promised beyond the end" }
            li { i class="used" {} "in use now, where an agent reports it" }
            @if has_stale { li { i class="used stale" {} "in use earlier: the agent's report is not current" } }
        }
    }
}
