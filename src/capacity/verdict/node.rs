//! Events on a node. Owns their messages; the controller decides when to write one.

use super::quoted;

/// The note of the event on a node where another writer keeps changing what the controller publishes.
///
/// `field` names the changed field. `manager` is the field manager that changed it, or `None` if managedFields do not
/// name it. `times` counts the changes in a row. `at_least_every` is the longest delay between two writes of the
/// controller, as text.
pub fn publication_undone(field: &str, manager: Option<&str>, times: u32, at_least_every: &str) -> String {
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
        insta::assert_snapshot!(publication_undone("vramguard.dev/vram in its capacity", Some("label-syncer"), 4, "30s"), @r#"field manager "label-syncer" has changed vramguard.dev/vram in its capacity 4 times in a row; vramguard writes its own value again, less and less often (at least every 30s), and until then pods are placed by the other one; stop the other writer, or remove the second of two installations"#);
        assert!(
            publication_undone("its label x", None, 2, "30s")
                .starts_with("a writer that managedFields do not name has changed ")
        );
    }
}
