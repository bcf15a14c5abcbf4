//! GitHub-flavoured Markdown for the summary of a CI job, a wiki or a chat. Owns its escaping and its bound.
//!
//! GitHub drops a summary of more than 1 MiB. Each section therefore writes rows while there is room for them, the
//! findings before anything long, and says how many rows it left out.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::baseline::{key, new_ids};
use super::document::{Finding, Gpu, Node, Report, Severity, Status};
use super::summary::{self, Group, Tone, groups};
use super::text::{clean, count, object, room_gib, severity, taken_gib};
use crate::capacity::vram::Vram;

/// The largest number of bytes, below GitHub's limit of 1 MiB for one step.
const MAX_BYTES: usize = 1_000_000;

/// What is kept free for the end of the text and for notices about what is left out.
const RESERVE: usize = 4096;

/// The largest number of rows of a group of findings, and of any other table.
const MAX_ROWS: usize = 1000;

/// Renders a report as Markdown.
pub(super) fn render(report: &Report) -> String {
    let mut page = Page(String::new());
    head(report, &mut page);
    findings(report, &mut page);
    places(report, &mut page);
    namespaces(report, &mut page);
    cramped(report, &mut page);
    enforced(report, &mut page);
    assumed(report, &mut page);
    baseline(report, &mut page);
    let (sentence, command) = summary::next(report);
    page.line("");
    page.line(&format!("**Next:** {sentence}: {}", code(&command)));
    page.0
}

/// The text so far.
struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn has_room_for(&self, more: usize) -> bool {
        self.0.len() + more + RESERVE <= MAX_BYTES
    }

    /// A table, as far as there is room for it.
    fn table(&mut self, columns: &[&str], rows: impl ExactSizeIterator<Item = Vec<String>>) {
        let all = rows.len();
        // A column with a colon has numbers.
        let titles: Vec<&str> = columns.iter().map(|title| title.trim_end_matches(':')).collect();
        let rules: Vec<&str> = columns.iter().map(|title| if title.ends_with(':') { "--:" } else { "---" }).collect();
        self.line("");
        self.line(&format!("| {} |", titles.join(" | ")));
        self.line(&format!("| {} |", rules.join(" | ")));
        let mut written = 0;
        for row in rows.take(MAX_ROWS) {
            let line = format!("| {} |", row.join(" | "));
            if !self.has_room_for(line.len()) {
                break;
            }
            self.line(&line);
            written += 1;
        }
        if written < all {
            self.line("");
            self.line(&format!("_… and {} more. `--output json` has all._", all - written));
        }
    }

    /// A section that is closed at first.
    fn folded(&mut self, title: &str, content: impl FnOnce(&mut Page)) {
        self.details("<details>", title, content);
    }

    fn details(&mut self, tag: &str, title: &str, content: impl FnOnce(&mut Page)) {
        if !self.has_room_for(title.len() + 512) {
            return;
        }
        self.line("");
        self.line(&format!("{tag}<summary>{title}</summary>"));
        content(self);
        self.line("");
        self.line("</details>");
    }
}

/// Escapes a text so that it is shown as it is: no markup, no link, no mention, no cell of its own.
fn escaped(text: &str) -> String {
    let text = clean(text);
    let mut escaped = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let follows = |word: &str| {
            let end = escaped.len().checked_sub(word.len()).and_then(|start| escaped.get(start..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(word))
        };
        let is_kept = match c {
            // Inside a word it is no markup.
            '_' => escaped.ends_with(char::is_alphanumeric) && characters.peek().is_some_and(|c| c.is_alphanumeric()),
            // These would make a link of `www.` and `http:`.
            '.' => !follows("www"),
            ':' => !follows("http") && !follows("https"),
            c => !c.is_ascii() || c.is_alphanumeric() || " -/,;%+=()\"'?".contains(c),
        };
        if is_kept {
            escaped.push(c);
        } else {
            let _ = write!(escaped, "&#{};", u32::from(c));
        }
    }
    escaped
}

/// A text in a fixed-width font, shown as it is.
fn code(text: &str) -> String {
    let text = clean(text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " -_./:=,\"'()+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) && text.trim() == text {
        format!("`{text}`")
    } else {
        format!("<code>{}</code>", escaped(&text))
    }
}

/// A count, or `-` if it is not known.
fn known(amount: Option<String>) -> String {
    amount.unwrap_or_else(|| "-".to_owned())
}

fn head(report: &Report, page: &mut Page) {
    let sign = match (report.summary.deny, report.summary.warn) {
        (0, 0) => "✅",
        (0, _) => "⚠️",
        (_, _) => "❌",
    };
    let cluster = if report.cluster.is_empty() { String::new() } else { format!(": {}", escaped(&report.cluster)) };
    page.line(&format!("## {sign} GPU memory audit{cluster}"));
    page.line("");
    let parts = summary::verdict(&report.summary).into_iter().map(|(text, tone)| match tone {
        Tone::Bad | Tone::Doubtful => format!("**{}**", escaped(&text)),
        Tone::Good | Tone::Plain => escaped(&text),
    });
    page.line(&parts.collect::<Vec<_>>().join(" · "));
    let origin = [("read ", &report.generated_at), ("by ", &report.generated_by)];
    let origin: Vec<String> = origin
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(before, text)| format!("{before}{}", escaped(text)))
        .collect();
    if !origin.is_empty() {
        page.line("");
        page.line(&format!("<sub>{}</sub>", origin.join(" ")));
    }
    if !report.gaps.is_empty() {
        page.line("");
        page.line("> [!WARNING]");
        for gap in report.gaps.iter().take(MAX_ROWS) {
            let line = format!("> Not read: {}: {}<br>", code(&gap.what), escaped(&gap.why));
            if page.has_room_for(line.len()) {
                page.line(&line);
            }
        }
    }
}

fn findings(report: &Report, page: &mut Page) {
    page.line("");
    page.line("### Findings");
    let groups = groups(report);
    if groups.is_empty() {
        page.line("");
        page.line("None.");
        return;
    }
    let row = |group: &Group<'_>| {
        let pods = group.findings.iter().map(|finding| finding.pods).fold(0, u64::saturating_add);
        vec![
            severity(group.severity).to_owned(),
            code(group.reason),
            group.findings.len().to_string(),
            pods.to_string(),
        ]
    };
    page.table(&["Severity", "Reason", "Findings:", "Pods:"], groups.iter().map(row));
    let new = new_ids(report).unwrap_or_default();
    for group in &groups {
        let title = format!("<b>{}</b> {}: {}", severity(group.severity), escaped(group.reason), group.extent());
        // What breaks is seen at once.
        let tag = if group.severity == Severity::Deny { "<details open>" } else { "<details>" };
        page.details(tag, &title, |page| {
            let row = |finding: &&Finding| {
                let is_new = if new.contains(&key(finding)) { "🆕 " } else { "" };
                let remedy = if finding.remedy.is_empty() { String::new() } else { code(&finding.remedy) };
                vec![format!("{is_new}{}", described(finding)), escaped(&finding.message), remedy]
            };
            page.table(&["Object", "Message", "Remedy"], group.findings.iter().map(row));
        });
    }
}

fn described(finding: &Finding) -> String {
    let mut text = format!("{} {}", escaped(&finding.kind), code(&object(finding)));
    if finding.pods > 1 {
        let _ = write!(text, ", {}", count(finding.pods, "pod"));
    }
    if let Some(source) = &finding.source {
        let _ = write!(text, "<br>{}", code(&format!("{}:{}", source.file, source.line)));
    }
    text
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Full => "full",
        Status::Unknown => "**unknown**",
        Status::MaybeOvercommitted => "**maybe overcommitted**",
        Status::Overcommitted => "**overcommitted**",
    }
}

/// What is in use, and why that is not current.
fn used(amount: Option<Vram>, stale: Option<&str>) -> String {
    match (amount, stale) {
        (Some(amount), Some(why)) => format!("{} ({})", taken_gib(amount.mib()), escaped(why)),
        (amount, _) => known(amount.map(|amount| taken_gib(amount.mib()))),
    }
}

/// Nodes and GPUs that are not well; healthy ones are in the numbers at the top.
fn places(report: &Report, page: &mut Page) {
    if report.nodes.is_empty() && report.gpus.is_empty() {
        return;
    }
    let title = format!("{}, worst first", count(u64::try_from(report.nodes.len()).unwrap_or(u64::MAX), "node"));
    page.folded(&title, |page| {
        let mut nodes: Vec<&Node> = report.nodes.iter().collect();
        nodes.sort_by_key(|node| (std::cmp::Reverse(node.status), std::cmp::Reverse(node.held_mib)));
        let mut gpus: BTreeMap<&str, Vec<&Gpu>> = BTreeMap::new();
        for gpu in &report.gpus {
            gpus.entry(&gpu.node).or_default().push(gpu);
        }
        let of = |node: &Node| gpus.get(node.node.as_str()).map_or(&[][..], Vec::as_slice);
        let row = |node: &&Node| {
            vec![
                code(&node.node),
                node.gpus.to_string(),
                escaped(&node.mode),
                known(node.allocatable_mib.map(room_gib)),
                known(summary::held(node)),
                known(node.free_mib.map(room_gib)),
                used(node.amounts(of(node)).used, of(node).iter().find_map(|gpu| gpu.stale.as_deref())),
                node.pods.to_string(),
                node.undeclared_pods.to_string(),
                word(node.status).to_owned(),
            ]
        };
        let columns = [
            "Node",
            "GPUs:",
            "Mode",
            "Allocatable, GiB:",
            "Held:",
            "Free for one pod:",
            "In use:",
            "Pods:",
            "Undeclared:",
            "Status",
        ];
        page.table(&columns, nodes.iter().map(row));
        if let Some(totals_only) = summary::totals_only(report) {
            page.line(&format!("\n{}", escaped(&totals_only)));
        }
        let bad: Vec<&Gpu> = report.gpus.iter().filter(|gpu| gpu.status > Status::Full).collect();
        if !bad.is_empty() {
            let row = |gpu: &&Gpu| {
                vec![
                    code(&gpu.node),
                    code(&gpu.gpu),
                    room_gib(gpu.allocatable_mib),
                    taken_gib(gpu.held_mib),
                    used(gpu.amounts().used, gpu.stale.as_deref()),
                    gpu.holders.len().to_string(),
                    word(gpu.status).to_owned(),
                ]
            };
            let columns = ["Node", "GPU", "Allocatable, GiB:", "Held:", "In use:", "Holders:", "Status"];
            page.table(&columns, bad.iter().map(row));
        }
    });
}

fn namespaces(report: &Report, page: &mut Page) {
    if report.namespaces.is_empty() {
        return;
    }
    let number = u64::try_from(report.namespaces.len()).unwrap_or(u64::MAX);
    page.folded(&count(number, "namespace"), |page| {
        let rows = report.namespaces.iter().map(|space| {
            vec![
                code(&space.namespace),
                escaped(&space.mode),
                space.pods.to_string(),
                space.undeclared_pods.to_string(),
                space.refused_pods.to_string(),
                taken_gib(space.declared_mib),
                taken_gib(space.held_mib),
                space.quota_mib.map_or("none".to_owned(), room_gib),
            ]
        });
        let columns =
            ["Namespace", "Policy", "Pods:", "Undeclared:", "Would be refused:", "Declared, GiB:", "Held:", "Quota:"];
        page.table(&columns, rows);
    });
}

fn cramped(report: &Report, page: &mut Page) {
    let cramped = summary::cramped(report);
    if cramped.is_empty() {
        return;
    }
    let number = u64::try_from(cramped.len()).unwrap_or(u64::MAX);
    page.folded(&format!("{} that cannot grow", count(number, "workload")), |page| {
        let rows = cramped.iter().map(|workload| {
            vec![
                format!("{} {}", escaped(&workload.kind), code(&format!("{}/{}", workload.namespace, workload.name))),
                known(workload.demand_mib.map(taken_gib)),
                workload.replicas.to_string(),
                workload.max_replicas.to_string(),
                known(workload.fits_more.map(|more| more.to_string())),
            ]
        });
        page.table(&["Workload", "Each, GiB:", "Now:", "At most:", "More that fit:"], rows);
    });
}

fn enforced(report: &Report, page: &mut Page) {
    let enforced = &report.enforced;
    let (refused, moved) = (enforced.refused.len(), enforced.waiting.len() + enforced.elsewhere.len());
    if refused + moved == 0 {
        return;
    }
    let title = format!(
        "Under mode Enforce: {refused} refused, {} waiting, {} on another node",
        enforced.waiting.len(),
        enforced.elsewhere.len()
    );
    page.folded(&title, |page| {
        if refused > 0 {
            let rows = enforced.refused.iter().map(|pod| {
                vec![code(&format!("{}/{}", pod.namespace, pod.pod)), code(&pod.reason), escaped(&pod.message)]
            });
            page.table(&["Refused", "Reason", "Message"], rows);
        }
        if moved > 0 {
            let all: Vec<_> = enforced.waiting.iter().chain(&enforced.elsewhere).collect();
            let rows = all.iter().map(|pod| {
                let to = pod.to.as_ref().map_or("waits".to_owned(), |node| code(node));
                vec![code(&format!("{}/{}", pod.namespace, pod.pod)), code(&pod.from), to]
            });
            page.table(&["Pod", "Now on", "Then"], rows);
        }
    });
}

fn assumed(report: &Report, page: &mut Page) {
    let Some(assumed) = &report.assumed else { return };
    let assumptions: Vec<String> = assumed.assumptions.iter().map(|text| code(text)).collect();
    page.line("");
    page.line(&format!("### Assuming {}", assumptions.join(", ")));
    let (now, then) = (&report.summary, &assumed.report.summary);
    let rows: Vec<Vec<String>> = summary::COUNTED
        .iter()
        .filter(|(_, number, _)| number(now) > 0 || number(then) > 0)
        .map(|(name, number, _)| vec![(*name).to_owned(), number(now).to_string(), number(then).to_string()])
        .chain([vec!["held, GiB".to_owned(), taken_gib(now.held_mib), taken_gib(then.held_mib)]])
        .collect();
    page.table(&["", "Today:", "Assumed:"], rows.into_iter());
}

fn baseline(report: &Report, page: &mut Page) {
    let Some(baseline) = &report.baseline else { return };
    page.line("");
    page.line(&format!(
        "### Since {}: {} new, {} gone, {} the same",
        if baseline.generated_at.is_empty() { "the baseline".to_owned() } else { escaped(&baseline.generated_at) },
        baseline.new.len(),
        baseline.gone.len(),
        baseline.same
    ));
    if !baseline.gone.is_empty() {
        let rows = baseline.gone.iter().map(|finding| vec![code(&finding.reason), described(finding)]);
        page.table(&["Gone", "Object"], rows);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{compared, large};
    use super::*;

    #[test]
    fn the_sample_as_markdown() {
        insta::assert_snapshot!(render(&compared()));
    }

    #[test]
    fn a_text_is_shown_as_it_is() {
        let shown = [
            ("a|b", "a&#124;b"),
            ("<b>&amp;</b>", "&#60;b&#62;&#38;amp&#59;&#60;/b&#62;"),
            ("[x](http://y)", "&#91;x&#93;(http&#58;//y)"),
            (
                "www.evil.com @team #1 `x` *b* _i_ ~s~ $m$ \\",
                "www&#46;evil.com &#64;team &#35;1 &#96;x&#96; &#42;b&#42; &#95;i&#95; &#126;s&#126; &#36;m&#36; &#92;",
            ),
            ("GPU 0: 8.5 (of 2,866Mi)", "GPU 0: 8.5 (of 2,866Mi)"),
        ];
        for (text, expected) in shown {
            assert_eq!(escaped(text).replace("&#59;", ";"), expected.replace("&#59;", ";"), "{text}");
        }
        assert_eq!(code("ns/a-b.c_d"), "`ns/a-b.c_d`");
        assert_eq!(code("a`|b"), "<code>a&#96;&#124;b</code>");
        assert_eq!(code(r"a\|b"), "<code>a&#92;&#124;b</code>");
    }

    #[test]
    fn no_text_adds_a_cell_a_line_or_an_element() {
        let mut report = compared();
        let hostile = "x | y ` | \\| <img src=x> </details> ](javascript:z) \n\n# h\r\n| --- |";
        for finding in &mut report.findings {
            finding.kind = hostile.into();
            finding.name = hostile.into();
            finding.message = hostile.into();
            finding.remedy = hostile.into();
            finding.reason = format!("{} {hostile}", finding.reason);
        }
        report.nodes.iter_mut().for_each(|node| node.node = hostile.into());
        report.namespaces.iter_mut().for_each(|space| space.namespace = hostile.into());
        let (text, plain) = (render(&report), render(&compared()));
        // The same structure as that of a report without such texts.
        let shape = |text: &str| {
            text.lines()
                .map(|line| (line.matches('|').count(), line.starts_with('#'), line.is_empty()))
                .collect::<Vec<_>>()
        };
        assert_eq!(shape(&text), shape(&plain));
        assert!(!text.contains("<img") && !text.contains("](") && !text.contains("<script"));
        assert_eq!(text.matches("</details>").count(), plain.matches("</details>").count());
    }

    #[test]
    fn a_large_report_fits_a_job_summary_and_says_what_is_left_out() {
        let mut report = large();
        let finding = report.findings[0].clone();
        report.findings.resize(30_000, Finding { message: "m".repeat(1500), ..finding });
        let text = render(&report);
        assert!(text.len() <= MAX_BYTES, "{}", text.len());
        assert!(text.contains(" more. `--output json` has all._") && text.contains("**Next:**"));
        assert_eq!(text.matches("<details").count(), text.matches("</details>").count());
    }
}
