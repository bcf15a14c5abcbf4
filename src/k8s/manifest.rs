//! A manifest: the pod of a Pod object, or of the template of a workload. Owns how the controller of a workload makes a
//! pod of its template; [`kinds`] knows where the template is.

use serde_json::{Value, json};

use super::document::DocumentError;
use super::object::PodObject;
use super::template::kinds;
use super::{counts, snapshot, wording};

/// The pod of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Kind of the object, such as `Deployment`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// The pod, as its author or the controller of its workload creates it.
    pub pod: Value,
}

/// Reads the only pod of a file. Objects that create no pods, such as Services, are ignored. A pod without a namespace
/// gets `namespace`, or `default`.
///
/// # Errors
/// The file is no YAML, or does not have one pod or workload of that namespace.
pub fn read(file: &str, text: &str, namespace: Option<&str>) -> Result<Manifest, DocumentError> {
    let at = |line, field: &str, what| DocumentError { file: file.to_owned(), line, field: field.to_owned(), what };
    let mut found = Vec::new();
    for (line, object) in snapshot::objects(file, text)? {
        found.extend(manifest(&object).map(|(field, manifest)| (line, field, manifest)));
    }
    let (line, field, mut manifest) = match <[_; 1]>::try_from(found) {
        Ok([only]) => only,
        Err(none) if none.is_empty() => {
            return Err(at(1, "", "holds no Pod and no workload with a pod template".to_owned()));
        }
        Err(several) => {
            let names = several
                .iter()
                .take(4)
                .map(|(line, _, found)| format!("{} {:?} in line {line}", found.kind, found.name));
            let names = names.collect::<Vec<_>>().join(", ");
            let what = format!("holds {} pods or workloads ({names}); one is explained at a time", several.len());
            return Err(at(1, "", what));
        }
    };
    check_pod(&manifest.pod)
        .map_err(|(inner, what)| at(line, format!("{field}{inner}").trim_start_matches('.'), what))?;
    let own = manifest.pod.pointer("/metadata/namespace").and_then(Value::as_str);
    match (own, namespace) {
        (Some(own), Some(namespace)) if own != namespace => {
            let what = format!("{own:?} is not {namespace:?}, which --namespace names; leave one of them out");
            return Err(at(line, "metadata.namespace", what));
        }
        (Some(_), _) => {}
        (None, namespace) => manifest.pod["metadata"]["namespace"] = json!(namespace.unwrap_or("default")),
    }
    Ok(manifest)
}

/// The pod of an object, and the field with its template; `None` if it creates no pods.
fn manifest(object: &Value) -> Option<(String, Manifest)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let (kind, name) = (text("/kind").unwrap_or_default(), text("/metadata/name"));
    // A custom resource may follow the workloads of Kubernetes, and have its template in the same place.
    let known = if kind == "Pod" { Some("") } else { kinds::of(object).map(|known| known.template) };
    let pointer = known.unwrap_or("/spec/template");
    let may_be = |pod: &&Value| known.is_some() || pod["spec"]["containers"].is_array();
    let mut pod = object.pointer(pointer).filter(may_be)?.clone();
    let generated = text("/metadata/generateName");
    let shown = name.clone().or_else(|| generated.map(|prefix| format!("{prefix}*"))).unwrap_or_default();
    if kind != "Pod" {
        if !pod["metadata"].is_object() {
            pod["metadata"] = json!({});
        }
        pod["metadata"]["generateName"] = json!(format!("{}-", name.unwrap_or_default()));
        if let Some(namespace) = text("/metadata/namespace") {
            pod["metadata"]["namespace"] = json!(namespace);
        }
    } else if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    let field = if pointer.is_empty() { String::new() } else { format!(".{}", kinds::field(pointer)) };
    Some((field, Manifest { kind, name: shown, pod }))
}

/// Checks that an object is a pod. The error is the wrong field, with a leading dot, and the problem.
pub(super) fn check_pod(pod: &Value) -> Result<(), (String, String)> {
    let kind = pod.get("kind").and_then(Value::as_str).unwrap_or("Pod");
    if kind != "Pod" {
        return Err((".kind".to_owned(), format!("{kind:?} is not Pod; a case is about one pod")));
    }
    let read: Result<PodObject, _> = serde_path_to_error::deserialize(pod);
    read.map(|_| ()).map_err(|error| {
        let field = format!(".{}", error.path());
        (field.trim_end_matches(['.', '?']).to_owned(), wording::json(error.inner()))
    })?;
    counts::check(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "{metadata: {annotations: {k: v}}, spec: {containers: [{name: main}]}}";

    fn read_in(text: &str, namespace: Option<&str>) -> Result<Manifest, String> {
        read("m.yaml", text, namespace).map_err(|error| error.to_string())
    }

    #[test]
    fn the_pod_of_a_workload_is_that_of_its_template() {
        let workload = |kind: &str, spec: &str| {
            let text =
                format!("kind: Service\n---\nkind: {kind}\nmetadata: {{name: w, namespace: ml}}\nspec: {spec}\n");
            read_in(&text, None).unwrap()
        };
        let template = format!("{{template: {TEMPLATE}}}");
        for manifest in [
            workload("Deployment", &template),
            workload("Job", &template),
            workload("Rollout", &template),
            workload("LeaderWorkerSet", &format!("{{leaderWorkerTemplate: {{workerTemplate: {TEMPLATE}}}}}")),
            workload("CronJob", &format!("{{jobTemplate: {{spec: {template}}}}}")),
        ] {
            assert_eq!(manifest.name, "w");
            let metadata = json!({"annotations": {"k": "v"}, "generateName": "w-", "namespace": "ml"});
            assert_eq!(
                (&manifest.pod["metadata"], &manifest.pod["spec"]["containers"][0]["name"]),
                (&metadata, &json!("main"))
            );
        }
    }

    #[test]
    fn a_pod_without_a_namespace_gets_the_one_that_is_asked_about() {
        let namespace =
            |text: &str, asked| read_in(text, asked).map(|manifest| manifest.pod["metadata"]["namespace"].clone());
        assert_eq!(namespace("{kind: Pod, metadata: {name: p}}", Some("ml")), Ok(json!("ml")));
        assert_eq!(namespace("{kind: Pod}", None), Ok(json!("default")));
        assert_eq!(namespace("{kind: Pod, metadata: {namespace: ml}}", None), Ok(json!("ml")));
        assert_eq!(
            namespace("{kind: Pod, metadata: {namespace: a}}", Some("b")),
            Err("m.yaml:1: metadata.namespace: \"a\" is not \"b\", which --namespace names; leave one of them out"
                .into())
        );
    }

    #[test]
    fn a_file_without_one_readable_pod_is_an_error() {
        let error = |text: &str| read_in(text, None).unwrap_err();
        assert_eq!(error("kind: Service\n"), "m.yaml:1: holds no Pod and no workload with a pod template");
        assert_eq!(
            error("{kind: Pod, metadata: {name: a}}\n---\n{kind: Pod, metadata: {generateName: b-}}\n"),
            "m.yaml:1: holds 2 pods or workloads (Pod \"a\" in line 1, Pod \"b-*\" in line 3); one is explained at a time"
        );
        let odd = error("a: 1\n---\nkind: Deployment\nspec: {template: {spec: {nodeName: [], containers: []}}}\n");
        assert!(odd.starts_with("m.yaml:3: spec.template.spec.nodeName: is a list"), "{odd}");
        assert!(error("kind: [\n").starts_with("m.yaml:"), "{}", error("kind: [\n"));
    }
}
