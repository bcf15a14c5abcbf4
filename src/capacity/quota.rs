//! The quota of a policy as a ResourceQuota of the namespace: when it is written, released, or left to people.
//!
//! A ResourceQuota that people made, or whose limit they have changed, is never overwritten.

use crate::capacity::policy::{Mode, Policy};
use crate::capacity::vram::Vram;

/// The ResourceQuota with the name that vramguard uses, as it was found in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whether vramguard made it.
    pub ours: bool,
    /// Its limit on VRAM; `None` if it has none, or one that is not a quantity.
    pub hard: Option<Vram>,
    /// Whether vramguard has written that limit, and nobody else since.
    pub hard_is_ours: bool,
    /// Whether somebody else has written any other part of it.
    pub shared: bool,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is as it should be, or it is no business of vramguard's.
    Nothing,
    /// It gets this limit.
    Write(Vram),
    /// It loses the limit of vramguard, and keeps what others wrote.
    Release,
    /// It is deleted.
    Delete,
    /// It stays as it is, although the policy wants another limit.
    Leave(Left),
}

/// Why a limit is not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Somebody else made the ResourceQuota.
    MadeByOthers,
    /// Somebody else has changed the limit.
    ChangedByOthers,
}

/// The limit that the policy of a namespace wants as a ResourceQuota; `None` for an exempt namespace, without a quota, or
/// in a mode other than Enforce, because a ResourceQuota refuses pods.
pub fn wanted(policy: Option<&Policy>) -> Option<Vram> {
    policy.filter(|policy| policy.mode == Mode::Enforce)?.quota
}

/// What is left of a limit; nothing if more is used.
pub fn left(limit: Vram, used: Vram) -> Vram {
    limit.minus(used).free()
}

/// Decides for one namespace.
pub fn decide(wanted: Option<Vram>, found: Option<Found>) -> Action {
    match (wanted, found) {
        (None, None) => Action::Nothing,
        (Some(limit), None) => Action::Write(limit),
        (None, Some(Found { ours: false, .. })) => Action::Nothing,
        (Some(limit), Some(Found { ours: false, hard, .. })) => {
            if hard == Some(limit) {
                Action::Nothing
            } else {
                Action::Leave(Left::MadeByOthers)
            }
        }
        (None, Some(Found { ours: true, shared: false, hard_is_ours: true, .. })) => Action::Delete,
        (None, Some(Found { ours: true, hard_is_ours: true, shared: true, .. })) => Action::Release,
        // People have taken it over.
        (None, Some(Found { ours: true, hard_is_ours: false, hard: Some(_), .. })) => Action::Nothing,
        (None, Some(Found { ours: true, hard_is_ours: false, hard: None, shared })) => {
            if shared {
                Action::Nothing
            } else {
                Action::Delete
            }
        }
        (Some(limit), Some(Found { ours: true, hard, hard_is_ours, .. })) => match hard {
            Some(hard) if hard == limit => Action::Nothing,
            Some(_) if !hard_is_ours => Action::Leave(Left::ChangedByOthers),
            Some(_) | None => Action::Write(limit),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: Vram = Vram::from_mib(1024);
    const OURS: Found = Found { ours: true, hard: Some(GIB), hard_is_ours: true, shared: false };

    #[test]
    fn each_state_has_its_action() {
        let two = GIB.plus(GIB);
        let people = Found { ours: false, hard_is_ours: false, ..OURS };
        let edited = Found { hard_is_ours: false, ..OURS };
        for (wanted, found, expected) in [
            (None, None, Action::Nothing),
            (Some(GIB), None, Action::Write(GIB)),
            (Some(GIB), Some(OURS), Action::Nothing),
            (Some(two), Some(OURS), Action::Write(two)),
            (Some(two), Some(Found { shared: true, ..OURS }), Action::Write(two)),
            (None, Some(OURS), Action::Delete),
            (None, Some(Found { shared: true, ..OURS }), Action::Release),
            (Some(two), Some(people), Action::Leave(Left::MadeByOthers)),
            (Some(GIB), Some(people), Action::Nothing),
            (None, Some(people), Action::Nothing),
            (Some(two), Some(edited), Action::Leave(Left::ChangedByOthers)),
            (Some(GIB), Some(edited), Action::Nothing),
            (None, Some(edited), Action::Nothing),
            (Some(GIB), Some(Found { hard: None, hard_is_ours: false, ..OURS }), Action::Write(GIB)),
            (None, Some(Found { hard: None, hard_is_ours: false, ..OURS }), Action::Delete),
            (None, Some(Found { hard: None, hard_is_ours: false, shared: true, ..OURS }), Action::Nothing),
        ] {
            assert_eq!(decide(wanted, found), expected, "{wanted:?} {found:?}");
        }
    }

    /// All combinations: what others made or changed is never written, released or deleted, and an action leads to a
    /// state that needs none.
    #[test]
    fn what_people_wrote_is_never_undone() {
        let both = [false, true];
        for (ours, hard_is_ours, shared) in
            both.iter().flat_map(|a| both.iter().flat_map(move |b| both.map(move |c| (*a, *b, c))))
        {
            for hard in [None, Some(GIB), Some(GIB.plus(GIB))] {
                let hard_is_ours = hard_is_ours && ours && hard.is_some();
                let found = Found { ours, hard, hard_is_ours, shared };
                for wanted in [None, Some(GIB), Some(Vram::ZERO)] {
                    let action = decide(wanted, Some(found));
                    let touches = matches!(action, Action::Write(_) | Action::Release | Action::Delete);
                    let of_people = !ours || hard.is_some() && !hard_is_ours;
                    assert!(!(touches && of_people), "{wanted:?} {found:?} {action:?}");
                    assert!(!(shared && action == Action::Delete), "{wanted:?} {found:?}");
                    let after = match action {
                        Action::Write(limit) => Some(Found { hard: Some(limit), hard_is_ours: true, ..found }),
                        Action::Release => Some(Found { hard: None, hard_is_ours: false, ..found }),
                        Action::Delete => None,
                        Action::Nothing | Action::Leave(_) => Some(found),
                    };
                    let then = decide(wanted, after);
                    assert!(then == Action::Nothing || then == action && !touches, "{wanted:?} {after:?} {then:?}");
                }
            }
        }
    }
}
