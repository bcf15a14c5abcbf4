//! What to answer: devices on the right GPU, exactly as many as the kubelet needs.
//!
//! All devices of an answer are on one GPU, except those that the kubelet says must be included.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Fallback, GpuRoom};
use crate::capacity::gpu::GpuId;
use crate::capacity::name::Name;
use crate::capacity::vram::{Balance, Vram};

/// A question of the kubelet: which devices it should allocate to a container.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// Ids of the devices that may be allocated.
    pub available: &'q [String],
    /// Ids that the answer must contain.
    pub must_include: &'q [String],
    /// The number of ids in the answer.
    pub size: usize,
}

/// Who asks, as far as it matters for the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A container of a known pod.
    Known {
        /// The memory that its pod holds, in MiB; `None` if not known.
        demand: Option<Vram>,
        /// The GPU that it should get; `None` if there is none.
        wanted: Option<GpuId>,
    },
    /// It is not known.
    Unknown {
        /// Why not.
        why: Fallback,
        /// The GPUs that were given to others that were not known, and which `gpus` do not contain yet. The one that was
        /// given least often is chosen.
        before: Vec<Name>,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// These devices.
    Devices {
        /// Ids, as many as were requested. Those that must be included come first.
        ids: Vec<String>,
        /// UUID of the GPU of the ids that were chosen.
        gpu: Name,
        /// Why it is not simply the wanted GPU; `None` if it is.
        fallback: Option<Fallback>,
    },
    /// Whatever the device plugin answers.
    Stock(Fallback),
}

/// The GPU of a device: its id without the number of the replica.
pub fn gpu_of(id: &str) -> &str {
    id.split_once("::").map_or(id, |(gpu, _)| gpu)
}

/// Whether listing the pods during this question is safe for the kubelet.
///
/// The list makes the kubelet compute the allocated devices from its records. It would then forget devices that it took
/// for this container before it asked, and could give them to another one. They are among those that must be included.
pub fn is_listing_safe(question: &Question<'_>, recorded: &BTreeSet<String>) -> bool {
    question.must_include.iter().all(|id| recorded.contains(id))
}

/// Chooses the devices. `unplaced` are demands on GPUs that `gpus` do not contain yet.
pub fn pick(question: &Question<'_>, asker: &Asker, gpus: &[GpuRoom], unplaced: &[(Name, Vram)]) -> Choice {
    let Some(missing) = missing(question) else { return Choice::Stock(Fallback::Contradiction) };
    let free = devices_by_gpu(question);
    let rooms = || gpus.iter().filter(|gpu| free.contains_key(gpu.uuid.as_str()));
    if rooms().next().is_none() {
        return Choice::Stock(Fallback::GpusUnknown);
    }
    let mut places: Vec<Place<'_>> = rooms()
        .filter(|gpu| free[gpu.uuid.as_str()].len() >= missing)
        .map(|gpu| Place { gpu, room: without(gpu.room, &gpu.uuid, unplaced) })
        .collect();
    places.sort_by_key(|place| place.gpu.index);
    let Some(freest) = places.iter().rev().max_by_key(|place| place.room) else {
        return Choice::Stock(Fallback::SeveralGpus);
    };
    let (place, fallback) = match asker {
        Asker::Unknown { why, before } => {
            let unknown = |place: &&Place<'_>| before.iter().filter(|gpu| **gpu == place.gpu.uuid).count();
            let fewest = places.iter().rev().min_by_key(|place| (unknown(place), Reverse(place.room)));
            (fewest.unwrap_or(freest), Some(*why))
        }
        Asker::Known { demand, wanted } => {
            let reserved = wanted.as_ref().and_then(|id| places.iter().find(|place| place.gpu.has_id(id)));
            let why = if wanted.is_some() { Fallback::ReservedFull } else { Fallback::NotReserved };
            match (reserved, demand) {
                (Some(reserved), _) => (reserved, None),
                (None, None) => (freest, Some(Fallback::DemandUnknown)),
                (None, Some(demand)) => {
                    let large_enough = places.iter().filter(|place| place.room >= Balance::from(*demand));
                    let best = large_enough.min_by_key(|place| place.room);
                    best.map_or((freest, Some(Fallback::NoRoom)), |best| (best, Some(why)))
                }
            }
        }
    };
    let chosen = free[place.gpu.uuid.as_str()].iter().take(missing);
    let ids = question.must_include.iter().cloned().chain(chosen.map(|id| (*id).to_owned())).collect();
    Choice::Devices { ids, gpu: place.gpu.uuid.clone(), fallback }
}

/// An answer for the case that nobody else gives one: the ids that must be included, then any others.
pub fn any_devices(question: &Question<'_>) -> Vec<String> {
    let included = question.must_include.iter();
    let others = question.available.iter().filter(|id| !question.must_include.contains(id));
    included.chain(others).take(question.size).cloned().collect()
}

#[derive(Debug)]
struct Place<'g> {
    gpu: &'g GpuRoom,
    room: Balance,
}

fn without(room: Balance, uuid: &Name, unplaced: &[(Name, Vram)]) -> Balance {
    let here = unplaced.iter().filter(|(gpu, _)| gpu == uuid);
    here.fold(room, |room, (_, demand)| room.minus(*demand))
}

/// The number of ids to choose in addition to those that must be included; `None` if the question contradicts itself.
fn missing(question: &Question<'_>) -> Option<usize> {
    let included: BTreeSet<&String> = question.must_include.iter().collect();
    let all: BTreeSet<&String> = question.available.iter().chain(included.iter().copied()).collect();
    let missing = question.size.checked_sub(included.len())?;
    // With nothing left to choose, the kubelet does not ask.
    (missing > 0 && included.len() == question.must_include.len() && all.len() >= question.size).then_some(missing)
}

/// The ids that may be chosen, by GPU and sorted.
fn devices_by_gpu<'q>(question: &Question<'q>) -> BTreeMap<&'q str, BTreeSet<&'q str>> {
    let mut by_gpu: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for id in question.available.iter().filter(|id| !question.must_include.contains(id)) {
        by_gpu.entry(gpu_of(id)).or_default().insert(id);
    }
    by_gpu
}

#[cfg(test)]
mod tests;
