//! Policy documents with every field and many values, good and bad. The test compares two readers of them, so the corpus
//! does not say which documents are good; it says where the two may differ, and why.

use serde_json::{Value, json};

/// One document.
pub(super) struct Case {
    pub kind: &'static str,
    pub spec: Value,
    /// What the refusals of both readers name, if the document is bad.
    pub field: String,
    /// Why the API server's verdict is another one, if it is.
    pub differs: Option<&'static str>,
}

const POLICIES: [&str; 2] = ["ClusterVramPolicy", "VramPolicy"];
const CLUSTER: [&str; 1] = ["ClusterVramPolicy"];
const INVENTORY: &str = "GpuInventory";

const DIGITS: &str = "the pattern of amounts bounds the digits, so that it needs no CEL";
const DUPLICATE: &str = "a set of Kubernetes has no duplicates";
const NULL: &str = "the API server drops null before it validates";
const ROUNDED: &str = "the reader compares after it has rounded to MiB";
const CHARACTER: &str = "a file cannot have a character that YAML forbids";
const COUNT: &str = "the API server needs bounds to estimate the cost of rules";

/// An object with one field, by its path: `a.b` is `{"a": {"b": value}}`.
fn object(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |value, name| json!({name: value}))
}

fn case(kind: &'static str, field: &str, spec: Value) -> Case {
    Case { kind, spec, field: format!("spec.{field}"), differs: None }
}

fn differing(kind: &'static str, field: &str, spec: Value, why: &'static str) -> Case {
    Case { differs: Some(why), ..case(kind, field, spec) }
}

/// An inventory with one entry, in which one field has another value; null removes the field.
fn inventory(field: &str, value: Value) -> Value {
    let mut entry = json!({"names": ["gpu-0"], "resource": "nvidia.com/gpu", "replicas": 4, "gpus": ["24Gi"]});
    match value {
        Value::Null => drop(entry.as_object_mut().expect("an object").remove(field)),
        value => entry[field] = value,
    }
    json!({"nodes": [entry]})
}

pub(super) fn all() -> Vec<Case> {
    [values(), amounts(), several_fields(), only_in_cluster(), inventories(), pools(), differences()]
        .into_iter()
        .flatten()
        .collect()
}

/// Fields with a closed list of values, flags, numbers and names.
fn values() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |kinds: &[&'static str], path: &str, values: Value| {
        for (kind, value) in kinds.iter().flat_map(|kind| values.as_array().unwrap().iter().map(move |v| (kind, v))) {
            cases.push(case(kind, path, object(path, value.clone())));
        }
    };
    add(&POLICIES, "mode", json!(["Enforce", "Warn", "Audit", "Off", "enforce", "off", false, "", 1, ["Warn"], {}]));
    add(&POLICIES, "onShortfall", json!(["Wait", "Deny", "Reroute", "wait", "None", true]));
    add(&POLICIES, "declaration", json!([{}, "x", [], 1]));
    add(&POLICIES, "declaration.required", json!([true, false, 1, {}, "maybe"]));
    add(&POLICIES, "declaration.onUnaccounted", json!(["Warn", "Deny", "Wait", 0]));
    add(&POLICIES, "declaration.surprise", json!([1]));
    let named = |length: usize| json!({"x".repeat(length): "1Gi"});
    add(&POLICIES, "models", json!([{}, {"a": "1Gi", "B/c_d": "2Gi"}, [], "x", named(253), named(254), {"é": "1Gi"}]));
    let frameworks = ["Auto", "None", "PyTorch", "vLLM", "SGLang", "TGI", "JAX", "TensorFlow", "llama.cpp", "Ollama"];
    add(&POLICIES, "environment.framework", json!(frameworks));
    add(&POLICIES, "environment.framework", json!(["Triton", "pytorch", "vllm", "", 1, {}]));
    add(&POLICIES, "environment.onConflict", json!(["Warn", "Deny", "Wait", true]));
    add(&POLICIES, "environment.visibleDevices", json!(["Leave", "Pin", {}, []]));
    add(&POLICIES, "surprise", json!([1, "x", {}]));
    add(&CLUSTER, "headroom.percent", json!([0, 1, 100, -1, 101, 1.5, true, {}]));
    let overcommit =
        ["1.0", "1", "0.001", "10.0", "10", "1.25", "10.001", "0", "0.0005", "11", "-1", "1.", ".5", "1e0"];
    add(&CLUSTER, "overcommit", json!(overcommit));
    add(&CLUSTER, "overcommit", json!(["", "two", "0.0", "10.000", "1.2345", [], {}]));
    add(&CLUSTER, "startup.serializePerGpu", json!([true, false, 1, []]));
    let names = [json!(["infra"]), json!(["a", "b-1"]), json!([]), json!(["A"]), json!(["a.b"]), json!(["-a"])];
    add(&CLUSTER, "exemptNamespaces", json!(names));
    let names = [json!(["a-"]), json!([""]), json!(["x".repeat(63)]), json!(["x".repeat(64)]), json!([{}]), json!("a")];
    add(&CLUSTER, "exemptNamespaces", json!(names));
    add(&CLUSTER, "locked", json!([["mode", "declaration.max"], [], ["headroom"], ["Mode"], [{}], "mode", {}]));
    cases
}

/// Every field that is an amount, with every form of an amount.
fn amounts() -> Vec<Case> {
    let good = ["8Gi", "1.5Gi", "512Mi", "20G", "1Ti", "600Ki", "5k", "7M", "2T", "0", "0Mi", "08Gi", "1.0Gi"];
    let bad = ["8", "8GB", "-1Gi", "+1Gi", "1.Gi", ".5Gi", "1e3Mi", " 8Gi", "8 Gi", "8Pi", "Gi", "", "1.2.3Gi", "8gi"];
    let other = [json!(0), json!(5), json!(-1), json!(1.5), json!(true), json!([]), json!({}), json!("8388608Ti")];
    let precise = [json!("0.000000000000000001Gi"), json!("0.0000000000000000001Gi")];
    let texts = good.iter().chain(&bad).map(|text| json!(text));
    let values: Vec<Value> = texts.chain(other).chain(precise).collect();
    let shared = ["quota", "declaration.default", "declaration.min", "declaration.max", "models.m"];
    let of_cluster = ["perProcessOverhead", "headroom.minimum", "headroom.driverReserve"];
    let fields = POLICIES.into_iter().flat_map(|kind| shared.map(|field| (kind, field)));
    let fields = fields.chain(of_cluster.map(|field| (CLUSTER[0], field)));
    let mut cases = vec![case(CLUSTER[0], "headroom.driverReserve", object("headroom.driverReserve", json!("Auto")))];
    for (kind, field) in fields {
        cases.extend(values.iter().map(|value| case(kind, field, object(field, value.clone()))));
    }
    cases
}

fn several_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in POLICIES {
        for (min, default, max) in [
            (json!("1Gi"), json!("2Gi"), json!("3Gi")),
            (json!("1Gi"), json!("1Gi"), json!("1024Mi")),
            (json!(0), json!(0), json!("0")),
            (json!("2Gi"), json!("2Gi"), json!("1Gi")),
            (json!("2Gi"), Value::Null, json!("2G")),
            (json!("2Gi"), json!("1Gi"), Value::Null),
            (json!("1M"), json!(0), Value::Null),
            (Value::Null, json!("3Gi"), json!("2.5Gi")),
            (Value::Null, json!("1Mi"), json!(0)),
        ] {
            let mut declaration = json!({"min": min, "default": default, "max": max});
            declaration.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
            cases.push(case(kind, "declaration", json!({"declaration": declaration})));
        }
        cases.push(case(kind, "", json!({})));
        cases.push(case(kind, "", json!([])));
    }
    cases
}

/// A value for each field that only a ClusterVramPolicy may set.
fn only_in_cluster() -> Vec<Case> {
    let fields = [
        ("reroute", json!({"pools": []})),
        ("reroute", json!({})),
        ("perProcessOverhead", json!("1Gi")),
        ("perProcessOverhead", json!(0)),
        ("headroom", json!({"percent": 1})),
        ("headroom", json!({})),
        ("headroom", json!("x")),
        ("overcommit", json!("1.0")),
        ("startup", json!({"serializePerGpu": true})),
        ("exemptNamespaces", json!([])),
        ("exemptNamespaces", json!(["infra"])),
        ("locked", json!(["mode"])),
    ];
    fields.map(|(field, value)| case("VramPolicy", field, json!({field: value}))).into()
}

fn inventories() -> Vec<Case> {
    let mut cases = vec![
        case(INVENTORY, "nodes", json!({})),
        case(INVENTORY, "nodes", json!({"nodes": []})),
        case(INVENTORY, "nodes", json!({"nodes": {}})),
        case(INVENTORY, "surprise", json!({"nodes": [], "surprise": 1})),
    ];
    let mut add = |field: &str, values: Value| {
        for value in values.as_array().unwrap() {
            cases.push(case(INVENTORY, &format!("nodes[0].{field}"), inventory(field, value.clone())));
        }
    };
    let resources = ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/gpu.small", "nvidia.com/gpu-small"];
    add("resource", json!(resources));
    add(
        "resource",
        json!(["nvidia.com/mig-1g.10gb", "nvidia.com/gpufoo", "nvidia.com/gpu.", "nvidia.com/gpu-", "gpu"]),
    );
    add("resource", json!(["nvidiaXcom/gpu.a", "amd.com/gpu", "", 1, {}, null]));
    add("replicas", json!([1, 4, 4_294_967_295_u32, 0, -1, 4_294_967_296_u64, "x", 1.5, true, null]));
    add("sharing", json!(["TimeSlicing", "MPS", "time-slicing", "", true, null]));
    let gpus =
        [json!(["24Gi"]), json!(["24Gi", "81559Mi"]), json!(["16Ti"]), json!(["16384Gi"]), json!([]), json!(["0"])];
    add("gpus", json!(gpus));
    let gpus = [json!([0]), json!(["0Gi"]), json!(["24Gi", "0.0Mi"]), json!(["16385Gi"]), json!([24]), json!(["24"])];
    add("gpus", json!(gpus));
    add("gpus", json!([["1Ki"], ["17T"], ["18T"], [""], ["24GB"], [true], [{}], "24Gi", {}, null]));
    add("names", json!([["a", "b"], ["a.example.com"], "a", {}, [{}]]));
    add("matchLabels", json!([{}, {"a": "b"}, {"a/b": ""}, [], "x", {"a": {}}]));
    add("hardLimits", json!([true, false, 1, {}, "maybe"]));
    add("surprise", json!([1]));
    for (names, labels) in [(json!([]), json!({})), (json!([]), json!({"a": "b"})), (Value::Null, Value::Null)] {
        let mut spec = inventory("names", names);
        spec["nodes"][0]["matchLabels"] = labels;
        spec["nodes"][0].as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        cases.push(case(INVENTORY, "nodes[0]", spec));
    }
    for (field, value) in [("resource", "nvidia.com/mig-1g.10gb"), ("sharing", "MPS"), ("sharing", "TimeSlicing")] {
        for hard in [true, false] {
            let mut spec = inventory(field, json!(value));
            spec["nodes"][0]["hardLimits"] = json!(hard);
            cases.push(case(INVENTORY, "nodes[0].hardLimits", spec));
        }
    }
    cases
}

fn pools() -> Vec<Case> {
    let pool = |labels: Value| json!({"matchLabels": labels});
    let pools = [
        json!([]),
        json!([pool(json!({"nvidia.com/gpu.product": "NVIDIA-L40S"}))]),
        json!([pool(json!({"a": "b", "c": "d", "e": "", "g": "h_.-1"}))]),
        json!(vec![pool(json!({"a": "b"})); 6]),
        json!(vec![pool(json!({"a": "b"})); 7]),
        json!([pool(json!({}))]),
        json!([pool(json!({"a": "b", "c": "d", "e": "f", "g": "h", "i": "j"}))]),
        json!([pool(json!({"vramguard.dev/pod-max-mib": "1"}))]),
        json!([pool(json!({"a": "-b"}))]),
        json!([pool(json!({"a": "b c"}))]),
        json!([pool(json!({"a": "x".repeat(63)}))]),
        json!([pool(json!({"a": "x".repeat(64)}))]),
        json!([pool(json!("a=b"))]),
        json!([{}]),
        json!([{"matchLabels": {"a": "b"}, "weight": 1}]),
        json!({"matchLabels": {"a": "b"}}),
        json!("x"),
    ];
    let keys =
        ["pool", "nvidia.com/gpu.product", "a-b.c/X_1", "a/b", "", "/x", "A.com/x", "a..b/x", "a/b/c", "-a/x", "a/"];
    let long = [
        "a b".to_owned(),
        "x".repeat(63),
        "x".repeat(64),
        format!("{}/x", "a".repeat(253)),
        format!("{}/x", "a".repeat(254)),
    ];
    let keys = keys.map(str::to_owned).into_iter().chain(long);
    let pools = pools.into_iter().chain(keys.map(|key| json!([{"matchLabels": {key: "b"}}])));
    let case_of = |pools| case(CLUSTER[0], "reroute.pools", object("reroute.pools", pools));
    pools.map(case_of).collect()
}

/// The documents on which the two readers differ on purpose.
fn differences() -> Vec<Case> {
    let cluster = |field: &str, value, why| differing(CLUSTER[0], field, object(field, value), why);
    let models: serde_json::Map<_, _> = (0..1001).map(|number| (format!("m{number}"), json!("1Gi"))).collect();
    let mut cases = vec![
        cluster("quota", json!("1.0000000000000000000Gi"), DIGITS),
        cluster("quota", json!("1000000Gi"), DIGITS),
        cluster("quota", json!("0000000000008Gi"), DIGITS),
        cluster("exemptNamespaces", json!(["a", "a"]), DUPLICATE),
        cluster("locked", json!(["mode", "mode"]), DUPLICATE),
        cluster("models", Value::Object(models), COUNT),
        cluster("models", json!({"a\u{7f}\u{ffff}": "1Gi"}), CHARACTER),
        differing(INVENTORY, "nodes[0].names", inventory("names", json!(["a", "a"])), DUPLICATE),
        differing(INVENTORY, "nodes[0].gpus", inventory("gpus", json!(vec!["24Gi"; 257])), COUNT),
        differing(INVENTORY, "nodes[0].matchLabels", inventory("matchLabels", json!({"a": "x".repeat(64)})), COUNT),
        differing("VramPolicy", "headroom", json!({"headroom": null}), NULL),
    ];
    let bounds = json!({"declaration": {"min": "1000.5Mi", "max": "1000.2Mi"}});
    cases.push(differing("VramPolicy", "declaration", bounds, ROUNDED));
    cases
}
