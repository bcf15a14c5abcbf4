//! JUnit XML for the test page of a CI system: one test suite for each reason, one test case for each finding.
//!
//! A finding that fails the run (`--fail-on`) is a failure. Any other one of severity `deny` or `warn` is skipped, with
//! its message, so that it is seen and breaks nothing. One of severity `info` passes and has its message as output.
//! What could not be read is skipped: nobody looked. A report without findings has one test case that passes, because
//! CI systems take a file without test cases for an error.

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesEnd, BytesStart, BytesText, Event};

use super::baseline::{FailOn, Failing};
use super::document::{Finding, Report, Severity};
use super::summary::groups;
use super::text::{clean, count, object, severity};

/// One test case, with texts that are clean and not yet escaped.
struct Case {
    name: String,
    class: String,
    outcome: Outcome,
}

enum Outcome {
    Passed(String),
    Skipped { message: String },
    Failed { kind: String, message: String, text: String },
}

struct Suite {
    name: String,
    cases: Vec<Case>,
}

impl Suite {
    fn count(&self, wanted: fn(&Outcome) -> bool) -> usize {
        self.cases.iter().filter(|case| wanted(&case.outcome)).count()
    }
}

fn is_failure(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed { .. })
}

fn is_skipped(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Skipped { .. })
}

/// Renders the findings as JUnit XML.
pub(super) fn render(report: &Report, on: FailOn) -> String {
    let failing = Failing::new(report, on);
    let mut suites: Vec<Suite> = Vec::new();
    if !report.gaps.is_empty() {
        let case = |gap: &super::document::Gap| Case {
            name: clean(&gap.what),
            class: "vramguard.gaps".to_owned(),
            outcome: Outcome::Skipped { message: clean(&gap.why) },
        };
        suites.push(Suite { name: "not read".to_owned(), cases: report.gaps.iter().map(case).collect() });
    }
    for group in groups(report) {
        let cases = group.findings.iter().map(|finding| of_finding(finding, &failing)).collect();
        suites.push(Suite { name: format!("{} ({})", clean(group.reason), severity(group.severity)), cases });
    }
    if report.findings.is_empty() {
        let looked = format!("{} looked at", count(report.summary.gpus, "GPU"));
        let case = Case {
            name: "no findings".to_owned(),
            class: "vramguard.audit".to_owned(),
            outcome: Outcome::Passed(looked),
        };
        suites.push(Suite { name: "audit".to_owned(), cases: vec![case] });
    }
    document(&suites, &clean(&report.generated_at))
}

fn of_finding(finding: &Finding, failing: &Failing) -> Case {
    let mut text = clean(&finding.message);
    if let Some(source) = &finding.source {
        text.push_str(&format!("\n{}:{}", clean(&source.file), source.line));
    }
    if !finding.remedy.is_empty() {
        text.push_str(&format!("\n{}", clean(&finding.remedy)));
    }
    let message = clean(&finding.message);
    let outcome = match finding.severity {
        _ if failing.includes(finding) => Outcome::Failed { kind: clean(&finding.reason), message, text },
        Severity::Deny | Severity::Warn => Outcome::Skipped { message },
        Severity::Info => Outcome::Passed(text),
    };
    let container = finding.container.as_ref().map(|container| format!(" [{}]", clean(container)));
    Case {
        name: format!("{} {}{}", clean(&finding.kind), object(finding), container.unwrap_or_default()),
        class: format!("vramguard.{}", clean(&finding.reason)),
        outcome,
    }
}

fn document(suites: &[Suite], timestamp: &str) -> String {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    write(&mut writer, suites, timestamp).expect("a vector takes all that is written to it");
    let mut text = String::from_utf8(writer.into_inner()).expect("all texts are UTF-8");
    text.push('\n');
    text
}

type Xml = Writer<Vec<u8>>;

fn write(writer: &mut Xml, suites: &[Suite], timestamp: &str) -> std::io::Result<()> {
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let sum = |number: fn(&Suite) -> usize| suites.iter().map(number).sum::<usize>().to_string();
    let tests = sum(|suite| suite.cases.len());
    let failures = sum(|suite| suite.count(is_failure));
    open(
        writer,
        "testsuites",
        &[("name", "vramguard audit"), ("tests", &tests), ("failures", &failures), ("errors", "0")],
    )?;
    for suite in suites {
        let (tests, failures) = (suite.cases.len().to_string(), suite.count(is_failure).to_string());
        let skipped = suite.count(is_skipped).to_string();
        let mut attributes = vec![
            ("name", suite.name.as_str()),
            ("tests", &tests),
            ("failures", &failures),
            ("errors", "0"),
            ("skipped", &skipped),
            ("time", "0"),
        ];
        if !timestamp.is_empty() {
            attributes.push(("timestamp", timestamp));
        }
        open(writer, "testsuite", &attributes)?;
        suite.cases.iter().try_for_each(|case| of_case(writer, case))?;
        close(writer, "testsuite")?;
    }
    close(writer, "testsuites")
}

fn of_case(writer: &mut Xml, case: &Case) -> std::io::Result<()> {
    open(writer, "testcase", &[("name", &case.name), ("classname", &case.class), ("time", "0")])?;
    match &case.outcome {
        Outcome::Passed(text) => element(writer, "system-out", &[], text)?,
        Outcome::Skipped { message } => element(writer, "skipped", &[("message", message)], "")?,
        Outcome::Failed { kind, message, text } => {
            element(writer, "failure", &[("type", kind), ("message", message)], text)?;
        }
    }
    close(writer, "testcase")
}

fn element(writer: &mut Xml, name: &str, attributes: &[(&str, &str)], text: &str) -> std::io::Result<()> {
    open(writer, name, attributes)?;
    writer.write_event(Event::Text(BytesText::new(text)))?;
    close(writer, name)
}

fn open(writer: &mut Xml, name: &str, attributes: &[(&str, &str)]) -> std::io::Result<()> {
    writer.write_event(Event::Start(BytesStart::new(name).with_attributes(attributes.iter().copied())))
}

fn close(writer: &mut Xml, name: &str) -> std::io::Result<()> {
    writer.write_event(Event::End(BytesEnd::new(name)))
}

#[cfg(test)]
mod tests {
    use quick_xml::Reader;

    use super::super::testing::{compared, sample};
    use super::*;

    #[test]
    fn each_reason_is_a_suite_and_each_finding_a_case() {
        insta::assert_snapshot!(render(&sample(), FailOn::Deny));
    }

    #[test]
    fn a_report_without_findings_has_a_case_that_passes() {
        insta::assert_snapshot!(render(&Report::default(), FailOn::Warn), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites name="vramguard audit" tests="1" failures="0" errors="0">
          <testsuite name="audit" tests="1" failures="0" errors="0" skipped="0" time="0">
            <testcase name="no findings" classname="vramguard.audit" time="0">
              <system-out>0 GPUs looked at</system-out>
            </testcase>
          </testsuite>
        </testsuites>
        "#);
    }

    /// The names of all elements, and the values of one attribute, read by an XML parser.
    fn read(text: &str, attribute: &str) -> (Vec<String>, Vec<String>) {
        let mut reader = Reader::from_str(text);
        let (mut names, mut values) = (Vec::new(), Vec::new());
        loop {
            match reader.read_event().expect("well-formed XML") {
                Event::Start(start) => {
                    names.push(String::from_utf8(start.name().as_ref().to_vec()).expect("UTF-8"));
                    let value = start.try_get_attribute(attribute).expect("readable attributes");
                    let value = value.map(|value| value.normalized_value(quick_xml::XmlVersion::Implicit1_0));
                    values.extend(value.map(|value| value.expect("known entities").into_owned()));
                }
                Event::Eof => return (names, values),
                Event::Empty(_) | Event::CData(_) | Event::Comment(_) | Event::PI(_) | Event::DocType(_) => {
                    panic!("an event that is never written")
                }
                Event::End(_) | Event::Text(_) | Event::Decl(_) | Event::GeneralRef(_) => {}
            }
        }
    }

    #[test]
    fn no_text_adds_an_element_and_each_is_read_back() {
        let report = sample();
        let text = render(&report, FailOn::Warn);
        let (names, messages) = read(&text, "message");
        assert_eq!(names.iter().filter(|name| *name == "testcase").count(), 8);
        let allowed = ["testsuites", "testsuite", "testcase", "failure", "skipped", "system-out"];
        assert!(names.iter().all(|name| allowed.contains(&name.as_str())), "{names:?}");
        let hostile = report.findings.iter().find(|finding| finding.message.contains("]]>")).expect("it is hostile");
        assert!(messages.contains(&clean(&hostile.message)), "{messages:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn what_fails_the_run_is_a_failure() {
        let failures =
            |on: FailOn| read(&render(&compared(), on), "message").0.iter().filter(|name| *name == "failure").count();
        assert_eq!(FailOn::ALL.map(failures), [3, 6, 1, 0]);
    }
}
