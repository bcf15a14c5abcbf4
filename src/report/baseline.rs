//! The comparison of a report with an earlier one, and which reports fail a run.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::document::{Baseline, Finding, Report, Severity};

/// Which findings fail the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailOn {
    /// Those of severity `deny`.
    #[default]
    Deny,
    /// Those of severity `deny` or `warn`.
    Warn,
    /// Those of severity `deny` or `warn` that the baseline does not have. Without a baseline all of them are new.
    New,
    /// None.
    Never,
}

impl FailOn {
    /// All choices, in the order of the documentation.
    pub const ALL: [FailOn; 4] = [FailOn::Deny, FailOn::Warn, FailOn::New, FailOn::Never];

    /// The name of the choice on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FailOn::Deny => "deny",
            FailOn::Warn => "warn",
            FailOn::New => "new",
            FailOn::Never => "never",
        }
    }
}

impl fmt::Display for FailOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that is none of the choices of [`FailOn`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not known; expected one of: {}", crate::capacity::verdict::quoted(.0), FailOn::ALL.map(FailOn::name).join(", "))]
pub struct UnknownFailOn(String);

impl FromStr for FailOn {
    type Err = UnknownFailOn;

    /// Reads the name of a choice.
    ///
    /// # Errors
    /// The text is not the name of a choice.
    fn from_str(text: &str) -> Result<FailOn, UnknownFailOn> {
        FailOn::ALL.into_iter().find(|choice| choice.name() == text).ok_or_else(|| UnknownFailOn(text.to_owned()))
    }
}

/// Compares a report with an earlier one by the ids of the findings, and keeps the result in the report.
pub fn compare(current: &mut Report, earlier: &Report) {
    let now: BTreeSet<String> = current.findings.iter().map(key).collect();
    let before: BTreeSet<String> = earlier.findings.iter().map(key).collect();
    let mut told = BTreeSet::new();
    let mut once = |key: &String| told.insert(key.clone());
    let new = current.findings.iter().map(key).filter(|key| !before.contains(key) && once(key)).collect();
    let gone = earlier.findings.iter().filter(|finding| !now.contains(&key(finding)) && once(&key(finding)));
    let gone = gone.cloned().collect();
    let same = current.findings.iter().filter(|finding| before.contains(&key(finding))).count();
    let same = u64::try_from(same).unwrap_or(u64::MAX);
    current.baseline = Some(Baseline { generated_at: earlier.generated_at.clone(), new, gone, same });
}

/// The id of a finding. A report of another program may have none: then what the id is made of.
pub(super) fn key(finding: &Finding) -> String {
    if !finding.id.is_empty() {
        return finding.id.clone();
    }
    let Finding { reason, kind, namespace, name, container, .. } = finding;
    format!("{reason}/{kind}/{namespace}/{name}/{}", container.as_deref().unwrap_or_default())
}

/// Whether the report has a finding that fails the run.
pub fn fails(report: &Report, on: FailOn) -> bool {
    let failing = Failing::new(report, on);
    report.findings.iter().any(|finding| failing.includes(finding))
}

/// The findings of one report that fail the run.
pub(super) struct Failing {
    on: FailOn,
    new: Option<BTreeSet<String>>,
}

impl Failing {
    pub(super) fn new(report: &Report, on: FailOn) -> Failing {
        Failing { on, new: new_ids(report) }
    }

    pub(super) fn includes(&self, finding: &Finding) -> bool {
        let is_grave = finding.severity != Severity::Info;
        match self.on {
            FailOn::Deny => finding.severity == Severity::Deny,
            FailOn::Warn => is_grave,
            FailOn::New => is_grave && self.new.as_ref().is_none_or(|new| new.contains(&key(finding))),
            FailOn::Never => false,
        }
    }
}

/// The ids of the new findings; `None` without a baseline.
pub(super) fn new_ids(report: &Report) -> Option<BTreeSet<String>> {
    report.baseline.as_ref().map(|baseline| baseline.new.iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{compared, sample};
    use super::*;

    #[test]
    fn findings_are_new_gone_or_the_same_by_their_id() {
        let report = compared();
        let baseline = report.baseline.clone().expect("it was compared");
        assert_eq!(baseline.generated_at, "2026-11-28T12:00:00Z");
        assert_eq!(baseline.new, ["a1b2c3d4e5f60003"]);
        let gone: Vec<&str> = baseline.gone.iter().map(|finding| finding.name.as_str()).collect();
        assert_eq!(gone, ["batch-1"]);
        assert_eq!(baseline.same, 6);
    }

    #[test]
    fn a_finding_with_other_numbers_is_the_same_finding() {
        let mut report = sample();
        report.findings[0].numbers.insert("deficitMib".into(), 7);
        report.findings[0].message = "GPU 0 is overcommitted by 7Mi".into();
        compare(&mut report, &sample());
        let baseline = report.baseline.expect("it was compared");
        assert_eq!((baseline.new.len(), baseline.gone.len(), baseline.same), (0, 0, 7));
    }

    #[test]
    fn findings_without_an_id_are_compared_by_what_an_id_is_made_of() {
        let mut earlier = sample();
        earlier.findings.iter_mut().for_each(|finding| finding.id.clear());
        let mut report = earlier.clone();
        report.findings[1].container = Some("other".into());
        report.findings[2].message = "another text".into();
        compare(&mut report, &earlier);
        let baseline = report.baseline.expect("it was compared");
        assert_eq!(baseline.new, ["VramUndeclared/Deployment/notebooks/jupyter/other"]);
        assert_eq!((baseline.gone.len(), baseline.same), (1, 6));
    }

    #[test]
    fn a_run_fails_on_what_it_was_asked_to_fail_on() {
        let of = |severity: Option<Severity>| {
            let mut report = sample();
            report.findings.retain(|finding| severity == Some(finding.severity));
            FailOn::ALL.map(|on| fails(&report, on))
        };
        assert_eq!(of(Some(Severity::Deny)), [true, true, true, false]);
        assert_eq!(of(Some(Severity::Warn)), [false, true, true, false]);
        assert_eq!(of(Some(Severity::Info)), [false, false, false, false]);
        assert_eq!(of(None), [false, false, false, false]);
    }

    #[test]
    fn new_fails_on_grave_findings_that_the_baseline_does_not_have() {
        let mut report = sample();
        compare(&mut report, &sample());
        assert!(!fails(&report, FailOn::New) && fails(&report, FailOn::Deny));
        let with_new = |severity: Severity| {
            let mut report = sample();
            report.findings[0].id = "0000000000000000".into();
            report.findings[0].severity = severity;
            compare(&mut report, &sample());
            fails(&report, FailOn::New)
        };
        assert!(with_new(Severity::Deny) && with_new(Severity::Warn));
        assert!(!with_new(Severity::Info));
    }

    #[test]
    fn each_choice_is_read_by_its_name() {
        for choice in FailOn::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "sometimes".parse::<FailOn>().expect_err("no such choice").to_string();
        insta::assert_snapshot!(error, @r#""sometimes" is not known; expected one of: deny, warn, new, never"#);
    }
}
