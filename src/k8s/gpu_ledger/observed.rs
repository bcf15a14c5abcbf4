//! The node agent's section of a `GpuLedger` → what is really used, for an audit. [`super::agent`] owns the fields, and
//! reads of them what counts.

use std::collections::BTreeSet;

use super::agent::{AgentContainer, AgentGpu, AgentSection};
use super::{GpuLedger, LedgerError};
use crate::capacity::audit::scene::{Observed, ObservedContainer, ObservedGpu};
use crate::capacity::name::{Name, PodUid};
use crate::capacity::node::inventory::Source;
use crate::capacity::observation::containers::ContainerKey;
use crate::capacity::observation::finding::{Finding, Problem};
use crate::capacity::observation::report::MAX_CONTAINERS;
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;
use crate::k8s::{node, pod, wording};

/// The most characters of a text of the agent that are kept. An agent writes no longer ones.
const MAX_TEXT: usize = 1024;

impl GpuLedger {
    /// What the agent of this node reported of what is used; `None` if no agent has reported. A section with a field that
    /// cannot be read tells nothing but that, with the field.
    pub fn observed(&self) -> Option<Observed> {
        let section = self.agent_section()?;
        let unreadable = |error: LedgerError| Observed {
            reported: self.reported(),
            unreadable: Some(error.to_string()),
            ..Observed::default()
        };
        let read = serde_path_to_error::deserialize(section)
            .map_err(|error| self.wrong(format!("status.agent.{}", error.path()), &wording::json(error.inner())))
            .and_then(|section: AgentSection| self.observed_of(section));
        Some(read.unwrap_or_else(unreadable))
    }

    fn observed_of(&self, section: AgentSection) -> Result<Observed, LedgerError> {
        let mut known = BTreeSet::new();
        let gpus = section.gpus.into_iter().enumerate();
        let once = gpus.filter(|(_, gpu)| known.insert(gpu.uuid.clone()));
        let gpus = once.map(|(index, gpu)| self.gpu(index, gpu)).collect::<Result<_, _>>()?;
        let containers = section.containers.into_iter().take(MAX_CONTAINERS).enumerate();
        let containers = containers.map(|(index, container)| self.container(index, container));
        Ok(Observed {
            reported: section.time.map(|time| self.time_of("status.agent.time", &time)).transpose()?,
            source: section.source.map_or(Source::Driver, Source::from),
            unreadable: section.unreadable.map(cut),
            gpus,
            containers: containers.collect::<Result<_, _>>()?,
        })
    }

    fn gpu(&self, index: usize, gpu: AgentGpu) -> Result<ObservedGpu, LedgerError> {
        let sized = |field: &str, mib: Option<u64>| self.sized(&format!("status.agent.gpus[{index}].{field}"), mib);
        Ok(ObservedGpu {
            used: sized("usedMiB", gpu.used)?,
            outside: sized("outOfBandMiB", gpu.out_of_band)?,
            uuid: cut(gpu.uuid).into(),
            unreadable: gpu.unreadable.map(cut),
        })
    }

    fn container(
        &self,
        index: usize,
        container: AgentContainer,
    ) -> Result<(ContainerKey, ObservedContainer), LedgerError> {
        let field = |name: &str| format!("status.agent.containers[{index}].{name}");
        let amount = |name: &str, mib: Option<u64>| {
            let amount = mib.map(|mib| Vram::checked_from_mib(mib).ok_or(mib));
            amount.transpose().map_err(|_| self.wrong(field(name), "is more than a quantity can say"))
        };
        let idle_since = container.idle_since.map(|time| self.time_of(&field("idleSince"), &time)).transpose()?;
        let finding = container.problem.map(|name| {
            let problem = Problem::ALL.into_iter().find(|problem| problem.to_string() == name);
            let problem = problem.ok_or_else(|| {
                let known = Problem::ALL.map(|problem| problem.to_string()).join(", ");
                self.wrong(field("problem"), &format!("{name:?} is not one of {known}"))
            });
            problem.map(|problem| Finding { problem, message: cut(container.message.unwrap_or_default()) })
        });
        let key = (PodUid::from(container.uid), Name::from(container.container));
        let seen = ObservedContainer {
            used: amount("usedMiB", container.used)?,
            peak: amount("peakMiB", Some(container.peak))?.unwrap_or_default(),
            idle_since,
            gpu: cut(container.gpu).into(),
            demand: amount("demandMiB", container.demand)?,
            finding: finding.transpose()?,
        };
        Ok((key, seen))
    }

    fn sized(&self, field: &str, mib: Option<u64>) -> Result<Option<Vram>, LedgerError> {
        let Some(mib) = mib else { return Ok(None) };
        let size = Vram::checked_from_mib(mib).filter(|size| *size <= node::MAX_GPU);
        size.map(Some).ok_or_else(|| self.wrong(field.to_owned(), "is more than any GPU has"))
    }

    fn time_of(&self, field: &str, text: &str) -> Result<Moment, LedgerError> {
        pod::moment(text).ok_or_else(|| self.wrong(field.to_owned(), "is no RFC 3339 time"))
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    }
}
