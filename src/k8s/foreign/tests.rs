use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A pod with one container `main` that has these limits.
fn limited(limits: &Value) -> Value {
    json!({"metadata": {"annotations": {}}, "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}})
}

/// A pod with a container `main`, without resources, and these annotations.
fn annotated(annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "main"}, {"name": "side"}]}})
}

/// Scheme, container, key and the annotation to write, or the error, of each declaration.
fn read(template: &Value, assumptions: &Assumptions) -> Vec<String> {
    let line = |declaration: ForeignDeclaration| {
        let container = declaration.container.clone().unwrap_or_default();
        let result = match (declaration.annotation(), &declaration.amount) {
            (Some((key, value)), _) => format!("{key}: {value}"),
            (None, Err(why)) => why.to_string(),
            (None, Ok(_)) => "no container".to_owned(),
        };
        format!("{} {container} {} {result}", declaration.scheme, declaration.key)
    };
    of_pod_with(template, assumptions).into_iter().map(line).collect()
}

fn by_default(template: &Value) -> Vec<String> {
    read(template, &Assumptions::default())
}

/// The examples are those of the projects' documentation, which the module names.
#[test]
fn documented_examples_are_read_in_the_unit_of_their_project() {
    let hami = limited(&json!({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30}));
    assert_eq!(by_default(&hami), ["HAMi main nvidia.com/gpumem vramguard.dev/vram: 3000Mi"]);
    let volcano = limited(&json!({"volcano.sh/vgpu-number": 1, "volcano.sh/vgpu-memory": "3000"}));
    assert_eq!(by_default(&volcano), ["Volcano main volcano.sh/vgpu-memory vramguard.dev/vram: 3000Mi"]);
    let old = limited(&json!({"volcano.sh/gpu-memory": 1024}));
    assert_eq!(by_default(&old), ["Volcano main volcano.sh/gpu-memory vramguard.dev/vram: 1Gi"]);
    let aliyun = limited(&json!({"aliyun.com/gpu-mem": 3}));
    assert_eq!(by_default(&aliyun), ["gpushare main aliyun.com/gpu-mem vramguard.dev/vram: 3Gi"]);
    let kai = annotated(&json!({"gpu-memory": "2000"}));
    assert_eq!(by_default(&kai), ["KAI main gpu-memory vramguard.dev/vram: 2000Mi"]);
    let other = annotated(&json!({"gpu-memory": "2000", "gpu-fraction-container-name": "side"}));
    assert_eq!(by_default(&other), ["KAI side gpu-memory vramguard.dev/vram: 2000Mi"]);
    let run_ai = annotated(&json!({"nvidia.com/container.side.gpu-memory.request": "4Gi"}));
    assert_eq!(by_default(&run_ai), ["KAI side nvidia.com/container.side.gpu-memory.request vramguard.dev/vram: 4Gi"]);
    assert!(of_pod(&run_ai)[0].understood && !of_pod(&kai)[0].understood);
}

#[test]
fn what_a_manifest_does_not_show_can_be_stated() {
    let assumptions =
        Assumptions { aliyun: AliyunUnit::Mib, factor: NonZeroU32::new(2).unwrap(), gpu: Some(Vram::from_mib(81_559)) };
    for (template, line) in [
        (limited(&json!({"aliyun.com/gpu-mem": 3000})), "gpushare main aliyun.com/gpu-mem vramguard.dev/vram: 3000Mi"),
        (limited(&json!({"nvidia.com/gpumem": 1000})), "HAMi main nvidia.com/gpumem vramguard.dev/vram: 2000Mi"),
        (
            limited(&json!({"nvidia.com/gpumem-percentage": 50})),
            "HAMi main nvidia.com/gpumem-percentage vramguard.dev/vram: 40780Mi",
        ),
        (annotated(&json!({"gpu-fraction": "0.25"})), "KAI main gpu-fraction vramguard.dev/vram: 20390Mi"),
    ] {
        assert_eq!(read(&template, &assumptions), [line]);
    }
}

#[test]
fn what_tells_no_amount_says_why_and_is_never_zero() {
    for (template, why) in [
        (
            annotated(&json!({"gpu-fraction": "0.5"})),
            "KAI main gpu-fraction is a share of a GPU, whose size is not known",
        ),
        (
            annotated(&json!({"gpu-fraction": "1.5"})),
            "KAI main gpu-fraction is not a share of a GPU, which is above 0 and at most 1",
        ),
        (
            annotated(&json!({"gpu-memory": "0"})),
            "KAI main gpu-memory is not a whole number above zero; KAI counts MiB and takes no unit",
        ),
        (
            annotated(&json!({"gpu-memory": "2000", "gpu-fraction-num-devices": "2"})),
            "KAI main gpu-memory is of each of 2 GPUs, and vramguard accounts for one GPU per container",
        ),
        (
            annotated(&json!({"gpu-memory": "2000", "gpu-fraction-container-name": "gone"})),
            "KAI  gpu-memory is for container \"gone\", which the pod does not have",
        ),
        (
            limited(&json!({"nvidia.com/gpumem": "8Gi"})),
            "HAMi main nvidia.com/gpumem is 8589934592 MiB for HAMi, more than any GPU has; HAMi counts MiB and takes no \
             unit",
        ),
        (
            limited(&json!({"nvidia.com/gpu": 2, "nvidia.com/gpumem": 3000})),
            "HAMi main nvidia.com/gpumem is of each of 2 GPUs, and vramguard accounts for one GPU per container",
        ),
        (
            limited(&json!({"nvidia.com/gpu": 1, "nvidia.com/gpucores": 30})),
            "HAMi main nvidia.com/gpucores says nothing about memory; HAMi gives what its configuration says, or the \
             whole GPU",
        ),
        (
            limited(&json!({"volcano.sh/vgpu-number": 1})),
            "Volcano main volcano.sh/vgpu-number says nothing about memory; Volcano gives what its configuration says, \
             or the whole GPU",
        ),
        (
            annotated(&json!({
                "nvidia.com/container.main.gpu-memory.request": "4Gi",
                "nvidia.com/container.main.gpu-memory.limit": "5Gi"
            })),
            "KAI main nvidia.com/container.main.gpu-memory.request differs from \
             nvidia.com/container.main.gpu-memory.limit: 5Gi",
        ),
    ] {
        assert_eq!(by_default(&template), [why]);
    }
}

#[test]
fn a_pod_without_foreign_keys_declares_nothing_foreign() {
    let ours = json!({
        "metadata": {"annotations": {"vramguard.dev/vram": "8Gi", "nvidia.com/use-gputype": "A100"}},
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}
    });
    assert_eq!(of_pod(&ours), []);
    for hostile in [json!(null), json!([]), json!({"spec": {"containers": "x"}}), json!({"metadata": 3, "spec": []})] {
        assert_eq!(of_pod(&hostile), []);
    }
}

#[test]
fn each_container_gets_its_own_line_if_several_ask_for_a_gpu() {
    let two = json!({"spec": {
        "containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpumem": 1000}}},
                       {"name": "b", "resources": {"requests": {"nvidia.com/gpu": 1}}}],
        "initContainers": [{"name": "i", "resources": {"limits": {"aliyun.com/gpu-mem": 2}}}]
    }});
    assert_eq!(
        by_default(&two),
        [
            "HAMi a nvidia.com/gpumem vramguard.dev/vram.a: 1000Mi",
            "gpushare i aliyun.com/gpu-mem vramguard.dev/vram.i: 2Gi"
        ]
    );
}

#[test]
fn what_is_lost_is_listed() {
    let mut hami = limited(&json!({
        "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30, "nvidia.com/priority": 1,
        "nvidia.com/gpumem-percentage": 50
    }));
    hami["metadata"]["annotations"] = json!({"nvidia.com/use-gputype": "A100"});
    let of = |key: &str, text: &str| (key.to_owned(), text.to_owned());
    let ((cores, thirty), (priority, one)) = (of("nvidia.com/gpucores", "30"), of("nvidia.com/priority", "1"));
    let ((share, fifty), (kind, a100)) =
        (of("nvidia.com/gpumem-percentage", "50"), of("nvidia.com/use-gputype", "A100"));
    assert_eq!(
        of_pod(&hami)[0].lost,
        [
            Lost::HardLimit(Scheme::Hami),
            Lost::Compute { key: cores, text: thirty },
            Lost::Extra { key: priority, text: one },
            Lost::Extra { key: share, text: fifty },
            Lost::Choice { key: kind, text: a100 },
        ]
    );
    let mut kai = annotated(&json!({"gpu-memory": "2000"}));
    kai["metadata"]["labels"] = json!({"kai.scheduler/queue": "team-a"});
    assert_eq!(of_pod(&kai)[0].lost, [Lost::Queue { name: "team-a".into() }]);
}

proptest! {
    #[test]
    fn no_value_panics_and_every_amount_is_above_zero(key in 0usize..6, text in "\\PC{0,12}|-?[0-9.]{1,24}[a-zA-Z]{0,2}") {
        let keys = ["nvidia.com/gpumem", "nvidia.com/gpumem-percentage", "aliyun.com/gpu-mem", "volcano.sh/vgpu-memory",
            "gpu-memory", "gpu-fraction"];
        let mut template = limited(&json!({keys[key]: text}));
        template["metadata"]["annotations"] = json!({keys[key]: text});
        let assumptions = Assumptions { gpu: Some(Vram::from_mib(24_576)), ..Assumptions::default() };
        for declaration in of_pod_with(&template, &assumptions) {
            prop_assert!(declaration.amount.is_err() || declaration.amount.unwrap() > Vram::ZERO);
        }
    }
}
