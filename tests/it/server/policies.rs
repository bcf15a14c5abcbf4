//! The policies in force while their files change.

use anyhow::ensure;
use serde_json::json;

use crate::support::client::Verdict;
use crate::support::test_server::{PATIENCE, POLICIES, ServerFiles, TestServer, pod};
use crate::support::{eventually, write};

const ERRORS: &str = "vramguard_policy_reload_errors_total";

fn undeclared() -> Verdict {
    Verdict::Denied("VramUndeclared".into())
}

async fn verdict(server: &TestServer, namespace: &str) -> Verdict {
    server.client().await.verdict(&pod(namespace, json!({ "example.com/other": "x" }))).await
}

async fn soon(server: &TestServer, namespace: &str, expected: &Verdict) {
    eventually("the changed policy to be in force", PATIENCE, async || {
        let verdict = verdict(server, namespace).await;
        ensure!(verdict == *expected, "{verdict:?}{}", server.process.log_tail());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_changed_policy_file_changes_verdicts_and_a_broken_one_does_not() {
    let server = TestServer::start().await;
    assert_eq!(verdict(&server, "lab").await, undeclared());
    assert_eq!(server.metric("vramguard_policy_generation"), Some(1.0));
    assert_eq!(server.metric(ERRORS), Some(0.0));

    let file = server.files.policies().join("policies.yaml");
    write(&file, POLICIES.replace("required: true", "required: maybe"));
    eventually("the broken file to be counted", PATIENCE, async || {
        ensure!(server.metric(ERRORS) == Some(1.0), "{:?}", server.metric(ERRORS));
        Ok(())
    })
    .await;
    // The server counts the error before it logs it.
    eventually("the error to be logged", PATIENCE, async || {
        let log = server.log();
        ensure!(log.contains("policies.yaml:9: spec.declaration.required"), "{log}");
        Ok(())
    })
    .await;
    assert_eq!(verdict(&server, "lab").await, undeclared());
    assert_eq!(server.metric("vramguard_policy_generation"), Some(1.0));
    server.expect_ready();

    write(&file, POLICIES.replace("mode: Enforce", "mode: Audit"));
    soon(&server, "lab", &Verdict::Allowed).await;
    assert_eq!(server.metric("vramguard_policy_generation"), Some(2.0));
    assert_eq!(server.metric(ERRORS), Some(1.0), "a file is complained about once");

    write(&server.files.policies().join("more.yml"), POLICIES.split("---").nth(1).expect("two documents"));
    eventually("the same policy twice to be counted", PATIENCE, async || {
        ensure!(server.metric(ERRORS) == Some(2.0), "{:?}", server.metric(ERRORS));
        Ok(())
    })
    .await;
    assert_eq!(verdict(&server, "lab").await, Verdict::Allowed);
}

#[tokio::test]
async fn a_new_file_and_a_removed_one_take_effect() {
    let server = TestServer::start().await;
    let new = server.files.policies().join("new.json");
    let policy = json!({
        "apiVersion": "vramguard.dev/v1alpha1", "kind": "VramPolicy", "metadata": { "name": "new", "namespace": "new" },
        "spec": { "declaration": { "required": true } },
    });
    let by_default = verdict(&server, "new").await;
    assert_ne!(by_default, undeclared());
    write(&new, policy.to_string());
    soon(&server, "new", &undeclared()).await;
    std::fs::remove_file(new).expect("it is there");
    soon(&server, "new", &by_default).await;
}

#[tokio::test]
async fn a_directory_that_goes_away_leaves_the_last_good_policies() {
    let server = TestServer::start().await;
    let (directory, aside) = (server.files.policies(), server.files.folder().join("aside"));
    std::fs::rename(&directory, &aside).expect("a move");
    eventually("the missing directory to be counted", PATIENCE, async || {
        ensure!(server.metric(ERRORS) > Some(0.0));
        Ok(())
    })
    .await;
    assert_eq!(verdict(&server, "lab").await, undeclared());
    std::fs::rename(&aside, &directory).expect("a move");
    write(&directory.join("policies.yaml"), POLICIES.replace("mode: Enforce", "mode: Warn"));
    soon(&server, "lab", &Verdict::Allowed).await;
}

#[tokio::test]
async fn a_policy_directory_behind_the_kubelets_symlinks_is_followed() {
    use std::os::unix::fs::symlink;
    let files = ServerFiles::new();
    let directory = files.policies();
    std::fs::remove_file(directory.join("policies.yaml")).expect("it is there");
    for (version, text) in [("..1", POLICIES.to_owned()), ("..2", POLICIES.replace("Enforce", "Audit"))] {
        std::fs::create_dir(directory.join(version)).expect("a new folder");
        write(&directory.join(version).join("policies.yaml"), text);
    }
    symlink("..1", directory.join("..data")).expect("a link");
    symlink("..data/policies.yaml", directory.join("policies.yaml")).expect("a link");
    let mut server = files.server(&["--self-signed"]);
    server.process.start();
    server.ready().await;
    assert_eq!(verdict(&server, "lab").await, undeclared());
    symlink("..2", directory.join("..data_tmp")).expect("a link");
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("a swap");
    std::fs::remove_dir_all(directory.join("..1")).expect("the kubelet cleans up");
    soon(&server, "lab", &Verdict::Allowed).await;
    assert_eq!(server.metric(ERRORS), Some(0.0));
}
