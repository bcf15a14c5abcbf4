//! The table for people. Owns the order of its sections; [`grid`] lays out columns and [`paint`] owns colours and signs.
//!
//! The first line is the verdict and the last one is what to do next. In all tables, `-` is not known and `0` is none.
//! Names are cut in the middle where the terminal is too narrow. Numbers are never cut, and neither is a line to paste.

mod findings;
mod gpus;
mod grid;
mod holders;
mod lists;
mod paint;
mod sections;

use super::document::Report;
use super::text::{clean, width};
use super::{Options, summary};
use paint::{Paint, Role};

/// Renders a report as tables for a terminal.
pub(super) fn render(report: &Report, options: &Options) -> String {
    let page = Page { paint: Paint::new(options), width: options.width.max(Options::NARROWEST), all: options.all };
    let mut blocks = vec![head(report, &page)];
    blocks.push(sections::gaps(report, &page));
    blocks.push(gpus::section(report, &page));
    blocks.push(holders::section(report, &page));
    blocks.push(findings::section(report, &page));
    blocks.push(sections::namespaces(report, &page));
    blocks.push(sections::cramped(report, &page));
    blocks.push(lists::enforced(report, &page));
    blocks.push(sections::assumed(report, &page));
    blocks.push(lists::baseline(report, &page));
    blocks.push(last(report, &page));
    let blocks: Vec<String> =
        blocks.into_iter().filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n")).collect();
    let mut text = blocks.join("\n\n");
    text.push('\n');
    text
}

/// What all sections need to know.
struct Page {
    paint: Paint,
    width: usize,
    all: bool,
}

impl Page {
    /// From this width on there are more columns, and a bar.
    const WIDE: usize = 120;

    fn is_wide(&self) -> bool {
        self.width >= Page::WIDE
    }

    /// The title of a section, and what it amounts to.
    fn title(&self, title: &str, parts: &[(String, summary::Tone)]) -> Vec<String> {
        let mut all = vec![(title.to_owned(), Role::Title)];
        all.extend(parts.iter().map(|(text, tone)| (text.clone(), Role::of(*tone))));
        self.paint.joined(&all, self.width)
    }
}

fn head(report: &Report, page: &Page) -> Vec<String> {
    let parts = summary::verdict(&report.summary).into_iter().map(|(text, tone)| (text, Role::verdict(tone)));
    let mut lines = page.paint.joined(&parts.collect::<Vec<_>>(), page.width);
    let origin = [(&report.cluster, ""), (&report.generated_at, "read "), (&report.generated_by, "by ")];
    let origin: Vec<(String, Role)> = origin
        .into_iter()
        .filter(|(text, _)| !text.is_empty())
        .map(|(text, before)| (format!("{before}{}", page.paint.text(text)), Role::Faint))
        .collect();
    if !origin.is_empty() {
        lines.extend(page.paint.joined(&origin, page.width));
    }
    lines
}

fn last(report: &Report, page: &Page) -> Vec<String> {
    let (sentence, command) = summary::next(report);
    let (paint, command) = (&page.paint, clean(&command));
    let sentence = format!("{} {sentence}:", paint.role("next:", Role::Title));
    let needed = "next: ".len() + width(&sentence) + 1 + width(&command);
    let command = paint.role(&command, Role::Command);
    // A command that does not fit has a line of its own, so that it can be copied as a whole.
    if needed <= page.width { vec![format!("{sentence} {command}")] } else { vec![sentence, format!("  {command}")] }
}

#[cfg(test)]
mod tests;
