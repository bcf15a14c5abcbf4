//! How a value of vramguard goes together with the user's own. Owns the rule: a variable or flag that the user set is
//! never overwritten. A value that allows no more than ours is as good as ours, and so is a share that is larger by what
//! totals of one model of GPU differ. One that allows more, or that cannot be read, is a conflict, which the policy
//! decides.

use super::budget::is_at_most;
use super::{Injection, Value, Variable};
use crate::capacity::pod::Container;
use crate::capacity::pod::software::Software;
use crate::capacity::verdict::{EnvConflict, Why};

/// What a container is told, while it is put together.
pub(super) struct Merge<'c> {
    pub container: &'c Container,
    pub injection: &'c mut Injection,
}

/// Whether a value holds the container.
pub(super) enum Outcome {
    /// It does: ours, or the user's own.
    Holds(Why),
    /// The user's own value does not.
    Looser(Why),
}

impl Merge<'_> {
    pub(super) fn software(&self) -> &Software {
        &self.container.software
    }

    /// Whether the user sets a variable, in whichever way.
    pub(super) fn sets(&self, name: &str) -> bool {
        self.container.env(name).is_some()
    }

    /// The literal value of a variable of the user; `None` if it is not set, or not known here.
    pub(super) fn own(&self, name: &str) -> Option<&str> {
        self.container.env(name)?.value.as_deref().filter(|value| !value.contains("$("))
    }

    /// Sets a variable that the user does not set.
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.injection.missing.push(Variable { name, value: Value::Literal(value.into()) });
    }

    /// Sets a variable unless the user does. Its value is the user's to choose.
    pub(super) fn unless_set(&mut self, name: &'static str, value: impl Into<String>) {
        if !self.sets(name) {
            self.set(name, value);
        }
    }

    /// Sets a variable that takes a share, above which its container would take more than its budget.
    pub(super) fn at_most(&mut self, name: &'static str, ours: String) -> Outcome {
        if !self.sets(name) {
            self.set(name, ours.clone());
            return Outcome::Holds(Why::Holds { name, value: ours });
        }
        self.judge(name, self.own(name).map(str::to_owned), ours)
    }

    /// The user's own share, as a variable or a flag.
    pub(super) fn judge(&mut self, name: &'static str, theirs: Option<String>, ours: String) -> Outcome {
        match theirs {
            Some(value) if is_at_most(&value, &ours) => Outcome::Holds(Why::Holds { name, value }),
            theirs => self.looser(name, theirs, ours),
        }
    }

    /// Notes that the user's own value allows more than ours.
    pub(super) fn looser(&mut self, name: &'static str, theirs: Option<String>, ours: String) -> Outcome {
        let theirs = theirs.or_else(|| self.container.env(name)?.value.clone());
        self.injection.conflicts.push(EnvConflict { name, theirs, ours: Some(ours) });
        Outcome::Looser(Why::Looser { name })
    }
}
