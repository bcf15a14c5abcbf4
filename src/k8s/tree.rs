//! YAML or JSON text → a tree of nodes that know where they are in the text. Owns places, for errors with a line and for
//! edits that keep the rest of a text as it is. What the nodes mean is left to others.
//!
//! Aliases are not followed, so a text takes no more memory than its length explains.

use std::ops::Range;

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Span, StructureStyle};

/// Levels of lists and maps in each other. A manifest has about ten.
const MAX_DEPTH: usize = 64;

/// A node, with its place in the text.
#[derive(Clone, Debug)]
pub struct Node {
    /// Bytes of the node, from its first to after its last character.
    pub bytes: Range<usize>,
    /// Line of its first character, from 1.
    pub line: u64,
    /// What it is.
    pub content: Content,
    /// Whether an alias elsewhere may stand for the node.
    pub anchored: bool,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A scalar.
    Scalar {
        /// The value without quotes and escapes.
        text: String,
        /// How it is written.
        style: Style,
    },
    /// `*name`, which stands for an earlier node.
    Alias,
    /// A list.
    List {
        /// Whether it is written in brackets.
        flow: bool,
        /// The entries.
        items: Vec<Node>,
    },
    /// A map.
    Map {
        /// Whether it is written in braces, as all maps of JSON are.
        flow: bool,
        /// The entries in the order of the text.
        entries: Vec<Entry>,
    },
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Without quotes, so that `4` is a number.
    Plain,
    /// In quotes.
    Quoted,
    /// As lines below `|`, so that the lines of the value are lines of the text.
    Literal,
    /// As lines below `>`.
    Folded,
}

/// One entry of a map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key as text; empty if it is no scalar.
    pub key: String,
    /// Whether the key is in quotes.
    pub quoted: bool,
    /// Bytes of the key.
    pub key_bytes: Range<usize>,
    /// Line of the key, from 1.
    pub line: u64,
    /// The value.
    pub value: Node,
}

impl Node {
    /// The entries of a map; empty for any other node.
    pub fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Map { entries, .. } => entries,
            _ => &[],
        }
    }

    /// The entry of a map with this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of a map's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entries of a list; empty for any other node.
    pub fn items(&self) -> &[Node] {
        match &self.content {
            Content::List { items, .. } => items,
            _ => &[],
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The line of the value at a JSON pointer, or of the deepest value on the way to it. A key has its own line.
    pub fn line_at(&self, pointer: &str) -> u64 {
        let (mut node, mut line) = (self, self.line);
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            let entry = node.entry(&step).map(|entry| (&entry.value, entry.line));
            let item = || node.items().get(step.parse::<usize>().ok()?).map(|item| (item, item.line));
            let Some((next, at)) = entry.or_else(item) else { break };
            (node, line) = (next, at);
        }
        line
    }

    /// Whether the node is empty, `~` or `null`.
    pub fn is_null(&self) -> bool {
        let plain = |style: Style| style == Style::Plain;
        matches!(&self.content, Content::Scalar { text, style } if plain(*style) && matches!(text.as_str(), "" | "~" | "null"))
    }
}

/// Why a text is not YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TreeError {
    /// Line, from 1.
    pub line: u64,
    /// The problem.
    pub what: String,
}

/// Reads all documents of a text. A document without content is left out.
///
/// # Errors
/// The text is not YAML, or is nested too deeply.
pub fn documents(text: &str) -> Result<Vec<Node>, TreeError> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) =
            event.map_err(|error| TreeError { line: line(*error.marker()), what: error.info().to_owned() })?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

fn line(at: Marker) -> u64 {
    u64::try_from(at.line()).unwrap_or(u64::MAX).max(1)
}

fn bytes(span: &Span) -> Range<usize> {
    span.byte_range().unwrap_or_default()
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
}

/// A list or map whose end has not come yet.
struct Open {
    node: Node,
    /// The key whose value comes next.
    key: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), TreeError> {
        let node = |content, anchor: usize| Node {
            bytes: bytes(&span),
            line: line(span.start),
            content,
            anchored: anchor != 0,
        };
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal => Style::Literal,
                    ScalarStyle::Folded => Style::Folded,
                };
                self.add(node(Content::Scalar { text: text.into_owned(), style }, anchor));
            }
            Event::Alias(_) => self.add(node(Content::Alias, 0)),
            Event::SequenceStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                self.open(node(Content::List { flow, items: Vec::new() }, anchor))?;
            }
            Event::MappingStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                self.open(node(Content::Map { flow, entries: Vec::new() }, anchor))?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(bytes(&span).end),
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, node: Node) -> Result<(), TreeError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(TreeError { line: node.line, what: format!("is nested deeper than {MAX_DEPTH} levels") });
        }
        self.open.push(Open { node, key: None });
        Ok(())
    }

    fn close(&mut self, end: usize) {
        let Some(Open { mut node, .. }) = self.open.pop() else { return };
        // The end of a block is noticed at the next token, which may be many lines further down.
        node.bytes.end = match &node.content {
            Content::List { flow: false, items } => items.last().map_or(node.bytes.end, |item| item.bytes.end),
            Content::Map { flow: false, entries } => {
                entries.last().map_or(node.bytes.end, |entry| entry.value.bytes.end.max(entry.key_bytes.end))
            }
            _ => end,
        };
        self.add(node);
    }

    fn add(&mut self, node: Node) {
        let Some(Open { node: parent, key }) = self.open.last_mut() else {
            if !node.is_null() {
                self.documents.push(node);
            }
            return;
        };
        match &mut parent.content {
            Content::List { items, .. } => items.push(node),
            Content::Map { entries, .. } => match key.take() {
                None => *key = Some(node),
                Some(name) => entries.push(Entry {
                    key: name.text().unwrap_or_default().to_owned(),
                    quoted: matches!(name.content, Content::Scalar { style: Style::Quoted, .. }),
                    key_bytes: name.bytes,
                    line: name.line,
                    value: node,
                }),
            },
            Content::Scalar { .. } | Content::Alias => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_know_their_lines_and_their_bytes() {
        let text = "# first\na: 1\nb:\n  - c: \"x\"\n    d: |\n      one\n      two\n---\n{\"e\": [1, 2]}\n";
        let documents = documents(text).unwrap();
        let root = &documents[0];
        let b = root.entry("b").unwrap();
        let item = &b.value.items()[0];
        assert_eq!((root.line, b.line, item.line, item.entry("d").unwrap().line), (2, 3, 4, 5));
        assert_eq!(&text[root.get("a").unwrap().bytes.clone()], "1");
        assert_eq!(&text[item.get("c").unwrap().bytes.clone()], "\"x\"");
        assert_eq!(item.get("d").unwrap().text(), Some("one\ntwo\n"));
        assert_eq!(&text[documents[1].get("e").unwrap().bytes.clone()], "[1, 2]");
        assert_eq!(&text[documents[1].bytes.clone()], "{\"e\": [1, 2]}");
    }

    #[test]
    fn a_pointer_has_the_line_of_its_key() {
        let root = &documents("a:\n- b/c:\n    d: 1\n- e\n").unwrap()[0];
        let lines = ["", "/a", "/a/0", "/a/0/b~1c", "/a/0/b~1c/d", "/a/1", "/a/0/b~1c/x/y"].map(|at| root.line_at(at));
        assert_eq!(lines, [1, 1, 2, 2, 3, 4, 2]);
    }

    #[test]
    fn an_alias_is_not_followed_and_a_bomb_stays_small() {
        let text = "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        let root = &documents(text).unwrap()[0];
        assert!(root.get("a").unwrap().anchored);
        assert!(matches!(root.get("c").unwrap().items()[0].content, Content::Alias));
    }

    #[test]
    fn what_is_not_yaml_is_an_error_with_its_line() {
        assert_eq!(documents("a: 1\nb: [1\n").unwrap_err().line, 2);
        assert!(documents(&"[".repeat(5000)).is_err());
        assert!(documents(&"- ".repeat(5000)).is_err());
        assert_eq!(documents("").unwrap().len(), 0);
        assert_eq!(documents("---\n# none\n---\n").unwrap().len(), 0);
    }
}
