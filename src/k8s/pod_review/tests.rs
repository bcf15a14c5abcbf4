//! Random pods through `/mutate/pods`, applied as the API server applies it: what the user wrote stays, and what vramguard
//! adds is there once.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::capacity::gpu::{Pool, Sharing};
use crate::capacity::pod::software::Framework;
use crate::capacity::policy::{ClusterPolicy, Documents, FrameworkPolicy, Layer, Policies};
use crate::capacity::testing::{facts, gpu, pool, rules};
use crate::keys;

const TOTAL: u64 = 81_920;
const DECLARED: u64 = 8192;

fn policy(framework: FrameworkPolicy) -> Policy {
    let layer = Layer { mode: Some(Mode::Enforce), framework: Some(framework), ..Layer::default() };
    let documents =
        Documents { cluster: Some(ClusterPolicy { layer, ..ClusterPolicy::default() }), ..Documents::default() };
    Policies::new(&documents, "vramguard-system").of("ml").expect("not exempt").as_ref().clone()
}

fn cluster(pool: Pool) -> Cluster {
    let mut cluster = Cluster::new(rules(), [gpu()].into_iter().collect());
    cluster.apply_node("a", facts(vec![pool]));
    cluster
}

fn pools() -> impl Strategy<Value = Pool> {
    let of = |sharing, hard_limits| Pool { sharing, hard_limits, ..pool(&[TOTAL], 4) };
    prop_oneof![
        4 => Just(of(Sharing::TimeSlicing, false)),
        1 => Just(of(Sharing::TimeSlicing, true)),
        1 => Just(of(Sharing::Mps, false)),
    ]
}

fn word() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "vllm",
        "serve",
        "sh",
        "-c",
        "python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "sglang.launch_server",
        "text-generation-launcher",
        "llama-server",
        "ollama",
        "--",
        "--model",
        "m",
        "--gpu-memory-utilization",
        "--gpu-memory-utilization=0.2",
        "0.05",
        "--kv-cache-memory-bytes=1",
        "--config",
        "torchrun",
        "vllm serve m --gpu_memory_utilization 0.9",
        "--ctx-size",
        "-c",
        "--cuda-memory-fraction=0.01",
    ])
}

fn variable() -> impl Strategy<Value = Value> {
    let name = prop::sample::select([&keys::ENV_READ[..], &["HOME"]].concat());
    let value = prop::sample::select(vec![
        "",
        "0",
        "0.01",
        "0.1",
        "0.9",
        "1",
        "8912",
        "4000",
        "0=4G",
        "0=99G",
        "max_split_size_mb:64",
        "a:[1,2],b:3,",
        "per_process_memory_fraction:0.05",
        "a:1,per_process_memory_fraction:0.9",
        "backend:cudaMallocAsync",
        "true",
        "false",
        "platform",
        "$(OTHER)",
        "[",
        "void",
        "PCI_BUS_ID",
    ]);
    (name, value, prop::bool::weighted(0.1)).prop_map(|(name, value, is_source)| match is_source {
        true => json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }),
        false => json!({ "name": name, "value": value }),
    })
}

prop_compose! {
    fn pod()(
        image in prop::sample::select(vec![
            "agent:1", "vllm/vllm-openai:v0.11.0", "pytorch/pytorch:2.10.0-runtime", "pytorch/pytorch:2.9.1", "pytorch/pytorch",
            "ollama/ollama", "llama.cpp:server", "nvidia/jax", "tensorflow/tensorflow", "sglang", "text-generation-inference",
            "tritonserver",
        ]),
        framework in prop::option::of(prop::sample::select(vec!["PyTorch", "PyTorch@2.11", "vLLM", "JAX", "TGI", "Torch"])),
        command in prop::option::of(prop::collection::vec(word(), 0..5)),
        args in prop::option::of(prop::collection::vec(word(), 0..5)),
        env in prop::option::of(prop::collection::vec(variable(), 0..6)),
        stale in prop::option::of(prop::sample::select(vec!["driver", "nothing", "x"])),
    ) -> Value {
        let mut annotations = json!({ "vramguard.dev/vram": format!("{DECLARED}Mi") });
        let mut container = json!({ "name": "main", "image": image, "resources": { "limits": { "nvidia.com/gpu": "1" } } });
        let lists = [("command", command.map(|list| json!(list))), ("args", args.map(|list| json!(list))), ("env", env.map(|list| json!(list)))];
        for (field, list) in lists {
            if let Some(list) = list {
                container[field] = list;
            }
        }
        if let Some(framework) = framework {
            annotations["vramguard.dev/framework"] = json!(framework);
        }
        if let Some(stale) = stale {
            annotations["vramguard.dev/bounded-by.main"] = json!(stale);
        }
        json!({ "metadata": { "name": "llm", "namespace": "ml", "annotations": annotations }, "spec": { "containers": [container] } })
    }
}

fn mutated(pod: &Value, policy: &Policy, cluster: &Cluster) -> (Value, Patch) {
    let object: PodObject = serde_json::from_value(pod.clone()).expect("a pod");
    let subject = Subject { object: &object, namespace: None, user: "" };
    let patch = mutate(subject, policy, || cluster).patch;
    let mut after = pod.clone();
    json_patch::patch(&mut after, &patch).expect("the patch applies");
    (after, patch)
}

fn list(container: &Value, field: &str) -> Vec<Value> {
    container[field].as_array().cloned().unwrap_or_default()
}

/// Checks the environment before and after. Returns what was added.
fn added(before: &[Value], after: &[Value]) -> Result<Vec<Value>, TestCaseError> {
    // Of the user's variables, only the choice of GPUs is ever taken out.
    let kept: Vec<&Value> =
        before.iter().filter(|entry| after.iter().any(|other| other["name"] == entry["name"])).collect();
    let gone = before.len() - kept.len();
    prop_assert!(gone == 0 || before.iter().filter(|entry| entry["name"] == "NVIDIA_VISIBLE_DEVICES").count() == gone);
    let added = after.len() - kept.len();
    for (before, after) in kept.iter().zip(&after[added..]) {
        if **before == *after {
            continue;
        }
        let name = after["name"].as_str().unwrap_or_default();
        prop_assert!(matches!(name, "PYTORCH_ALLOC_CONF" | "PYTORCH_CUDA_ALLOC_CONF"), "{before} {after}");
        let (theirs, ours) =
            (before["value"].as_str().unwrap_or_default(), after["value"].as_str().unwrap_or_default());
        let theirs = theirs.trim().trim_end_matches(',');
        let rest = ours.strip_prefix(theirs).map(|rest| rest.trim_start_matches(','));
        let share = rest.and_then(|rest| rest.strip_prefix("per_process_memory_fraction:")?.parse::<f64>().ok());
        prop_assert!(share.is_some_and(|share| share > 0.0 && share < 1.0), "{before} {after}");
    }
    for entry in &after[..added] {
        prop_assert!(before.iter().all(|other| other["name"] != entry["name"]), "{entry}");
        let is_filled = entry["value"].as_str().is_some_and(|value| !value.is_empty());
        prop_assert!(is_filled && entry.get("valueFrom").is_none(), "{entry}");
    }
    Ok(after[..added].to_vec())
}

/// The share of the GPU that a variable or flag allows.
fn share(text: &str) -> Option<f64> {
    let names = [
        "XLA_PYTHON_CLIENT_MEM_FRACTION=",
        "CUDA_MEMORY_FRACTION=",
        "--gpu-memory-utilization=",
        "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:",
    ];
    names.iter().find_map(|name| text.strip_prefix(name))?.parse().ok()
}

/// The webhook fails open, so a pod can reach `/validate/pods` without what its framework should be told.
#[test]
fn what_a_framework_was_not_told_is_no_violation() {
    let resources = json!({ "nvidia.com/gpu": "1", "vramguard.dev/vram": "8912Mi" });
    let terms = json!([
        { "matchExpressions": [{ "key": "vramguard.dev/pod-max-mib", "operator": "DoesNotExist" }] },
        { "matchExpressions": [{ "key": "vramguard.dev/pod-max-mib", "operator": "Gt", "values": ["8911"] }] },
    ]);
    let required = json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } });
    let pod = json!({
        "metadata": { "name": "llm", "namespace": "ml", "annotations": { "vramguard.dev/vram": "8Gi" } },
        "spec": {
            "affinity": { "nodeAffinity": required },
            "containers": [{
                "name": "main", "image": "nvidia/jax", "resources": { "limits": resources, "requests": resources },
            }],
        },
    });
    let (policy, cluster) = (policy(FrameworkPolicy::Auto), cluster(pool(&[TOTAL], 4)));
    let (after, _) = mutated(&pod, &policy, &cluster);
    assert_eq!(after["metadata"]["annotations"]["vramguard.dev/bounded-by.main"], "allocator");
    let object: PodObject = serde_json::from_value(pod).expect("a pod");
    let subject = Subject { object: &object, namespace: None, user: "" };
    let judged = validate(subject, &policy, &[], || &cluster).expect("the mode is Enforce").judgement;
    assert_eq!(judged.violations, vec![]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_user_wrote_stays_and_a_second_pass_changes_nothing(
        pod in pod(),
        pool in pools(),
        framework in prop::sample::select(vec![FrameworkPolicy::Auto, FrameworkPolicy::None, FrameworkPolicy::Named(Framework::Jax)]),
    ) {
        let is_limited = pool.hard_limits;
        let (policy, cluster) = (policy(framework), cluster(pool));
        let (after, _) = mutated(&pod, &policy, &cluster);
        let (_, again) = mutated(&after, &policy, &cluster);
        prop_assert_eq!(again.0, [], "a second pass");

        let [before, container] = [&pod, &after].map(|pod| &pod["spec"]["containers"][0]);
        let env = added(&list(before, "env"), &list(container, "env"))?;
        let mut texts: Vec<String> =
            env.iter().map(|entry| format!("{}={}", entry["name"].as_str().unwrap(), entry["value"].as_str().unwrap())).collect();
        let mut appended = 0;
        for field in ["command", "args"] {
            let (theirs, ours) = (list(before, field), list(container, field));
            prop_assert_eq!(&ours[..theirs.len()], &theirs[..], "{}", field);
            appended += ours.len() - theirs.len();
            texts.extend(ours[theirs.len()..].iter().map(|text| text.as_str().unwrap().to_owned()));
        }
        prop_assert!(appended <= 1);
        // Under a hard limit CUDA reports the limit as the total.
        let total = if is_limited { DECLARED + 720 } else { TOTAL };
        let is_own = list(before, "env").iter().any(|entry| entry["name"] == "NVIDIA_GPU_MEMORY_LIMIT");
        for share in texts.iter().filter_map(|text| share(text)).filter(|_| !(is_limited && is_own)) {
            prop_assert!(share * total as f64 <= DECLARED as f64, "{texts:?}");
        }
        let names = |name: &str| list(container, "env").iter().any(|entry| entry["name"] == name);
        let ours = |name: &str| env.iter().any(|entry| entry["name"] == name);
        let both = [keys::XLA_CLIENT_MEM_FRACTION, keys::XLA_PYTHON_CLIENT_MEM_FRACTION];
        prop_assert!(!both.iter().all(|name| names(name)) || !both.iter().any(|name| ours(name)), "JAX would end");
        let word = &after["metadata"]["annotations"]["vramguard.dev/bounded-by.main"];
        prop_assert!(["driver", "allocator", "plan", "nothing"].map(Value::from).contains(word), "{word}");
        let object: PodObject = serde_json::from_value(after).expect("a pod");
        let subject = Subject { object: &object, namespace: None, user: "" };
        let judged = validate(subject, &policy, &[], || &cluster).expect("the mode is Enforce").judgement;
        prop_assert_eq!(judged.violations, vec![]);
    }
}
