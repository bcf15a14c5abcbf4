//! Taking over a device plugin that registers with the kubelet itself. Owns which kubelets allow it, and which allocations
//! show that the device plugin chooses.
//!
//! The agent registers the resource of the plugin a second time. A kubelet that keeps both uses the newest, and the other
//! one when that ends. An older kubelet replaces the first registration, and drops the plugin for good when the second ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::capacity::name::{Name, PodUid};
use crate::capacity::time::Moment;

/// The first kubelet, as major and minor version, that keeps the registrations of two device plugins of one resource.
pub const FIRST_KUBELET: (u32, u32) = (1, 37);

/// How long an allocation that the agent passed on is remembered. The kubelet records it within milliseconds, or never if
/// it rejects the pod.
const REMEMBERED: Duration = Duration::from_secs(30);
/// The largest number of allocations that are remembered.
const MAX_REMEMBERED: usize = 4_096;

/// Whether the kubelet of a node allows a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// It does.
    Allowed,
    /// It is of this version, which does not.
    TooOld((u32, u32)),
    /// Its version is not known, so it may be too old.
    VersionUnknown,
}

impl Takeover {
    /// Decides for a kubelet of a major and minor version.
    pub fn of(version: Option<(u32, u32)>) -> Takeover {
        match version {
            None => Takeover::VersionUnknown,
            Some(version) if version < FIRST_KUBELET => Takeover::TooOld(version),
            Some(_) => Takeover::Allowed,
        }
    }

    /// Whether it is allowed.
    pub fn is_allowed(self) -> bool {
        self == Takeover::Allowed
    }

    /// Whether the kubelet may keep the registration of a device plugin next to that of an agent, and ask either of them.
    pub fn may_keep_both(self) -> bool {
        !matches!(self, Takeover::TooOld(_))
    }
}

/// The reason why it is not allowed.
impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = FIRST_KUBELET;
        match self {
            Takeover::Allowed => write!(f, "the kubelet allows a takeover"),
            Takeover::TooOld((its_major, its_minor)) => write!(
                f,
                "the kubelet is v{its_major}.{its_minor}, and only v{major}.{minor} or newer lets an agent take over a device \
                 plugin: set the plugin's KUBELET_SOCKET"
            ),
            Takeover::VersionUnknown => write!(
                f,
                "the version of the kubelet is not known, and only v{major}.{minor} or newer lets an agent take over a device \
                 plugin"
            ),
        }
    }
}

/// A container, by the uid of its pod and its name.
pub type Recorded = (PodUid, Name);

/// The allocations of one resource: those that the agent passed on, and those that the kubelet recorded.
///
/// A record without an allocation that was passed on shows that the kubelet asks the device plugin directly.
#[derive(Debug, Default)]
pub struct Allocated {
    /// Containers that the kubelet had recorded at the last look; `None` before the first one.
    known: Option<BTreeSet<Recorded>>,
    /// Why the records could not be read at the last look; `None` if they could, or if there was no look.
    unread: Option<String>,
    /// Devices of each allocation, oldest first.
    passed: Vec<(BTreeSet<String>, Moment)>,
}

impl Allocated {
    /// Remembers an allocation that the agent passes on.
    pub fn passes(&mut self, devices: BTreeSet<String>, now: Moment) {
        self.passed.retain(|(_, at)| at.until(now) < REMEMBERED);
        if self.passed.len() == MAX_REMEMBERED {
            self.passed.remove(0);
        }
        self.passed.push((devices, now));
    }

    /// Forgets the records, so that those of the next look count as old.
    pub fn begins(&mut self) {
        self.known = None;
    }

    /// Notes that a look could not read the records. Those of the look before stay known.
    pub fn failed(&mut self, why: &str) {
        self.unread = Some(why.to_owned());
    }

    /// Why the records are not known at present; `None` if the last look has read them.
    ///
    /// An allocation by the device plugin may be among those that could not be read. The first look after a beginning is
    /// what later ones are compared with, so an allocation before it is never noticed: nothing is claimed until that look
    /// has succeeded.
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }

    /// Takes the records of a look into account. Returns the new ones that the agent did not pass on.
    pub fn recorded(&mut self, records: BTreeMap<Recorded, BTreeSet<String>>) -> Vec<Recorded> {
        self.unread = None;
        let now_known = records.keys().cloned().collect();
        let Some(known) = self.known.replace(now_known) else { return Vec::new() };
        let mut bypassed = Vec::new();
        for (container, devices) in records {
            if known.contains(&container) {
                continue;
            }
            // Each allocation explains one record: an app container may reuse the devices of its init container.
            match self.passed.iter().position(|(passed, _)| *passed == devices) {
                Some(place) => drop(self.passed.remove(place)),
                None => bypassed.push(container),
            }
        }
        bypassed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn records(entries: &[(&str, &[&str])]) -> BTreeMap<Recorded, BTreeSet<String>> {
        entries.iter().map(|(uid, ids)| ((PodUid::from((*uid).to_owned()), "main".into()), devices(ids))).collect()
    }

    #[test]
    fn only_kubelets_that_keep_two_registrations_allow_a_takeover() {
        for (version, expected) in [
            (None, Takeover::VersionUnknown),
            (Some((1, 36)), Takeover::TooOld((1, 36))),
            (Some((0, 99)), Takeover::TooOld((0, 99))),
            (Some((1, 37)), Takeover::Allowed),
            (Some((1, 40)), Takeover::Allowed),
            (Some((2, 0)), Takeover::Allowed),
        ] {
            assert_eq!(Takeover::of(version), expected, "{version:?}");
            assert_eq!(Takeover::of(version).is_allowed(), expected == Takeover::Allowed);
            assert_eq!(Takeover::of(version).may_keep_both(), version.is_none_or(|version| version >= (1, 37)));
        }
    }

    #[test]
    fn a_record_that_no_allocation_explains_was_made_without_the_agent() {
        let mut allocated = Allocated::default();
        let now = Moment(0);
        assert!(allocated.recorded(records(&[("old", &["a::0"])])).is_empty(), "it was there before");
        allocated.passes(devices(&["a::1"]), now);
        assert!(allocated.recorded(records(&[("old", &["a::0"]), ("new", &["a::1"])])).is_empty());
        // The same device again, after the first pod has gone.
        let bypassed = allocated.recorded(records(&[("old", &["a::0"]), ("again", &["a::1"])]));
        assert_eq!(bypassed, [(PodUid::from("again".to_owned()), "main".into())]);
        assert!(allocated.recorded(records(&[("old", &["a::0"]), ("again", &["a::1"])])).is_empty(), "told once");
    }

    #[test]
    fn records_are_unread_until_a_look_reads_them_and_what_was_known_before_stays_known() {
        let mut allocated = Allocated::default();
        allocated.begins();
        allocated.failed("permission denied");
        assert_eq!(allocated.unread(), Some("permission denied"));
        assert!(allocated.recorded(records(&[("hidden", &["a::0"])])).is_empty(), "it may be from before");
        assert_eq!(allocated.unread(), None);

        allocated.failed("permission denied");
        assert!(allocated.unread().is_some());
        let bypassed = allocated.recorded(records(&[("hidden", &["a::0"]), ("new", &["a::1"])]));
        assert_eq!(bypassed, [(PodUid::from("new".to_owned()), "main".into())], "the failure hides nothing");
        assert_eq!(allocated.unread(), None);
    }

    #[test]
    fn a_new_beginning_and_a_rejected_pod_raise_no_false_alarm() {
        let mut allocated = Allocated::default();
        assert!(allocated.recorded(BTreeMap::new()).is_empty());
        allocated.begins();
        assert!(allocated.recorded(records(&[("by-chance", &["a::0"])])).is_empty());
        // The kubelet rejected the pod after the allocation. What is remembered of it must not explain a later record.
        allocated.passes(devices(&["a::1"]), Moment(0));
        allocated.passes(devices(&["b::1"]), Moment(0).after(REMEMBERED));
        assert_eq!(allocated.recorded(records(&[("late", &["a::1"])])).len(), 1);
    }
}
