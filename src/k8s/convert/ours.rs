//! From declarations for other projects to vramguard's own.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::edit::{Edit, Step, key, under};
use super::{Change, Refused};
use crate::capacity::vram::Vram;
use crate::k8s::foreign::{self, Assumptions, ForeignDeclaration};
use crate::keys;

/// The change of one pod or pod template at `at`; `None` if it declares nothing for another project.
pub(super) fn change(template: &Value, at: &[Step], assumptions: &Assumptions) -> Result<Option<Change>, Refused> {
    let found = foreign::of_pod_with(template, assumptions);
    if found.is_empty() {
        return Ok(None);
    }
    let amounts = amounts(&found)?;
    let annotations = template.pointer("/metadata/annotations").and_then(Value::as_object);
    agrees(annotations, &amounts, &found)?;
    let mut change = Change::default();
    let ours: Map<String, Value> = found
        .iter()
        .filter_map(ForeignDeclaration::annotation)
        .map(|(key, amount)| (key, Value::String(amount)))
        .filter(|(key, _)| annotations.is_none_or(|annotations| !annotations.contains_key(key)))
        .collect();
    let list = under(at, "/metadata/annotations");
    if !ours.is_empty() {
        change.edits.push(Edit::Merge { at: list.clone(), entries: ours });
    }
    for name in annotations.into_iter().flat_map(Map::keys) {
        if foreign::is_foreign_annotation(name) || found.iter().any(|declaration| is_run_ai(name, declaration)) {
            change.edits.push(Edit::Remove { at: key(&list, name) });
        }
    }
    for (path, container) in containers(template, at) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let declares = amounts.contains_key(name);
        resources(container, &path, declares, &mut change.edits);
    }
    let scheduler = template.pointer("/spec/schedulerName").and_then(Value::as_str);
    if let Some(name) = scheduler.filter(|name| keys::OTHER_SCHEDULERS.contains(name)) {
        change.edits.push(Edit::Remove { at: under(at, "/spec/schedulerName") });
        change.lost.push(format!(
            "schedulerName: {name}: kube-scheduler places the pod, without that scheduler's queues, gangs and bin packing"
        ));
    }
    let mut lost: Vec<_> = found.iter().flat_map(|declaration| declaration.lost.clone()).collect();
    lost.sort();
    lost.dedup();
    change.lost.extend(lost.iter().map(ToString::to_string));
    for declaration in &found {
        if let Some((key, amount)) = declaration.annotation() {
            change.done.push(format!("{}: {} -> {key}: {amount}", declaration.key, declaration.text));
        }
    }
    Ok(Some(change))
}

/// The amount of each container, if all of its declarations tell the same.
fn amounts(found: &[ForeignDeclaration]) -> Result<BTreeMap<String, Vram>, Refused> {
    let mut amounts: BTreeMap<String, Vram> = BTreeMap::new();
    let mut refused = Vec::new();
    for declaration in found {
        let said = format!("{}: {}", declaration.key, declaration.text);
        match (&declaration.amount, &declaration.container) {
            (Err(why), _) => refused.push(format!("{said} {why}")),
            (Ok(_), None) => refused.push(format!("{said} is for a container, and the pod has none")),
            (Ok(amount), Some(container)) => match amounts.insert(container.clone(), *amount) {
                Some(other) if other != *amount => {
                    refused.push(format!(
                        "{said} is {amount}, and another declaration of container {container:?} is {other}"
                    ));
                }
                _ => {}
            },
        }
    }
    if refused.is_empty() { Ok(amounts) } else { Err(Refused(refused)) }
}

/// Refuses a pod that already has a declaration of vramguard with another amount.
fn agrees(
    annotations: Option<&Map<String, Value>>,
    amounts: &BTreeMap<String, Vram>,
    found: &[ForeignDeclaration],
) -> Result<(), Refused> {
    let mut refused = Vec::new();
    for (name, value) in annotations.into_iter().flatten() {
        let of = match (name.strip_prefix(keys::VRAM_OF), found) {
            (Some(container), _) => amounts.get(container),
            (None, [first, ..]) if name == keys::VRAM => first.container.as_ref().and_then(|name| amounts.get(name)),
            _ => continue,
        };
        let ours = value.as_str().and_then(|text| text.parse::<Vram>().ok());
        if let Some(amount) = of.filter(|amount| ours != Some(**amount)) {
            refused.push(format!("{name}: {value} is there already, and the other declaration is {amount}"));
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(Refused(refused)) }
}

/// Whether an annotation is one of the two that a declaration in Run:ai's form may have.
fn is_run_ai(name: &str, declaration: &ForeignDeclaration) -> bool {
    let of = |end: &str| Some(format!("{}{}{end}", keys::FOREIGN_OF, declaration.container.as_ref()?));
    declaration.understood
        && [keys::FOREIGN_REQUEST, keys::FOREIGN_LIMIT].iter().any(|end| of(end).as_deref() == Some(name))
}

/// All containers of a template with their paths.
pub(super) fn containers<'t>(template: &'t Value, at: &[Step]) -> Vec<(Vec<Step>, &'t Value)> {
    let mut all = Vec::new();
    for list in ["initContainers", "containers"] {
        let pointer = format!("/spec/{list}");
        let items = template.pointer(&pointer).and_then(Value::as_array).into_iter().flatten();
        for (index, container) in items.enumerate() {
            all.push((under(at, &format!("{pointer}/{index}")), container));
        }
    }
    all
}

/// Removes the resources of other projects, and asks for one GPU in their place.
fn resources(container: &Value, path: &[Step], declares: bool, edits: &mut Vec<Edit>) {
    let gpu = || Map::from_iter([(keys::GPU_RESOURCE.to_owned(), Value::from(1))]);
    for list in ["limits", "requests"] {
        let at = under(path, &format!("/resources/{list}"));
        let names = container.pointer(&format!("/resources/{list}")).and_then(Value::as_object);
        let names: Vec<&String> = names.into_iter().flat_map(Map::keys).collect();
        let foreign: Vec<&String> = names.iter().copied().filter(|name| foreign::is_foreign_resource(name)).collect();
        let has_gpu = names.iter().any(|name| keys::is_gpu_resource(name));
        let needs_gpu = declares && !has_gpu && (list == "limits" || !foreign.is_empty());
        if needs_gpu {
            edits.push(Edit::Merge { at: at.clone(), entries: gpu() });
        } else if !foreign.is_empty() && foreign.len() == names.len() {
            edits.push(Edit::Remove { at });
            continue;
        }
        edits.extend(foreign.iter().map(|name| Edit::Remove { at: key(&at, name) }));
    }
}
