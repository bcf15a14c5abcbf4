//! GPU memory that a pod template declares for another GPU sharing project. Owns their keys' meaning and units.
//!
//! | project | key | unit | read in |
//! |---|---|---|---|
//! | KAI | `gpu-memory` (annotation) | MiB | NVIDIA/KAI-Scheduler `docs/gpu-sharing/README.md` |
//! | KAI | `gpu-fraction` (annotation) | share of one GPU | the same, `gpu_request_validator.go` |
//! | HAMi | `nvidia.com/gpumem` | MiB × its `memoryFactor`, of each GPU | Project-HAMi/HAMi `docs/gpu-memory-factor.md` |
//! | HAMi | `nvidia.com/gpumem-percentage` | % of each GPU | Project-HAMi/HAMi `pkg/device/nvidia/device.go` |
//! | Volcano | `volcano.sh/vgpu-memory` | MiB × its factor, of each vGPU | volcano-sh/volcano `docs/user-guide/how_to_use_volcano_vgpu.md` |
//! | Volcano | `volcano.sh/gpu-memory` | MiB | volcano-sh/volcano `docs/user-guide/how_to_use_gpu_sharing.md` |
//! | gpushare | `aliyun.com/gpu-mem` | GiB, or MiB by its `--memory-unit` | AliyunContainerService/gpushare-scheduler-extender `docs/userguide.md` |
//!
//! A declaration that cannot be expressed as an amount is returned with the reason, never left out and never zero.

use std::fmt;
use std::num::NonZeroU32;

use serde_json::{Map, Value};

use super::quantity::{self, Bytes};
use crate::capacity::vram::Vram;
use crate::keys;

/// The project that a declaration is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// KAI Scheduler, and Run:ai from which it comes.
    Kai,
    /// HAMi.
    Hami,
    /// Volcano, with or without its vGPU device plugin.
    Volcano,
    /// gpushare of Alibaba Cloud.
    Aliyun,
}

impl Scheme {
    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Kai => "KAI",
            Scheme::Hami => "HAMi",
            Scheme::Volcano => "Volcano",
            Scheme::Aliyun => "gpushare",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One declaration for another project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDeclaration {
    /// The project.
    pub scheme: Scheme,
    /// The container that it is for; `None` if the pod has no such container.
    pub container: Option<String>,
    /// Key of the annotation or resource.
    pub key: String,
    /// Its value as written.
    pub text: String,
    /// The amount that it declares, or why it does not tell one.
    pub amount: Result<Vram, NoAmount>,
    /// Whether vramguard reads this key itself, so that nothing has to change.
    pub understood: bool,
    /// Whether no other container of the pod asks for a GPU.
    pub sole: bool,
    /// What the declaration also says and vramguard's own cannot.
    pub lost: Vec<Lost>,
}

impl ForeignDeclaration {
    /// Key and value of the annotation that declares the same amount for vramguard; `None` if it tells no amount.
    pub fn annotation(&self) -> Option<(String, String)> {
        self.container.as_ref()?;
        Some((self.ours(), self.amount.as_ref().ok()?.to_string()))
    }

    /// Key of the annotation that declares the amount of the same container for vramguard.
    pub fn ours(&self) -> String {
        match &self.container {
            Some(container) if !self.sole => format!("{}{container}", keys::VRAM_OF),
            _ => keys::VRAM.to_owned(),
        }
    }
}

/// Why a declaration does not tell an amount of VRAM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAmount {
    /// The value is not a number of the project's unit.
    #[error("is not a whole number above zero; {scheme} counts {unit} and takes no unit")]
    Malformed {
        /// The project.
        scheme: Scheme,
        /// Name of its unit.
        unit: &'static str,
    },
    /// The value is a quantity of bytes that cannot be read, or zero.
    #[error("is not an amount of memory above zero, as in 8Gi")]
    NotBytes,
    /// No GPU has that much memory.
    #[error("is {mib} MiB for {scheme}, more than any GPU has; {scheme} counts {unit} and takes no unit")]
    Implausible {
        /// The project.
        scheme: Scheme,
        /// Name of its unit.
        unit: &'static str,
        /// The amount as the project reads it.
        mib: u128,
    },
    /// The value is a share of a GPU, between 0 and 1.
    #[error("is a share of a GPU, whose size is not known")]
    NeedsSize,
    /// The value is no share of a GPU.
    #[error("is not a share of a GPU, which is above 0 and at most {most}")]
    BadShare {
        /// The largest value.
        most: &'static str,
    },
    /// The container gets that much of each of several GPUs, and a declaration of vramguard is of one GPU.
    #[error("is of each of {count} GPUs, and vramguard accounts for one GPU per container")]
    SeveralGpus {
        /// Number of GPUs as written.
        count: String,
    },
    /// Only a number of GPUs or a compute share is written, so the project's configuration decides the memory.
    #[error("says nothing about memory; {scheme} gives what its configuration says, or the whole GPU")]
    Undeclared {
        /// The project.
        scheme: Scheme,
    },
    /// The container that the annotation names does not exist.
    #[error("is for container {name:?}, which the pod does not have")]
    NoSuchContainer {
        /// The name.
        name: String,
    },
    /// A request and a limit differ.
    #[error("differs from {other}")]
    Contradicts {
        /// The other key and its value.
        other: String,
    },
}

/// What a foreign declaration says that vramguard's own cannot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// The project enforces the amount in the container.
    HardLimit(Scheme),
    /// A share of the GPU's compute.
    Compute {
        /// Key of the resource.
        key: String,
        /// Percent, as written.
        text: String,
    },
    /// A second amount that the project ignores, or a rank among the containers of a GPU.
    Extra {
        /// Key of the resource.
        key: String,
        /// Its value.
        text: String,
    },
    /// A choice of GPUs by type, UUID or mode.
    Choice {
        /// Key of the annotation.
        key: String,
        /// Its value.
        text: String,
    },
    /// The queue of the pod, which carries quota and fairness.
    Queue {
        /// Name of the queue.
        name: String,
    },
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::HardLimit(scheme) => {
                write!(f, "{scheme} stops a container that allocates more than it declared; vramguard does not")
            }
            Lost::Compute { key, text } => write!(f, "{key}: {text}: vramguard does not divide the compute of a GPU"),
            Lost::Extra { key, text } => write!(f, "{key}: {text}: vramguard has no such setting"),
            Lost::Choice { key, text } => {
                write!(f, "{key}: {text}: choose nodes by nodeSelector; one GPU of a node cannot be chosen")
            }
            Lost::Queue { name } => write!(f, "queue {name}: use a ResourceQuota on requests.{}", keys::VRAM_RESOURCE),
        }
    }
}

/// Settings of the other projects that a manifest does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assumptions {
    /// Unit of [`keys::ALIYUN_MEMORY`], which is `--memory-unit` of its device plugin.
    pub aliyun: AliyunUnit,
    /// `memoryFactor` of HAMi or Volcano: how many MiB one unit of memory is.
    pub factor: NonZeroU32,
    /// Total memory of one GPU, if all GPUs have the same; shares cannot be converted without it.
    pub gpu: Option<Vram>,
}

impl Default for Assumptions {
    fn default() -> Assumptions {
        Assumptions { aliyun: AliyunUnit::Gib, factor: NonZeroU32::MIN, gpu: None }
    }
}

/// Unit of [`keys::ALIYUN_MEMORY`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AliyunUnit {
    /// GiB, the default.
    #[default]
    Gib,
    /// MiB.
    Mib,
}

/// The largest amount that is taken for the memory of a GPU: 16 TiB. A larger one was written with a unit.
const PLAUSIBLE: Vram = Vram::from_mib(16 << 20);

/// Reads all declarations of a pod, or of a pod template, for other projects, with their default units.
pub fn of_pod(template: &Value) -> Vec<ForeignDeclaration> {
    of_pod_with(template, &Assumptions::default())
}

/// Reads all declarations of a pod, or of a pod template, for other projects.
pub fn of_pod_with(template: &Value, assumptions: &Assumptions) -> Vec<ForeignDeclaration> {
    let containers = containers(template);
    let annotations = template.pointer("/metadata/annotations").and_then(Value::as_object);
    let mut found: Vec<ForeignDeclaration> = Vec::new();
    let kai = annotations.and_then(|annotations| kai(annotations, template, &containers, assumptions));
    found.extend(kai);
    found.extend(annotations.into_iter().flat_map(|annotations| run_ai(annotations, &containers)));
    for container in &containers {
        found.extend(HAMI.of(container, annotations, assumptions));
        found.extend(VOLCANO.of(container, annotations, assumptions));
        found.extend(old_volcano(container));
        found.extend(aliyun(container, assumptions));
    }
    let mut with_gpu: Vec<&str> =
        containers.iter().filter(|container| container.has_gpu()).map(|container| container.name).collect();
    with_gpu.extend(found.iter().filter_map(|declaration| declaration.container.as_deref()));
    with_gpu.sort_unstable();
    with_gpu.dedup();
    let sole = with_gpu.len() == 1;
    found.iter_mut().for_each(|declaration| declaration.sole = sole);
    found
}

/// Whether only the device plugin or scheduler of another project serves this resource name.
pub fn is_foreign_resource(name: &str) -> bool {
    RESOURCES.contains(&name)
}

/// Whether another project reads this annotation, and neither Kubernetes nor vramguard does.
pub fn is_foreign_annotation(name: &str) -> bool {
    ANNOTATIONS.contains(&name) || keys::HAMI_CHOICE.contains(&name)
}

const RESOURCES: [&str; 12] = [
    keys::HAMI_MEMORY,
    keys::HAMI_MEMORY_PERCENTAGE,
    keys::HAMI_CORES,
    keys::HAMI_PRIORITY,
    keys::VOLCANO_MEMORY,
    keys::VOLCANO_MEMORY_PERCENTAGE,
    keys::VOLCANO_CORES,
    keys::VOLCANO_NUMBER,
    keys::VOLCANO_OLD_MEMORY,
    keys::VOLCANO_OLD_NUMBER,
    keys::ALIYUN_MEMORY,
    keys::ALIYUN_COUNT,
];

const ANNOTATIONS: [&str; 5] =
    [keys::KAI_GPU_MEMORY, keys::KAI_GPU_FRACTION, keys::KAI_NUM_DEVICES, keys::KAI_CONTAINER, keys::VOLCANO_MODE];

/// A container of a template, with the lists of its resources.
struct Container<'t> {
    name: &'t str,
    lists: [Option<&'t Map<String, Value>>; 2],
}

impl Container<'_> {
    /// A resource as written. The limit counts, as it does for the other projects.
    fn resource(&self, key: &str) -> Option<String> {
        self.lists.iter().flatten().find_map(|list| list.get(key)).map(text)
    }

    fn has_gpu(&self) -> bool {
        let names = self.lists.iter().flatten().flat_map(|list| list.keys());
        let mut names = names.map(String::as_str);
        names.any(|name| keys::is_gpu_resource(name) || is_foreign_resource(name))
    }

    fn declaration(&self, scheme: Scheme, key: &str, text: String, amount: Amount) -> ForeignDeclaration {
        let (container, key) = (Some(self.name.to_owned()), key.to_owned());
        ForeignDeclaration { scheme, container, key, text, amount, understood: false, sole: false, lost: Vec::new() }
    }
}

type Amount = Result<Vram, NoAmount>;

/// App containers first, then init containers: KAI counts app containers from the first.
fn containers(template: &Value) -> Vec<Container<'_>> {
    let of = |list: &str| template.pointer(list).and_then(Value::as_array).into_iter().flatten();
    let all = of("/spec/containers").chain(of("/spec/initContainers"));
    let named = all.filter_map(|container| Some((container.get("name")?.as_str()?, container)));
    named
        .map(|(name, container)| Container {
            name,
            lists: ["/resources/limits", "/resources/requests"]
                .map(|list| container.pointer(list).and_then(Value::as_object)),
        })
        .collect()
}

/// A scalar as written, without the quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn kai(
    annotations: &Map<String, Value>,
    template: &Value,
    containers: &[Container<'_>],
    assumptions: &Assumptions,
) -> Option<ForeignDeclaration> {
    let memory = annotations.get(keys::KAI_GPU_MEMORY).map(|value| (keys::KAI_GPU_MEMORY, text(value)));
    let fraction = || annotations.get(keys::KAI_GPU_FRACTION).map(|value| (keys::KAI_GPU_FRACTION, text(value)));
    let (key, written) = memory.or_else(fraction)?;
    let amount = match key {
        keys::KAI_GPU_MEMORY => whole(&written, Scheme::Kai, "MiB", 1),
        _ => share(&written, 1.0, "1", assumptions),
    };
    let several = annotations.get(keys::KAI_NUM_DEVICES).map(text).filter(|count| count != "1");
    let amount = several.map_or(amount, |count| Err(NoAmount::SeveralGpus { count }));
    let named = annotations.get(keys::KAI_CONTAINER).map(text);
    let container = match &named {
        Some(name) => containers.iter().find(|container| container.name == name),
        None => containers.first(),
    };
    let amount = match (container, named) {
        (None, Some(name)) => Err(NoAmount::NoSuchContainer { name }),
        _ => amount,
    };
    let queue = template.pointer("/metadata/labels").and_then(|labels| labels.get(keys::KAI_QUEUE)).map(text);
    Some(ForeignDeclaration {
        scheme: Scheme::Kai,
        container: container.map(|container| container.name.to_owned()),
        key: key.to_owned(),
        text: written,
        amount,
        understood: false,
        sole: false,
        lost: queue.map(|name| Lost::Queue { name }).into_iter().collect(),
    })
}

/// The annotations with a quantity for one container, which vramguard reads itself. A request counts before a limit.
fn run_ai(annotations: &Map<String, Value>, containers: &[Container<'_>]) -> Vec<ForeignDeclaration> {
    let of = |container: &Container<'_>| {
        let key = |end: &str| format!("{}{}{end}", keys::FOREIGN_OF, container.name);
        let read = |key: String| annotations.get(&key).map(|value| (key, text(value)));
        let (request, limit) = (read(key(keys::FOREIGN_REQUEST)), read(key(keys::FOREIGN_LIMIT)));
        let bytes = |text: &str| quantity::bytes(text).map(Bytes::vram).filter(|amount| !amount.is_zero());
        let contradicts = match (&request, &limit) {
            (Some((_, request)), Some((key, limit))) if bytes(request) != bytes(limit) => {
                Some(NoAmount::Contradicts { other: format!("{key}: {limit}") })
            }
            _ => None,
        };
        let (key, written) = request.or(limit)?;
        let amount = contradicts.map_or_else(|| bytes(&written).ok_or(NoAmount::NotBytes), Err);
        let declaration = container.declaration(Scheme::Kai, &key, written, amount);
        Some(ForeignDeclaration { understood: true, ..declaration })
    };
    containers.iter().filter_map(of).collect()
}

/// Keys of a project that serves GPUs through HAMi-core.
struct VirtualGpus {
    scheme: Scheme,
    memory: &'static str,
    percentage: &'static str,
    cores: &'static str,
    count: &'static str,
    extra: Option<&'static str>,
    choice: &'static [&'static str],
}

const HAMI: VirtualGpus = VirtualGpus {
    scheme: Scheme::Hami,
    memory: keys::HAMI_MEMORY,
    percentage: keys::HAMI_MEMORY_PERCENTAGE,
    cores: keys::HAMI_CORES,
    count: keys::GPU_RESOURCE,
    extra: Some(keys::HAMI_PRIORITY),
    choice: &keys::HAMI_CHOICE,
};

const VOLCANO: VirtualGpus = VirtualGpus {
    scheme: Scheme::Volcano,
    memory: keys::VOLCANO_MEMORY,
    percentage: keys::VOLCANO_MEMORY_PERCENTAGE,
    cores: keys::VOLCANO_CORES,
    count: keys::VOLCANO_NUMBER,
    extra: None,
    choice: &[keys::VOLCANO_MODE],
};

impl VirtualGpus {
    fn of(
        &self,
        container: &Container<'_>,
        annotations: Option<&Map<String, Value>>,
        assumptions: &Assumptions,
    ) -> Option<ForeignDeclaration> {
        let read = |key: &'static str| container.resource(key).map(|text| (key, text));
        let (memory, share_of) = (read(self.memory), read(self.percentage));
        let (cores, count) = (read(self.cores), read(self.count));
        // The count of HAMi is NVIDIA's own resource, which says nothing about HAMi by itself.
        let counted = count.clone().filter(|(key, _)| is_foreign_resource(key));
        let (key, written) = memory.clone().or(share_of.clone()).or(cores.clone()).or(counted)?;
        let amount = if key == self.memory {
            whole(&written, self.scheme, "MiB", u128::from(assumptions.factor.get()))
        } else if key == self.percentage {
            share(&written, 100.0, "100", assumptions)
        } else {
            Err(NoAmount::Undeclared { scheme: self.scheme })
        };
        let several = count.filter(|(_, count)| quantity::count(count) != Some(1));
        let amount = several.map_or(amount, |(_, count)| Err(NoAmount::SeveralGpus { count }));
        let mut declaration = container.declaration(self.scheme, key, written, amount);
        declaration.lost.push(Lost::HardLimit(self.scheme));
        declaration.lost.extend(cores.map(|(key, text)| Lost::Compute { key: key.to_owned(), text }));
        let extra = self.extra.and_then(read).into_iter().chain(share_of.filter(|_| memory.is_some()));
        declaration.lost.extend(extra.map(|(key, text)| Lost::Extra { key: key.to_owned(), text }));
        let chosen = |key: &&str| Some(((**key).to_owned(), text(annotations?.get(*key)?)));
        let chosen = self.choice.iter().filter_map(chosen);
        declaration.lost.extend(chosen.map(|(key, text)| Lost::Choice { key, text }));
        Some(declaration)
    }
}

/// The resource of Volcano before its vGPUs: several containers share a GPU by it, and nothing enforces it.
fn old_volcano(container: &Container<'_>) -> Option<ForeignDeclaration> {
    let written = container.resource(keys::VOLCANO_OLD_MEMORY)?;
    let amount = whole(&written, Scheme::Volcano, "MiB", 1);
    Some(container.declaration(Scheme::Volcano, keys::VOLCANO_OLD_MEMORY, written, amount))
}

fn aliyun(container: &Container<'_>, assumptions: &Assumptions) -> Option<ForeignDeclaration> {
    let written = container.resource(keys::ALIYUN_MEMORY)?;
    let amount = match assumptions.aliyun {
        AliyunUnit::Gib => whole(&written, Scheme::Aliyun, "GiB", 1024),
        AliyunUnit::Mib => whole(&written, Scheme::Aliyun, "MiB", 1),
    };
    Some(container.declaration(Scheme::Aliyun, keys::ALIYUN_MEMORY, written, amount))
}

/// Reads a number of units of `mib_each` MiB.
fn whole(text: &str, scheme: Scheme, unit: &'static str, mib_each: u128) -> Amount {
    let units = quantity::count(text).filter(|units| *units > 0).ok_or(NoAmount::Malformed { scheme, unit })?;
    let mib = u128::from(units) * mib_each;
    let amount = u64::try_from(mib).ok().and_then(Vram::checked_from_mib).filter(|amount| *amount <= PLAUSIBLE);
    amount.ok_or(NoAmount::Implausible { scheme, unit, mib })
}

/// Reads a share of a GPU, where `whole` stands for all of it. The amount is rounded up to whole MiB.
fn share(text: &str, whole: f64, most: &'static str, assumptions: &Assumptions) -> Amount {
    let share: f64 = text.parse().map_err(|_| NoAmount::BadShare { most })?;
    if !(share > 0.0 && share <= whole) {
        return Err(NoAmount::BadShare { most });
    }
    let gpu = assumptions.gpu.ok_or(NoAmount::NeedsSize)?;
    // A GPU has far fewer MiB than an f64 counts exactly.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let mib = (gpu.mib() as f64 * share / whole).ceil() as u64;
    Ok(Vram::checked_from_mib(mib).expect("at most the memory of the GPU"))
}

#[cfg(test)]
mod tests;
