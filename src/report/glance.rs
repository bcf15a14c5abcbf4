//! What `vramguard agent --once` prints: the GPUs of one machine and who uses them, as a table and as JSON. Owns the JSON
//! contract of that command.

use std::fmt::Write;

use serde::Serialize;

use super::plan::columns;
use super::text::{clean, count};
use crate::capacity::gpu::GpuIndex;
use crate::capacity::node::inventory::Source;
use crate::capacity::observation::report::Driver;
use crate::capacity::observation::{GpuLook, Owner, Process};
use crate::capacity::verdict::{GLANCE_NOT_TOLD, MIG_NOT_TOLD};
use crate::capacity::vram::Vram;

/// Version of the JSON contract.
const SCHEMA_VERSION: u32 = 1;

/// The GPUs of one machine at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Glance {
    schema_version: u32,
    /// Where the GPUs were read: `NVML` or `DCGMExporter`.
    source: &'static str,
    /// Absent if the source does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver_version: Option<String>,
    /// Absent if the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda_version: Option<String>,
    gpus: Vec<GpuRow>,
    /// What the source never tells; absent if it tells all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_told: Option<&'static str>,
    /// What the columns leave out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<String>,
}

/// One GPU, or one MIG device.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GpuRow {
    /// Index of the GPU, or of the GPU that the MIG device is a part of.
    index: u32,
    /// Index of the MIG device on its GPU; absent for a GPU, and if the source does not tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mig_index: Option<u32>,
    uuid: String,
    product: String,
    mig: bool,
    mps: bool,
    /// All its memory; absent if unreadable, as the next two.
    #[serde(rename = "totalMiB", skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// What the driver keeps of it; absent also if the source does not tell.
    #[serde(rename = "reservedMiB", skip_serializing_if = "Option::is_none")]
    reserved: Option<u64>,
    /// What is in use, without that.
    #[serde(rename = "usedMiB", skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    /// Its processes; absent if unreadable, or if the source does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<Vec<ProcessRow>>,
}

/// One process on one GPU.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessRow {
    pid: u32,
    program: String,
    /// Uid of the pod; absent if the process is in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<String>,
    /// Id of the container; absent if the process is in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    container_id: Option<String>,
    /// Memory that it uses; absent if the driver does not tell.
    #[serde(rename = "usedMiB", skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    /// Whether it computed a moment ago; absent if the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    busy: Option<bool>,
    /// Utilization of the SMs by this process, in percent; absent if the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    sm_percent: Option<u32>,
}

/// What is known of a process beside its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its id.
    pub pid: u32,
    /// Name of its program; empty if it has ended.
    pub name: String,
    /// Id of its container; empty if it is in none.
    pub container: String,
    /// Utilization of the SMs by it, in percent; `None` if the driver does not tell.
    pub utilization: Option<u32>,
}

impl Glance {
    /// Makes the report. `gpus` are the GPUs, with the product name of each and the programs of its processes.
    pub fn new<'g>(
        source: Source,
        driver: Option<&Driver>,
        gpus: impl IntoIterator<Item = (&'g GpuLook, &'g str, &'g [Program])>,
    ) -> Glance {
        let mut glance = Glance {
            schema_version: SCHEMA_VERSION,
            source: match source {
                Source::Driver => "NVML",
                Source::DcgmExporter => "DCGMExporter",
            },
            driver_version: driver.map(|driver| driver.version.to_string()),
            cuda_version: driver.and_then(|driver| driver.cuda.as_ref()).map(ToString::to_string),
            gpus: Vec::new(),
            not_told: (!source.tells_processes()).then_some(GLANCE_NOT_TOLD),
            unreadable: Vec::new(),
        };
        for (gpu, product, programs) in gpus {
            let memory = gpu.memory.as_ref().ok();
            let mut unreadable = |what: &str, why: &dyn std::fmt::Display| {
                glance.unreadable.push(format!("GPU {} ({}): {what}: {why}", gpu.index, known(&gpu.uuid)));
            };
            match (gpu.memory.as_ref().err(), gpu.processes.unreadable()) {
                (Some(memory), Some(processes)) if memory == processes => unreadable("memory and processes", memory),
                (memory, processes) => {
                    memory.into_iter().for_each(|why| unreadable("memory", why));
                    processes.into_iter().for_each(|why| unreadable("processes", why));
                }
            }
            if gpu.mig && gpu.uuid.is_empty() && !source.tells_processes() {
                unreadable("UUID", &MIG_NOT_TOLD);
            }
            let listed = gpu.processes.listed();
            glance.gpus.push(GpuRow {
                index: gpu.index.gpu,
                mig_index: gpu.index.mig,
                uuid: gpu.uuid.to_string(),
                product: clean(product),
                mig: gpu.mig,
                mps: gpu.mps,
                total: memory.map(|memory| memory.total.mib()),
                reserved: memory.and_then(|memory| memory.reserved).map(Vram::mib),
                used: memory.map(|memory| memory.used.mib()),
                processes: listed.map(|listed| listed.iter().zip(programs).map(row).collect()),
            });
        }
        glance
    }

    /// The report for programs.
    pub fn json(&self) -> String {
        super::json::pretty(self)
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let mut text = match &self.driver_version {
            Some(version) => format!("driver {version}"),
            None => "driver ?".to_owned(),
        };
        let _ = self.cuda_version.as_ref().map_or(Ok(()), |cuda| write!(text, ", CUDA {cuda}"));
        let _ = writeln!(text, ", {}\n", count(self.gpus.len() as u64, "GPU"));
        let head = ["GPU", "UUID", "PRODUCT", "TOTAL", "RESERVED", "USED", "PROCESSES"];
        let amount = |mib: Option<u64>| mib.map_or_else(|| "?".to_owned(), |mib| format!("{mib}Mi"));
        // What the source does not tell is not what it failed to tell.
        let reserved = |gpu: &GpuRow| match (gpu.total, gpu.reserved) {
            (Some(_), None) => "-".to_owned(),
            (_, reserved) => amount(reserved),
        };
        let processes = |gpu: &GpuRow| match &gpu.processes {
            Some(listed) => listed.len().to_string(),
            None if self.not_told.is_some() => "-".to_owned(),
            None => "?".to_owned(),
        };
        let rows = self.gpus.iter().map(|gpu| {
            let sharing = match gpu {
                GpuRow { mig: true, mig_index: None, .. } => " (MIG)",
                GpuRow { mps: true, .. } => " (MPS)",
                _ => "",
            };
            vec![
                format!("{}{sharing}", gpu.place()),
                known(&gpu.uuid).to_owned(),
                gpu.product.clone(),
                amount(gpu.total),
                reserved(gpu),
                amount(gpu.used),
                processes(gpu),
            ]
        });
        columns(&mut text, &head, rows.collect(), &[3, 4, 5, 6]);
        let processes =
            self.gpus.iter().flat_map(|gpu| gpu.processes.iter().flatten().map(move |one| (gpu.place(), one)));
        let rows: Vec<Vec<String>> = processes
            .map(|(place, process)| {
                let pod = process.pod_uid.as_deref().unwrap_or("no pod");
                let container = process.container_id.as_deref().unwrap_or("-").chars().take(12).collect();
                let busy = match process.busy {
                    Some(true) => "computes",
                    Some(false) => "idle",
                    None => "?",
                };
                let percent = process.sm_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"));
                let program = process.program.clone();
                let (place, pid, used) = (place.to_string(), process.pid.to_string(), amount(process.used));
                vec![place, pid, program, used, busy.to_owned(), percent, pod.to_owned(), container]
            })
            .collect();
        if !rows.is_empty() {
            text.push('\n');
            let head = ["GPU", "PID", "PROGRAM", "USED", "STATE", "SM", "POD UID", "CONTAINER"];
            columns(&mut text, &head, rows, &[0, 1, 3, 5]);
        }
        for line in self.not_told.into_iter().chain(self.unreadable.iter().map(String::as_str)) {
            let _ = write!(text, "\n{line}\n");
        }
        text
    }
}

impl GpuRow {
    fn place(&self) -> GpuIndex {
        GpuIndex { gpu: self.index, mig: self.mig_index }
    }
}

fn row((process, program): (&Process, &Program)) -> ProcessRow {
    let pod = match &process.owner {
        Owner::Container { pod, .. } | Owner::Arriving(pod) | Owner::Departed(pod) => Some(pod.to_string()),
        Owner::Outside => None,
    };
    ProcessRow {
        pid: program.pid,
        program: clean(&program.name),
        pod_uid: pod,
        container_id: Some(program.container.clone()).filter(|id| !id.is_empty()),
        used: process.memory.map(Vram::mib),
        busy: process.busy,
        sm_percent: program.utilization,
    }
}

/// A UUID, or a sign that it could not be read.
fn known(uuid: &str) -> &str {
    if uuid.is_empty() { "?" } else { uuid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::observation::{GpuMemory, Listing};
    use crate::capacity::verdict::Unreadable;

    fn glance() -> Glance {
        let mib = Vram::from_mib;
        let process = |owner, memory| Process { owner, memory: Some(mib(memory)), busy: Some(true) };
        let first = GpuLook {
            uuid: "GPU-3e095815".into(),
            index: 0.into(),
            mig: false,
            mps: false,
            memory: Ok(GpuMemory { total: mib(81_559), reserved: Some(mib(480)), used: mib(9_374) }),
            processes: Listing::Listed(vec![
                process(Owner::Arriving("0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e".into()), 8_868),
                Process { memory: None, busy: None, ..process(Owner::Outside, 0) },
            ]),
        };
        let lost = GpuLook {
            uuid: "".into(),
            index: 1.into(),
            memory: Err(Unreadable::Lost),
            processes: Listing::Unreadable(Unreadable::Lost),
            ..first.clone()
        };
        let programs = [
            Program {
                pid: 20_144,
                name: "python3".into(),
                container: "4c01db0b339c4de2a3f07ee2".into(),
                utilization: Some(97),
            },
            Program { pid: 7, name: "Xorg\u{1b}[31m".into(), container: String::new(), utilization: None },
        ];
        let driver = Driver { version: "580.159.04".into(), cuda: Some("13.0".into()) };
        Glance::new(Source::Driver, Some(&driver), [(&first, "NVIDIA H100", &programs[..]), (&lost, "", &[])])
    }

    #[test]
    fn a_table_shows_gpus_processes_and_what_could_not_be_read() {
        insta::assert_snapshot!(glance().table(), @r"
        driver 580.159.04, CUDA 13.0, 2 GPUs

        GPU  UUID          PRODUCT        TOTAL  RESERVED    USED  PROCESSES
        0    GPU-3e095815  NVIDIA H100  81559Mi     480Mi  9374Mi          2
        1    ?                                ?         ?       ?          ?

        GPU    PID  PROGRAM           USED  STATE      SM  POD UID                               CONTAINER
          0  20144  python3         8868Mi  computes  97%  0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e  4c01db0b339c
          0      7  Xorg\u{1b}[31m       ?  ?           -  no pod                                -

        GPU 1 (?): memory and processes: the GPU fell off the bus; its pods have lost it, and it comes back with a restart of the machine
        ");
    }

    #[test]
    fn what_is_unreadable_is_absent_from_the_json_and_never_zero() {
        let read: serde_json::Value = serde_json::from_str(&glance().json()).unwrap();
        let lost = read["gpus"][1].as_object().unwrap();
        assert!(["totalMiB", "reservedMiB", "usedMiB", "processes"].iter().all(|field| !lost.contains_key(*field)));
        assert_eq!(read["gpus"][0]["processes"][0]["usedMiB"], 8_868);
        assert_eq!(read["gpus"][0]["processes"][0]["smPercent"], 97);
        assert!(["usedMiB", "smPercent"].iter().all(|field| read["gpus"][0]["processes"][1].get(*field).is_none()));
        assert_eq!(read["unreadable"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_source_without_processes_says_so_and_shows_neither_zero_nor_an_error() {
        let mib = Vram::from_mib;
        let gpu = GpuLook {
            uuid: "GPU-3e095815".into(),
            index: 0.into(),
            mig: false,
            mps: false,
            memory: Ok(GpuMemory { total: mib(81_079), reserved: None, used: mib(9_374) }),
            processes: Listing::NotTold,
        };
        let seen = Glance::new(Source::DcgmExporter, None, [(&gpu, "NVIDIA H100", &[][..])]);
        insta::assert_snapshot!(seen.table(), @r"
        driver ?, 1 GPU

        GPU  UUID          PRODUCT        TOTAL  RESERVED    USED  PROCESSES
        0    GPU-3e095815  NVIDIA H100  81079Mi         -  9374Mi          -

        read from a DCGM exporter: it does not tell the processes of a GPU, nor whether MPS runs on it
        ");
        let read: serde_json::Value = serde_json::from_str(&seen.json()).unwrap();
        assert_eq!((&read["source"], &read["gpus"][0]["totalMiB"]), (&"DCGMExporter".into(), &81_079.into()));
        assert!(read["notTold"].as_str().is_some_and(|text| text.contains("DCGM exporter")));
        let absent = ["reservedMiB", "processes"];
        assert!(absent.iter().all(|field| read["gpus"][0].get(*field).is_none()) && read.get("unreadable").is_none());
    }
}
