//! Extracts from a Markdown file what the checks need: link targets, anchors and code spans, except in fenced code.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub line: usize,
    pub text: String,
}

#[derive(Debug, Default)]
pub(super) struct Document {
    /// Targets of links and images, of reference definitions, and of `href` and `src` in HTML, ordered by line.
    pub links: Vec<Piece>,
    /// What can follow a `#` in a link: slugs of the headings, as GitHub makes them, and `id`s in HTML.
    pub anchors: BTreeSet<String>,
    /// The content of code spans.
    pub code: Vec<Piece>,
}

pub(super) fn parse(text: &str) -> Document {
    let prose = without_fences(text);
    let (prose, code) = without_code_spans(&prose);
    let mut links = link_targets(&prose);
    links.sort_by_key(|link| link.line);
    let mut anchors = slugs(&headings(&without_fences(text)));
    anchors.extend(attributes(&prose, "id=\"").into_iter().map(|id| id.text));
    Document { links, anchors, code }
}

/// Returns the lines of the first fenced block after the heading, and the number of the first one.
pub(super) fn block_under<'a>(text: &'a str, heading: &str) -> Option<(usize, Vec<&'a str>)> {
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| *line != heading).skip(1);
    let (fence, _) =
        lines.by_ref().take_while(|(_, line)| !line.starts_with('#')).find(|(_, line)| line.starts_with("```"))?;
    Some((fence + 2, lines.map(|(_, line)| line).take_while(|line| !line.starts_with("```")).collect()))
}

/// Returns the same lines, where those of fenced code blocks are empty.
fn without_fences(text: &str) -> String {
    let mut open: Option<String> = None;
    let mut prose = String::new();
    for line in text.lines() {
        let start = line.trim_start();
        let mark = start.chars().next().filter(|c| "`~".contains(*c));
        let fence: String = start.chars().take_while(|c| Some(*c) == mark).collect();
        match &open {
            Some(opened) if fence.starts_with(opened.as_str()) && start.trim_end() == fence => open = None,
            Some(_) => {}
            None if fence.len() >= 3 => open = Some(fence),
            None => prose.push_str(line),
        }
        prose.push('\n');
    }
    prose
}

/// Returns the same lines, where code spans are replaced by spaces, and the spans.
///
/// A span ends with the same number of backticks as it began with.
fn without_code_spans(prose: &str) -> (String, Vec<Piece>) {
    let mut rest = prose.to_owned();
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(start) = rest[from..].find('`').map(|at| from + at) {
        let ticks = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        let inner = start + ticks;
        let paragraph = rest[inner..].find("\n\n").map_or(rest.len(), |at| inner + at);
        let Some(end) = closing(&rest[inner..paragraph], ticks).map(|at| inner + at) else {
            from = inner;
            continue;
        };
        let text = rest[inner..end].replace('\n', " ").trim().to_owned();
        spans.push(Piece { line: line_of(prose, start), text });
        from = end + ticks;
        let blank: String = rest[start..from].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
        rest.replace_range(start..from, &blank);
    }
    (rest, spans)
}

/// Returns where a run of exactly `ticks` backticks begins.
fn closing(text: &str, ticks: usize) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].find('`').map(|at| from + at) {
        let run = text[at..].len() - text[at..].trim_start_matches('`').len();
        if run == ticks {
            return Some(at);
        }
        from = at + run;
    }
    None
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

fn link_targets(prose: &str) -> Vec<Piece> {
    let mut links: Vec<Piece> = prose
        .match_indices("](")
        .map(|(at, mark)| Piece { line: line_of(prose, at), text: target(&prose[at + mark.len()..]) })
        .collect();
    for (number, line) in (1..).zip(prose.lines()) {
        // `[label]: target` is a definition, and `[^1]:` is a footnote.
        let label = line.trim_start().strip_prefix('[').filter(|label| !label.starts_with('^'));
        if let Some((_, definition)) =
            label.and_then(|label| label.split_once("]:")).filter(|(label, _)| !label.contains(']'))
        {
            links.push(Piece { line: number, text: target(definition.trim_start()) });
        }
    }
    links.extend(attributes(prose, "href=\""));
    links.extend(attributes(prose, "src=\""));
    links
}

/// Returns a link's target, which ends at white space (a title follows) or at the bracket that closes the link.
fn target(text: &str) -> String {
    if let Some((target, _)) = text.strip_prefix('<').and_then(|text| text.split_once('>')) {
        return target.to_owned();
    }
    let mut depth = 0_usize;
    let end = text.find(|c: char| {
        match c {
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            ')' => return true,
            _ => {}
        }
        c.is_whitespace()
    });
    text[..end.unwrap_or(text.len())].to_owned()
}

/// Returns all values of an HTML attribute, where `start` is its name with `="`.
fn attributes(prose: &str, start: &str) -> Vec<Piece> {
    let value = |at: usize| prose[at + start.len()..].split('"').next().unwrap_or_default().to_owned();
    prose.match_indices(start).map(|(at, _)| Piece { line: line_of(prose, at), text: value(at) }).collect()
}

/// Returns all headings: `# Heading`, or a line with `===` or `---` below it.
fn headings(prose: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut above = "";
    for line in prose.lines() {
        let text = line.trim_start_matches('#');
        let level = line.len() - text.len();
        if (1..=6).contains(&level) && text.starts_with(' ') {
            found.push(text.trim().trim_end_matches('#').trim().to_owned());
            above = "";
            continue;
        }
        let underline = line.trim_end();
        if underline.len() >= 3
            && ["=", "-"].iter().any(|mark| underline.replace(mark, "").is_empty())
            && !above.is_empty()
        {
            found.push(above.trim().to_owned());
        }
        above = line;
    }
    found
}

/// Returns the anchors that GitHub makes of headings.
///
/// They are in lower case and consist of letters, digits, `-` and `_`, with `-` for a space. The second heading with
/// the same name gets `-1`.
fn slugs(headings: &[String]) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let slug = |heading: &String| {
        let kept = without_targets(heading).to_lowercase().replace(' ', "-");
        let slug: String = kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let count = seen.entry(slug.clone()).or_default();
        *count += 1;
        if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
    };
    headings.iter().map(slug).collect()
}

/// Reduces `[text](target)` to `[text]`.
fn without_targets(heading: &str) -> String {
    let mut parts = heading.split("](");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push(']');
        text.push_str(&part[(target(part).len() + 1).min(part.len())..]);
    }
    text
}

#[test]
fn slugs_are_those_of_github() {
    let text = "# `--flag`: what it does, and why\n## Same\n## Same\n# Größe_x (2 × 24)\nUnderlined\n----------\n\
                ## A [link](x.md) here ##\n```sh\n# no heading\n```\n<a id=\"own\"></a>\n";
    let anchors: Vec<String> = parse(text).anchors.into_iter().collect();
    let expected =
        ["--flag-what-it-does-and-why", "a-link-here", "größe_x-2--24", "own", "same", "same-1", "underlined"];
    assert_eq!(anchors, expected);
}

#[test]
fn links_are_read_with_titles_brackets_and_code_in_their_text() {
    let text = "[`code`](a.md) [t](b.md \"title\") [p](c_(d).md), [w\nx](<e f.md>)\n[^1]: note\n[![i](g.png)](h.md)\n\
                ``[a](no) ` [b](no)`` an open ` tick\n\n[z](i.md) <a href=\"j.md\">\n";
    let links: Vec<(usize, String)> = parse(text).links.into_iter().map(|link| (link.line, link.text)).collect();
    let expected =
        [(1, "a.md"), (1, "b.md"), (1, "c_(d).md"), (2, "e f.md"), (4, "g.png"), (4, "h.md"), (7, "i.md"), (7, "j.md")];
    assert_eq!(links, expected.map(|(line, target)| (line, target.to_owned())));
}

#[test]
fn code_spans_are_read_over_line_ends_and_fences_are_left_out() {
    let text = "`a` ``b ` c``\n`d\ne`\n~~~\n`no`\n```\n`no`\n~~~\n`f`\n";
    let code: Vec<(usize, String)> = parse(text).code.into_iter().map(|span| (span.line, span.text)).collect();
    let expected = [(1, "a"), (1, "b ` c"), (2, "d e"), (9, "f")];
    assert_eq!(code, expected.map(|(line, span)| (line, span.to_owned())));
}
