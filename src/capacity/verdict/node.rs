//! Events on a node, and on the ResourceQuota of a namespace. Owns their messages; the controller decides when to write one.

use super::quoted;
use crate::capacity::quota::Left;
use crate::capacity::vram::Vram;

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

/// The note of the event on a ResourceQuota that is not the policy's. `hard` is its limit, if it can be read.
pub fn quota_not_kept(left: Left, wanted: Vram, hard: Option<Vram>) -> String {
    let who = match left {
        Left::MadeByOthers => "somebody else made this ResourceQuota",
        Left::ChangedByOthers => "somebody else changed its limit",
    };
    let hard =
        hard.map_or_else(|| "its limit cannot be read or is missing".to_owned(), |hard| format!("its limit is {hard}"));
    format!(
        "the policy's quota is {wanted}, and {hard}: {who}, so vramguard leaves it as it is; delete it, and vramguard makes it \
         anew, or write the same amount into the policy"
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
