//! Readings of the GPUs by NVML. Owns the connection to the driver: opening it, what to call and how often, and opening
//! it again after the driver was reloaded. It decides nothing; [`crate::capacity::observation`] does.
//!
//! The library is opened at run time, so the agent starts on a machine without a GPU, and says why it cannot read one.
//!
//! On an H200 with 12 processes, the memory of a GPU costs 0.1 ms of CPU time, each of three lists of processes 0.6 ms,
//! and the utilization of processes 1.5 to 2.8 ms. So each reading asks for the memory, and for the list of processes
//! where that has changed; the rest is asked for less often.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use super::reading::{GpuReading, ProcessReading, Reading};
use crate::capacity::gpu::GpuIndex;
use crate::capacity::name::Name;
use crate::capacity::observation::report::Driver;
use crate::capacity::observation::{GpuMemory, Listing};
use crate::capacity::verdict::Unreadable;
use crate::capacity::vram::Vram;

/// Pause before the driver is opened again: the first value, doubled up to the second while it fails.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Time between two readings of everything but utilization: GPUs, MIG devices and all lists of processes.
const FULL: Duration = Duration::from_secs(10);
/// Time between two readings of utilization. The driver keeps samples for longer.
const UTILIZATION: Duration = Duration::from_secs(20);
/// Attempts at a list of processes. It fails if one starts between the question how many there are and the list.
const ATTEMPTS: usize = 3;
/// The largest number of MIG devices of one GPU. Present GPUs have at most 7.
const MAX_MIG: u32 = 16;

/// The driver of this machine.
#[derive(Debug)]
pub struct Source {
    library: Option<PathBuf>,
    open: Option<Open>,
    /// When the driver may be opened again, and the pause after a further failure.
    retry: Option<(Instant, Duration)>,
    failure: Unreadable,
    /// The GPU at each index. It outlives the connection: a lost GPU does not tell its UUID.
    slots: BTreeMap<u32, Slot>,
}

/// A connection to the driver.
#[derive(Debug)]
struct Open {
    nvml: Nvml,
    driver: Driver,
    /// When everything was read last; `None` before the first reading.
    full: Option<Instant>,
    /// When utilization was read last.
    utilization: Option<Instant>,
}

/// How much a reading asks for.
#[derive(Clone, Copy)]
struct Depth {
    full: bool,
    utilization: bool,
}

/// The GPU at one index.
#[derive(Debug, Default)]
struct Slot {
    /// The GPU itself, or its MIG devices, if it is split into such.
    parts: Vec<Part>,
}

/// A GPU or a MIG device, and what was read of it before.
#[derive(Debug)]
struct Part {
    /// Index of a MIG device on its GPU; `None` for the GPU itself.
    mig: Option<u32>,
    uuid: Name,
    product: String,
    /// Bytes in use at the last list of processes.
    used: Option<u64>,
    compute: Listed,
    /// The processes in the other lists.
    others: BTreeMap<u32, Option<Vram>>,
    mps: bool,
    /// Time of the newest sample of utilization, in the driver's microseconds.
    sampled: u64,
}

/// The processes in a list, with the memory of each.
type Listed = Result<BTreeMap<u32, Option<Vram>>, Unreadable>;

impl Source {
    /// A driver whose library is at `library`, or at the usual place. It is opened at the first reading.
    pub fn new(library: Option<PathBuf>) -> Source {
        Source { library, open: None, retry: None, failure: Unreadable::NoDriver, slots: BTreeMap::new() }
    }

    /// Reads all GPUs.
    ///
    /// # Errors
    /// The driver as a whole cannot be read. It is opened again at a later call.
    pub fn read(&mut self) -> Result<Reading, Unreadable> {
        if self.open.is_none() {
            if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
                return Err(self.failure.clone());
            }
            match self.connect() {
                Ok(open) => self.open = Some(open),
                Err(error) => return Err(self.close(reason(&error))),
            }
        }
        let open = self.open.as_mut().expect("opened above");
        match open.read(&mut self.slots) {
            Ok(reading) => {
                self.retry = None;
                Ok(reading)
            }
            Err(why) => Err(self.close(why)),
        }
    }

    fn connect(&self) -> Result<Open, NvmlError> {
        let library = self.library.as_ref().map_or(OsStr::new("libnvidia-ml.so.1"), |library| library.as_os_str());
        let nvml = Nvml::builder().lib_path(library).init()?;
        let version = nvml.sys_driver_version()?;
        let cuda = nvml.sys_cuda_driver_version().ok();
        let cuda = cuda.map(|cuda| format!("{}.{}", cuda_driver_version_major(cuda), cuda_driver_version_minor(cuda)));
        let driver = Driver { version: version.into(), cuda: cuda.map(Name::from) };
        Ok(Open { nvml, driver, full: None, utilization: None })
    }

    /// Closes the driver, and opens it again after a pause.
    fn close(&mut self, why: Unreadable) -> Unreadable {
        self.open = None;
        let pause = self.retry.map_or(BACK_OFF.0, |(_, pause)| (pause * 2).min(BACK_OFF.1));
        self.retry = Some((Instant::now() + pause, pause));
        self.failure = why.clone();
        why
    }
}

impl Open {
    fn read(&mut self, slots: &mut BTreeMap<u32, Slot>) -> Result<Reading, Unreadable> {
        let due = |last: Option<Instant>, every: Duration| last.is_none_or(|last| last.elapsed() >= every);
        let depth = Depth { full: due(self.full, FULL), utilization: due(self.utilization, UTILIZATION) };
        let count = match depth.full {
            true => self.nvml.device_count().map_err(|error| reason(&error))?,
            false => slots.keys().next_back().map_or(0, |last| last + 1),
        };
        slots.retain(|index, _| *index < count);
        let mut gpus = Vec::new();
        for index in 0..count {
            let slot = slots.entry(index).or_default();
            let handle = self.nvml.device_by_index(index);
            let found =
                handle.and_then(|device| if depth.full { slot.refresh(&device).map(|()| device) } else { Ok(device) });
            match found {
                Ok(device) => gpus.extend(slot.read(&device, index, depth)),
                Err(error) => gpus.extend(slot.lost(index, &reason(&error))),
            }
        }
        // If nothing can be read of any GPU, the driver itself may have been reloaded under this process.
        let dead = |gpu: &GpuReading| matches!(&gpu.memory, Err(Unreadable::NoDriver | Unreadable::Other(_)));
        if let Some(GpuReading { memory: Err(why), .. }) = gpus.first()
            && gpus.iter().all(dead)
        {
            return Err(why.clone());
        }
        let now = Instant::now();
        self.full = if depth.full { Some(now) } else { self.full };
        self.utilization = if depth.utilization { Some(now) } else { self.utilization };
        Ok(Reading { driver: Some(self.driver.clone()), gpus, full: depth.full })
    }
}

impl Slot {
    /// Reads which GPU is there, and how it is split. What was read before of the same parts is kept.
    fn refresh(&mut self, device: &Device<'_>) -> Result<(), NvmlError> {
        let uuid = device.uuid()?;
        let product = device.name().unwrap_or_default();
        let mut before: BTreeMap<Name, Part> = self.parts.drain(..).map(|part| (part.uuid.clone(), part)).collect();
        let mut part = |mig: Option<u32>, uuid: String, product: String| {
            let known = before.remove(uuid.as_str());
            let part = known.unwrap_or_else(|| Part::new(uuid.as_str().into()));
            Part { mig, product, ..part }
        };
        if device.mig_mode().is_ok_and(|mode| mode.current == 1) {
            let places = device.mig_device_count().unwrap_or_default().min(MAX_MIG);
            for place in 0..places {
                let Ok(mig) = device.mig_device_by_index(place) else { continue };
                let name = mig.name().unwrap_or_else(|_| product.clone());
                self.parts.extend(mig.uuid().ok().map(|uuid| part(Some(place), uuid, name)));
            }
        } else {
            self.parts.push(part(None, uuid, product));
        }
        Ok(())
    }

    fn read(&mut self, device: &Device<'_>, index: u32, depth: Depth) -> Vec<GpuReading> {
        let read = |part: &mut Part| match part.mig.map(|place| device.mig_device_by_index(place)) {
            None => part.read(device, index, depth),
            Some(Ok(mig)) => part.read(&mig, index, depth),
            Some(Err(error)) => part.lost(index, &reason(&error)),
        };
        self.parts.iter_mut().map(read).collect()
    }

    /// The parts of a GPU of which nothing can be read.
    fn lost(&self, index: u32, why: &Unreadable) -> Vec<GpuReading> {
        if self.parts.is_empty() {
            return vec![Part::new(Name::default()).lost(index, why)];
        }
        self.parts.iter().map(|part| part.lost(index, why)).collect()
    }
}

impl Part {
    fn new(uuid: Name) -> Part {
        let (compute, others) = (Ok(BTreeMap::new()), BTreeMap::new());
        Part { mig: None, uuid, product: String::new(), used: None, compute, others, mps: false, sampled: 0 }
    }

    /// What is read of this part of the GPU at `index`.
    fn reading(
        &self,
        index: u32,
        memory: Result<GpuMemory, Unreadable>,
        processes: Listing<ProcessReading>,
    ) -> GpuReading {
        GpuReading {
            uuid: self.uuid.clone(),
            index: GpuIndex { gpu: index, mig: self.mig },
            product: self.product.clone(),
            mig: self.mig.is_some(),
            mps: self.mps,
            memory,
            processes,
        }
    }

    fn lost(&self, index: u32, why: &Unreadable) -> GpuReading {
        let unreadable = self.reading(index, Err(why.clone()), Listing::Unreadable(why.clone()));
        GpuReading { mps: false, ..unreadable }
    }

    fn read(&mut self, device: &Device<'_>, index: u32, depth: Depth) -> GpuReading {
        let info = device.memory_info();
        // A process that starts, ends, takes or gives memory changes what is in use.
        let used = info.as_ref().ok().map(|info| info.used);
        if depth.full || used != self.used || self.compute.is_err() {
            self.compute = list(|| device.running_compute_processes()).map(amounts).map_err(|error| reason(&error));
            self.used = used;
        }
        if depth.full {
            self.list_others(device);
        }
        let memory = info.map_err(|error| reason(&error)).and_then(|memory| {
            let size = |bytes: u64| Vram::from_bytes_rounded_up(bytes.into());
            let sizes = size(memory.total).zip(size(memory.reserved)).zip(size(memory.used));
            let sizes = sizes.map(|((total, reserved), used)| GpuMemory { total, reserved: Some(reserved), used });
            sizes.ok_or_else(|| Unreadable::Other("a size of memory that no GPU has".to_owned()))
        });
        let used_by = if depth.utilization { self.utilization(device) } else { None };
        let processes: Result<Vec<ProcessReading>, Unreadable> = self.compute.clone().map(|mut all| {
            // A process that computes and draws is in two lists with the same amount.
            for (pid, memory) in &self.others {
                let known = all.entry(*pid).or_default();
                *known = (*known).max(*memory);
            }
            let one = |(pid, memory): (u32, Option<Vram>)| {
                // The driver has no sample of a process that did nothing.
                let utilization = used_by.as_ref().map(|of| of.get(&pid).copied().unwrap_or(0));
                ProcessReading { pid, memory, utilization }
            };
            all.into_iter().map(one).collect()
        });
        self.reading(index, memory, processes.into())
    }

    /// Reads the lists of processes that draw, and of clients of MPS. A GPU without a display engine, and a MIG device,
    /// have no such lists.
    fn list_others(&mut self, device: &Device<'_>) {
        let clients = list(|| device.mps_running_compute_processes()).unwrap_or_default();
        let drawing = list(|| device.running_graphics_processes()).unwrap_or_default();
        self.mps = !clients.is_empty();
        self.others = amounts(clients.into_iter().chain(drawing));
    }

    /// Utilization of the SMs since the last question, in percent, by process; `None` if the driver does not tell. A
    /// process with several samples has the largest one.
    fn utilization(&mut self, device: &Device<'_>) -> Option<BTreeMap<u32, u32>> {
        match device.process_utilization_stats(self.sampled) {
            Ok(samples) => {
                let newest = samples.iter().map(|sample| sample.timestamp).max().unwrap_or_default();
                self.sampled = self.sampled.max(newest);
                let mut largest = BTreeMap::new();
                for sample in samples {
                    let known: &mut u32 = largest.entry(sample.pid).or_default();
                    *known = sample.sm_util.max(*known);
                }
                Some(largest)
            }
            // There is no sample since then: no process was there.
            Err(NvmlError::NotFound) => Some(BTreeMap::new()),
            Err(_) => None,
        }
    }
}

/// The memory of each process in some lists.
fn amounts(listed: impl IntoIterator<Item = ProcessInfo>) -> BTreeMap<u32, Option<Vram>> {
    let mut all: BTreeMap<u32, Option<Vram>> = BTreeMap::new();
    for process in listed {
        let memory = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Vram::from_bytes_rounded_up(bytes.into()),
            UsedGpuMemory::Unavailable => None,
        };
        let known = all.entry(process.pid).or_default();
        *known = (*known).max(memory);
    }
    all
}

fn list(call: impl Fn() -> Result<Vec<ProcessInfo>, NvmlError>) -> Result<Vec<ProcessInfo>, NvmlError> {
    let mut listed = call();
    for _ in 1..ATTEMPTS {
        match listed {
            Err(NvmlError::InsufficientSize(_)) => listed = call(),
            other => return other,
        }
    }
    listed
}

/// Why NVML could not read something.
fn reason(error: &NvmlError) -> Unreadable {
    match error {
        NvmlError::LibloadingError(error) => Unreadable::NoLibrary(error.to_string()),
        NvmlError::LibraryNotFound => Unreadable::NoLibrary("not found".to_owned()),
        NvmlError::DriverNotLoaded => Unreadable::NoDriver,
        NvmlError::LibRmVersionMismatch => Unreadable::VersionMismatch,
        NvmlError::NoPermission | NvmlError::OperatingSystem => Unreadable::NoPermission,
        NvmlError::GpuLost => Unreadable::Lost,
        NvmlError::ResetRequired => Unreadable::NeedsReset,
        NvmlError::Timeout => Unreadable::Silent,
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => {
            Unreadable::NotSupported
        }
        other => Unreadable::Other(other.to_string()),
    }
}
