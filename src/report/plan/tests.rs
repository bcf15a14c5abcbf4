//! How a plan looks.

use super::*;

#[test]
fn amounts_are_rounded_to_the_safe_side_and_names_cannot_write_to_the_terminal() {
    assert_eq!((room(1023), room(8912), taken(8912)), ("0.9 GiB".into(), "8.7 GiB".into(), "8.8 GiB".into()));
    let names = ["a", "b\u{1b}[31m", "c\u{202e}", "d", "e"].map(str::to_owned);
    let mut text = String::new();
    columns(&mut text, &["WHO", "N"], vec![vec![listed(&names), "1".to_owned()]], &[1]);
    wrapped(&mut text, &listed(&names));
    let shown = r"a, b\u{1b}[31m, c\u{202e}, and 2 more";
    let head = format!("WHO{}  N", " ".repeat(shown.len() - 3));
    assert_eq!(text, format!("{head}\n{shown}  1\n  {shown}\n"));
}

#[test]
fn a_command_for_thousands_of_nodes_is_cut_between_two_names() {
    let long = format!("kubectl label node {} key=value", "node-name ".repeat(1000).trim_end());
    let short = shortened(&long);
    assert!(short.len() < 500 && short.contains("node-name … (the whole command"), "{short}");
    assert_eq!(shortened("kubectl get nodes"), "kubectl get nodes");
}

#[test]
fn a_sentence_is_wrapped_and_a_long_word_is_not_cut() {
    let mut text = String::new();
    wrapped(&mut text, &format!("{} {}", "word ".repeat(30), "x".repeat(150)));
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH || line.trim().len() == 150), "{text}");
    assert_eq!(text.split_whitespace().count(), 31);
}
