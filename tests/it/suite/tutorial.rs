//! Plays the tutorial as it is written: its files, its commands, and the output that it shows.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::run;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tutorial-policy-tests.md");

/// One fenced block, with the prose before it.
struct Block<'t> {
    before: &'t str,
    language: &'t str,
    text: &'t str,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let parts: Vec<&str> = page.split("```").collect();
    assert!(parts.len() % 2 == 1, "each block is closed");
    parts
        .chunks_exact(2)
        .map(|pair| {
            let (language, text) = pair[1].split_once('\n').expect("a block has lines");
            Block { before: pair[0], language, text }
        })
        .collect()
}

/// The path in backticks in the last line of the prose that says where a block goes.
fn target(before: &str) -> (&str, bool) {
    let prose = before.trim_end().lines().last().expect("a block has an introduction");
    let path = prose.split('`').rfind(|span| span.ends_with(".yaml")).expect("a path in backticks");
    (path, prose.contains("to the end of"))
}

#[test]
fn every_command_of_the_tutorial_does_what_the_page_says() {
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let folder = tempfile::tempdir().expect("an empty folder");
    let binary = Path::new(env!("CARGO_BIN_EXE_vramguard")).parent().expect("it is in a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").expect("a PATH"));
    let (mut output, mut commands, mut shown) = (String::new(), 0, 0);
    for Block { before, language, text } in blocks(&page) {
        match language {
            "yaml" => {
                let (file, appends) = target(before);
                let file = folder.path().join(file);
                let content =
                    if appends { std::fs::read_to_string(&file).expect("it is there") } else { String::new() };
                std::fs::write(file, content + text).expect("a file");
            }
            "sh" => {
                let expected = before.split("<!-- exit code: ").nth(1).map_or(Some(0), |rest| rest[..1].parse().ok());
                let mut command = Command::new("sh");
                command.args(["-ec", text]).current_dir(folder.path()).env("PATH", &path);
                let finished = run(&mut command, Duration::from_secs(60));
                output = finished.stdout + &finished.stderr;
                assert_eq!(finished.status.code(), expected, "{text}{output}");
                commands += 1;
            }
            "text" => {
                assert!(output.contains(text), "the page shows\n{text}\nbut this was printed:\n{output}");
                shown += 1;
            }
            other => panic!("{other:?} is no language of this page"),
        }
    }
    assert!(commands >= 6 && shown >= 6, "{commands} commands, {shown} outputs");
}
