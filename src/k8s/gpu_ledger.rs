//! `GpuLedger` object ↔ reservations and the node agent's report. Owns the rows of its `spec`, which the replicas of
//! the server write by compare-and-swap. [`status`] owns the part of the status that the controller writes, and [`agent`]
//! the section that the node agent writes.
//!
//! The custom resource definition in `deploy/` describes every field. An object that cannot be read is a fault of its
//! node, never an empty ledger.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::agent::AgentSection;
use super::pod::moment;
use super::wording;
use crate::capacity::gpu::{GpuId, Resource, Rules};
use crate::capacity::name::PodUid;
use crate::capacity::node::holder::{Amount, Holder, Part};
use crate::capacity::node::ledger::LedgerContent;
use crate::capacity::node::reservation::{Reservation, Reservations, State};
use crate::capacity::pod::PodName;
use crate::capacity::pod::demand::{self, Role};
use crate::capacity::time::Moment;
use crate::capacity::vram::Vram;
use crate::keys;

pub mod agent;
mod observed;
pub mod report;
pub mod status;

/// A `GpuLedger` as the API server sends it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GpuLedger {
    api_version: String,
    kind: String,
    /// Metadata; the ledger has the name of its node and is owned by it.
    pub metadata: ObjectMeta,
    /// Reservations, as rows; [`GpuLedger::content`] reads them.
    #[serde(default)]
    pub spec: Value,
    /// Sections of the controller (see [`status`]) and of the node agent.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

impl k8s_openapi::Resource for GpuLedger {
    const API_VERSION: &'static str = keys::API_VERSION;
    const GROUP: &'static str = keys::API_GROUP;
    const KIND: &'static str = "GpuLedger";
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = "gpuledgers";
    type Scope = k8s_openapi::ClusterResourceScope;
}

impl k8s_openapi::Metadata for GpuLedger {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A field of a ledger that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("GpuLedger {ledger:?}: {field}: {why}")]
pub struct LedgerError {
    /// Name of the ledger, which is that of its node.
    pub ledger: String,
    /// Path of the field.
    pub field: String,
    /// The problem with the field.
    pub why: String,
}

/// One row of the `spec`: one container of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    uid: String,
    namespace: String,
    pod: String,
    container: String,
    #[serde(default, skip_serializing_if = "RoleText::is_app")]
    role: RoleText,
    resource: String,
    replicas: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mib: Option<u64>,
    basis: Basis,
    state: StateText,
    since: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum RoleText {
    #[default]
    App,
    Sidecar,
    Init,
}

impl RoleText {
    fn is_app(&self) -> bool {
        *self == RoleText::App
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StateText {
    Assumed,
    Confirmed,
    Adopted,
}

/// Where the amount of a row comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Basis {
    Request,
    Declaration,
    Slot,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    reservations: Vec<Row>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    agent: Option<AgentSection>,
}

impl GpuLedger {
    /// Makes the ledger object of a node, to be created on the server.
    pub fn new(node: &str, node_uid: &str, reservations: &Reservations, rules: &Rules) -> GpuLedger {
        GpuLedger {
            api_version: keys::API_VERSION.to_owned(),
            kind: <GpuLedger as k8s_openapi::Resource>::KIND.to_owned(),
            metadata: ObjectMeta {
                name: Some(node.to_owned()),
                owner_references: Some(vec![owned_by(node, node_uid)]),
                ..ObjectMeta::default()
            },
            spec: spec(reservations, rules),
            status: Value::Null,
        }
    }

    /// Name of the node.
    pub fn node(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The uid of the node that owns it.
    pub fn owner(&self) -> Option<&str> {
        let owners = self.metadata.owner_references.iter().flatten();
        owners.into_iter().find(|owner| owner.kind == "Node").map(|owner| owner.uid.as_str())
    }

    /// When the agent wrote its report; `None` if there is none that says so.
    pub fn reported(&self) -> Option<Moment> {
        moment(self.agent_section()?.get("time")?.as_str()?)
    }

    /// The pod in which the agent runs that has written its section, as that section names it; `None` if it names none.
    pub fn agent_pod(&self) -> Option<PodUid> {
        Some(PodUid::from(self.agent_section()?.get("pod")?.get("uid")?.as_str()?.to_owned()))
    }

    /// The section of the node agent, unread; `None` if no agent has written one.
    pub(super) fn agent_section(&self) -> Option<&Value> {
        self.status.get("agent").filter(|section| !section.is_null())
    }

    /// Reads the reservations and the agent's report.
    ///
    /// # Errors
    /// A field of `spec` or of the agent's section cannot be read. The error names the first one.
    pub fn content(&self) -> Result<LedgerContent, LedgerError> {
        let spec: Spec = self.read("spec", &self.spec)?;
        let status: Status = self.read("status", &self.status)?;
        let mut rows: BTreeMap<PodUid, Vec<(usize, Row)>> = BTreeMap::new();
        for (index, row) in spec.reservations.into_iter().enumerate() {
            rows.entry(PodUid::from(row.uid.clone())).or_default().push((index, row));
        }
        let reservation = |(uid, rows): (PodUid, Vec<(usize, Row)>)| Ok((uid, self.reservation(&rows)?));
        let reservations: Result<Reservations, LedgerError> = rows.into_iter().map(reservation).collect();
        let inventory = status.agent.map(|agent| agent.inventory(self.node())).transpose()?;
        Ok(LedgerContent { reservations: reservations?, inventory, fault: None })
    }

    /// Reads the reservations and the agent's report. If a field cannot be read, the content is a fault of the node,
    /// which is not the same as an empty ledger.
    pub fn content_or_fault(&self) -> LedgerContent {
        let fault = |error: LedgerError| LedgerContent { fault: Some(error.to_string()), ..LedgerContent::default() };
        self.content().unwrap_or_else(fault)
    }

    fn read<'v, T: Deserialize<'v> + Default>(&self, section: &str, value: &'v Value) -> Result<T, LedgerError> {
        if value.is_null() {
            return Ok(T::default());
        }
        serde_path_to_error::deserialize(value).map_err(|error| LedgerError {
            ledger: self.node().to_owned(),
            field: format!("{section}.{}", error.path()),
            why: wording::json(error.inner()),
        })
    }

    fn wrong(&self, field: String, why: &str) -> LedgerError {
        LedgerError { ledger: self.node().to_owned(), field, why: why.to_owned() }
    }

    fn reservation(&self, rows: &[(usize, Row)]) -> Result<Reservation, LedgerError> {
        let (index, first) = rows.first().expect("rows are grouped from rows");
        let since = moment(&first.since)
            .ok_or_else(|| self.wrong(format!("spec.reservations[{index}].since"), "is no RFC 3339 time"))?;
        let state = match first.state {
            StateText::Assumed => State::Assumed,
            StateText::Confirmed => State::Confirmed,
            StateText::Adopted => State::Adopted,
        };
        let mut parts = Vec::new();
        let mut requests = Vec::new();
        let mut gpus: BTreeMap<Resource, Vec<(Role, u64)>> = BTreeMap::new();
        for (index, row) in rows {
            let amount = row.mib.map(|mib| self.amount(*index, mib)).transpose()?;
            let role = row.role.into();
            if row.basis == Basis::Request {
                requests.extend(amount.map(|amount| (role, amount)));
            }
            gpus.entry(Resource(row.resource.as_str().into())).or_default().push((role, row.replicas));
            parts.push(Part {
                container: row.container.as_str().into(),
                role,
                amount: match (amount, row.basis) {
                    (None, _) => Amount::Slots(row.replicas),
                    (Some(amount), Basis::Request) => Amount::Requested(amount),
                    (Some(amount), Basis::Declaration | Basis::Slot) => Amount::Counted(amount),
                },
                gpu: None,
            });
        }
        let holder = Holder {
            name: PodName { namespace: first.namespace.as_str().into(), name: first.pod.as_str().into() },
            request: Some(demand::of_pod(requests)).filter(|request| !request.is_zero()),
            parts: parts.into(),
            gpus: gpus.into_iter().map(|(resource, counts)| (resource, demand::replicas_of_pod(counts))).collect(),
            // The ledger does not store the next three fields. The priority is the highest, so that no decision counts
            // on preempting the pod before it is seen.
            label_at_least: None,
            needs_label: false,
            priority: i32::MAX,
            // The pod counts as starting until it is seen on the node and reports whether it is ready.
            starting: (state != State::Adopted).then_some(since),
            bound: None,
            annotated: true,
        };
        let gpu = rows.iter().find_map(|(_, row)| row.gpu.as_deref()).map(GpuId::from);
        Ok(Reservation { holder, gpu, state, since })
    }

    fn amount(&self, index: usize, mib: u64) -> Result<Vram, LedgerError> {
        let field = format!("spec.reservations[{index}].mib");
        Vram::checked_from_mib(mib).ok_or_else(|| self.wrong(field, "is more than a quantity can say"))
    }
}

impl From<RoleText> for Role {
    fn from(text: RoleText) -> Role {
        match text {
            RoleText::App => Role::App,
            RoleText::Sidecar => Role::Sidecar,
            RoleText::Init => Role::Init,
        }
    }
}

impl From<Role> for RoleText {
    fn from(role: Role) -> RoleText {
        match role {
            Role::App => RoleText::App,
            Role::Sidecar => RoleText::Sidecar,
            Role::Init => RoleText::Init,
        }
    }
}

/// Writes reservations as the `spec` of a ledger. Equal specs mean the same reservations, so two specs can be compared
/// to find changes.
pub fn spec(reservations: &Reservations, rules: &Rules) -> Value {
    let rows: Vec<Row> = reservations.iter().flat_map(|(uid, reservation)| rows(uid, reservation, rules)).collect();
    json!({ "reservations": rows })
}

fn owned_by(node: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// The merge patch that makes a node the owner of its ledger again. It is needed after a node was deleted and created
/// again under the same name: the garbage collector would otherwise delete the ledger with all its reservations.
pub fn owner_patch(node: &str, node_uid: &str, version: &str) -> Value {
    json!({ "metadata": { "resourceVersion": version, "ownerReferences": [owned_by(node, node_uid)] } })
}

/// The merge patch that writes reservations, on the condition that the object is still at `version`.
///
/// The patch clears `managedFields`, so that the API server stops tracking field ownership for this object. Every row
/// has one writer. `managedFields` would be longer than the rows themselves, and the API server would compute it again
/// for each binding. The node agent must therefore write `status.agent` by merge patch too: server-side apply would
/// find no `managedFields` of its earlier applies.
pub fn spec_patch(reservations: &Reservations, rules: &Rules, version: &str) -> Value {
    json!({ "metadata": { "resourceVersion": version, "managedFields": [{}] }, "spec": spec(reservations, rules) })
}

fn rows<'r>(uid: &'r PodUid, reservation: &'r Reservation, rules: &'r Rules) -> impl Iterator<Item = Row> + 'r {
    let holder = &reservation.holder;
    let only = holder.parts.len() == 1;
    let of_part = move |part: &Part| {
        let (resource, count) = holder.gpus.first()?;
        let basis = match part.amount {
            Amount::Requested(_) | Amount::Injected(_) => Basis::Request,
            Amount::Declared { .. } | Amount::Counted(_) => Basis::Declaration,
            Amount::Slots(_) => Basis::Slot,
        };
        Some(Row {
            uid: uid.to_string(),
            namespace: holder.name.namespace.to_string(),
            pod: holder.name.name.to_string(),
            container: part.container.to_string(),
            role: part.role.into(),
            resource: resource.0.to_string(),
            replicas: match part.amount {
                Amount::Slots(replicas) => replicas,
                _ if only => *count,
                _ => 1,
            },
            gpu: reservation.gpu.as_ref().map(GpuId::to_string),
            mib: part.holds(None, rules).map(Vram::mib),
            basis,
            state: match reservation.state {
                State::Assumed => StateText::Assumed,
                State::Confirmed => StateText::Confirmed,
                State::Adopted => StateText::Adopted,
            },
            since: time(reservation.since),
        })
    };
    holder.parts.iter().filter_map(of_part)
}

/// Formats a time as RFC 3339 with milliseconds.
pub fn time(moment: Moment) -> String {
    let time = Timestamp::from_millisecond(moment.0).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests;
