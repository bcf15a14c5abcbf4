//! Texts of strangers and amounts, for formats that people read. Owns which characters are shown as they are; each
//! format escapes its own syntax in addition.

use unicode_width::UnicodeWidthStr;

use super::document::{Finding, Severity};

/// The largest number of characters of one text. A longer one is cut in the middle.
const LONGEST: usize = 2000;

/// A text as one line of a terminal, a log or XML, without characters that could move the cursor, hide text or reverse its
/// order. It is cut if it is long.
pub(super) fn clean(text: &str) -> String {
    let count = text.chars().count();
    if count <= LONGEST {
        return printable(text);
    }
    let begin: String = text.chars().take(LONGEST / 2).collect();
    let end: String = text.chars().skip(count - LONGEST / 2).collect();
    printable(&format!("{begin}…{end}"))
}

/// `clean` for a text that is never cut, such as a patch.
///
/// A character that does not stay in its place is written as an escape such as `\u{1b}`. Two sequences that GitHub's
/// runner reads as commands, in whatever a step prints, are broken up the same way: `::` at the start of a line, and `##[`.
pub fn printable(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut has_begun = false;
    for c in text.chars() {
        let starts_command = (c == ':' && !has_begun) || (c == '[' && cleaned.ends_with("##"));
        match c {
            _ if starts_command => cleaned.extend(c.escape_unicode()),
            '"' | '\'' | '\\' => cleaned.push(c),
            _ => cleaned.extend(c.escape_debug()),
        }
        has_begun |= !c.is_whitespace();
    }
    cleaned
}

/// The number of columns that a text takes on a terminal.
pub(super) fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// Namespace and name of the object of a finding, or its name alone.
pub(super) fn object(finding: &Finding) -> String {
    named(&finding.namespace, &finding.name)
}

/// Namespace and name, or the name alone for an object without a namespace.
pub(super) fn named(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { clean(name) } else { format!("{}/{}", clean(namespace), clean(name)) }
}

/// The name of a severity in the JSON contract.
pub(super) fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Deny => "deny",
        Severity::Warn => "warn",
        Severity::Info => "info",
    }
}

/// An amount of MiB that is taken, in GiB with one decimal, rounded up: what is held, demanded, declared or missing. It is
/// never shown smaller than it is, so that nobody is told of more room than there is. `0` is none.
pub(super) fn taken_gib(mib: u64) -> String {
    tenths((u128::from(mib) * 10).div_ceil(1024), mib)
}

/// An amount of MiB that can be taken, in GiB with one decimal, rounded down: what is free, allocatable, of a quota or of a GPU.
/// It is never shown larger than it is. `0` is none; anything above is not written as zero.
pub(super) fn room_gib(mib: u64) -> String {
    tenths(u128::from(mib) * 10 / 1024, mib)
}

fn tenths(tenths: u128, mib: u64) -> String {
    match (mib, tenths) {
        (0, _) => "0".to_owned(),
        (_, 0) => "<0.1".to_owned(),
        _ => format!("{}.{}", tenths / 10, tenths % 10),
    }
}

/// An amount in GiB for a sentence, where a whole number needs no decimal.
pub(super) fn in_words(gib: String) -> String {
    match gib.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None => gib,
    }
}

/// A number with its noun, in the plural if it is not 1.
pub(super) fn count(number: u64, noun: &str) -> String {
    crate::capacity::verdict::count(usize::try_from(number).unwrap_or(usize::MAX), noun)
}

/// A word of a shell command, quoted if it needs to be.
pub(super) fn shell_word(text: &str) -> String {
    let text = clean(text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A reason code as words: `GpuMayBeOvercommitted` is `GPU may be overcommitted`.
pub(super) fn words(reason: &str) -> String {
    let reason = clean(reason);
    let mut words: Vec<String> = Vec::new();
    for c in reason.chars() {
        match words.last_mut() {
            Some(word) if !c.is_uppercase() => word.push(c),
            _ => words.push(c.to_string()),
        }
    }
    let spelled = |word: String| match word.as_str() {
        "Gpu" => "GPU".to_owned(),
        "Gpus" => "GPUs".to_owned(),
        "Vram" => "VRAM".to_owned(),
        _ => word.to_lowercase(),
    };
    let text = words.into_iter().map(spelled).collect::<Vec<_>>().join(" ");
    let mut characters = text.chars();
    characters.next().map_or(String::new(), |first| first.to_uppercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_in_its_line_and_commands_nobody() {
        assert_eq!(printable("ordinary text: \"10 GiB\" – ü"), "ordinary text: \"10 GiB\" – ü");
        assert_eq!(printable("a\n::error::b\r\t"), "a\\n::error::b\\r\\t");
        assert_eq!(printable("  ::error::b ##[group]"), "  \\u{3a}:error::b ##\\u{5b}group]");
        assert_eq!(printable("\u{1b}[31m \u{202e}x\u{ffff}"), "\\u{1b}[31m \\u{202e}x\\u{ffff}");
    }

    /// A line separator of Unicode reached the terminal, and YAML that ended there.
    #[test]
    fn separators_of_unicode_end_no_line() {
        assert_eq!(printable("a\u{2028}b\u{2029}c\u{200b}"), r"a\u{2028}b\u{2029}c\u{200b}");
    }

    #[test]
    fn characters_that_act_on_a_terminal_are_shown_as_escapes() {
        assert_eq!(
            clean("a\u{1b}[31m\nb\t\u{202e}c\u{200b}\u{85}\u{7f}"),
            r"a\u{1b}[31m\nb\t\u{202e}c\u{200b}\u{85}\u{7f}"
        );
        assert_eq!(clean(r#"container "llm" \ 'x' ü 日本"#), r#"container "llm" \ 'x' ü 日本"#);
    }

    #[test]
    fn commands_of_a_runner_are_broken_up() {
        assert_eq!(clean("::error::x"), r"\u{3a}:error::x");
        assert_eq!(clean("  ::error::x"), r"  \u{3a}:error::x");
        assert_eq!(clean("a ##[error]x"), r"a ##\u{5b}error]x");
        assert_eq!(clean("a: b::c [d]"), "a: b::c [d]");
    }

    #[test]
    fn a_long_text_is_cut_in_the_middle() {
        let cut = clean(&format!("a{}z", "日".repeat(5000)));
        assert_eq!((cut.chars().count(), cut.matches('…').count()), (LONGEST + 1, 1));
        assert!(cut.starts_with('a') && cut.ends_with('z'));
        assert_eq!(clean(&"b".repeat(LONGEST)), "b".repeat(LONGEST));
    }

    #[test]
    fn an_amount_that_is_not_zero_is_not_written_as_zero() {
        assert_eq!([0, 1, 102, 103, 5967].map(room_gib), ["0", "<0.1", "<0.1", "0.1", "5.8"]);
        assert_eq!(room_gib(u64::MAX), "18014398509481983.9");
    }

    #[test]
    fn what_is_taken_is_rounded_up_and_what_can_be_taken_down() {
        assert_eq!([0, 1, 102, 103, 1024, 1025].map(taken_gib), ["0", "0.1", "0.1", "0.2", "1.0", "1.1"]);
        assert_eq!([1023, 1024, 1126].map(room_gib), ["0.9", "1.0", "1.0"]);
        assert_eq!(["0", "1.0", "26.1"].map(|text| in_words(text.to_owned())), ["0", "1", "26.1"]);
    }

    #[test]
    fn a_word_of_a_command_cannot_end_it() {
        assert_eq!(shell_word("spec.nodeName=gpu-b"), "spec.nodeName=gpu-b");
        assert_eq!(shell_word("a'; rm -rf $(x)\n"), r"'a'\''; rm -rf $(x)\n'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn a_reason_is_written_as_words() {
        assert_eq!(words("GpuMayBeOvercommitted"), "GPU may be overcommitted");
        assert_eq!(words("VramUndeclared"), "VRAM undeclared");
        assert_eq!(words(""), "");
        assert_eq!(words("x"), "X");
    }

    /// HTML rounded to the nearest tenth, and the table down: they told of different room on the same GPU.
    #[test]
    fn an_amount_is_the_same_in_every_format_for_people() {
        use crate::report::{Format, Options, render};
        let mut report = crate::report::testing::sample();
        // 1.04 held, 7.09 free and 8.19 allocatable, in GiB: to the nearest tenth, each is wrong.
        for gpu in &mut report.gpus {
            (gpu.held_mib, gpu.free_mib, gpu.allocatable_mib) = (1_065, Some(7_260), 8_388);
        }
        for node in &mut report.nodes {
            (node.held_mib, node.free_mib, node.allocatable_mib) = (1_065, Some(7_260), Some(8_388));
        }
        for format in [Format::Table, Format::Html, Format::Markdown] {
            let text = render(&report, format, &Options { all: true, width: 200, ..Options::default() });
            for shown in ["1.1", "7.0", "8.1"] {
                assert!(text.contains(shown), "{format:?} has no {shown}");
            }
            // Held is not rounded down, and neither free nor allocatable up.
            for wrong in [">1.0<", " 1.0 ", ">7.1<", " 7.1 ", ">8.2<", " 8.2 "] {
                assert!(!text.contains(wrong), "{format:?} has {wrong}");
            }
        }
    }
}
