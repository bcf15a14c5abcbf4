//! What a DCGM exporter prints → the GPUs of its node. Owns which metrics and labels are read, and what counts as the amount
//! of a GPU; the sums are those of [`crate::capacity::observation`].
//!
//! The format is the text format of Prometheus. The exporter prints one line for each GPU or MIG device and metric. Where it
//! also names pods, a line has the amount of the whole GPU and the pod that has it; with `--kubernetes-virtual-gpus` it
//! repeats that line for each pod, and newer versions print the use of each pod next to the line of the GPU. That use is
//! not read, because the exporter prints zero for it where it could not read it.

use std::collections::BTreeMap;

use crate::capacity::name::Name;
use crate::capacity::observation::GpuMemory;
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;
use crate::k8s::node::MAX_GPU;

/// The longest line that is read, in bytes. A line of the exporter has some 600, and more with the labels of a pod.
pub const MAX_LINE: usize = 64 << 10;
/// The most GPUs and MIG devices of one exporter. Present machines have at most 16 GPUs with 7 MIG devices each.
pub const MAX_GPUS: usize = 256;
/// The longest text of a label that is kept, in characters.
const MAX_TEXT: usize = 64;

/// The metrics that are read. All are in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Metric {
    Used,
    Free,
    Reserved,
    Total,
}

impl Metric {
    const ALL: [Metric; 4] = [Metric::Used, Metric::Free, Metric::Reserved, Metric::Total];

    fn name(self) -> &'static str {
        match self {
            Metric::Used => "DCGM_FI_DEV_FB_USED",
            Metric::Free => "DCGM_FI_DEV_FB_FREE",
            Metric::Reserved => "DCGM_FI_DEV_FB_RESERVED",
            Metric::Total => "DCGM_FI_DEV_FB_TOTAL",
        }
    }
}

/// What an exporter told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposition {
    /// Version of the driver; `None` if it is not among the labels.
    pub driver: Option<Name>,
    /// The GPUs, and in place of a GPU with MIG its MIG devices, by index.
    pub gpus: Vec<ExportedGpu>,
}

/// One GPU, or one MIG device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedGpu {
    /// UUID of the GPU; empty for a MIG device, of which the exporter tells only the UUID of its GPU.
    pub uuid: Name,
    /// Index of the GPU.
    pub index: u32,
    /// Its product name, with the profile of a MIG device; empty if not told.
    pub product: String,
    /// Whether it is a MIG device.
    pub mig: bool,
    /// Its memory.
    pub memory: Result<GpuMemory, Unreadable>,
}

/// A reading that takes the text in pieces, as they arrive.
#[derive(Debug, Default)]
pub struct Scan {
    /// The start of a line whose end has not arrived.
    rest: Vec<u8>,
    lines: u64,
    driver: Option<Name>,
    found: BTreeMap<Key, Found>,
}

/// The UUID of a GPU, and the id of its GPU instance for a MIG device.
type Key = (String, Option<String>);

/// What was found of one GPU.
#[derive(Debug, Default)]
struct Found {
    index: u32,
    product: String,
    /// The value of each metric in lines of the whole GPU, and in lines that name a pod.
    values: BTreeMap<(Metric, Whose), Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Gpu,
    Pod,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Mib(f64),
    /// No amount, as it is written.
    Not(String),
    /// Several values of what should have one. Which ones is not kept: a reason that changes with each reading would be
    /// written each time.
    Several,
}

impl Scan {
    /// Reads the next piece.
    ///
    /// # Errors
    /// It is not what an exporter prints.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), Unreadable> {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&piece[..end], &piece[end + 1..]);
            if self.rest.is_empty() {
                self.line(line)?;
            } else {
                self.keep(line)?;
                let whole = std::mem::take(&mut self.rest);
                self.line(&whole)?;
            }
            piece = rest;
        }
        self.keep(piece)
    }

    /// The GPUs, once all pieces were read.
    ///
    /// # Errors
    /// No GPU was among them, or the last line is not what an exporter prints.
    pub fn finish(mut self) -> Result<Exposition, Unreadable> {
        let last = std::mem::take(&mut self.rest);
        self.line(&last)?;
        if self.found.is_empty() {
            let (used, free) = (Metric::Used.name(), Metric::Free.name());
            return Err(bad(format!("it prints neither {used} nor {free} of any GPU")));
        }
        let split: Vec<String> =
            self.found.keys().filter(|(_, instance)| instance.is_some()).map(|(gpu, _)| gpu.clone()).collect();
        let whole_or_part = |(uuid, instance): &Key| instance.is_some() || !split.contains(uuid);
        let found = self.found.into_iter().filter(|(key, _)| whole_or_part(key));
        let mut gpus: Vec<(u64, ExportedGpu)> = found.map(|(key, found)| (place(&key), found.gpu(key))).collect();
        gpus.sort_by_key(|(place, gpu)| (gpu.index, *place));
        Ok(Exposition { driver: self.driver, gpus: gpus.into_iter().map(|(_, gpu)| gpu).collect() })
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), Unreadable> {
        if self.rest.len() + part.len() > MAX_LINE {
            return Err(too_long(self.lines + 1));
        }
        self.rest.extend_from_slice(part);
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Unreadable> {
        self.lines += 1;
        if line.len() > MAX_LINE {
            return Err(too_long(self.lines));
        }
        let is_of = |metric: &Metric| line.starts_with(metric.name().as_bytes());
        if !Metric::ALL.iter().any(is_of) {
            return Ok(());
        }
        let number = self.lines;
        let at = |why: String| bad(format!("line {number}: {why}"));
        let line = std::str::from_utf8(line).map_err(|_| at("it is no text in UTF-8".to_owned()))?;
        let Some(sample) = sample(line).map_err(at)? else { return Ok(()) };
        let label = |name: &str| sample.labels.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let uuid = label("UUID").or(label("uuid")).ok_or_else(|| at("it has no label UUID".to_owned()))?;
        if !is_uuid(uuid) {
            return Err(at(format!("{:?} is no UUID of a GPU", cut(uuid))));
        }
        let index = label("gpu").and_then(|text| text.parse::<u16>().ok());
        let index = index.ok_or_else(|| at("its label gpu is no index of a GPU".to_owned()))?;
        let key = (uuid.to_owned(), label("GPU_I_ID").map(cut));
        if self.found.len() >= MAX_GPUS && !self.found.contains_key(&key) {
            return Err(at(format!("it is about more than {MAX_GPUS} GPUs")));
        }
        if self.driver.is_none() {
            self.driver = label("DCGM_FI_DRIVER_VERSION").map(|version| cut(version).into());
        }
        let names_pod = ["pod", "pod_name"].iter().any(|name| label(name).is_some());
        let whose = if names_pod { Whose::Pod } else { Whose::Gpu };
        let product = [label("modelName"), label("GPU_I_PROFILE").map(|_| "MIG"), label("GPU_I_PROFILE")];
        let found = self.found.entry(key).or_default();
        found.index = index.into();
        found.product = product.into_iter().flatten().map(cut).collect::<Vec<_>>().join(" ");
        let value = Value::read(sample.value);
        let known = found.values.entry((sample.metric, whose)).or_insert_with(|| value.clone());
        // The same line may be there for each pod or job on the GPU.
        if *known != value {
            *known = Value::Several;
        }
        Ok(())
    }
}

impl Found {
    fn gpu(&self, (uuid, instance): Key) -> ExportedGpu {
        let mig = instance.is_some();
        let uuid = if mig { Name::default() } else { uuid.into() };
        ExportedGpu { uuid, index: self.index, product: self.product.clone(), mig, memory: self.memory() }
    }

    fn memory(&self) -> Result<GpuMemory, Unreadable> {
        let missing = |metric: Metric| bad(format!("it prints no {} of this GPU", metric.name()));
        let used = self.amount(Metric::Used)?.ok_or_else(|| missing(Metric::Used))?;
        let free = self.amount(Metric::Free)?.ok_or_else(|| missing(Metric::Free))?;
        let (reserved, total) = (self.amount(Metric::Reserved)?, self.amount(Metric::Total)?);
        let memory = GpuMemory::of_parts(used, free, reserved, total).filter(|memory| memory.total <= MAX_GPU);
        memory.ok_or_else(|| bad("its amounts for this GPU contradict each other".to_owned()))
    }

    fn amount(&self, metric: Metric) -> Result<Option<Vram>, Unreadable> {
        // A line that names a pod may have the use of that pod alone.
        let value = |whose| self.values.get(&(metric, whose));
        let Some(value) = value(Whose::Gpu).or(value(Whose::Pod)) else { return Ok(None) };
        let name = metric.name();
        match value {
            Value::Mib(mib) => {
                // What is taken is rounded up, and what there is, down.
                let whole = if matches!(metric, Metric::Used | Metric::Reserved) { mib.ceil() } else { mib.floor() };
                let size = Vram::checked_from_mib(whole as u64).filter(|size| *size <= MAX_GPU);
                size.map(Some).ok_or_else(|| bad(format!("{name} is more than any GPU has")))
            }
            Value::Not(text) => Err(bad(format!("{name} is {text:?}, which is no amount"))),
            Value::Several => Err(bad(format!("it prints {name} of this GPU with different values"))),
        }
    }
}

impl Value {
    fn read(text: &str) -> Value {
        match text.parse::<f64>() {
            Ok(mib) if mib.is_finite() && mib >= 0.0 => Value::Mib(mib),
            Ok(_) | Err(_) => Value::Not(cut(text)),
        }
    }
}

/// One line with a value.
struct Sample<'l> {
    metric: Metric,
    labels: BTreeMap<&'l str, String>,
    value: &'l str,
}

/// Reads a line that begins with the name of a metric; `None` if the name goes on, as in `DCGM_FI_DEV_FB_USED_PERCENT`.
fn sample(line: &str) -> Result<Option<Sample<'_>>, String> {
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(line.len());
    let (name, mut rest) = line.split_at(end);
    let Some(metric) = Metric::ALL.into_iter().find(|metric| metric.name() == name) else { return Ok(None) };
    let mut labels = BTreeMap::new();
    rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = read_labels(inner, &mut labels)?;
    }
    // The value may be followed by a time, which is not read.
    let value = rest.split_ascii_whitespace().next().ok_or_else(|| format!("{name} has no value"))?;
    Ok(Some(Sample { metric, labels, value }))
}

/// Reads labels up to the closing brace, and returns what follows it.
fn read_labels<'l>(mut rest: &'l str, labels: &mut BTreeMap<&'l str, String>) -> Result<&'l str, String> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, quoted) = rest.split_once('=').ok_or("its labels do not end")?;
        let quoted = quoted.strip_prefix('"').ok_or_else(|| format!("label {:?} is not in quotes", cut(name)))?;
        let (mut text, mut escaped, mut end) = (String::new(), false, None);
        for (at, c) in quoted.char_indices() {
            match (escaped, c) {
                (true, 'n') => text.push('\n'),
                (true, other) => text.push(other),
                (false, '"') => {
                    end = Some(at + 1);
                    break;
                }
                (false, '\\') => {}
                (false, other) => text.push(other),
            }
            escaped = !escaped && c == '\\';
        }
        let end = end.ok_or_else(|| format!("label {:?} has no closing quote", cut(name)))?;
        labels.insert(name.trim(), text);
        rest = &quoted[end..];
    }
}

/// Whether the API server takes a text as the UUID of a GPU.
fn is_uuid(text: &str) -> bool {
    let rest = text.strip_prefix("GPU-").unwrap_or_default();
    text.len() <= 128 && !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '/')
}

/// The place of a MIG device among those of its GPU.
fn place((_, instance): &Key) -> u64 {
    instance.as_ref().and_then(|id| id.parse().ok()).unwrap_or_default()
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn too_long(line: u64) -> Unreadable {
    bad(format!("line {line} has more than {} KiB", MAX_LINE >> 10))
}

fn bad(why: String) -> Unreadable {
    Unreadable::BadExposition(why)
}

#[cfg(test)]
mod tests;
