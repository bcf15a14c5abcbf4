//! Workflow commands of GitHub Actions, which annotate a pull request and the summary of a run.
//!
//! A finding is an `::error`, a `::warning` or a `::notice` by its severity, and what could not be read is a warning.
//! GitHub keeps ten annotations of each kind for a step, so that no more are written unless all are asked for; a last
//! line says how many there are.

use super::document::{Finding, Report, Severity};
use super::summary::verdict;
use super::text::{clean, count, object, words};

/// The number of annotations of each kind that GitHub keeps for one step.
const KEPT: usize = 10;

/// Renders the findings as workflow commands.
pub(super) fn render(report: &Report, all: bool) -> String {
    let mut text = String::new();
    let mut left_out = 0_u64;
    for severity in [Severity::Deny, Severity::Warn, Severity::Info] {
        let found = report.findings.iter().filter(|finding| finding.severity == severity).map(of_finding);
        let gaps = report
            .gaps
            .iter()
            .map(|gap| command("warning", &[("title", "not read")], &format!("{}: {}", gap.what, gap.why)));
        let commands: Vec<String> = match severity {
            Severity::Warn => gaps.chain(found).collect(),
            Severity::Deny | Severity::Info => found.collect(),
        };
        let shown = if all { commands.len() } else { KEPT.min(commands.len()) };
        left_out += u64::try_from(commands.len() - shown).unwrap_or(u64::MAX);
        text.extend(commands.iter().take(shown).map(|command| format!("{command}\n")));
    }
    if left_out > 0 {
        text.push_str(&format!(
            "{} not shown: GitHub keeps {KEPT} annotations of each kind; --all writes all, and --output markdown lists them\n",
            count(left_out, "more annotation")
        ));
    }
    let verdict: Vec<String> = verdict(&report.summary).into_iter().map(|(text, _)| text).collect();
    text.push_str(&format!("vramguard audit: {}\n", verdict.join(" · ")));
    text
}

fn of_finding(finding: &Finding) -> String {
    let name = match finding.severity {
        Severity::Deny => "error",
        Severity::Warn => "warning",
        Severity::Info => "notice",
    };
    let title = format!("{}: {} {}", words(&finding.reason), clean(&finding.kind), object(finding));
    let line = finding.source.as_ref().map(|source| source.line.to_string());
    let mut properties = Vec::new();
    if let (Some(source), Some(line)) = (&finding.source, &line) {
        properties.extend([("file", source.file.as_str()), ("line", line.as_str())]);
    }
    properties.push(("title", &title));
    let mut message = clean(&finding.message);
    if !finding.remedy.is_empty() {
        message.push_str(&format!("\n{}", clean(&finding.remedy)));
    }
    command(name, &properties, &message)
}

/// One workflow command in one line. A line feed of the message is kept, in the escape that GitHub shows as one.
fn command(name: &str, properties: &[(&str, &str)], message: &str) -> String {
    let properties: Vec<String> =
        properties.iter().map(|(key, value)| format!("{key}={}", property(&clean(value)))).collect();
    let message: Vec<String> = message.lines().map(|line| data(&clean(line))).collect();
    format!("::{name} {}::{}", properties.join(","), message.join("%0A"))
}

/// Escapes the message of a command.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes the value of a property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{large, sample};
    use super::*;

    #[test]
    fn each_finding_is_one_command() {
        insta::assert_snapshot!(render(&sample(), false));
    }

    /// Undoes what GitHub's runner undoes, in its order.
    fn unescaped(text: &str) -> String {
        text.replace("%0D", "\r").replace("%0A", "\n").replace("%3A", ":").replace("%2C", ",").replace("%25", "%")
    }

    #[test]
    fn no_text_ends_its_command_or_adds_a_property() {
        let mut report = sample();
        for finding in &mut report.findings {
            finding.kind = "Pod,file=/etc/passwd::\n::error::".into();
            finding.message = "100%0A::stop-commands::x\r\n::add-mask::y\u{1b}]0;z\u{7}".into();
            finding.source = Some(super::super::document::Source { file: "a,b:c%2C\nd.yaml".into(), line: 3 });
        }
        let text = render(&report, true);
        let commands: Vec<&str> = text.lines().filter(|line| line.starts_with("::")).collect();
        assert_eq!(commands.len(), report.findings.len() + report.gaps.len());
        assert_eq!(text.lines().count(), commands.len() + 1);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        for command in commands.iter().filter(|command| command.contains("file=")) {
            let (head, message) = command[2..].split_once("::").expect("a command has two parts");
            let (name, properties) = head.split_once(' ').expect("a name and properties");
            assert!(["error", "warning", "notice"].contains(&name));
            let keys: Vec<&str> =
                properties.split(',').map(|pair| pair.split_once('=').expect("a key and a value").0).collect();
            assert_eq!(keys, ["file", "line", "title"]);
            assert_eq!(unescaped(properties.split(',').next().expect("file")), r"file=a,b:c%2C\nd.yaml");
            assert!(
                unescaped(message).starts_with(r"100%0A::stop-commands::x\r\n::add-mask::y\u{1b}]0;z\u{7}"),
                "{message}"
            );
        }
    }

    #[test]
    fn ten_annotations_of_a_kind_are_written_and_the_others_counted() {
        let text = render(&large(), false);
        assert_eq!(text.matches("::error ").count(), 10);
        assert!(text.contains("\n390 more annotations not shown: "));
        assert_eq!(render(&large(), true).matches("::error ").count(), 400);
    }
}
