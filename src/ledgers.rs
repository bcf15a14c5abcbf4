//! Reading and writing `GpuLedger` objects. Owns the compare-and-swap: a write names the version it was decided on, and loses
//! against any other write since. What to write is the core's.

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};

use crate::capacity::gpu::Rules;
use crate::capacity::ledger::Shared;
use crate::capacity::reservation::Reservations;
use crate::k8s::gpu_ledger::{self, GpuLedger};
use crate::k8s::object::NodeObject;

/// A ledger as it was read or written last.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its resourceVersion; `None` where there is none yet.
    pub version: Option<String>,
    /// What it says.
    pub shared: Shared,
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody else wrote first: read again, decide again.
    #[error("others wrote its ledger first")]
    Conflict,
    /// The node is not there any more.
    #[error("the node is gone")]
    NodeGone,
    /// The node's own object is written by others all the time.
    #[error("others wrote the node's status first, again and again")]
    Busy,
    /// Anything else.
    #[error("{0}")]
    Api(kube::Error),
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> WriteError {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 404 | 409) => WriteError::Conflict,
            _ => WriteError::Api(error),
        }
    }
}

impl Known {
    /// What an object says; one that cannot be read is a fault of its own, never empty.
    pub fn of(ledger: &GpuLedger) -> Known {
        Known { version: ledger.metadata.resource_version.clone(), shared: ledger.shared_or_fault() }
    }

    /// Whether it was written later than `other`, as far as versions tell. A wrong guess costs one lost write, no more.
    pub fn is_newer_than(&self, other: &Known) -> bool {
        let number = |known: &Known| known.version.as_deref().and_then(|version| version.parse::<u64>().ok());
        number(self) > number(other)
    }
}

/// Reads a ledger from a quorum; an empty one where there is none.
pub async fn read(client: &Client, node: &str) -> kube::Result<Known> {
    let ledgers: Api<GpuLedger> = Api::all(client.clone());
    let found = ledgers.get_opt(node).await?;
    Ok(found.as_ref().map_or(Known { version: None, shared: Shared::default() }, Known::of))
}

/// Writes reservations if nobody wrote the ledger since `known`, and returns it as it is then.
pub async fn write(
    client: &Client,
    node: &str,
    known: &Known,
    reservations: &Reservations,
    rules: &Rules,
) -> Result<Known, WriteError> {
    let ledgers: Api<GpuLedger> = Api::all(client.clone());
    let written = match &known.version {
        Some(version) => {
            let patch = Patch::Merge(gpu_ledger::spec_patch(reservations, rules, version));
            ledgers.patch(node, &PatchParams::default(), &patch).await?
        }
        None => {
            let owner = Api::<NodeObject>::all(client.clone()).get_opt(node).await?;
            let uid = owner.and_then(|owner| owner.metadata.uid).ok_or(WriteError::NodeGone)?;
            let ledger = GpuLedger::new(node, &uid, reservations, rules);
            match ledgers.create(&PostParams::default(), &ledger).await {
                // Not this object but its kind is missing: to read it again would not help.
                Err(error @ kube::Error::Api(_)) if is(&error, 404) => return Err(WriteError::Api(error)),
                created => created?,
            }
        }
    };
    Ok(Known::of(&written))
}
