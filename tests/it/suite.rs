//! Tests `vramguard test` as a user starts it: the shipped suites, what is found, failures, garbage, and the outputs.

mod tutorial;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Finished, run, write};

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

const CASE: &str =
    "cases:\n  - name: a pod without a GPU is admitted\n    pod: {metadata: {name: p}}\n    expect: {verdict: Allow}\n";

const FAILING: &str = "cases:\n  - name: a pod without a GPU is refused\n    pod: {metadata: {name: p}}\n    expect:\n      verdict: Deny\n      patch: [{op: remove, path: /spec}]\n";

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        write(&path, text);
    }
    folder
}

/// Runs `vramguard test` in a folder. Returns exit code, stdout and stderr.
fn test(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(BINARY);
    command.arg("test").args(arguments).current_dir(folder).env_remove("CLICOLOR_FORCE").env_remove("NO_COLOR");
    let Finished { status, stdout, stderr, .. } = run(&mut command, Duration::from_secs(60));
    (status.code().expect("it was not killed"), stdout, stderr)
}

fn test_in(files: &[(&str, &str)], arguments: &[&str]) -> (i32, String, String) {
    test(folder(files).path(), arguments)
}

#[test]
fn the_shipped_suites_pass() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (code, stdout, stderr) = test(root, &["policies"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(stdout.contains("policies/tests/team-agents.vramguard-test.yaml\n  pass  "), "{stdout}");
    // Also from outside, where the folder that is named is the one that may be read.
    let policies = root.join("policies");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let (code, stdout, stderr) = test(elsewhere.path(), &[policies.to_str().expect("UTF-8")]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
}

#[test]
fn the_cases_of_this_project_pass_by_the_command_too() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(root.join("tests/cases")).expect("tests/cases");
    let files = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    let files: Vec<String> = files.map(|path| path.to_str().expect("UTF-8").to_owned()).collect();
    let (code, stdout, stderr) = test(root, &files.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
}

#[test]
fn a_failing_case_shows_file_line_and_a_diff_and_exits_1() {
    let (code, stdout, stderr) = test_in(&[("a.vramguard-test.yaml", FAILING), ("b.vramguard-test.yaml", CASE)], &[]);
    assert_eq!((code, stderr.as_str()), (1, "error: 1 of 2 cases failed\n"));
    let expected = "a.vramguard-test.yaml\n  FAIL  a pod without a GPU is refused\n        a.vramguard-test.yaml:2\n        \
                    verdict\n          expected  Deny\n          got       Allow\n        patch\n          expected  \
                    {\"op\":\"remove\",\"path\":\"/spec\"}\n          got       []\n";
    assert!(stdout.starts_with(expected), "{stdout}");
    assert!(stdout.ends_with("\n\n2 cases in 2 files: 1 passed, 1 failed\n"), "{stdout}");
}

#[test]
fn a_filter_chooses_cases_and_must_leave_one() {
    let files = [("a.vramguard-test.yaml", FAILING), ("b.vramguard-test.yaml", CASE)];
    let (code, stdout, _) = test_in(&files, &["--filter", "is admitted"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.ends_with("1 case in 2 files: 1 passed, 1 left out by --filter\n"), "{stdout}");
    let (code, _, stderr) = test_in(&files, &["--filter", "no such case"]);
    assert_eq!(
        (code, stderr.as_str()),
        (2, "error: --filter \"no such case\" leaves out all 2 cases, so nothing was tested\n")
    );
}

#[test]
fn a_folder_is_searched_with_its_subfolders_but_not_in_hidden_ones_and_loops_end() {
    let files = [
        ("a/b/x.vramguard-test.yaml", CASE),
        ("a/vramguard-test.yml", CASE),
        ("a/other.yaml", "no: case"),
        (".hidden/y.vramguard-test.yaml", "not YAML: ["),
        ("a/.z.vramguard-test.yaml", "not YAML: ["),
    ];
    let folder = folder(&files);
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, folder.path().join(name)).expect("a link");
    };
    link("..", "a/b/up");
    link("b", "a/again");
    link("nowhere", "a/broken");
    let (code, stdout, stderr) = test(folder.path(), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let files: Vec<&str> = stdout.lines().filter(|line| line.ends_with(".yaml") || line.ends_with(".yml")).collect();
    assert_eq!(files, ["a/again/x.vramguard-test.yaml", "a/vramguard-test.yml"], "each file once: {stdout}");
}

#[test]
fn no_case_is_an_error_and_not_a_success() {
    let error = |files: &[(&str, &str)], arguments: &[&str]| {
        // With a table on stdout, the errors about files would be there.
        let (code, stdout, stderr) = test_in(files, &[arguments, &["--output", "json"]].concat());
        assert_eq!(code, 2, "{stdout}{stderr}");
        stderr
    };
    let empty = error(&[("pod.yaml", "kind: Pod")], &[]);
    assert!(empty.starts_with("error: .: holds no case files: 2 files and folders were looked at"), "{empty}");
    assert!(empty.contains("vramguard-test.yaml"), "{empty}");
    assert_eq!(error(&[], &["gone.yaml"]), "error: gone.yaml: there is no such file or folder\n");
    assert_eq!(
        error(&[("a.yaml", "nodes: []\ncases: []\n")], &["a.yaml"]),
        "error: a.yaml:2: cases: is empty, so nothing would be tested; write at least one case\n"
    );
    assert!(error(&[("a.yaml", "")], &["a.yaml"]).starts_with("error: a.yaml:1: "));
}

#[test]
fn garbage_is_named_by_file_line_and_field_and_other_files_are_still_played() {
    let bad = |text: &str| {
        let (code, stdout, stderr) = test_in(&[("a.vramguard-test.yaml", text), ("b.vramguard-test.yaml", CASE)], &[]);
        assert_eq!(code, 2, "{stdout}{stderr}");
        assert!(stdout.contains("pass  a pod without a GPU"), "{stdout}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let error = stdout.lines().find_map(|line| line.strip_prefix("error  "));
        error.unwrap_or_else(|| panic!("{stdout}")).to_owned()
    };
    for (text, expected) in [
        ("cases: [\n", "a.vramguard-test.yaml:"),
        ("cases: 3\n", "a.vramguard-test.yaml:1: cases: is the number 3"),
        (
            "nodes: []\ncases:\n  - {name: n, pod: {}, expect: {verdicts: Allow}}\n",
            "a.vramguard-test.yaml:3: cases[0].expect.verdicts: there is no field \"verdicts\" here; expected one of verdict",
        ),
        ("\u{feff}cases: []\r\n", "a.vramguard-test.yaml:1: cases: is empty"),
        ("cases: []\ncases: []\n", "a.vramguard-test.yaml:"),
        (
            &format!("policies: policy.yaml\n{CASE}"),
            "a.vramguard-test.yaml:1: policies[0]: policy.yaml: there is no such file",
        ),
        (
            &format!("policies: a.vramguard-test.yaml\n{CASE}"),
            "a.vramguard-test.yaml:1: policies[0]: a.vramguard-test.yaml:",
        ),
        (&format!("snapshot: .\n{CASE}"), "a.vramguard-test.yaml:1: snapshot[0]: .: is a folder; a file is expected"),
    ] {
        let error = bad(text);
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
    let nested = format!("cases: {}\n", "[".repeat(100_000));
    assert!(bad(&nested).starts_with("a.vramguard-test.yaml:1: "));
    let bomb: String =
        (0..40).map(|n| format!("a{}: &a{} [{}]\n", n + 1, n + 1, vec![format!("*a{n}"); 9].join(", "))).collect();
    assert!(bad(&format!("a0: &a0 x\n{bomb}cases: *a40\n")).starts_with("a.vramguard-test.yaml:"));
}

#[test]
fn what_is_no_text_is_refused_without_being_read() {
    let folder = folder(&[("good.vramguard-test.yaml", CASE)]);
    let path = |name: &str| folder.path().join(name);
    let error = |name: &str| {
        let (code, stdout, stderr) = test(folder.path(), &[name, "--output", "json"]);
        assert_eq!(code, 2, "{stdout}");
        stderr
    };
    std::fs::write(path("binary.yaml"), b"# one line\nname: \xff\n").expect("a file");
    assert_eq!(error("binary.yaml"), "error: binary.yaml: line 2 is not UTF-8 text\n");
    let large = std::fs::File::create(path("large.yaml")).expect("a file");
    large.set_len(1 << 40).expect("a file with a hole");
    assert!(error("large.yaml").starts_with("error: large.yaml: is larger than 4 MiB"));
    let made = Command::new("mkfifo").arg(path("pipe.yaml")).status().expect("mkfifo runs");
    assert!(made.success());
    assert_eq!(error("pipe.yaml"), "error: pipe.yaml: is not a regular file\n");
}

/// A case file may be of a stranger, and the error about a file that is no manifest repeats a part of it.
#[test]
fn a_case_file_reads_nothing_outside_of_what_was_named() {
    let text = format!("policies: ../secret.yaml\n{CASE}");
    let folder = folder(&[("secret.yaml", "password"), ("repo/a.vramguard-test.yaml", &text)]);
    let (code, _, stderr) = test(&folder.path().join("repo"), &["--output", "json"]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("a.vramguard-test.yaml:1: policies[0]: ../secret.yaml:") && stderr.contains("is outside"),
        "{stderr}"
    );
    assert!(!stderr.contains("password"), "{stderr}");
    // A link does not lead out either.
    std::os::unix::fs::symlink("../secret.yaml", folder.path().join("repo/link.yaml")).expect("a link");
    write(&folder.path().join("repo/a.vramguard-test.yaml"), format!("policies: link.yaml\n{CASE}"));
    let (code, _, stderr) = test(&folder.path().join("repo"), &["--output", "json"]);
    assert!(code == 2 && stderr.contains("is outside"), "{stderr}");
    // From the folder above, the same file may be read, and is no policy.
    let (code, _, stderr) = test(folder.path(), &["--output", "json"]);
    assert!(code == 2 && !stderr.contains("is outside"), "{stderr}");
}

#[test]
fn json_and_junit_go_to_files_and_one_form_to_stdout() {
    let folder = folder(&[("a.vramguard-test.yaml", FAILING), ("b.vramguard-test.yaml", "cases: 3")]);
    let arguments = ["--output", "junit=out.xml", "--output", "json=out.json", "--output", "table"];
    let (code, stdout, _) = test(folder.path(), &arguments);
    assert_eq!(code, 2);
    assert!(stdout.contains("FAIL"), "{stdout}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("it was written");
    let json: Value = serde_json::from_str(&read("out.json")).expect("JSON");
    assert_eq!((&json["summary"]["failed"], &json["errors"][0]["line"]), (&1.into(), &1.into()));
    assert_eq!(json["files"][0]["cases"][0]["differences"][0]["expected"], "Deny");
    let xml = read("out.xml");
    assert!(xml.contains("tests=\"2\" failures=\"1\" errors=\"1\"") && xml.ends_with("</testsuites>\n"), "{xml}");
    let (code, stdout, _) = test(folder.path(), &["--output", "json"]);
    assert_eq!(code, 2);
    assert_eq!(serde_json::from_str::<Value>(&stdout).expect("only JSON"), json);
    for (arguments, expected) in [
        (vec!["--output", "json", "--output", "junit"], "only one format can go to stdout"),
        (vec!["--output", "yaml"], "\"yaml\" is not one of table, json, junit"),
        (vec!["--output", "json=nowhere/out.json"], "nowhere/out.json: cannot be written"),
    ] {
        let (code, _, stderr) = test(folder.path(), &arguments);
        assert!(code == 2 && stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn colour_is_for_terminals_and_for_those_who_ask() {
    let files = [("a.vramguard-test.yaml", CASE)];
    assert!(!test_in(&files, &[]).1.contains('\u{1b}'));
    assert!(!test_in(&files, &["--color", "never"]).1.contains('\u{1b}'));
    assert!(test_in(&files, &["--color", "always"]).1.contains("\u{1b}[32mpass\u{1b}[0m"));
}
