//! Tests the command line as a user starts it: the demo, and the output of `--help`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // a test starts programs

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use clap::CommandFactory;

use crate::support::run;

const BINARY: &str = env!("CARGO_BIN_EXE_vramguard");

/// Returns the output of the demo, which runs without a terminal and without a cluster.
///
/// It must end within one minute.
fn demo() -> &'static str {
    static OUTPUT: OnceLock<String> = OnceLock::new();
    OUTPUT.get_or_init(|| {
        let mut command = Command::new(BINARY);
        command.arg("demo").env("KUBECONFIG", "/nonexistent").env_remove("CLICOLOR_FORCE");
        run(&mut command, Duration::from_secs(60)).expect_success()
    })
}

/// The steps of the demo, each with its heading and its output.
fn steps() -> Vec<(String, String)> {
    let steps = demo().split("\n\n").map(|step| step.split_once('\n').unwrap_or((step, "")));
    steps
        .filter(|(heading, _)| heading.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        .map(|(heading, what)| (heading.to_owned(), what.to_owned()))
        .collect()
}

#[test]
fn the_demo_says_what_is_real_and_what_is_simulated() {
    let opening = demo().split("\n\n").take(2).collect::<String>();
    assert!(opening.contains("real:") && opening.contains("https://127.0.0.1:"), "{opening}");
    assert!(opening.contains("simulated:") && opening.contains("kube-scheduler"), "{opening}");
    assert!(opening.contains("no GPU is needed"), "{opening}");
}

#[test]
fn the_demo_shows_a_refused_pod_with_code_reason_and_remedy() {
    let steps = steps();
    let refused = |reason: &str| steps.iter().find(|(_, what)| what.contains("refused") && what.contains(reason));
    let (heading, what) = refused("VramUndeclared").expect("an undeclared pod that is refused");
    assert!(heading.contains("declares nothing"), "{heading}");
    assert!(what.contains("403") && what.contains("vramguard.dev/vram: "), "{what}");
    assert!(!what.contains("bound to"), "{what}");
    assert!(refused("VramUnreadable").is_some() && refused("VramShortfall").is_some());
}

#[test]
fn the_demo_shows_a_waiting_pod_that_is_bound_once_another_finishes() {
    let steps = steps();
    let at = steps.iter().position(|(_, what)| what.contains("pending: ")).expect("a pod that waits");
    let (heading, what) = &steps[at];
    assert!(what.contains("Gi") || what.contains("Mi"), "numbers: {what}");
    let pod = heading.split_whitespace().nth(1).expect("a heading names the pod");
    let (later, freed) =
        steps[at..].iter().find(|(heading, _)| heading.contains("has finished")).expect("a pod that finishes");
    assert!(!later.contains(pod), "{later}");
    assert!(freed.contains(&format!("{pod}, bound to ")), "{freed}");
    assert!(demo().contains("0 pods still waiting"), "{}", demo());
}

#[test]
fn the_demo_shows_how_full_each_gpu_is() {
    let bars: Vec<&str> = demo().lines().filter(|line| line.contains('░') || line.contains('█')).collect();
    for node in ["a10-0", "h100-0", "l40s-0"] {
        let of_node: Vec<_> = bars.iter().filter(|bar| bar.trim_start().starts_with(node)).collect();
        assert!(of_node.len() >= 3, "{node}: at first, after a change, and at last: {bars:?}");
        assert!(of_node.iter().any(|bar| bar.contains('█')), "{node} never fills: {of_node:?}");
    }
}

#[test]
fn away_from_a_terminal_nothing_is_coloured() {
    let cli = vramguard::cli::Cli::command();
    let subcommands = cli.get_subcommands().map(|command| vec![command.get_name(), "--help"]);
    for arguments in subcommands.chain([vec!["--help"], vec!["demo", "--pace", "0"], vec!["nonsense"]]) {
        let mut command = Command::new(BINARY);
        command.args(&arguments).env_remove("CLICOLOR_FORCE").env("TERM", "xterm-256color");
        let finished = run(&mut command, Duration::from_secs(60));
        let all = finished.stdout + &finished.stderr;
        assert!(!all.is_empty() && !all.contains('\u{1b}'), "{arguments:?}: {all:?}");
    }
}

#[test]
fn help_names_every_flag_and_its_environment_variable() {
    let mut cli = vramguard::cli::Cli::command();
    cli.build();
    for subcommand in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        for ask in ["--help", "-h"] {
            let help = run(Command::new(BINARY).args([subcommand.get_name(), ask]), Duration::from_secs(20));
            // Help is wrapped at the width of the screen.
            let help = help.expect_success().split_whitespace().collect::<Vec<_>>().join(" ");
            for argument in subcommand.get_arguments().filter(|argument| argument.get_id() != "help") {
                if argument.is_positional() {
                    assert!(argument.get_help().is_some(), "{} says nothing", argument.get_id());
                    continue;
                }
                let flag = argument.get_long().expect("every option has a name");
                let variable = format!("VRAMGUARD_{}", flag.to_uppercase().replace('-', "_"));
                assert!(argument.get_help().is_some(), "--{flag} says nothing");
                assert!(help.contains(&format!("--{flag}")), "--{flag}: {help}");
                if subcommand.get_name() == "serve" {
                    assert!(help.contains(&format!("[env: {variable}=")), "--{flag}: {help}");
                }
            }
        }
    }
    let names: Vec<&str> = cli.get_subcommands().map(clap::Command::get_name).collect();
    assert!(names.contains(&"serve") && names.contains(&"demo"), "{names:?}");
}

#[test]
fn help_and_version_exit_0_and_help_is_not_wider_than_a_screen() {
    let version = run(Command::new(BINARY).arg("--version"), Duration::from_secs(20)).expect_success();
    assert_eq!(version.trim(), format!("vramguard {}", env!("CARGO_PKG_VERSION")));
    let help = run(Command::new(BINARY).arg("--help"), Duration::from_secs(20)).expect_success();
    for command in vramguard::cli::Cli::command().get_subcommands() {
        let about = command.get_about().expect("every command says what it does").to_string();
        assert!(help.contains(command.get_name()) && help.contains(&about), "{help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 110), "{help}");
}

#[test]
fn a_demo_whose_reader_goes_away_does_not_panic() {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("'{BINARY}' demo | head -n 1")]);
    let finished = run(&mut command, Duration::from_secs(60));
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    assert!(finished.stdout.starts_with("vramguard demo"), "{}", finished.stdout);
}
