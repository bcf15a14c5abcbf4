//! Reading and writing of `GpuLedger` objects. Owns the compare-and-swap: a write names the version that it was decided
//! on, and fails if the ledger was written since. What to write is decided in `capacity`.

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};

use crate::capacity::gpu::Rules;
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::Reservations;
use crate::k8s::gpu_ledger::{self, GpuLedger};
use crate::k8s::object::NodeObject;

/// A ledger as it was last read or written.
#[derive(Clone, Debug)]
pub struct VersionedLedger {
    /// The ledger's resourceVersion; `None` if the ledger does not exist yet.
    pub version: Option<String>,
    /// The reservations and the agent's inventory, or the fault if the ledger is unreadable.
    pub content: LedgerContent,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another writer was first. The caller reads the ledger and decides again.
    #[error("others wrote its ledger first")]
    Conflict,
    /// The node no longer exists.
    #[error("the node is gone")]
    NodeGone,
    /// Other writers keep changing the node, so that the compare-and-swap on its status fails each time.
    #[error("others wrote the node's status first, again and again")]
    Busy,
    /// Any other error of the API.
    #[error("{0}")]
    Api(kube::Error),
}

fn has_code(error: &kube::Error, code: u16) -> bool {
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

impl VersionedLedger {
    /// Converts an object. A ledger that cannot be read gets `content.fault`; it never counts as empty.
    pub fn of(ledger: &GpuLedger) -> VersionedLedger {
        VersionedLedger { version: ledger.metadata.resource_version.clone(), content: ledger.content_or_fault() }
    }

    /// Whether this version was written later than `other`, if versions can be compared as numbers. A wrong answer
    /// costs one lost write and nothing more.
    pub fn is_newer_than(&self, other: &VersionedLedger) -> bool {
        let number = |known: &VersionedLedger| known.version.as_deref().and_then(|version| version.parse::<u64>().ok());
        number(self) > number(other)
    }
}

/// Reads a ledger from a quorum. A missing ledger reads as an empty one without a version.
///
/// # Errors
/// If the API server cannot be reached or refuses the request.
pub async fn read(client: &Client, node: &str) -> kube::Result<VersionedLedger> {
    let ledgers: Api<GpuLedger> = Api::all(client.clone());
    let found = ledgers.get_opt(node).await?;
    Ok(found.as_ref().map_or(VersionedLedger { version: None, content: LedgerContent::default() }, VersionedLedger::of))
}

/// Writes reservations by compare-and-swap on the version of `known`, and returns the ledger as written. Creates the
/// ledger if `known` has no version.
///
/// # Errors
/// [`WriteError::Conflict`] if the ledger was written, created or deleted since `known`; [`WriteError::NodeGone`] if a
/// ledger is to be created for a node that does not exist; [`WriteError::Api`] for any other error.
pub async fn write(
    client: &Client,
    node: &str,
    known: &VersionedLedger,
    reservations: &Reservations,
    rules: &Rules,
) -> Result<VersionedLedger, WriteError> {
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
                // The kind GpuLedger itself is missing, so another read would not help.
                Err(error @ kube::Error::Api(_)) if has_code(&error, 404) => return Err(WriteError::Api(error)),
                created => created?,
            }
        }
    };
    Ok(VersionedLedger::of(&written))
}
