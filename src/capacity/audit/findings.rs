//! Collects findings. Owns that the same matter about the same object is one finding, however many pods it applies to.

use std::collections::BTreeMap;

use crate::capacity::verdict::finding::{Finding, Matter, Object};
use crate::capacity::verdict::{Advice, Reason};
use crate::capacity::vram::Vram;

/// The findings so far.
#[derive(Default)]
pub(super) struct Findings(BTreeMap<(Object, Reason, String), Finding>);

impl Findings {
    /// Adds a finding. If the same matter about the same object is known already, its pods are added up, and the graver
    /// severity counts.
    pub(super) fn add(&mut self, finding: Finding) {
        let mut detail = finding.matter.detail();
        if let Some(node) = &finding.node {
            detail.push(' ');
            detail.push_str(node);
        }
        let key = (finding.object.clone(), finding.matter.reason(), detail);
        match self.0.get_mut(&key) {
            None => {
                self.0.insert(key, finding);
            }
            Some(known) => {
                known.pods += finding.pods;
                known.severity = known.severity.min(finding.severity);
                if seen(&finding.matter) > seen(&known.matter) {
                    known.matter = finding.matter;
                }
                known.place = known.place.take().or(finding.place);
            }
        }
    }

    /// All findings: most severe first, then by reason and object.
    pub(super) fn sorted(self) -> Vec<Finding> {
        let mut all: Vec<Finding> = self.0.into_values().collect();
        all.sort_by_cached_key(|finding| {
            (finding.severity, finding.matter.reason().to_string(), finding.object.clone(), finding.matter.detail())
        });
        all
    }
}

/// What an undeclared container was seen to use: of several pods, the one that uses most is told.
fn seen(matter: &Matter) -> Option<Vram> {
    match matter {
        Matter::Advice(Advice::CountsAsSeen { seen, .. }) => Some(*seen),
        _ => None,
    }
}
