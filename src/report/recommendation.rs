//! What `vramguard recommend` prints: rows as a table, as JSON, and as patches of manifests. Owns the JSON contract of that
//! command, and the form of a patch; where a kind has its pod template is [`kinds`]'s.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::document::Gap;
use super::plan::columns;
use super::text::{clean, count, named, printable};
use crate::capacity::recommend::Row;
use crate::capacity::verdict::Recommendation;
use crate::capacity::vram::Vram;
use crate::k8s::template::kinds;

/// Version of the JSON contract.
const SCHEMA_VERSION: u32 = 1;

/// Recommendations for a cluster.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recommendations {
    schema_version: u32,
    /// When the cluster was read, RFC 3339.
    generated_at: String,
    cluster: String,
    /// How long a container must have been seen, in hours.
    min_observed_hours: u64,
    rows: Vec<RowDocument>,
    /// What could not be read.
    gaps: Vec<Gap>,
}

/// One container of a workload.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RowDocument {
    kind: String,
    namespace: String,
    name: String,
    container: String,
    /// Its pods on nodes.
    pods: usize,
    /// Those that were seen to use a GPU.
    seen_on: usize,
    /// Those of them whose node agent has not reported lately.
    stale: usize,
    /// Nodes of its pods on which no agent reports.
    nodes_without_agent: Vec<String>,
    /// Nodes of its pods whose agents read a DCGM exporter, which does not tell what a pod uses.
    nodes_with_totals_only: Vec<String>,
    /// What it declares; absent if nothing.
    #[serde(rename = "declaredMiB", skip_serializing_if = "Option::is_none")]
    declared: Option<u64>,
    /// The most that one of its pods has used; absent if none was seen.
    #[serde(rename = "peakMiB", skip_serializing_if = "Option::is_none")]
    peak: Option<u64>,
    /// For how long one of its pods was seen; absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_seconds: Option<u64>,
    /// Load cycles of the pod that was seen to compute for longest; absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    cycles: Option<u64>,
    /// What to do: raise, lower, keep, declare, or not enough data.
    status: &'static str,
    /// What to declare; absent where nothing is to change.
    #[serde(rename = "writeMiB", skip_serializing_if = "Option::is_none")]
    write: Option<u64>,
    /// The annotations to write it in.
    annotations: Vec<String>,
    /// Why there is not enough data; absent if there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip)]
    texts: Texts,
}

/// Amounts as people read them.
#[derive(Clone, Debug)]
struct Texts {
    declared: String,
    peak: String,
    write: String,
}

impl Recommendations {
    /// Makes the document of these rows.
    pub fn new(rows: &[Row], min_observed_hours: u64, origin: &super::assemble::Origin) -> Recommendations {
        Recommendations {
            schema_version: SCHEMA_VERSION,
            generated_at: origin.generated_at.clone(),
            cluster: origin.cluster.clone(),
            min_observed_hours,
            rows: rows.iter().map(document).collect(),
            gaps: origin.gaps.clone(),
        }
    }

    /// The recommendations for programs.
    pub fn json(&self) -> String {
        super::json::pretty(self)
    }

    /// The recommendations for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if self.rows.is_empty() {
            text.push_str("no container takes a shared GPU\n");
        } else {
            let head = ["WORKLOAD", "CONTAINER", "PODS", "SEEN", "PEAK", "DECLARED", "STATUS", "WRITE", "WHY"];
            let rows = self.rows.iter().map(|row| {
                vec![
                    format!("{} {}", row.kind, named(&row.namespace, &row.name)),
                    row.container.clone(),
                    row.pods.to_string(),
                    row.seen_on.to_string(),
                    row.texts.peak.clone(),
                    row.texts.declared.clone(),
                    row.status.to_owned(),
                    row.texts.write.clone(),
                    row.why(),
                ]
            });
            columns(&mut text, &head, rows.collect(), &[2, 3, 4, 5, 7]);
        }
        for gap in &self.gaps {
            let _ = writeln!(text, "\nnot read: {}: {}", clean(&gap.what), clean(&gap.why));
        }
        text
    }

    /// A strategic merge patch of the manifest of each workload whose declaration should change, as YAML documents.
    pub fn patch(&self) -> String {
        let mut of_objects: BTreeMap<(&str, &str, &str), Vec<&RowDocument>> = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.write.is_some()) {
            of_objects.entry((&row.namespace, &row.kind, &row.name)).or_default().push(row);
        }
        let mut text = String::new();
        for gap in &self.gaps {
            let _ = writeln!(text, "# not read: {}: {}", clean(&gap.what), clean(&gap.why));
        }
        if of_objects.is_empty() {
            text.push_str("# no declaration needs a change\n");
        }
        for ((namespace, kind, name), rows) in of_objects {
            let known = kinds::named(kind).filter(|known| known.is_built_in());
            // Comments alone are no document.
            if known.is_some() {
                let _ = writeln!(text, "---");
            }
            for row in &rows {
                let _ = writeln!(text, "# {}", row.comment());
            }
            let Some(known) = known else {
                // Nobody knows where such an object has its pod template, or its API server takes no such patch.
                let _ =
                    writeln!(text, "# {kind} {}: set in its pod template:", named(namespace, name), kind = clean(kind));
                for (key, value) in annotations(&rows) {
                    let _ = writeln!(text, "#   {}: {}", quoted(key), quoted(value));
                }
                continue;
            };
            let _ = writeln!(text, "apiVersion: {}\nkind: {kind}", known.api_version());
            let _ = writeln!(text, "metadata:\n  name: {}\n  namespace: {}", quoted(name), quoted(namespace));
            let fields: Vec<&str> = known.template.split('/').filter(|field| !field.is_empty()).collect();
            for (depth, field) in fields.iter().enumerate() {
                let _ = writeln!(text, "{}{field}:", "  ".repeat(depth));
            }
            let indent = "  ".repeat(fields.len());
            // The metadata of a pod are those of the object itself.
            if !fields.is_empty() {
                let _ = writeln!(text, "{indent}metadata:");
            }
            let _ = writeln!(text, "{indent}  annotations:");
            for (key, value) in annotations(&rows) {
                let _ = writeln!(text, "{indent}    {}: {}", quoted(key), quoted(value));
            }
        }
        text
    }
}

impl RowDocument {
    /// Why the status is not certain.
    fn why(&self) -> String {
        let stale = (self.stale > 0)
            .then(|| format!("{} of {} by a stale report", self.stale, count(self.seen_on as u64, "pod")));
        let unseen = (self.seen_on > 0 && !self.nodes_without_agent.is_empty())
            .then(|| format!("no node agent reports on {}", self.nodes_without_agent.join(", ")));
        let blind = (self.seen_on > 0 && !self.nodes_with_totals_only.is_empty())
            .then(|| format!("only the use of whole GPUs is known of {}", self.nodes_with_totals_only.join(", ")));
        self.reason.iter().cloned().chain(stale).chain(unseen).chain(blind).collect::<Vec<_>>().join("; ")
    }

    fn comment(&self) -> String {
        let pods = count(self.seen_on as u64, "pod");
        let hours = count(self.observed_seconds.unwrap_or_default() / 3600, "hour");
        let (container, texts) = (clean(&self.container), &self.texts);
        let mut comment =
            format!("{}: container {container} has used at most {} in {hours} on {pods}", self.status, texts.peak);
        let _ = match self.declared {
            Some(_) => write!(comment, "; it declares {}", texts.declared),
            None => write!(comment, "; it declares nothing"),
        };
        let why = self.why();
        let _ = if why.is_empty() { Ok(()) } else { write!(comment, "; {}", clean(&why)) };
        comment
    }
}

fn annotations<'r>(rows: &[&'r RowDocument]) -> BTreeMap<&'r str, &'r str> {
    let of = |row: &&'r RowDocument| {
        let row: &'r RowDocument = row;
        row.annotations.iter().map(|key| (key.as_str(), row.texts.write.as_str()))
    };
    rows.iter().flat_map(of).collect()
}

/// A text as a quoted scalar. JSON's are YAML's too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(printable(text)).to_string()
}

fn document(row: &Row) -> RowDocument {
    let write = row.recommendation.write();
    let text = |amount: Option<Vram>| amount.map_or_else(|| "-".to_owned(), |amount| amount.to_string());
    RowDocument {
        kind: row.object.kind.to_string(),
        namespace: row.object.namespace.to_string(),
        name: row.object.name.to_string(),
        container: row.container.to_string(),
        pods: row.pods,
        seen_on: row.seen_on,
        stale: row.stale,
        nodes_without_agent: row.without_agent.iter().map(ToString::to_string).collect(),
        nodes_with_totals_only: row.totals_only.iter().map(ToString::to_string).collect(),
        declared: row.declared.map(Vram::mib),
        peak: row.peak.map(Vram::mib),
        observed_seconds: row.observed.map(|observed| observed.as_secs()),
        cycles: row.cycles,
        status: row.recommendation.name(),
        write: write.map(Vram::mib),
        annotations: row.keys.iter().map(ToString::to_string).collect(),
        reason: match &row.recommendation {
            Recommendation::NotEnoughData(missing) => Some(missing.to_string()),
            Recommendation::Raise(_) | Recommendation::Lower(_) | Recommendation::Keep | Recommendation::Declare(_) => {
                None
            }
        },
        texts: Texts { declared: text(row.declared), peak: text(row.peak), write: text(write) },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capacity::verdict::Missing;
    use crate::capacity::verdict::finding::Object;

    fn row(kind: &str, name: &str, container: &str, recommendation: Recommendation) -> Row {
        Row {
            object: Object { kind: kind.into(), namespace: "ml".into(), name: name.into() },
            container: container.into(),
            pods: 3,
            seen_on: 2,
            stale: 0,
            declared: Some(Vram::from_mib(8_192)),
            peak: Some(Vram::from_mib(9_421)),
            observed: Some(Duration::from_secs(50 * 3600)),
            cycles: Some(4),
            without_agent: Vec::new(),
            totals_only: Vec::new(),
            keys: vec!["vramguard.dev/vram".into()],
            recommendation,
        }
    }

    fn of(rows: &[Row]) -> Recommendations {
        Recommendations::new(rows, 24, &super::super::assemble::Origin::default())
    }

    fn sample() -> Vec<Row> {
        let mib = Vram::from_mib;
        let part = |name: &str, write| Row {
            keys: vec![format!("vramguard.dev/vram.{name}").as_str().into()],
            ..row("Deployment", "agent", name, Recommendation::Raise(mib(write)))
        };
        vec![
            row("CronJob", "nightly", "main", Recommendation::Lower(mib(2_048))),
            part("main", 9_152),
            part("draft", 1_024),
            Row { declared: None, ..row("Pod", "no", "main", Recommendation::Declare(mib(9_152))) },
            Row { stale: 1, ..row("RayCluster", "ray", "worker", Recommendation::Raise(mib(9_152))) },
            row("StatefulSet", "fits", "main", Recommendation::Keep),
            Row {
                seen_on: 0,
                peak: None,
                observed: None,
                cycles: None,
                without_agent: vec!["gpu-7".into()],
                ..row(
                    "Job",
                    "new",
                    "main",
                    Recommendation::NotEnoughData(Missing::Agent { nodes: vec!["gpu-7".into()] }),
                )
            },
        ]
    }

    #[test]
    fn each_container_is_a_line_and_says_why_it_is_not_certain() {
        insta::assert_snapshot!(of(&sample()).table());
        assert_eq!(of(&[]).table(), "no container takes a shared GPU\n");
    }

    #[test]
    fn what_is_not_known_is_absent_from_the_json() {
        let read: serde_json::Value = serde_json::from_str(&of(&sample()).json()).unwrap();
        let last = read["rows"][6].as_object().unwrap();
        assert!(["peakMiB", "observedSeconds", "cycles", "writeMiB"].iter().all(|field| !last.contains_key(*field)));
        assert_eq!((&last["nodesWithoutAgent"][0], &last["status"]), (&"gpu-7".into(), &"not enough data".into()));
        assert_eq!(
            (&read["rows"][1]["writeMiB"], &read["rows"][1]["annotations"][0]),
            (&9_152.into(), &"vramguard.dev/vram.main".into())
        );
    }

    #[test]
    fn a_patch_sets_the_annotations_in_the_template_of_each_kind() {
        insta::assert_snapshot!(of(&sample()).patch());
        assert_eq!(
            of(&[row("Deployment", "a", "main", Recommendation::Keep)]).patch(),
            "# no declaration needs a change\n"
        );
    }

    #[test]
    fn a_custom_resource_is_named_in_a_comment_because_no_such_patch_changes_it() {
        let text = of(&[row("LeaderWorkerSet", "vllm", "main", Recommendation::Raise(Vram::from_mib(64)))]).patch();
        assert!(
            text.contains("# LeaderWorkerSet ml/vllm: set in its pod template:\n#   \"vramguard.dev/vram\": \"64Mi\""),
            "{text}"
        );
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
    }

    #[test]
    fn a_patch_says_what_was_not_read() {
        let gap = Gap { what: "the report of the agent on gpu-7".into(), why: "a field cannot be read".into() };
        let origin = super::super::assemble::Origin { gaps: vec![gap], ..Default::default() };
        let patch = Recommendations::new(&sample(), 24, &origin).patch();
        assert!(patch.starts_with("# not read: the report of the agent on gpu-7: a field cannot be read\n"), "{patch}");
    }

    /// The names come from objects that anyone may write.
    #[test]
    fn each_patch_is_yaml_with_the_names_as_they_are() {
        for name in ["no", "1e3", "a: b", "a\nkind: Secret", "\"quoted\""] {
            let text = of(&[row("Deployment", name, "main", Recommendation::Raise(Vram::from_mib(64)))]).patch();
            let read: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(read["metadata"]["name"], printable(name));
            assert_eq!(read["spec"]["template"]["metadata"]["annotations"]["vramguard.dev/vram"], "64Mi");
            assert_eq!(read.as_object().unwrap().len(), 4, "{text}");
        }
    }
}
