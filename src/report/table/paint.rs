//! Colours and signs of the table. Without colours and with [`Options::ascii`] the same text is plain ASCII.

use owo_colors::Style;

use crate::report::Options;
use crate::report::summary::Tone;
use crate::report::text::{clean, width};

/// What a piece of text is, for its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    /// Title of a section.
    Title,
    /// Header of a column, and what is of less interest.
    Faint,
    /// The name of an object.
    Name,
    /// A line to paste.
    Command,
    Bad,
    Doubtful,
    Good,
    /// The first part of the verdict.
    Loud,
}

impl Role {
    pub(super) fn of(tone: Tone) -> Role {
        match tone {
            Tone::Bad => Role::Bad,
            Tone::Doubtful => Role::Doubtful,
            Tone::Good => Role::Good,
            Tone::Plain => Role::Plain,
        }
    }

    pub(super) fn verdict(tone: Tone) -> Role {
        match tone {
            Tone::Plain => Role::Loud,
            other => Role::of(other),
        }
    }

    fn style(self) -> Style {
        match self {
            Role::Plain => Style::new(),
            Role::Title | Role::Name | Role::Loud => Style::new().bold(),
            Role::Faint => Style::new().dimmed(),
            Role::Command => Style::new().cyan(),
            Role::Bad => Style::new().red().bold(),
            Role::Doubtful => Style::new().yellow(),
            Role::Good => Style::new().green(),
        }
    }
}

/// How texts look on this terminal.
pub(super) struct Paint {
    color: bool,
    ascii: bool,
}

impl Paint {
    pub(super) fn new(options: &Options) -> Paint {
        Paint { color: options.color, ascii: options.ascii }
    }

    /// A text of a stranger, in one line and without characters that act on a terminal.
    pub(super) fn text(&self, text: &str) -> String {
        self.plain(&clean(text))
    }

    /// A text of ours, in ASCII if the terminal asks for it.
    pub(super) fn plain(&self, text: &str) -> String {
        if !self.ascii || text.is_ascii() {
            return text.to_owned();
        }
        let mut plain = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '…' => plain.push_str("..."),
                '·' => plain.push('|'),
                '→' => plain.push_str("->"),
                '≥' => plain.push_str(">="),
                '└' => plain.push_str("`-"),
                '█' => plain.push('#'),
                '░' => plain.push('.'),
                c if c.is_ascii() => plain.push(c),
                c => plain.extend(c.escape_unicode()),
            }
        }
        plain
    }

    /// A text in the colour of its role.
    pub(super) fn role(&self, text: &str, role: Role) -> String {
        let text = self.plain(text);
        if self.color && role != Role::Plain && !text.is_empty() { role.style().style(text).to_string() } else { text }
    }

    /// Parts of one statement in one line, or in more if it is too narrow. No part is broken.
    pub(super) fn joined(&self, parts: &[(String, Role)], most: usize) -> Vec<String> {
        let separator = format!(" {} ", self.plain("·"));
        let mut lines: Vec<(String, usize)> = Vec::new();
        for (text, role) in parts {
            let wide = width(&self.plain(text));
            let (text, needed) = (self.role(text, *role), wide + separator.len());
            match lines.last_mut() {
                Some((line, used)) if *used + needed <= most => {
                    line.push_str(&self.role(&separator, Role::Faint));
                    line.push_str(&text);
                    *used += wide + 3;
                }
                Some(_) => lines.push((format!("  {text}"), wide + 2)),
                None => lines.push((text, wide)),
            }
        }
        lines.into_iter().map(|(line, _)| line).collect()
    }

    /// Wraps a text between words, and a word that is longer than a line. `indent` columns are left of each line.
    pub(super) fn wrapped(&self, text: &str, indent: usize, most: usize, role: Role) -> Vec<String> {
        let room = most.saturating_sub(indent).max(20);
        let text = self.text(text);
        let mut lines: Vec<String> = vec![String::new()];
        for word in text.split(' ') {
            let line = lines.last_mut().expect("there is a first line");
            if !line.is_empty() && width(line) + 1 + width(word) > room {
                lines.push(String::new());
            } else if !line.is_empty() {
                line.push(' ');
            }
            for c in word.chars() {
                let line = lines.last_mut().expect("there is a first line");
                line.push(c);
                if width(line) > room {
                    let over = line.pop().expect("a character was pushed");
                    lines.push(over.to_string());
                }
            }
        }
        lines.into_iter().map(|line| format!("{:indent$}{}", "", self.role(&line, role))).collect()
    }

    /// Cuts a text in the middle, so that it takes at most `most` columns.
    pub(super) fn cut(&self, text: &str, most: usize) -> String {
        if width(text) <= most {
            return text.to_owned();
        }
        let sign = self.plain("…");
        let room = most.saturating_sub(sign.chars().count());
        let (front, back) = (room.div_ceil(2), room / 2);
        let take = |characters: &mut dyn Iterator<Item = char>, most: usize| {
            let mut taken = String::new();
            for c in characters {
                taken.push(c);
                if width(&taken) > most {
                    taken.pop();
                    break;
                }
            }
            taken
        };
        let start = take(&mut text.chars(), front);
        let end: String = take(&mut text.chars().rev(), back).chars().rev().collect();
        format!("{start}{sign}{end}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paint(color: bool, ascii: bool) -> Paint {
        Paint::new(&Options { color, ascii, ..Options::default() })
    }

    #[test]
    fn a_name_is_cut_in_the_middle_by_the_columns_it_takes() {
        let paint = paint(false, false);
        assert_eq!(paint.cut("gke-agents-x4kq", 9), "gke-…x4kq");
        assert_eq!(paint.cut("gke-agents-x4kq", 15), "gke-agents-x4kq");
        assert_eq!(paint.cut("日本語日本語", 7), "日…語");
        assert_eq!(super::width(&paint.cut("日本語日本語", 8)), 7);
    }

    #[test]
    fn a_message_is_wrapped_between_words_and_a_long_word_in_itself() {
        let lines = paint(false, false).wrapped(&format!("a bc {} d", "x".repeat(25)), 2, 22, Role::Plain);
        assert_eq!(lines, ["  a bc", "  xxxxxxxxxxxxxxxxxxxx", "  xxxxx d"]);
    }

    #[test]
    fn colours_are_written_only_if_they_are_asked_for() {
        assert_eq!(paint(false, false).role("x", Role::Bad), "x");
        assert_eq!(paint(true, false).role("x", Role::Bad), "\u{1b}[31;1mx\u{1b}[0m");
    }

    #[test]
    fn in_ascii_every_sign_has_a_substitute_and_other_letters_are_escaped() {
        assert_eq!(paint(false, true).text("a … · → ≥ └ █ ░ ü"), r"a ... | -> >= `- # . \u{fc}");
    }
}
