//! What events on a node say. Owns those sentences.

use super::quoted;

/// Somebody keeps undoing what the controller publishes. `field` names what, `manager` who, as far as managedFields tell.
pub fn undone(field: &str, manager: Option<&str>, times: u32, at_least_every: &str) -> String {
    let who = manager.map_or("a writer that managedFields do not name".to_owned(), |manager| {
        format!("field manager {}", quoted(manager))
    });
    format!(
        "{who} has changed {field} {times} times in a row; vramguard writes its own value again, less and less often (at least \
         every {at_least_every}), and until then pods are placed by the other one; stop the other writer, or remove the second \
         of two installations"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_undoes_what_is_named_as_far_as_it_is_known() {
        insta::assert_snapshot!(undone("vramguard.dev/vram in its capacity", Some("label-syncer"), 4, "30s"), @r#"field manager "label-syncer" has changed vramguard.dev/vram in its capacity 4 times in a row; vramguard writes its own value again, less and less often (at least every 30s), and until then pods are placed by the other one; stop the other writer, or remove the second of two installations"#);
        assert!(
            undone("its label x", None, 2, "30s").starts_with("a writer that managedFields do not name has changed ")
        );
    }
}
