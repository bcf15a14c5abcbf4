//! What each framework is told, and what bounds its container then.

use super::*;
use crate::capacity::admission::environment::{Value, Variable};
use crate::capacity::admission::{Changes, assess};
use crate::capacity::cluster::Cluster;
use crate::capacity::gpu::{Pool, Sharing};
use crate::capacity::pod::demand::Role;
use crate::capacity::pod::software::Framework;
use crate::capacity::pod::{Declarations, EnvEntry, Origin, Pod, PodName, VramRequest, Written};
use crate::capacity::policy::{ClusterPolicy, Documents, Layer, OnConflict, Policies, Policy};
use crate::capacity::testing::{facts, gpu, mib, pool, rules};

/// What a pod with one container consists of. It declares 8192 MiB, of a GPU of 81920 MiB, and lands where the GPUs of
/// `pools` are.
struct Given<'g> {
    image: &'g str,
    command: &'g [&'g str],
    args: &'g [&'g str],
    env: &'g [(&'g str, &'g str)],
    annotation: Option<&'g str>,
    declared: Option<u64>,
    processes: u32,
    pools: Vec<Pool>,
    policy: Layer,
}

impl Default for Given<'_> {
    fn default() -> Self {
        Given {
            image: "",
            command: &[],
            args: &[],
            env: &[],
            annotation: None,
            declared: Some(8192),
            processes: 1,
            pools: vec![pool(&[81_920], 4)],
            policy: Layer { mode: Some(Mode::Enforce), ..Layer::default() },
        }
    }
}

impl Given<'_> {
    fn policy(&self) -> Policy {
        let cluster = ClusterPolicy { layer: self.policy.clone(), ..ClusterPolicy::default() };
        let documents = Documents { cluster: Some(cluster), ..Documents::default() };
        Policies::new(&documents, "vramguard-system").of("ml").expect("not exempt").as_ref().clone()
    }

    fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::new(rules(), [gpu()].into_iter().collect());
        for (index, pool) in self.pools.iter().enumerate() {
            cluster.apply_node(&format!("node-{index}"), facts(vec![pool.clone()]));
        }
        cluster
    }

    fn pod(&self) -> Pod {
        let written = |mib: u64| Written {
            key: keys::VRAM.into(),
            text: format!("{mib}Mi"),
            amount: Ok(crate::capacity::testing::mib(mib)),
        };
        let entry = |&(name, value): &(&str, &str)| EnvEntry {
            name: name.into(),
            value: (value != "<source>").then(|| value.into()),
            field: None,
        };
        let container = Container {
            name: "main".into(),
            role: Role::App,
            gpus: vec![(gpu(), 1)],
            vram_request: VramRequest::Absent,
            env: self.env.iter().map(entry).collect(),
            software: recognise::recognise(self.image, self.command, self.args),
        };
        Pod {
            name: PodName { namespace: "ml".into(), name: "llm".into() },
            containers: vec![container],
            declarations: Declarations {
                pod: self.declared.map(written),
                processes: Some(Ok(self.processes)),
                framework: self.annotation.map(str::to_owned),
                ..Declarations::default()
            },
            reserved_annotations: Vec::new(),
            bounded_by: BTreeMap::new(),
            unknown_annotations: Vec::new(),
            placement: Placement::default(),
            access: HostAccess::None,
            origin: Origin::Api,
            excess: None,
        }
    }

    fn changes(&self) -> Changes {
        let (pod, policy, cluster) = (self.pod(), self.policy(), self.cluster());
        assess(&pod, &policy, &cluster).changes()
    }

    /// What is injected for the framework, then what bounds the container.
    fn told(&self) -> String {
        let changes = self.changes();
        let change = &changes.containers[0];
        let general = [keys::ENV_VRAM_MIB, keys::ENV_DEVICE_ORDER];
        let text = |sign: &str, Variable { name, value }: &Variable| match value {
            Value::Literal(value) => format!("{name}{sign}{value}"),
            Value::Field(path) => panic!("{name} comes from {path}, which may be empty"),
        };
        let set = change.env.iter().filter(|variable| !general.contains(&variable.name)).map(|v| text("=", v));
        let edited = change.edit_env.iter().map(|variable| text(":=", variable));
        let argument = change.argument.iter().map(|argument| argument.text.clone());
        let by = change.bound.as_ref().expect("it takes part of a shared GPU").by.word();
        set.chain(edited).chain(argument).chain([by.to_owned()]).collect::<Vec<_>>().join(" ")
    }

    fn why(&self) -> Why {
        self.changes().containers[0].bound.clone().expect("it takes part of a shared GPU").why
    }

    /// The variables and flags that conflict.
    fn conflicts(&self) -> Vec<&'static str> {
        let (pod, policy, cluster) = (self.pod(), self.policy(), self.cluster());
        let assessment = assess(&pod, &policy, &cluster);
        assessment.injections[0].conflicts.iter().map(|conflict| conflict.name).collect()
    }
}

const TORCH: &str = "pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime";
const OLD_TORCH: &str = "pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime";
const CONF: &str = "PYTORCH_CUDA_ALLOC_CONF";
const NEW_CONF: &str = "PYTORCH_ALLOC_CONF";

#[test]
fn pytorch_is_told_only_in_a_version_that_knows_the_key() {
    for (image, annotation, told) in [
        (TORCH, None, "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.1000 allocator"),
        (OLD_TORCH, None, "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True nothing"),
        ("pytorch/pytorch:1.13.1", None, "nothing"),
        ("pytorch/pytorch:latest", None, "nothing"),
        ("nvcr.io/nvidia/pytorch:25.10-py3", None, "nothing"),
        ("agent:1", Some("PyTorch"), "nothing"),
        ("agent:1", Some("PyTorch@2.11"), "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.1000 allocator"),
        (OLD_TORCH, Some("PyTorch@2.10"), "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.1000 allocator"),
        (TORCH, Some("PyTorch"), "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.1000 allocator"),
    ] {
        assert_eq!(Given { image, annotation, ..Given::default() }.told(), told, "{image} {annotation:?}");
    }
}

#[test]
fn pytorchs_own_configuration_is_extended_and_never_replaced() {
    let share = "per_process_memory_fraction:0.1000";
    for (env, told) in [
        (&[(CONF, "max_split_size_mb:64")][..], format!("{CONF}:=max_split_size_mb:64,{share} allocator")),
        (&[(CONF, "a:1,")], format!("{CONF}:=a:1,{share} allocator")),
        (&[(CONF, "")], format!("{CONF}:={share} allocator")),
        (&[(NEW_CONF, "a:[1,2]")], format!("{NEW_CONF}:=a:[1,2],{share} allocator")),
        (&[(CONF, "a:1"), (NEW_CONF, "b:2")], format!("{NEW_CONF}:=b:2,{share} {CONF}:=a:1,{share} allocator")),
        (&[(CONF, "per_process_memory_fraction:0.1")], "allocator".into()),
        (&[(CONF, "a:1,per_process_memory_fraction:0.05")], "allocator".into()),
        // The last entry of a variable takes effect.
        (&[(CONF, "a:1"), (CONF, "b:2")], format!("{CONF}:=b:2,{share} allocator")),
        // Nothing can be added to these.
        (&[(CONF, "backend:cudaMallocAsync")], "nothing".into()),
        (&[(CONF, "garbage")], "nothing".into()),
        (&[(CONF, "$(OTHERS)")], "nothing".into()),
        (&[(CONF, "<source>")], "nothing".into()),
    ] {
        let given = Given { image: TORCH, env, ..Given::default() };
        assert_eq!(given.told(), told, "{env:?}");
        assert_eq!(given.conflicts(), [] as [&str; 0], "{env:?}");
    }
    let looser = Given { image: TORCH, env: &[(CONF, "per_process_memory_fraction:0.2")], ..Given::default() };
    assert_eq!((looser.told(), looser.conflicts()), ("nothing".into(), vec![CONF]));
}

#[test]
fn vllm_is_told_by_a_flag_where_its_server_is_started_by_a_list() {
    const FLAG: &str = "--gpu-memory-utilization";
    for (image, command, args, told) in [
        ("vllm/vllm-openai:v0.11.0", &[][..], &["--model", "m"][..], "--gpu-memory-utilization=0.1000 plan"),
        ("agent:1", &["vllm", "serve", "m"], &[], "--gpu-memory-utilization=0.1000 plan"),
        ("vllm/vllm-openai", &[], &["--gpu-memory-utilization=0.1"], "plan"),
        ("vllm/vllm-openai", &[], &["--gpu-memory-utilization", "0.05"], "plan"),
        ("vllm/vllm-openai", &[], &["--gpu-mem=0.05"], "plan"),
        // The weights come on top of the cache.
        ("vllm/vllm-openai", &[], &["--kv-cache-memory-bytes", "1073741824"], "nothing"),
        ("vllm/vllm-openai", &[], &["--kv-cache-memory-bytes", "4G"], "nothing"),
        ("vllm/vllm-openai", &[], &["--config", "c.yaml"], "nothing"),
        ("vllm/vllm-openai", &["sh", "-c", "vllm serve m"], &[], "nothing"),
        ("vllm/vllm-openai", &["sh", "-c", "vllm serve m --gpu-memory-utilization 0.1"], &[], "plan"),
        ("vllm/vllm-openai", &["python", "x.py"], &[], "nothing"),
        ("vllm/vllm-openai", &[], &[], "nothing"),
    ] {
        let given = Given { image, command, args, ..Given::default() };
        assert_eq!((given.told(), given.conflicts()), (told.to_owned(), vec![]), "{command:?} {args:?}");
    }
    for (args, name) in [
        (&["--gpu-memory-utilization=0.9"][..], FLAG),
        (&["--gpu-memory-utilization=$(SHARE)"], FLAG),
        (&["--kv-cache-memory-bytes", "85899345920"], "--kv-cache-memory-bytes"),
        (&["--kv-cache-memory-bytes", "80G"], "--kv-cache-memory-bytes"),
        (&["--kv-cache-memory-bytes", "8Gi"], "--kv-cache-memory-bytes"),
    ] {
        let given = Given { image: "vllm/vllm-openai", args, ..Given::default() };
        assert_eq!((given.told(), given.conflicts()), ("nothing".into(), vec![name]), "{args:?}");
    }
}

#[test]
fn the_author_of_a_vllm_that_a_shell_starts_is_told_the_flag_to_write() {
    let given = Given { image: "vllm/vllm-openai", command: &["sh", "-c", "vllm serve m"], ..Given::default() };
    let why = Why::WriteFlag { name: "--gpu-memory-utilization", value: "0.1000".into() };
    assert_eq!(given.why(), why);
    let (pod, policy, cluster) = (given.pod(), given.policy(), given.cluster());
    let advice = assess(&pod, &policy, &cluster).advice;
    assert_eq!(advice, [Advice::Unbounded { container: "main".into(), why }]);
}

#[test]
fn a_flag_of_one_framework_is_never_given_to_another_ones_server() {
    let sglang = ["python", "-m", "sglang.launch_server", "--model", "m"];
    let given = Given { command: &sglang, annotation: Some("vLLM"), ..Given::default() };
    assert_eq!(given.told(), "nothing");
}

#[test]
fn frameworks_that_take_a_share_by_a_variable_get_it() {
    const XLA: &str = "XLA_CLIENT_MEM_FRACTION";
    const OLD_XLA: &str = "XLA_PYTHON_CLIENT_MEM_FRACTION";
    const TGI: &str = "CUDA_MEMORY_FRACTION";
    for (annotation, env, told, conflict) in [
        ("JAX", &[][..], "XLA_PYTHON_CLIENT_MEM_FRACTION=0.1000 allocator", None),
        ("JAX", &[(OLD_XLA, "0.10")], "allocator", None),
        ("JAX", &[(OLD_XLA, ".05")], "allocator", None),
        ("JAX", &[(OLD_XLA, "0.2")], "nothing", Some(OLD_XLA)),
        ("JAX", &[(OLD_XLA, "much")], "nothing", Some(OLD_XLA)),
        ("JAX", &[(OLD_XLA, "NaN")], "nothing", Some(OLD_XLA)),
        ("JAX", &[(OLD_XLA, "0")], "nothing", Some(OLD_XLA)),
        ("JAX", &[(OLD_XLA, "<source>")], "nothing", Some(OLD_XLA)),
        // JAX ends if both names are set.
        ("JAX", &[(XLA, "0.1")], "allocator", None),
        ("JAX", &[(XLA, "0.75")], "nothing", Some(XLA)),
        ("JAX", &[("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")], "nothing", None),
        ("JAX", &[("XLA_PYTHON_CLIENT_ALLOCATOR", "BFC")], "XLA_PYTHON_CLIENT_MEM_FRACTION=0.1000 allocator", None),
        ("TGI", &[], "CUDA_MEMORY_FRACTION=0.1000 allocator", None),
        ("TGI", &[(TGI, "0.1")], "allocator", None),
        ("TGI", &[(TGI, "1.0")], "nothing", Some(TGI)),
    ] {
        let given = Given { annotation: Some(annotation), env, ..Given::default() };
        assert_eq!(given.told(), told, "{annotation} {env:?}");
        assert_eq!(given.conflicts(), Vec::from_iter(conflict), "{annotation} {env:?}");
    }
    let command = ["text-generation-launcher", "--cuda-memory-fraction", "0.1"];
    assert_eq!(Given { command: &command, ..Given::default() }.told(), "allocator");
    let command = ["text-generation-launcher", "--cuda-memory-fraction", "0.5"];
    let looser = Given { command: &command, env: &[(TGI, "0.1")], ..Given::default() };
    assert_eq!((looser.told(), looser.conflicts()), ("nothing".into(), vec!["--cuda-memory-fraction"]));
}

#[test]
fn servers_that_size_their_memory_by_the_context_get_one_that_goes_with_what_they_declare() {
    let ollama = "OLLAMA_NUM_PARALLEL=1 OLLAMA_MAX_LOADED_MODELS=1";
    for (image, declared, env, told) in [
        ("ollama/ollama", 8192, &[][..], format!("OLLAMA_CONTEXT_LENGTH=4096 {ollama} plan")),
        ("ollama/ollama", 32_768, &[], format!("OLLAMA_CONTEXT_LENGTH=32768 {ollama} plan")),
        ("ollama/ollama", 8192, &[("OLLAMA_CONTEXT_LENGTH", "64000")], format!("{ollama} plan")),
        ("ollama/ollama", 8192, &[("OLLAMA_CONTEXT_LENGTH", "0")], "nothing".into()),
        (
            "ollama/ollama",
            8192,
            &[("OLLAMA_NUM_PARALLEL", "4")],
            "OLLAMA_CONTEXT_LENGTH=4096 OLLAMA_MAX_LOADED_MODELS=1 plan".into(),
        ),
        (
            "ghcr.io/ggml-org/llama.cpp:server-cuda",
            8192,
            &[],
            "LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_N_PARALLEL=1 plan".into(),
        ),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda", 8192, &[("LLAMA_ARG_CTX_SIZE", "16384")], "plan".into()),
    ] {
        let given = Given { image, declared: Some(declared), env, ..Given::default() };
        assert_eq!((given.told(), given.conflicts()), (told, vec![]), "{image} {declared} {env:?}");
    }
    let llama = |args| Given { command: &["llama-server"], args, ..Given::default() }.told();
    assert_eq!(llama(&["-c", "8192"]), "plan");
    assert_eq!(llama(&["--ctx-size", "0"]), "nothing");
}

#[test]
fn frameworks_without_such_a_setting_are_unenforced() {
    for (annotation, args, told) in [
        ("TensorFlow", &[][..], "TF_FORCE_GPU_ALLOW_GROWTH=true nothing"),
        ("Triton", &[], "nothing"),
        ("SGLang", &[], "nothing"),
    ] {
        assert_eq!(Given { annotation: Some(annotation), args, ..Given::default() }.told(), told, "{annotation}");
    }
    let planned = ["sglang", "serve", "--max-total-tokens", "65536"];
    assert_eq!(Given { command: &planned, ..Given::default() }.told(), "plan");
    let grows = |value| {
        Given { annotation: Some("TensorFlow"), env: &[("TF_FORCE_GPU_ALLOW_GROWTH", value)], ..Given::default() }
            .conflicts()
    };
    assert_eq!((grows("TRUE"), grows("false")), (vec![], vec!["TF_FORCE_GPU_ALLOW_GROWTH"]));
}

#[test]
fn the_share_is_of_one_size_of_gpu_or_of_none() {
    let why = |pools| Given { image: TORCH, pools, ..Given::default() }.why();
    let sizes = Why::SizesDiffer { smallest: mib(24_576), largest: mib(81_920) };
    assert_eq!(why(vec![pool(&[81_920], 4), pool(&[24_576], 4)]), sizes);
    assert_eq!(why(vec![]), Why::SizeUnknown);
    // The demand never fits such a GPU.
    assert_eq!(why(vec![pool(&[8192], 4)]), Why::NoShare { total: mib(8192) });
    let nearly = Given { image: TORCH, pools: vec![pool(&[81_000], 4), pool(&[81_920], 4)], ..Given::default() };
    assert!(nearly.told().ends_with("fraction:0.1000 allocator"), "of the larger: {}", nearly.told());
    let several = Given { image: TORCH, processes: 2, ..Given::default() };
    assert!(several.told().ends_with("fraction:0.0500 allocator"), "{}", several.told());
}

#[test]
fn only_a_declaration_is_told() {
    for image in [TORCH, "vllm/vllm-openai", "ollama/ollama"] {
        let given = Given { image, declared: None, args: &["--model", "m"], ..Given::default() };
        assert_eq!((given.told(), given.why()), ("nothing".into(), Why::Undeclared), "{image}");
    }
    assert_eq!(Given::default().why(), Why::NoFramework);
}

#[test]
fn the_policy_turns_frameworks_off_or_names_one_that_nothing_else_names() {
    let told = |framework, image, annotation| {
        let policy = Layer { mode: Some(Mode::Enforce), framework: Some(framework), ..Layer::default() };
        Given { image, annotation, policy, ..Given::default() }.told()
    };
    let jax = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.1000 allocator";
    assert_eq!(told(FrameworkPolicy::None, TORCH, None), "nothing");
    assert_eq!(told(FrameworkPolicy::None, "agent:1", Some("JAX")), "nothing");
    assert_eq!(told(FrameworkPolicy::Named(Framework::Jax), "agent:1", None), jax);
    assert_eq!(told(FrameworkPolicy::Named(Framework::Jax), "vllm/vllm-openai", None), "nothing");
    assert_eq!(told(FrameworkPolicy::Named(Framework::Triton), TORCH, Some("JAX")), jax);
    assert_eq!(told(FrameworkPolicy::Auto, "agent:1", None), "nothing");
}

fn limited() -> Vec<Pool> {
    vec![Pool { hard_limits: true, ..pool(&[81_920], 4) }]
}

#[test]
fn hard_limits_bound_any_program_where_every_node_enforces_them() {
    const LIMITS: &str = "NVIDIA_GPU_MEMORY_REQUEST=8912 NVIDIA_GPU_MEMORY_LIMIT=8912";
    let told = |image, pools| Given { image, pools, ..Given::default() }.told();
    assert_eq!(told("agent:1", limited()), format!("{LIMITS} driver"));
    // CUDA then reports the limit as the total: 8192 / 8912, rounded down.
    let share = "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.9192";
    assert_eq!(told(TORCH, limited()), format!("{LIMITS} {share} driver"));
    let mixed = [limited(), vec![pool(&[81_920], 4)]].concat();
    assert_eq!(told("agent:1", mixed), "nothing");
    let off = Layer { mode: Some(Mode::Enforce), framework: Some(FrameworkPolicy::None), ..Layer::default() };
    assert_eq!(
        Given { image: TORCH, pools: limited(), policy: off, ..Given::default() }.told(),
        format!("{LIMITS} driver")
    );
}

#[test]
fn a_users_own_hard_limit_is_kept() {
    const REQUEST: &str = "NVIDIA_GPU_MEMORY_REQUEST";
    const LIMIT: &str = "NVIDIA_GPU_MEMORY_LIMIT";
    for (env, told, conflict) in [
        (&[(REQUEST, "4000"), (LIMIT, "8000")][..], "driver", None),
        (&[(REQUEST, "8912"), (LIMIT, "8912")], "driver", None),
        (&[(REQUEST, "4000"), (LIMIT, "9000")], "nothing", Some(LIMIT)),
        (&[(REQUEST, "8000"), (LIMIT, "4000")], "nothing", Some(LIMIT)),
        (&[(LIMIT, "4000")], "nothing", Some(LIMIT)),
        (&[(REQUEST, "4000")], "nothing", Some(REQUEST)),
        (&[(REQUEST, "4Gi"), (LIMIT, "4Gi")], "nothing", Some(LIMIT)),
        (&[(REQUEST, "0"), (LIMIT, "0")], "nothing", Some(LIMIT)),
    ] {
        let given = Given { env, pools: limited(), ..Given::default() };
        assert_eq!((given.told(), given.conflicts()), (told.to_owned(), Vec::from_iter(conflict)), "{env:?}");
    }
    // A share is of the limit that CUDA reports.
    let env = &[(REQUEST, "8912"), (LIMIT, "8500")];
    let unreadable = Given { image: TORCH, env: &[(REQUEST, "1"), (LIMIT, "x")], pools: limited(), ..Given::default() };
    assert_eq!(unreadable.why(), Why::SizeUnknown);
    let own = Given { image: TORCH, env, pools: limited(), ..Given::default() };
    assert!(own.told().contains("fraction:0.9637"), "{}", own.told());
}

#[test]
fn mps_limits_each_process_and_still_reports_the_whole_gpu() {
    let mps = || vec![Pool { sharing: Sharing::Mps, ..pool(&[81_920], 4) }];
    let told = |env, processes| Given { image: TORCH, env, processes, pools: mps(), ..Given::default() }.told();
    let share = "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction";
    assert_eq!(told(&[], 1), format!("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=8912M {share}:0.1000 driver"));
    assert_eq!(told(&[], 2), format!("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=4816M {share}:0.0500 driver"));
    assert_eq!(told(&[("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=4G")], 1), format!("{share}:0.1000 driver"));
    for own in ["0=16G", "0=4G,1=4G", "4G", "0=0M"] {
        let env = &[("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", own)];
        let given = Given { env, pools: mps(), ..Given::default() };
        assert_eq!(given.told(), "nothing", "{own}");
        assert_eq!(given.conflicts(), ["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "{own}");
    }
}

#[test]
fn a_value_that_allows_more_is_a_warning_or_a_refusal() {
    let judged = |on_conflict| {
        let policy = Layer { mode: Some(Mode::Enforce), on_conflict: Some(on_conflict), ..Layer::default() };
        let args = &["--gpu-memory-utilization=0.9"];
        let given = Given { image: "vllm/vllm-openai", args, policy, ..Given::default() };
        let (pod, policy, cluster) = (given.pod(), given.policy(), given.cluster());
        let assessment = assess(&pod, &policy, &cluster);
        let texts = |texts: Vec<String>| texts.join("; ");
        (
            texts(assessment.violations.iter().map(ToString::to_string).collect()),
            texts(assessment.advice.iter().map(ToString::to_string).collect()),
        )
    };
    let sets = "container \"main\" sets --gpu-memory-utilization=\"0.9\" where vramguard sets \"0.1000\"; ";
    assert_eq!(judged(OnConflict::Warn), (String::new(), format!("{sets}its own value is kept")));
    assert_eq!(judged(OnConflict::Deny), (format!("{sets}remove it"), String::new()));
}

#[test]
fn what_bounds_a_container_is_annotated_and_what_somebody_else_wrote_is_not_believed() {
    let given = Given { image: TORCH, ..Given::default() };
    let annotations = |written: &[(&str, &str)], given: &Given<'_>| {
        let own = |(container, text): &(&str, &str)| ((*container).to_owned(), (*text).to_owned());
        let pod = Pod { bounded_by: written.iter().map(own).collect(), ..given.pod() };
        let (policy, cluster) = (given.policy(), given.cluster());
        let Changes { strip, annotate, .. } = assess(&pod, &policy, &cluster).changes();
        (
            strip.join(" "),
            annotate.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "),
        )
    };
    let ours = "vramguard.dev/bounded-by.main=allocator".to_owned();
    assert_eq!(annotations(&[], &given), (String::new(), ours.clone()));
    assert_eq!(annotations(&[("main", "allocator")], &given), (String::new(), String::new()));
    assert_eq!(annotations(&[("main", "driver")], &given), (String::new(), ours.clone()));
    assert_eq!(annotations(&[("gone", "driver")], &given), ("vramguard.dev/bounded-by.gone".into(), ours));
    let audited = Layer { mode: Some(Mode::Audit), ..Layer::default() };
    let given = Given { image: TORCH, policy: audited, ..Given::default() };
    assert_eq!(annotations(&[("main", "driver")], &given), (String::new(), String::new()));
}

#[test]
fn an_annotation_that_the_api_server_would_refuse_is_left_out() {
    let given = Given { image: TORCH, ..Given::default() };
    for (length, annotated) in [(52, 1), (53, 0), (63, 0)] {
        let mut pod = given.pod();
        pod.containers[0].name = "x".repeat(length);
        let (policy, cluster) = (given.policy(), given.cluster());
        let changes = assess(&pod, &policy, &cluster).changes();
        assert_eq!(changes.annotate.len(), annotated, "{length}");
        assert_eq!(changes.containers[0].bound.as_ref().map(|bound| bound.by), Some(BoundedBy::Allocator));
    }
}

#[test]
fn a_pod_that_has_a_node_is_bounded_by_what_it_has() {
    let by = |env| {
        let given = Given { image: TORCH, env, ..Given::default() };
        let (pod, policy, cluster) = (given.pod(), given.policy(), given.cluster());
        let landed = Placement { node_name: Some("node-0".into()), ..Placement::default() };
        assess(&pod, &policy, &cluster).bounds(&landed)[0].clone().expect("it takes part of a shared GPU")
    };
    let without = by(&[]);
    assert_eq!((without.by, without.why), (BoundedBy::Nothing, Why::Absent { name: CONF.into() }));
    assert_eq!(by(&[(CONF, "per_process_memory_fraction:0.1")]).by, BoundedBy::Allocator);
}

#[test]
fn a_name_that_is_no_framework_is_a_warning_with_the_names() {
    let given = Given { image: TORCH, annotation: Some("Torch"), ..Given::default() };
    let (pod, policy, cluster) = (given.pod(), given.policy(), given.cluster());
    let advice = assess(&pod, &policy, &cluster).advice;
    let expected = "annotation vramguard.dev/framework: \"Torch\" names no framework; write one of PyTorch, vLLM, SGLang, TGI, \
                    JAX, TensorFlow, llama.cpp, Ollama, Triton, or a name with its version, as in PyTorch@2.11";
    assert_eq!(advice.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    assert!(given.told().ends_with("allocator"), "what is recognised counts: {}", given.told());
}

mod rerouted;
