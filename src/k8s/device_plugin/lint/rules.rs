//! The plugin's rules, field by field.

use super::{Config, Reader, Severity, Shared, described, is_other_type, joined};
use crate::k8s::device_plugin::Method;
use crate::k8s::tree::{Content, Entry, Node, Style};
use crate::keys;

const FLAGS: [&str; 12] = [
    "migStrategy",
    "failOnInitError",
    "mpsRoot",
    "nvidiaDriverRoot",
    "nvidiaDevRoot",
    "gdrcopyEnabled",
    "gdsEnabled",
    "mofedEnabled",
    "useNodeFeatureAPI",
    "deviceDiscoveryStrategy",
    "plugin",
    "gfd",
];
const PLUGIN_FLAGS: [&str; 7] = [
    "passDeviceSpecs",
    "deviceListStrategy",
    "deviceIDStrategy",
    "cdiAnnotationPrefix",
    "nvidiaCTKPath",
    "containerDriverRoot",
    "sharedDevicesAllocationPolicy",
];
const GFD_FLAGS: [&str; 5] = ["oneshot", "noTimestamp", "sleepInterval", "outputFile", "machineTypeFile"];
/// Flags that are booleans.
const BOOLEANS: [&str; 8] = [
    "failOnInitError",
    "gdrcopyEnabled",
    "gdsEnabled",
    "mofedEnabled",
    "useNodeFeatureAPI",
    "passDeviceSpecs",
    "oneshot",
    "noTimestamp",
];
/// Longest resource name, prefix included.
const LONGEST_NAME: usize = 63;

pub(super) fn config(document: &Node, name: Option<String>, reader: &mut Reader<'_>) -> Config {
    let mut config = Config { name, method: None, rename_by_default: false, resources: Vec::new() };
    let entries = reader.map(document, "config");
    reader.unknown(entries, "", &["version", "flags", "resources", "sharing", "imex"]);
    if let Some(version) = document.get("version").filter(|version| version.text() != Some("v1")) {
        reader.find(Severity::Refused, version.line, "version", format!("is {}; write v1", described(version)));
    }
    let mig_strategy = document.get("flags").and_then(|flags| flags.get("migStrategy")).and_then(Node::text);
    if let Some(node) = document.get("flags") {
        flags(node, "flags", reader);
    }
    if let Some(resources) = document.entry("resources").filter(|resources| !resources.value.is_null()) {
        let what = "is not supported by the plugin yet, which ignores it";
        reader.find(Severity::Ignored, resources.line, "resources", what);
    }
    if let Some(node) = document.get("sharing") {
        sharing(node, &mut config, mig_strategy, reader);
    }
    config
}

fn flags(node: &Node, field: &str, reader: &mut Reader<'_>) {
    let entries = reader.map(node, field);
    let known: &[&str] = match field {
        "flags" => &FLAGS,
        "flags.plugin" => &PLUGIN_FLAGS,
        _ => &GFD_FLAGS,
    };
    reader.unknown(entries, field, known);
    for Entry { key, value, .. } in entries {
        let at = joined(field, key);
        let allowed: &[&str] = match key.as_str() {
            "plugin" | "gfd" if field == "flags" => {
                flags(value, &at, reader);
                continue;
            }
            "deviceListStrategy" => {
                device_list_strategy(value, &at, reader);
                continue;
            }
            key if BOOLEANS.contains(&key) => {
                reader.boolean(value, &at);
                continue;
            }
            "sleepInterval" => continue, // a duration, as text or number
            "migStrategy" => &["none", "single", "mixed"],
            "deviceDiscoveryStrategy" => &["auto", "nvml", "tegra", "vfio"],
            "deviceIDStrategy" => &["uuid", "index"],
            "sharedDevicesAllocationPolicy" => &["distributed", "packed"],
            key if known.contains(&key) => &[],
            _ => continue,
        };
        reader.one_of(value, &at, allowed);
    }
}

fn device_list_strategy(value: &Node, field: &str, reader: &mut Reader<'_>) {
    let allowed = ["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"];
    match &value.content {
        Content::List { items, .. } => items.iter().for_each(|item| reader.one_of(item, field, &allowed)),
        _ => reader.one_of(value, field, &allowed),
    }
}

fn sharing(node: &Node, config: &mut Config, mig_strategy: Option<&str>, reader: &mut Reader<'_>) {
    let entries = reader.map(node, "sharing");
    let methods = [Method::TimeSlicing, Method::Mps];
    reader.unknown(entries, "sharing", &methods.map(Method::field));
    let mps = node.entry("mps").filter(|mps| !mps.value.is_null());
    if let (Some(_), Some(slicing)) = (mps, node.entry("timeSlicing")) {
        let what = "is ignored, because sharing.mps is set too; keep one of the two";
        reader.find(Severity::Ignored, slicing.line, "sharing.timeSlicing", what);
    }
    for method in methods {
        let Some(entry) = node.entry(method.field()) else { continue };
        if method == Method::Mps && mps.is_none() {
            continue;
        }
        let mut of_method = Config { resources: Vec::new(), ..config.clone() };
        replicated(entry, method, &mut of_method, mig_strategy, reader);
        // The plugin takes MPS if both are there; it comes last.
        if method == Method::Mps || mps.is_none() {
            config.rename_by_default = of_method.rename_by_default;
            config.method = (!of_method.resources.is_empty()).then_some(method);
            config.resources = of_method.resources;
        }
    }
}

fn replicated(entry: &Entry, method: Method, config: &mut Config, mig_strategy: Option<&str>, reader: &mut Reader<'_>) {
    let field = format!("sharing.{}", method.field());
    let node = &entry.value;
    let entries = reader.map(node, &field);
    reader.unknown(entries, &field, &["renameByDefault", "failRequestsGreaterThanOne", "resources"]);
    let rename =
        node.get("renameByDefault").and_then(|value| reader.boolean(value, &joined(&field, "renameByDefault")));
    config.rename_by_default = rename == Some(true);
    if let (true, Some(at)) = (config.rename_by_default, node.entry("renameByDefault")) {
        let what = format!(
            "shared GPUs are requested as {}; pods that ask for {} do not get them",
            keys::GPU_SHARED_RESOURCE,
            keys::GPU_RESOURCE
        );
        reader.find(Severity::Note, at.line, &joined(&field, "renameByDefault"), what);
    }
    fail_requests(entry, method, &field, reader);
    let resources = node.get("resources").map(Node::items).unwrap_or_default();
    if resources.is_empty() {
        let line = node.entry("resources").map_or(entry.line, |resources| resources.line);
        let what = "lists no resource, and the plugin does not start; add one or remove the section";
        reader.find(Severity::Refused, line, &joined(&field, "resources"), what);
    }
    for (index, resource) in resources.iter().enumerate() {
        let at = format!("{field}.resources[{index}]");
        let shared = resource_of(resource, &at, config.rename_by_default, reader);
        let Some(shared) = shared else { continue };
        if config.resources.iter().any(|earlier| earlier.resource == shared.resource) {
            let what = format!("{} is listed twice; keep one entry", shared.resource);
            reader.find(Severity::Risky, resource.line, &joined(&at, "name"), what);
        }
        let mixed = mig_strategy.is_none_or(|strategy| strategy == "mixed");
        if shared.resource.starts_with(keys::MIG_RESOURCE_OF) && !mixed {
            let what = format!("no device has the name {}: flags.migStrategy is not mixed", shared.resource);
            reader.find(Severity::Ignored, resource.line, &joined(&at, "name"), what);
        }
        config.resources.push(shared);
    }
}

/// A container that asks for two replicas may get one GPU twice. The plugin allows it for time-slicing unless told not
/// to, and refuses it for MPS unless told to allow it.
fn fail_requests(entry: &Entry, method: Method, field: &str, reader: &mut Reader<'_>) {
    let key = "failRequestsGreaterThanOne";
    let field = joined(field, key);
    let written = entry.value.get(key).and_then(|value| reader.boolean(value, &field));
    let line = entry.value.entry(key).map_or(entry.line, |written| written.line);
    let allows = written.unwrap_or(method == Method::Mps);
    if !allows {
        let state = if written.is_some() { "is false" } else { "is absent, which means false" };
        let what = format!("{state}: a container may ask for 2 replicas and get one GPU twice; write true");
        reader.find(Severity::Risky, line, &field, what);
    }
}

fn resource_of(node: &Node, field: &str, rename: bool, reader: &mut Reader<'_>) -> Option<Shared> {
    let entries = reader.map(node, field);
    reader.unknown(entries, field, &["name", "rename", "devices", "replicas"]);
    let name = resource_name(node, field, reader);
    let replicas = replicas(node, field, reader);
    if let Some(devices) = node.entry("devices") {
        self::devices(&devices.value, &joined(field, "devices"), reader);
    }
    if let Some(entry) = node.entry("rename").filter(|entry| !entry.value.is_null()) {
        let default = name.as_ref().map(|name| format!("{name}.shared"));
        let same = rename && entry.value.text().map(full_name) == default;
        if !same {
            let what = "is not supported by the plugin yet, which ignores it; renameByDefault is";
            reader.find(Severity::Ignored, entry.line, &joined(field, "rename"), what);
        }
    }
    let (replicas, line) = replicas?;
    Some(Shared { resource: name?, replicas, line, field: format!("{}{}", reader.prefix, joined(field, "replicas")) })
        .map(|shared| Shared { line: reader.lines.of(shared.line), ..shared })
}

fn full_name(name: &str) -> String {
    if name.starts_with(keys::NVIDIA) { name.to_owned() } else { format!("{}{name}", keys::NVIDIA) }
}

fn resource_name(node: &Node, field: &str, reader: &mut Reader<'_>) -> Option<String> {
    let field = joined(field, "name");
    let Some(entry) = node.entry("name") else {
        reader.find(Severity::Refused, node.line, &field, format!("is missing; write {}", keys::GPU_RESOURCE));
        return None;
    };
    let Some(text) = entry.value.text().filter(|_| !is_other_type(&entry.value)) else {
        let what = format!("is {}, not a resource name", described(&entry.value));
        reader.find(Severity::Refused, entry.line, &field, what);
        return None;
    };
    let name = full_name(text);
    let short = &name[keys::NVIDIA.len()..];
    let label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        edge(label.chars().next()) && edge(label.chars().next_back()) && label.chars().all(inside)
    };
    if name.len() > LONGEST_NAME || !short.split('.').all(label) {
        let what = format!(
            "is {text:?}; the plugin takes {} and at most {LONGEST_NAME} small letters, digits, points and hyphens",
            keys::NVIDIA
        );
        reader.find(Severity::Refused, entry.line, &field, what);
        return None;
    }
    if name != keys::GPU_RESOURCE && !short.starts_with(keys::MIG_RESOURCE_NAME_OF) {
        let what = format!(
            "no device has the name {name}, so nothing is shared by it; the plugin's own names are {} and {}<profile>",
            keys::GPU_RESOURCE,
            keys::MIG_RESOURCE_OF
        );
        reader.find(Severity::Ignored, entry.line, &field, what);
    }
    Some(name)
}

fn replicas(node: &Node, field: &str, reader: &mut Reader<'_>) -> Option<(u32, u64)> {
    let field = joined(field, "replicas");
    let Some(entry) = node.entry("replicas") else {
        reader.find(Severity::Refused, node.line, &field, "is missing; write a number of at least 2");
        return None;
    };
    let number = match &entry.value.content {
        Content::Scalar { text, style: Style::Plain } => text.parse::<i64>().ok(),
        _ => None,
    };
    let fits = number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number >= 2);
    if fits.is_none() {
        let advice = if number == Some(1) { "; leave the resource out to give each GPU to one container" } else { "" };
        let what = format!("is {}; the plugin takes a whole number of at least 2{advice}", described(&entry.value));
        reader.find(Severity::Refused, entry.line, &field, what);
    }
    fits.map(|replicas| (replicas, entry.line))
}

/// Anything but `all` is parsed, and then ignored.
fn devices(value: &Node, field: &str, reader: &mut Reader<'_>) {
    let count = value.text().filter(|_| is_other_type(value)).map(str::parse::<i64>);
    let refused = match (&value.content, count) {
        (Content::List { .. }, _) | (_, Some(Ok(1..))) => false,
        (Content::Scalar { text, .. }, None) if text == "all" => return,
        _ => true,
    };
    if refused {
        let what = format!("is {}; write all, or leave it out", described(value));
        reader.find(Severity::Refused, value.line, field, what);
    } else {
        let what = "is not supported by the plugin yet, which shares all devices; leave it out";
        reader.find(Severity::Ignored, value.line, field, what);
    }
}
