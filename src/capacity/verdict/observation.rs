//! What a node agent reports: why a GPU cannot be read, and what is wrong with what a container uses. Owns the wording;
//! [`crate::capacity::observation`] decides what applies.

use std::fmt;
use std::time::Duration;

use super::{count, quoted};
use crate::capacity::node::inventory::Source;
use crate::capacity::pod::PodName;
use crate::capacity::vram::Vram;

/// Why something on a node could not be read. It is never the same as zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unreadable {
    /// The driver's library could not be loaded.
    NoLibrary(String),
    /// The library is there, and the kernel module is not loaded.
    NoDriver,
    /// The library and the kernel module are of different versions, as between an upgrade and a reboot.
    VersionMismatch,
    /// The driver refuses to tell.
    NoPermission,
    /// The GPU fell off the bus.
    Lost,
    /// The GPU must be reset before it works again.
    NeedsReset,
    /// The GPU or the driver does not offer the value.
    NotSupported,
    /// The driver does not answer in time.
    Silent,
    /// The DCGM exporter cannot be reached, or answers with an error.
    NoExporter(String),
    /// The DCGM exporter tells something that is no amount of memory of a GPU.
    BadExposition(String),
    /// The DCGM exporter lists other GPUs, and this one no longer.
    NotListed,
    /// Any other error of the driver, in its words.
    Other(String),
}

impl Unreadable {
    /// A word for metrics, in CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Unreadable::NoLibrary(_) => "NoLibrary",
            Unreadable::NoDriver => "NoDriver",
            Unreadable::VersionMismatch => "VersionMismatch",
            Unreadable::NoPermission => "NoPermission",
            Unreadable::Lost => "Lost",
            Unreadable::NeedsReset => "NeedsReset",
            Unreadable::NotSupported => "NotSupported",
            Unreadable::Silent => "Silent",
            Unreadable::NoExporter(_) => "NoExporter",
            Unreadable::BadExposition(_) => "BadExposition",
            Unreadable::NotListed => "NotListed",
            Unreadable::Other(_) => "Other",
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::NoLibrary(why) => write!(
                f,
                "the driver's library cannot be loaded ({why}); install the NVIDIA driver on this machine, or mount it into the \
                 container"
            ),
            Unreadable::NoDriver => {
                f.write_str("the NVIDIA kernel module is not loaded; load it, or look for its error in the log of the kernel")
            }
            Unreadable::VersionMismatch => f.write_str(
                "the driver's library and its kernel module are of different versions, as after an upgrade; restart the machine, \
                 or load the new module",
            ),
            Unreadable::NoPermission => {
                f.write_str("the driver refuses to tell (no permission); run as a user who may open /dev/nvidiactl")
            }
            Unreadable::Lost => {
                f.write_str("the GPU fell off the bus; its pods have lost it, and it comes back with a restart of the machine")
            }
            Unreadable::NeedsReset => f.write_str("the GPU must be reset before it can be used again"),
            Unreadable::NotSupported => f.write_str("the driver does not offer this for this GPU"),
            Unreadable::Silent => f.write_str("the driver does not answer; look for its error in the log of the kernel"),
            Unreadable::NoExporter(why) => write!(
                f,
                "the DCGM exporter cannot be read ({why}); look at its pod on this node, and at --dcgm-exporter of the agent"
            ),
            Unreadable::BadExposition(why) => write!(
                f,
                "what the DCGM exporter tells cannot be used ({why}); look at what it prints, and at its file of counters"
            ),
            Unreadable::NotListed => f.write_str(
                "the DCGM exporter no longer lists the GPU; look at the log of the exporter, and for an error of the GPU in the \
                 log of the kernel",
            ),
            Unreadable::Other(why) => write!(f, "the driver says: {why}"),
        }
    }
}

/// The container that a finding is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'f> {
    /// Namespace and name of its pod.
    pub pod: &'f PodName,
    /// Its name.
    pub container: &'f str,
    /// The annotation that declares its VRAM, or that would.
    pub annotation: &'f str,
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}, container {}", self.pod, quoted(self.container))
    }
}

/// The finding about a container that uses more than it counts with. `write` is the declaration that would cover it.
pub fn uses_more(of: Subject<'_>, used: Vram, demand: Vram, write: Vram) -> String {
    format!(
        "{of} uses {used} of the GPU, but counts with {demand}, so another pod may run out of memory; set {} to at least {write}",
        of.annotation
    )
}

/// The finding about a container that uses memory and declares none.
pub fn uses_undeclared(of: Subject<'_>, used: Vram, write: Vram) -> String {
    format!("{of} uses {used} of the GPU and declares none; set {} to {write}", of.annotation)
}

/// The finding about a container that has never used most of what it counts with.
pub fn uses_far_less(of: Subject<'_>, peak: Vram, demand: Vram, seen: Duration, write: Vram) -> String {
    format!(
        "{of} has used at most {peak} of the GPU in {}, but counts with {demand}; if that was its full load, set {} to {write}",
        hours(seen),
        of.annotation
    )
}

/// The finding about a container that computes nothing and holds memory.
pub fn idles(of: Subject<'_>, held: Vram, idle: Duration) -> String {
    format!(
        "{of} has computed nothing for {} and holds {held} of the GPU; end it, or scale it down while nobody uses it",
        hours(idle)
    )
}

/// The message of a condition about an agent that has not reported for too long.
pub(super) fn agent_stale(reported: &str) -> String {
    format!(
        "the node agent last reported at {reported}; what it saw then still counts, and nothing newer is known; look at the agent \
         of this node"
    )
}

/// Why a MIG device is not reported that a DCGM exporter lists.
pub const MIG_NOT_TOLD: &str =
    "a DCGM exporter does not tell the UUID of a MIG device, so nothing shows which replica is which";

/// What one look through a DCGM exporter leaves out.
pub const GLANCE_NOT_TOLD: &str =
    "read from a DCGM exporter: it does not tell the processes of a GPU, nor whether MPS runs on it";

/// The message of a condition about an agent that reports.
pub(super) fn agent_reports(source: Source, unreadable: Option<&str>) -> String {
    match (source.tells_processes(), unreadable) {
        (true, None) => "the node agent reports what it sees on the GPUs".to_owned(),
        (false, None) => format!("the node agent reports what is in use on each GPU, {TOTALS_ONLY}"),
        (_, Some(why)) => format!("the node agent reports, but cannot read a GPU, whose last values count: {why}"),
    }
}

/// What is not known of a node whose agent reads a source that does not tell processes, as a part of a sentence about what
/// is in use.
pub const TOTALS_ONLY: &str =
    "as read from a DCGM exporter, which does not tell what each pod uses, nor what no pod counts with";

/// The parts of the sentence of a finding: what is the matter, and what to do, which is its last clause. The second is empty
/// in a sentence that was cut before it.
pub fn matter_and_advice(finding: &str) -> (&str, &str) {
    finding.rsplit_once("; ").unwrap_or((finding, ""))
}

/// Why amounts that a node agent reported are not those of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outdated {
    /// The report is this old.
    Old(Duration),
    /// The report does not say when it was written.
    Undated,
    /// The agent reports that it cannot read the driver or the GPU at present, and why.
    Unreadable(String),
}

impl fmt::Display for Outdated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outdated::Old(age) => write!(f, "reported {} ago", hours(*age)),
            Outdated::Undated => f.write_str("reported at an unknown time"),
            // What to do about it is in the finding about the node.
            Outdated::Unreadable(why) => write!(f, "not readable now: {}", why.split("; ").next().unwrap_or_default()),
        }
    }
}

/// A time that has passed, in minutes below one hour and in hours from then on.
pub fn hours(duration: Duration) -> String {
    match duration.as_secs() / 3600 {
        0 => count(usize::try_from(duration.as_secs() / 60).unwrap_or(usize::MAX), "minute"),
        hours => count(usize::try_from(hours).unwrap_or(usize::MAX), "hour"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_sentence_of_its_own_and_says_what_to_do_where_something_can_be_done() {
        let all = [
            Unreadable::NoLibrary("libnvidia-ml.so.1: no such file".into()),
            Unreadable::NoDriver,
            Unreadable::VersionMismatch,
            Unreadable::NoPermission,
            Unreadable::Lost,
            Unreadable::NeedsReset,
            Unreadable::NotSupported,
            Unreadable::Silent,
            Unreadable::NoExporter("connection refused".into()),
            Unreadable::BadExposition("it prints nothing".into()),
            Unreadable::NotListed,
            Unreadable::Other("unknown error".into()),
        ];
        let texts: std::collections::BTreeSet<String> = all.iter().map(Unreadable::to_string).collect();
        let reasons: std::collections::BTreeSet<&str> = all.iter().map(Unreadable::reason).collect();
        assert_eq!((texts.len(), reasons.len()), (all.len(), all.len()));
    }

    #[test]
    fn a_finding_names_the_container_the_numbers_and_the_line_to_write() {
        let pod = PodName { namespace: "ml".into(), name: "llm-0".into() };
        let of = Subject { pod: &pod, container: "main", annotation: "vramguard.dev/vram" };
        let mib = Vram::from_mib;
        insta::assert_snapshot!(uses_more(of, mib(9_421), mib(8_912), mib(9_152)), @r#"pod "ml/llm-0", container "main" uses 9421Mi of the GPU, but counts with 8912Mi, so another pod may run out of memory; set vramguard.dev/vram to at least 9152Mi"#);
        insta::assert_snapshot!(uses_undeclared(of, mib(9_421), mib(9_152)), @r#"pod "ml/llm-0", container "main" uses 9421Mi of the GPU and declares none; set vramguard.dev/vram to 9152Mi"#);
        insta::assert_snapshot!(uses_far_less(of, mib(2_100), mib(8_912), Duration::from_secs(7_300), mib(1_472)), @r#"pod "ml/llm-0", container "main" has used at most 2100Mi of the GPU in 2 hours, but counts with 8912Mi; if that was its full load, set vramguard.dev/vram to 1472Mi"#);
        let sentences = [
            uses_more(of, mib(9_421), mib(8_912), mib(9_152)),
            uses_undeclared(of, mib(9_421), mib(9_152)),
            uses_far_less(of, mib(2_100), mib(8_912), Duration::from_secs(7_300), mib(1_472)),
            idles(of, mib(8_868), Duration::from_secs(4 * 3600)),
        ];
        for sentence in &sentences {
            let (matter, advice) = matter_and_advice(sentence);
            assert!(
                matter.starts_with("pod \"ml/llm-0\", container \"main\" ") && !matter.contains("set "),
                "{matter}"
            );
            assert!(
                advice.starts_with("set ") || advice.contains("full load, set ") || advice.starts_with("end it"),
                "{advice}"
            );
        }
        insta::assert_snapshot!(idles(of, mib(8_868), Duration::from_secs(4 * 3600)), @r#"pod "ml/llm-0", container "main" has computed nothing for 4 hours and holds 8868Mi of the GPU; end it, or scale it down while nobody uses it"#);
    }
}
