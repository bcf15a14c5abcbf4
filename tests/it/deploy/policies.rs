//! Policies as custom resources: the API server accepts what the reader of policy files accepts, and who may write them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use futures::StreamExt;
use http::Request;
use serde_json::{Value, json};
use vramguard::k8s::{document, snapshot};

use super::{kubectl, kubectl_as};
use crate::support::guard::{OnOutage, apply_manifests};
use crate::support::{ControlPlane, eventually, free_port};

mod corpus;

const PATIENCE: Duration = Duration::from_secs(30);

/// A control plane with the manifests, and namespaces for the samples and two tenants. No server runs.
async fn start() -> ControlPlane {
    let plane = ControlPlane::start().await;
    apply_manifests(&plane, "deploy", free_port(), OnOutage::AsShipped).await;
    for kind in ["clustervrampolicies", "vrampolicies", "gpuinventories"] {
        let wait = format!("wait --for=condition=Established --timeout=30s crd/{kind}.vramguard.dev");
        kubectl(&plane, &wait, "").await.expect_success();
        let stored = kubectl(&plane, &format!("get crd {kind}.vramguard.dev -o json"), "").await.expect_success();
        assert!(!stored.contains("NonStructuralSchema"), "{stored}");
    }
    for namespace in ["ml", "other", "team-agents", "team-notebooks", "serving", "training"] {
        kubectl(&plane, &format!("create namespace {namespace}"), "").await.expect_success();
    }
    plane
}

/// One control plane serves all parts, because a start takes longer than each of them.
#[tokio::test]
async fn policies_exist_as_custom_resources() {
    let plane = start().await;
    the_definitions_are_applied_without_a_warning(&plane).await;
    the_samples_apply_as_they_are(&plane).await;
    the_api_server_and_the_reader_of_files_agree(&plane).await;
    each_field_is_explained(&plane).await;
    a_policy_has_the_name_that_its_kind_has(&plane).await;
    the_columns_show_what_is_in_force(&plane).await;
    the_server_reads_policies_and_writes_their_status_alone(&plane).await;
    let tenants = Tenants::create(&plane).await;
    tenants.rights_end_at_the_own_namespace(&plane).await;
    tenants.may_not_loosen_the_guard(&plane).await;
}

async fn the_definitions_are_applied_without_a_warning(plane: &ControlPlane) {
    let applied = kubectl(plane, "apply --dry-run=server -k deploy/crds", "").await;
    assert!(applied.status.success() && applied.stderr.is_empty(), "{}", applied.stderr);
}

/// The sample policies, without their suites.
fn samples() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let folders = ["", "catalogue", "first-day", "strict", "training-beside-serving"].map(|folder| root.join(folder));
    let entries = folders.into_iter().flat_map(|folder| std::fs::read_dir(folder).expect("a folder of samples"));
    let files = entries.map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

async fn the_samples_apply_as_they_are(plane: &ControlPlane) {
    let samples = samples();
    assert!(samples.len() >= 10, "{samples:?}");
    for path in samples {
        let applied = kubectl(plane, &format!("apply --validate=strict -f {}", path.display()), "").await;
        assert!(applied.status.success() && applied.stderr.is_empty(), "{}: {}", path.display(), applied.stderr);
        // What is stored is what the file says: nothing is pruned, and nothing gets a default.
        let text = std::fs::read_to_string(&path).expect("a sample");
        for (_, object) in snapshot::objects("sample", &text).expect("it is YAML") {
            let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
            let stored =
                kubectl(plane, &format!("get {kind} {name} -n {namespace} -o json"), "").await.expect_success();
            let stored: Value = serde_json::from_str(&stored).expect("kubectl prints JSON");
            assert_eq!(stored["spec"], object["spec"], "{}", path.display());
        }
    }
}

fn plural(kind: &str) -> &'static str {
    match kind {
        "ClusterVramPolicy" => "clustervrampolicies",
        "VramPolicy" => "namespaces/ml/vrampolicies",
        _ => "gpuinventories",
    }
}

fn object(kind: &str, spec: &Value) -> Value {
    let metadata = match kind {
        "ClusterVramPolicy" => json!({"name": "cluster"}),
        "VramPolicy" => json!({"name": "default", "namespace": "ml"}),
        _ => json!({"name": "inventory"}),
    };
    json!({"apiVersion": "vramguard.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

/// The API server's refusal of a new object, without creating it.
async fn refusal(client: kube::Client, kind: &str, spec: &Value, validation: &str) -> Option<String> {
    let path = format!("/apis/vramguard.dev/v1alpha1/{}?dryRun=All&fieldValidation={validation}", plural(kind));
    let request = Request::post(path).header("content-type", "application/json");
    let request = request.body(object(kind, spec).to_string().into_bytes()).expect("a request");
    match client.request::<Value>(request).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message.clone()),
        Err(error) => panic!("{kind} {spec}: {error}"),
    }
}

async fn the_api_server_and_the_reader_of_files_agree(plane: &ControlPlane) {
    // A dry run of a creation fails if the object exists.
    for delete in ["clustervrampolicy cluster", "gpuinventory --all"] {
        kubectl(plane, &format!("delete {delete}"), "").await.expect_success();
    }
    let (client, cases) = (plane.client(), corpus::all());
    let ask = |case: &corpus::Case| {
        let (client, kind, spec) = (client.clone(), case.kind, case.spec.clone());
        async move { refusal(client, kind, &spec, "Strict").await }
    };
    let refusals: Vec<Option<String>> = futures::stream::iter(cases.iter().map(ask)).buffered(16).collect().await;
    let (mut wrong, mut refused, mut accepted) = (Vec::new(), 0, 0);
    for (case, server) in cases.iter().zip(refusals) {
        let read = document::read([("policy.yaml", object(case.kind, &case.spec).to_string().as_str())]);
        let file = read.err().map(|errors| errors[0].to_string());
        *(if server.is_some() { &mut refused } else { &mut accepted }) += 1;
        let agree = server.is_some() == file.is_some();
        let field = case.field.trim_end_matches('.');
        // The API server writes the key of a map in brackets.
        let names = |refusal: &String| refusal.replace("models[m]", "models.m").contains(field);
        let unnamed = |refusal: &Option<String>| refusal.as_ref().is_some_and(|refusal| !names(refusal));
        if agree == case.differs.is_some() || unnamed(&server) {
            wrong.push(format!("{} {}: field {field}\n  server: {server:?}\n  file:   {file:?}", case.kind, case.spec));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!("{refused} documents refused by the API server, {accepted} accepted");
    assert!(refused >= 100 && accepted >= 100, "{refused} refused, {accepted} accepted");
    // The sentences are the reader's own. They do not depend on strict validation, without which unknown fields are pruned.
    for (kind, spec, sentence) in [
        ("VramPolicy", json!({"headroom": {"percent": 1}}), "spec.headroom: Forbidden: is for the whole cluster: only"),
        (
            "VramPolicy",
            json!({"environment": {"visibleDevices": "Pin"}}),
            "Forbidden: no longer exists; remove the line",
        ),
        ("VramPolicy", json!({"quota": 8}), "spec.quota: Invalid value: 8: must have a unit, as in 8Gi"),
        ("VramPolicy", json!({"declaration": {"min": "2Gi", "max": "1Gi"}}), "spec.declaration.min: Invalid value: "),
        ("ClusterVramPolicy", json!({"overcommit": "20"}), "must be a number from \"0.001\" to \"10.0\""),
    ] {
        let refusal = refusal(client.clone(), kind, &spec, "Ignore").await.expect("a refusal");
        assert!(refusal.contains(sentence), "{spec}: {refusal}");
    }
}

async fn each_field_is_explained(plane: &ControlPlane) {
    for (field, description) in [
        ("clustervrampolicy.spec.headroom.driverReserve", "What the driver keeps for itself"),
        ("cvramp.spec.declaration.required", "a GPU pod that declares nothing is refused"),
        ("vrampolicy.spec.quota", "Bound on what the pods of the namespace hold together"),
        ("vramp.spec.headroom", "Only the ClusterVramPolicy may set it."),
        ("gpuinv.spec.nodes.gpus", "Total memory of each GPU"),
        ("vramp.status.conditions", "LockedFieldsIgnored says which fields"),
    ] {
        let explained = kubectl(plane, &format!("explain {field}"), "").await.expect_success();
        let words = explained.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(description), "{explained}");
    }
}

async fn a_policy_has_the_name_that_its_kind_has(plane: &ControlPlane) {
    for (kind, why) in [
        ("ClusterVramPolicy", "metadata.name: Invalid value: … must be cluster, because a cluster has one"),
        ("VramPolicy", "metadata.name: Invalid value: … must be default, because a namespace has one"),
    ] {
        let mut policy = object(kind, &json!({}));
        policy["metadata"]["name"] = json!("mine");
        let refused = kubectl(plane, "create -f -", &policy.to_string()).await.expect_failure();
        assert!(why.split(" … ").all(|part| refused.contains(part)), "{refused}");
    }
    let mut inventory = object("GpuInventory", &json!({"nodes": []}));
    inventory["metadata"]["name"] = json!("any.name");
    kubectl(plane, "create --dry-run=server -f -", &inventory.to_string()).await.expect_success();
}

async fn the_columns_show_what_is_in_force(plane: &ControlPlane) {
    let condition = |name: &str, status: &str, reason: &str| {
        json!({"type": name, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-11-22T21:00:00Z"})
    };
    let conditions =
        json!([condition("InForce", "True", "Applied"), condition("LockedFieldsIgnored", "False", "None")]);
    for (kind, spec, command, table) in [
        (
            "ClusterVramPolicy",
            json!({"mode": "Warn", "onShortfall": "Deny", "quota": "80Gi"}),
            "get cvramp",
            ["NAME MODE SHORTFALL QUOTA IN FORCE REASON AGE", "cluster Warn Deny 80Gi True Applied "],
        ),
        (
            "VramPolicy",
            json!({"mode": "Enforce", "quota": 0}),
            "get vramp -n ml",
            ["NAME MODE SHORTFALL QUOTA IN FORCE REASON IGNORED AGE", "default Enforce 0 True Applied False "],
        ),
        ("GpuInventory", json!({"nodes": []}), "get gpuinv", ["NAME IN FORCE REASON AGE", "inventory True Applied "]),
    ] {
        let mut policy = object(kind, &spec);
        plane.apply(&policy.to_string()).await;
        policy["status"] = json!({"conditions": conditions});
        let apply = "apply --server-side --subresource=status --validate=strict -f -";
        kubectl(plane, apply, &policy.to_string()).await.expect_success();
        let shown = kubectl(plane, &format!("{command} -o wide"), "").await.expect_success();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = shown.lines().map(words).collect();
        assert!(lines[0] == table[0] && lines[1].starts_with(table[1]), "{shown}");
        let narrow = kubectl(plane, command, "").await.expect_success();
        assert!(!narrow.contains("REASON"), "{narrow}");
    }
    let all = kubectl(plane, "get vramguard -n ml -o name", "").await.expect_success();
    for name in ["clustervrampolicy.vramguard.dev/cluster", "vrampolicy.vramguard.dev/default", "gpuinventory"] {
        assert!(all.contains(name), "{all}");
    }
}

async fn the_server_reads_policies_and_writes_their_status_alone(plane: &ControlPlane) {
    let own = plane.service_account_kubeconfig("vramguard-system", "vramguard").await.display().to_string();
    for (kind, spec) in
        [("ClusterVramPolicy", json!({})), ("VramPolicy", json!({})), ("GpuInventory", json!({"nodes": []}))]
    {
        let mut policy = object(kind, &spec);
        for denied in ["apply --server-side --force-conflicts -f -", "create -f -", "delete -f -"] {
            let refused = kubectl_as(plane, &own, denied, &policy.to_string()).await.expect_failure();
            assert!(refused.contains("orbidden"), "{denied}: {refused}");
        }
        kubectl_as(plane, &own, &format!("get {kind} -A"), "").await.expect_success();
        policy.as_object_mut().expect("an object").remove("spec");
        policy["status"] = json!({"conditions": [{"type": "InForce", "status": "False", "reason": "Broken", "message": "",
            "observedGeneration": 1, "lastTransitionTime": "2026-11-22T21:00:00Z"}]});
        let apply = "apply --server-side --force-conflicts --subresource=status -f -";
        kubectl_as(plane, &own, apply, &policy.to_string()).await.expect_success();
    }
}

/// Kubeconfigs of two users with rights in namespace `ml` only.
struct Tenants {
    editor: String,
    viewer: String,
}

impl Tenants {
    async fn create(plane: &ControlPlane) -> Tenants {
        for role in ["edit", "view"] {
            kubectl(plane, &format!("-n ml create serviceaccount {role}or"), "").await.expect_success();
            let bind = format!("-n ml create rolebinding {role}or --clusterrole={role} --serviceaccount=ml:{role}or");
            kubectl(plane, &bind, "").await.expect_success();
        }
        let path = async |name| plane.service_account_kubeconfig("ml", name).await.display().to_string();
        let tenants = Tenants { editor: path("editor").await, viewer: path("viewor").await };
        // The controller aggregates the roles.
        eventually("the rights to arrive", PATIENCE, async || {
            for (user, verb) in [(&tenants.editor, "patch"), (&tenants.viewer, "get")] {
                let can = kubectl_as(plane, user, &format!("auth can-i {verb} vrampolicies -n ml"), "").await;
                ensure!(can.status.success(), "{verb}: {}", can.stdout);
            }
            Ok(())
        })
        .await;
        tenants
    }

    async fn rights_end_at_the_own_namespace(&self, plane: &ControlPlane) {
        let mut policy = object("VramPolicy", &json!({"declaration": {"max": "8Gi"}}));
        kubectl_as(plane, &self.editor, "apply --server-side -f -", &policy.to_string()).await.expect_success();
        kubectl_as(plane, &self.viewer, "get vramp default -n ml", "").await.expect_success();
        policy["metadata"]["namespace"] = json!("other");
        let cluster = object("ClusterVramPolicy", &json!({}));
        let inventory = object("GpuInventory", &json!({"nodes": []}));
        let status = "-n ml patch vramp default --subresource=status --type=merge -p {\"status\":{}}";
        for (user, command, input) in [
            (&self.editor, "apply --server-side -f -", &policy),
            (&self.editor, "apply --server-side -f -", &cluster),
            (&self.editor, "apply --server-side -f -", &inventory),
            (&self.editor, "get clustervrampolicies", &Value::Null),
            (&self.editor, status, &Value::Null),
            (&self.viewer, "-n ml delete vramp default", &Value::Null),
            (&self.viewer, "-n other get vramp", &Value::Null),
        ] {
            let refused = kubectl_as(plane, user, command, &input.to_string()).await.expect_failure();
            assert!(refused.contains("orbidden"), "{command} {input}: {refused}");
        }
        let reader =
            "create clusterrolebinding reader --clusterrole=vramguard-cluster-policy-view --serviceaccount=ml:viewor";
        kubectl(plane, reader, "").await.expect_success();
        eventually("the right to read", PATIENCE, async || {
            let read = kubectl_as(plane, &self.viewer, "get clustervrampolicies,gpuinventories", "").await;
            ensure!(read.status.success(), "{}", read.stderr);
            Ok(())
        })
        .await;
    }

    async fn may_not_loosen_the_guard(&self, plane: &ControlPlane) {
        let write = async |user: &str, spec: Value| {
            let policy = object("VramPolicy", &spec).to_string();
            kubectl_as(plane, user, "replace --dry-run=server -f -", &policy).await
        };
        let admin = plane.admin_kubeconfig().display().to_string();
        let loose = [
            (json!({"mode": "Warn"}), "spec.mode: Warn"),
            (json!({"mode": "Audit"}), "spec.mode: Audit"),
            (json!({"mode": "Off"}), "spec.mode: Off"),
            (json!({"declaration": {"required": false}}), "spec.declaration.required: false"),
            (json!({"declaration": {"onUnaccounted": "Warn"}}), "spec.declaration.onUnaccounted: Warn"),
            (json!({"environment": {"onConflict": "Warn"}}), "spec.environment.onConflict: Warn"),
            (json!({"environment": {"framework": "None"}}), "spec.environment.framework: None"),
        ];
        eventually("the policy to be in force", PATIENCE, async || {
            ensure!(!write(&self.editor, loose[0].0.clone()).await.status.success());
            Ok(())
        })
        .await;
        for (spec, value) in &loose {
            let refused = write(&self.editor, spec.clone()).await.expect_failure();
            let expected = format!(
                "{value} loosens the guard for the other pods on the same GPUs; that requires the verb loosen on \
                 vrampolicies.vramguard.dev in namespace ml"
            );
            assert!(refused.contains(&expected), "{refused}");
            write(&admin, spec.clone()).await.expect_success();
        }
        let strict = json!({"mode": "Enforce", "onShortfall": "Deny", "quota": "1Gi", "models": {"m": "1Gi"},
            "declaration": {"required": true, "onUnaccounted": "Deny", "min": "1Gi", "max": "2Gi", "default": "1Gi"},
            "environment": {"framework": "vLLM", "onConflict": "Deny"}});
        write(&self.editor, strict).await.expect_success();

        // What an administrator has loosened stays, and the tenant may change the rest and tighten it, once.
        let mut policy = object("VramPolicy", &json!({"mode": "Warn"}));
        kubectl(plane, "replace -f -", &policy.to_string()).await.expect_success();
        write(&self.editor, json!({"mode": "Warn", "quota": "4Gi"})).await.expect_success();
        write(&self.editor, json!({"mode": "Audit"})).await.expect_failure();
        policy["spec"]["mode"] = json!("Enforce");
        kubectl_as(plane, &self.editor, "replace -f -", &policy.to_string()).await.expect_success();
        write(&self.editor, json!({"mode": "Warn"})).await.expect_failure();
        // A new policy is no way around it either; a deletion is the owner's right.
        kubectl_as(plane, &self.editor, "-n ml delete vramp default", "").await.expect_success();
        policy["spec"]["mode"] = json!("Off");
        kubectl_as(plane, &self.editor, "create -f -", &policy.to_string()).await.expect_failure();

        // The shipped role grants the verb, and the server's own account has no part in it.
        let grant = "-n ml create rolebinding loosen --clusterrole=vramguard-policy-loosen --serviceaccount=ml:editor";
        kubectl(plane, grant, "").await.expect_success();
        eventually("the verb to be granted", PATIENCE, async || {
            let created = kubectl_as(plane, &self.editor, "create -f -", &policy.to_string()).await;
            ensure!(created.status.success(), "{}", created.stderr);
            Ok(())
        })
        .await;
    }
}
