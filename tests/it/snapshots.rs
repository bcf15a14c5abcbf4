//! The snapshots of `tests/snapshots`: clusters of several tools, as an audit sees them.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use vramguard::capacity::audit::scene::{Scene, Stage};
use vramguard::capacity::pod::Origin;
use vramguard::capacity::policy::{Documents, Policies};
use vramguard::capacity::verdict::finding::Place;
use vramguard::k8s::audit::Reader;
use vramguard::k8s::manifests;

fn scene(file: &str) -> Scene {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(file);
    let mut reader = Reader::new();
    let mut add = |line, object| reader.add(Some(Place { file: file.into(), line }), &object);
    let count =
        manifests::read_reduced(file, File::open(path).expect("a snapshot"), &mut add).expect("it is well-formed");
    assert!(count > 4, "{file} has {count} objects");
    reader.finish(Policies::new(&Documents::default(), "vramguard-system"), &[])
}

/// The GPUs of a node, one a line: what it is, what is held of it and by whom.
fn gpus(scene: &Scene, node: &str) -> String {
    let view = scene.cluster.node(node).expect("a node with GPUs");
    let mut text = String::new();
    for pool in &view.usage.pools {
        writeln!(text, "{} {} held {}", pool.resource, pool.accounting, pool.held).unwrap();
        for gpu in &pool.gpus {
            writeln!(text, "  {} of {}: {}", gpu.id, gpu.total, gpu.held).unwrap();
        }
    }
    for (uid, holder) in view.ledger.counted() {
        let gpu = view.ledger.known_gpu(uid, holder, &view.facts.pools);
        let gpu = gpu.map_or_else(|| "?".to_owned(), |gpu| gpu.to_string());
        writeln!(text, "  {} on {gpu}", holder.name).unwrap();
    }
    text
}

fn subjects(scene: &Scene) -> String {
    let mut text = String::new();
    for subject in &scene.subjects {
        let stage = match &subject.stage {
            Stage::Template => "template".to_owned(),
            Stage::Waiting => "waiting".to_owned(),
            Stage::Bound(node) => format!("on {node}"),
        };
        let object = &subject.object;
        let line = subject.place.as_ref().expect("read from a file").line;
        write!(text, "{line}: {} {stage} of {} {}", subject.pod.name, object.kind, object.name).unwrap();
        for foreign in &subject.foreign {
            let amount = foreign.amount.as_ref().map_or_else(String::clone, ToString::to_string);
            write!(text, "; {} {}={} {amount}", foreign.tool, foreign.key, foreign.text).unwrap();
        }
        for fault in &subject.environment {
            write!(text, "; {}", fault.name).unwrap();
        }
        for bypass in &subject.bypasses {
            write!(text, "; {bypass}").unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn a_cluster_with_time_slicing_is_read_with_its_workloads() {
    let scene = scene("time-slicing.yaml");
    insta::assert_snapshot!(subjects(&scene), @r#"
    168: "ml/llm-7c9d8f6b5d-x2x4q" on gpu-0 of Deployment llm
    196: "ml/ollama-0" on gpu-0 of StatefulSet ollama; OLLAMA_MAX_VRAM
    232: "ml/nightly-29384000-abcde" waiting of CronJob nightly
    102: "kube-system/probe-gpu-0" on gpu-0 of Pod probe-gpu-0
    140: "lab/notebook" on gpu-0 of Pod notebook; annotation cdi.k8s.io/gpu; hostPath volume /dev/nvidia0; NVIDIA_VISIBLE_DEVICES of ephemeral container debugger-x7k2p
    168: "ml/llm-*" template of Deployment llm
    196: "ml/ollama-*" template of StatefulSet ollama
    232: "ml/nightly-*" template of CronJob nightly
    250: "gpu-operator/dcgm-exporter-*" template of DaemonSet dcgm-exporter
    "#);
    insta::assert_snapshot!(gpus(&scene, "gpu-0"), @r#"
    nvidia.com/gpu slot held 20846Mi
      0 of 24Gi: 0Mi
      1 of 24Gi: 0Mi
      "ml/llm-7c9d8f6b5d-x2x4q" on ?
      "ml/ollama-0" on ?
      "kube-system/probe-gpu-0" on ?
    "#);
    let workloads: Vec<String> = scene
        .workloads
        .iter()
        .map(|w| {
            let name = &scene.subjects[w.templates[0].subject].object.name;
            let autoscaler = w.autoscaler.as_ref().map(|(name, most)| format!(" {name} to {most}")).unwrap_or_default();
            format!(
                "{} {name}: {} + {}, {} bound{autoscaler}",
                w.object.kind, w.replicas, w.surge, w.templates[0].bound
            )
        })
        .collect();
    let expected = [
        "Deployment llm: 3 + 2, 1 bound llm-scaler to 12",
        "StatefulSet ollama: 1 + 0, 1 bound",
        "CronJob nightly: 2 + 0, 0 bound",
    ];
    assert_eq!(workloads, expected);
    let mirror = scene.subjects.iter().find(|subject| subject.pod.name.namespace == "kube-system").unwrap();
    assert_eq!(mirror.pod.origin, Origin::Mirror);
    assert_eq!(scene.quotas.iter().map(|(ns, q)| format!("{ns} {q}")).collect::<Vec<_>>(), ["ml 36Gi"]);
    assert!(scene.cluster.node("cpu-0").is_none(), "a node without GPUs is left out");
}

#[test]
fn a_cluster_of_hami_shows_its_gpus_and_who_holds_what() {
    let scene = scene("hami.yaml");
    insta::assert_snapshot!(gpus(&scene, "gpu-0"), @r#"
    nvidia.com/gpu slot held 17000Mi
      GPU-9a3603f4-f66e-d48b-11ea-13e327064cca of 15Gi: 17000Mi
      GPU-b7c4eb59-dd76-ca5a-8482-56fd796b0a75 of 15Gi: 0Mi
      "ml/chat-0" on GPU-9a3603f4-f66e-d48b-11ea-13e327064cca
      "ml/chat-1" on GPU-9a3603f4-f66e-d48b-11ea-13e327064cca
    "#);
    insta::assert_snapshot!(gpus(&scene, "gpu-1"), @r#"
    nvidia.com/gpu exact held 20Gi
      GPU-ec7d894f-bb24-dc73-1adb-17806ec68749 of 40Gi: 20Gi
      "ml/half" on GPU-ec7d894f-bb24-dc73-1adb-17806ec68749
    "#);
    insta::assert_snapshot!(subjects(&scene), @r#"
    29: "ml/chat-0" on gpu-0 of Pod chat-0; HAMi nvidia.com/gpumem=8000 8000Mi
    51: "ml/chat-1" on gpu-0 of Pod chat-1; HAMi nvidia.com/gpumem=9000 9000Mi
    73: "ml/half" on gpu-1 of Pod half; HAMi nvidia.com/gpumem-percentage=50 is a share of a GPU, whose size is not known
    "#);
}

#[test]
fn a_cluster_of_kai_shows_who_shares_a_gpu_and_counts_no_reservation_twice() {
    let scene = scene("kai.yaml");
    insta::assert_snapshot!(gpus(&scene, "gpu-0"), @r#"
    nvidia.com/gpu exclusive held 200896Mi
      GPU-11111111-aaaa-bbbb-cccc-000000000001 of 81559Mi: 40390Mi
      GPU-11111111-aaaa-bbbb-cccc-000000000002 of 81559Mi: 80253Mi
      2 of 81559Mi: 0Mi
      3 of 81559Mi: 0Mi
      "ml/chat" on GPU-11111111-aaaa-bbbb-cccc-000000000001
      "search/embed" on GPU-11111111-aaaa-bbbb-cccc-000000000001
      "kai-resource-reservation/gpu-reservation-gpu-0-m4q9z" on GPU-11111111-aaaa-bbbb-cccc-000000000002
      "ml/train" on ?
    "#);
    insta::assert_snapshot!(subjects(&scene), @r#"
    40: "ml/chat" on gpu-0 of Pod chat; KAI gpu-memory=20000 20000Mi
    59: "search/embed" on gpu-0 of Pod embed; KAI gpu-fraction=0.25 is a share of a GPU, whose size is not known
    97: "ml/train" on gpu-0 of Pod train
    "#);
    let free = scene.cluster.node("gpu-0").unwrap().usage.pools[0].free;
    assert!(!free.is_zero(), "three of four GPUs are taken, however many pods share one");
}

#[test]
fn shared_devices_of_dra_have_their_claims_in_both_versions_of_the_api() {
    let scene = scene("dra.json");
    let devices: Vec<String> = scene
        .devices
        .iter()
        .map(|device| {
            let memory = device.memory.map_or_else(|| "?".to_owned(), |memory| memory.to_string());
            let claims: Vec<String> = device
                .claims
                .iter()
                .map(|claim| {
                    let memory = claim.memory.map_or_else(|| "?".to_owned(), |memory| memory.to_string());
                    format!("{}/{} {memory} {:?}", claim.namespace, claim.name, claim.pods)
                })
                .collect();
            let node = device.node.as_deref().unwrap_or("?");
            format!("{node} {} {}/{} {memory}: {}", device.driver, device.pool, device.device, claims.join(", "))
        })
        .collect();
    let expected = [
        "gpu-1 gpu.example.com gpu-1/card-0 24Gi: ",
        "gpu-0 gpu.nvidia.com gpu-0/gpu-0 81559Mi: ml/chat 40Gi [\"chat-0\"], ml/embed ? []",
    ];
    assert_eq!(devices, expected);
}
