//! Tests where the result of each command goes, and what is said and returned if it cannot go there.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use crate::plan::shell;

/// Each command with a result, in the root of the repository.
const COMMANDS: [&str; 6] = [
    "audit --snapshot tests/snapshots/hami.yaml --fail-on never",
    "explain -n ml",
    "test policies/tests",
    "plan --gpu-memory-mib 81559 --count 1 --demand 8Gi",
    "convert tests/snapshots/hami.yaml",
    "demo",
];

/// It was 1 for some, as if there were findings, 2 for others, and a panic for the demo.
#[test]
fn output_that_cannot_be_written_is_exit_code_2_of_every_command() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for command in COMMANDS {
        let finished = shell(root, &format!("vramguard {command} > /dev/full"));
        assert_eq!(finished.status.code(), Some(2), "{command}: {}", finished.stderr);
        assert!(finished.stderr.contains("error: stdout cannot be written: "), "{command}: {}", finished.stderr);
    }
    for command in COMMANDS.iter().filter(|command| !command.starts_with("convert") && **command != "demo") {
        let finished = shell(root, &format!("vramguard {command} --output json=/dev/full"));
        assert_eq!(finished.status.code(), Some(2), "{command}: {}", finished.stderr);
        assert!(finished.stderr.contains("error: /dev/full: cannot be written: "), "{command}: {}", finished.stderr);
    }
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for command in COMMANDS {
        let script =
            format!("{{ vramguard {command} 2> /dev/null && echo code 0 >&2 || echo \"code $?\" >&2; }} | true");
        let finished = shell(root, &script);
        let code = finished.stderr.trim();
        assert!(code == "code 0" || (command.starts_with("convert") && code == "code 1"), "{command}: {code}");
    }
}
