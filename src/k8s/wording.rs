//! Errors of the parsers → words for the author of a file. Owns that no term of a programming language, and no advice to a
//! programmer, is among them. The caller adds file, line and field.

use serde_saphyr::Error;

/// What is wrong, of an error of the YAML parser.
pub fn yaml(error: &Error) -> String {
    match error.without_snippet() {
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "is nested too deeply, or grows too large by its aliases; write out what they stand for".to_owned()
        }
        Error::AliasError { error, .. } => yaml(error),
        Error::NullIntoString { .. } => {
            "is empty, expected a text; write one in quotes, or leave the field out".to_owned()
        }
        Error::NonFiniteFloat { value, .. } => {
            format!("{value:?} is not a finite number; write it in quotes if it is a text")
        }
        Error::InvalidBooleanStrict { .. } => "expected true or false".to_owned(),
        Error::InvalidScalar { ty, .. } => format!("expected {}", expected(ty)),
        Error::MultipleDocuments { .. } => "has several documents, expected one".to_owned(),
        Error::Eof { .. } => "ends too early; is the file complete?".to_owned(),
        Error::QuotingRequired { value, .. } => format!("{value:?} must be in quotes"),
        Error::UnknownAnchor { .. } => "refers to an anchor that the document does not have".to_owned(),
        Error::UnsupportedTag { tag, .. } => format!("has the tag {tag:?}, which is not read; leave it out"),
        Error::TaggedScalarCannotDeserializeIntoString { .. } => {
            "has a tag that makes it no text; leave the tag out".to_owned()
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("key {key:?} is there twice; keep one"),
        Error::DuplicateMappingKey { key: None, .. } => "a key is there twice; keep one".to_owned(),
        other => {
            let text = other.to_string();
            let text = text.lines().next().unwrap_or_default().trim_end_matches('.');
            let text = text.split(" at line ").next().unwrap_or(text);
            plain(text.strip_prefix("error: ").unwrap_or(text))
        }
    }
}

/// What is wrong, of an error of the JSON parser or of reading a parsed value.
pub fn json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    plain(text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text))
}

/// The messages that serde gives to every format, in other words. Any other text stays as it is.
fn plain(text: &str) -> String {
    let mismatch = text.strip_prefix("invalid type: ").or_else(|| text.strip_prefix("invalid value: "));
    if let Some((found, wanted)) = mismatch.and_then(|text| text.rsplit_once(", expected ")) {
        // What is expected may have the separator in its own text; what was found is in quotes or short.
        let (found, wanted) = match found.split_once(", expected ") {
            Some((first, rest)) if !first.starts_with("string ") => (first, format!("{rest}, expected {wanted}")),
            _ => (found, wanted.to_owned()),
        };
        return format!("is {}, expected {}", self::found(found), expected(&wanted));
    }
    if let Some((length, wanted)) = text.strip_prefix("invalid length ").and_then(|text| text.split_once(", expected "))
    {
        return format!("has {length} entries, expected {}", expected(wanted));
    }
    if let Some(field) = text.strip_prefix("missing field ") {
        return format!("{} is missing", unquoted(field));
    }
    if let Some(field) = text.strip_prefix("duplicate field ") {
        return format!("{} is there twice; keep one", unquoted(field));
    }
    let unknown = |kind: &str| {
        let rest = text.strip_prefix(kind)?;
        let (name, known) = rest.split_once(", ").unwrap_or((rest, ""));
        let known = known.trim_start_matches("expected ").trim_start_matches("one of ");
        Some((unquoted(name), unquoted(known)))
    };
    match (unknown("unknown field "), unknown("unknown variant ")) {
        (Some((name, known)), _) if known.is_empty() || known.starts_with("there are no") => {
            format!("there is no field {name:?} here; leave it out")
        }
        (Some((name, known)), _) => format!("there is no field {name:?} here; expected {}", one_of(&known)),
        (_, Some((name, known))) => format!("{name:?} is not {}", one_of(&known)),
        (None, None) => text.to_owned(),
    }
}

fn one_of(known: &str) -> String {
    if known.contains(", ") || known.contains(" or ") { format!("one of {known}") } else { known.to_owned() }
}

fn unquoted(text: &str) -> String {
    text.replace('`', "")
}

/// What was found, without the names of Rust's types.
fn found(text: &str) -> String {
    match text {
        "sequence" => return "a list".to_owned(),
        "map" => return "an object".to_owned(),
        "null" | "unit value" | "Option value" => return "null".to_owned(),
        "byte array" => return "bytes".to_owned(),
        _ => {}
    }
    let known = [("string ", "the text "), ("integer ", "the number "), ("floating point ", "the number ")];
    let rest = known.into_iter().find_map(|(name, word)| Some((word, text.strip_prefix(name)?)));
    match (rest, text.strip_prefix("boolean ")) {
        (Some(("the text ", rest)), _) => format!("the text {rest}"),
        (Some((word, rest)), _) => format!("{word}{}", unquoted(rest)),
        (None, Some(boolean)) => unquoted(boolean),
        (None, None) => text.to_owned(),
    }
}

/// What is expected, without the names of Rust's types.
fn expected(text: &str) -> String {
    let is_type = text.starts_with(char::is_uppercase) && text.chars().all(char::is_alphanumeric);
    match text {
        "a string" | "string" | "a borrowed string" | "a character" => "a text",
        "a sequence" | "sequence" => "a list",
        "a map" | "map" | "a mapping" => "an object",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" | "integer" => "a whole number",
        "f32" | "f64" | "float" => "a number",
        "a boolean" | "bool" | "boolean" => "true or false",
        "any valid JSON value" | "any YAML value" | "option" => "a value",
        "unit" => "null",
        _ if text.starts_with("a nonzero ") => "a whole number above zero",
        _ if text.starts_with("struct ") || text.starts_with("internally tagged") || is_type => "an object",
        _ if text.starts_with("tuple ") => "a list",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They were shown as the libraries word them, to people who write YAML.
    #[test]
    fn errors_of_the_parsers_have_no_terms_of_rust() {
        for (text, words) in [
            ("invalid type: integer `3`, expected a sequence", "is the number 3, expected a list"),
            ("invalid type: map, expected a string", "is an object, expected a text"),
            (
                "invalid type: string \"a, expected b\", expected u32",
                "is the text \"a, expected b\", expected a whole number of at least 0",
            ),
            (
                "invalid value: integer `0`, expected a nonzero u32",
                "is the number 0, expected a whole number above zero",
            ),
            ("invalid type: sequence, expected PodSpec", "is a list, expected an object"),
            ("invalid type: boolean `true`, expected struct Node", "is true, expected an object"),
            ("invalid length 0, expected a list of cases", "has 0 entries, expected a list of cases"),
            ("missing field `kind`", "kind is missing"),
            ("unknown field `x`, expected one of a, b", "there is no field \"x\" here; expected one of a, b"),
            ("unknown field `x`, expected `a`", "there is no field \"x\" here; expected a"),
            ("unknown field `x`, there are no fields", "there is no field \"x\" here; leave it out"),
            ("unknown variant `On`, expected one of `Off`, `Warn`", "\"On\" is not one of Off, Warn"),
            ("what our own types say", "what our own types say"),
        ] {
            assert_eq!(plain(text), words);
        }
    }

    #[test]
    fn what_the_yaml_parser_refuses_is_told_to_the_author_of_the_file() {
        fn read<T: serde::de::DeserializeOwned>(text: &str) -> String {
            yaml(&serde_saphyr::from_str::<T>(text).err().expect("it is refused"))
        }
        use std::collections::BTreeMap;
        let text = read::<BTreeMap<String, String>>("a:\n");
        assert_eq!(text, "is empty, expected a text; write one in quotes, or leave the field out");
        let text = read::<serde_json::Value>("a: .nan\n");
        assert_eq!(text, "\".nan\" is not a finite number; write it in quotes if it is a text");
        assert_eq!(read::<serde_json::Value>("a: 1\na: 2\n"), "key \"a\" is there twice; keep one");
        assert_eq!(read::<BTreeMap<String, u32>>("a: -1\n"), "expected a whole number of at least 0");
        let bomb = format!("a: &a [{}]\nb: &b [{}]\nc: [{}]\n", "1,".repeat(999), "*a,".repeat(999), "*b,".repeat(999));
        assert!(read::<serde_json::Value>(&bomb).contains("by its aliases"), "{}", read::<serde_json::Value>(&bomb));
    }
}
