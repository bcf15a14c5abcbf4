//! Tests `vramguard convert` as a user starts it, and runs the commands of the page about it.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use serde_json::Value;

use crate::plan::{run_page, shell};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a # short\n  annotations:\n    gpu-memory: \"2000\"\nspec:\n  \
                   containers:\n  - name: main\n    image: i\n";

#[test]
fn the_commands_of_the_page_run_as_written_and_the_way_back_says_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(run_page("convert.md", folder.path()), "", "everything goes to files");
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder.path().join(name)).expect("a file of the page");
        serde_saphyr::from_str(text.trim_start_matches("---")).expect("one document")
    };
    assert_eq!(read("back.yaml"), read("llm.yaml"));
}

#[test]
fn the_manifest_that_the_page_shows_is_the_one_that_is_printed() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/convert.md")).expect("a page");
    let shown = page.split("\n```yaml\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a manifest");
    let folder = tempfile::tempdir().expect("a folder");
    run_page("convert.md", folder.path());
    let printed = std::fs::read_to_string(folder.path().join("ours.yaml")).expect("a file of the page");
    let kept: Vec<&str> = printed.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(kept.join("\n"), shown);
    assert_eq!(printed.lines().filter(|line| line.starts_with("# vramguard convert: lost: ")).count(), 3);
}

#[test]
fn standard_input_is_converted_and_remarks_go_to_standard_error() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.yaml"), POD).expect("a file");
    let finished = shell(folder.path(), "vramguard convert - < a.yaml");
    assert_eq!(
        finished.stderr,
        "standard input:1: Pod a: converted: gpu-memory: 2000 -> vramguard.dev/vram: 2000Mi\n1 object converted\n"
    );
    let value: Value = serde_saphyr::from_str(&finished.stdout).expect("YAML");
    assert_eq!(value["metadata"]["annotations"]["vramguard.dev/vram"], "2000Mi");
    assert!(finished.stdout.contains("name: a # short\n"), "{}", finished.stdout);
    assert!(finished.status.success());
}

#[test]
fn several_files_become_one_stream_and_what_is_not_converted_is_there_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let half = POD.replace("gpu-memory: \"2000\"", "gpu-fraction: \"0.5\"").replace("name: a", "name: b");
    std::fs::write(folder.path().join("a.yaml"), POD).expect("a file");
    std::fs::write(folder.path().join("b.yaml"), &half).expect("a file");
    let finished = shell(folder.path(), "vramguard convert a.yaml b.yaml");
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stdout.ends_with(&format!("---\n{half}")), "{}", finished.stdout);
    let line = "b.yaml:1: Pod b: not converted: gpu-fraction: 0.5 is a share of a GPU, whose size is not known\n";
    assert!(finished.stderr.contains(line), "{}", finished.stderr);
    let with_size = shell(folder.path(), "vramguard convert --gpu-memory-mib 81559 b.yaml");
    assert!(with_size.expect_success().contains("vramguard.dev/vram: 40780Mi\n"));
}

#[test]
fn a_broken_file_prints_nothing_and_exits_2_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.yaml"), POD).expect("a file");
    std::fs::write(folder.path().join("b.yaml"), "a: 1\nb: [\n").expect("a file");
    std::fs::write(folder.path().join("c.yaml"), b"a: \xff\n").expect("a file");
    for (file, at) in [("b.yaml", "b.yaml:2:"), ("c.yaml", "c.yaml:1: is not text in UTF-8"), ("d.yaml", "d.yaml")] {
        let finished = shell(folder.path(), &format!("vramguard convert a.yaml {file}"));
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(2), ""), "{file}");
        assert!(finished.stderr.contains(at), "{file}: {}", finished.stderr);
    }
}

#[test]
fn remarks_have_the_line_of_each_object_and_no_character_that_turns_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let item = |name: &str| {
        format!("- {}", POD.replace("  name: a", &format!("  name: {name}")).replace('\n', "\n  ").trim_end())
    };
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}\n{}\n", item("a"), item("\"b\\u202E\""));
    std::fs::write(folder.path().join("list.yaml"), list).expect("a file");
    let finished = shell(folder.path(), "vramguard convert list.yaml");
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert!(lines[0].starts_with("list.yaml:4: Pod a: converted:"), "{}", finished.stderr);
    assert!(lines[1].starts_with(r"list.yaml:14: Pod b\u{202e}: converted:"), "{}", finished.stderr);
}
