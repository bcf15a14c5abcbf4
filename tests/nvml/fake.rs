//! A stand-in for the driver's library, `libnvidia-ml.so.1`, which the tests of the node agent compile and load by path.
//!
//! The file that `VRAMGUARD_FAKE_NVML` names says what there is. It is read at the start of each look, so a test changes
//! the hardware by writing it. Its lines:
//!
//! ```text
//! driver VERSION                       version of the driver
//! init CODE | count CODE               nvmlInit or nvmlDeviceGetCount fail with this code
//! hang MILLISECONDS                    nvmlDeviceGetCount takes this long
//! gpu UUID TOTAL RESERVED USED         the next GPU, with memory in MiB
//! mig UUID TOTAL RESERVED USED         the next MIG device of the GPU above
//! process PID MIB SM [LIST]            a process on the device above, with its utilization in percent; MIB `?` is not
//!                                      told; LIST is compute (default), graphics or mps
//! fails WHAT CODE                      on the device above: handle, memory, processes, utilization
//! ```
//!
//! The layouts of structures are those of NVIDIA's header.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::Mutex;
use std::time::Duration;

const SUCCESS: c_int = 0;
const UNINITIALIZED: c_int = 1;
const INVALID_ARGUMENT: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const INSUFFICIENT_SIZE: c_int = 7;
const MIB: u64 = 1 << 20;
/// The value of an amount that the driver does not tell.
const NOT_TOLD: u64 = u64::MAX;

#[derive(Default)]
struct Machine {
    initialized: bool,
    driver: String,
    init: c_int,
    count: c_int,
    hang: u64,
    devices: Vec<Device>,
    /// Time of the samples of utilization.
    clock: u64,
}

#[derive(Default)]
struct Device {
    uuid: String,
    /// The place of the GPU of a MIG device among the devices.
    parent: Option<usize>,
    memory: [u64; 3],
    processes: Vec<(u32, u64, u32, String)>,
    fails: Vec<(String, c_int)>,
}

static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

fn with<T>(call: impl FnOnce(&mut Machine) -> T) -> T {
    let mut machine = MACHINE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    call(machine.get_or_insert_with(Machine::default))
}

impl Machine {
    fn read(&mut self) {
        let path = std::env::var("VRAMGUARD_FAKE_NVML").expect("the test names the file");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        *self = Machine { initialized: self.initialized, clock: self.clock + 1, ..Machine::default() };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(NOT_TOLD);
            match words.first().copied() {
                Some("driver") => self.driver = words[1].to_owned(),
                Some("init") => self.init = number(1) as c_int,
                Some("count") => self.count = number(1) as c_int,
                Some("hang") => self.hang = number(1),
                Some(kind @ ("gpu" | "mig")) => {
                    let parent =
                        self.devices.iter().rposition(|device| device.parent.is_none()).filter(|_| kind == "mig");
                    let memory = [number(2), number(3), number(4)];
                    self.devices.push(Device { uuid: words[1].to_owned(), parent, memory, ..Device::default() });
                }
                Some("process") => {
                    let list = words.get(4).copied().unwrap_or("compute").to_owned();
                    let process = (number(1) as u32, number(2), number(3) as u32, list);
                    self.devices.last_mut().expect("a device comes first").processes.push(process);
                }
                Some("fails") => {
                    let fails = (words[1].to_owned(), number(2) as c_int);
                    self.devices.last_mut().expect("a device comes first").fails.push(fails);
                }
                _ => {}
            }
        }
    }

    fn gpus(&self) -> Vec<usize> {
        (0..self.devices.len()).filter(|place| self.devices[*place].parent.is_none()).collect()
    }
}

impl Device {
    fn fails(&self, what: &str) -> Option<c_int> {
        self.fails.iter().find(|(call, _)| call == what).map(|(_, code)| *code)
    }
}

/// A handle is the place of the device among all, plus one.
fn device<T>(handle: *mut c_void, call: impl FnOnce(&Machine, &Device, usize) -> Result<T, c_int>) -> Result<T, c_int> {
    with(|machine| {
        if !machine.initialized {
            return Err(UNINITIALIZED);
        }
        let place = (handle as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
        let device = machine.devices.get(place).ok_or(INVALID_ARGUMENT)?;
        match device.fails("handle") {
            Some(code) => Err(code),
            None => call(machine, device, place),
        }
    })
}

fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(SUCCESS)
}

unsafe fn write_text(text: &str, to: *mut c_char, length: c_uint) -> Result<(), c_int> {
    if text.len() + 1 > length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    std::ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), to, text.len());
    *to.add(text.len()) = 0;
    Ok(())
}

#[no_mangle]
pub extern "C" fn nvmlInit_v2() -> c_int {
    with(|machine| {
        machine.read();
        machine.initialized = machine.init == SUCCESS;
        machine.init
    })
}

#[no_mangle]
pub extern "C" fn nvmlShutdown() -> c_int {
    with(|machine| machine.initialized = false);
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> c_int {
    code(with(|machine| write_text(&machine.driver, to, length)))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> c_int {
    *version = 13_000;
    SUCCESS
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    let (failure, hang, gpus) = with(|machine| {
        machine.read();
        let failure = if machine.initialized { machine.count } else { UNINITIALIZED };
        (failure, machine.hang, machine.gpus().len())
    });
    std::thread::sleep(Duration::from_millis(hang));
    *count = gpus as c_uint;
    failure
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: *mut *mut c_void) -> c_int {
    code(with(|machine| {
        if index == 0 {
            machine.read(); // not each look asks how many there are
        }
        let place = machine.gpus().get(index as usize).copied().ok_or(INVALID_ARGUMENT)?;
        *handle = (place + 1) as *mut c_void;
        machine.devices[place].fails("handle").map_or(Ok(()), Err)
    }))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetUUID(handle: *mut c_void, to: *mut c_char, length: c_uint) -> c_int {
    code(device(handle, |_, device, _| write_text(&device.uuid, to, length)))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetName(handle: *mut c_void, to: *mut c_char, length: c_uint) -> c_int {
    code(device(handle, |_, _, _| write_text("NVIDIA Fake", to, length)))
}

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(handle: *mut c_void, memory: *mut Memory) -> c_int {
    code(device(handle, |_, device, _| {
        if let Some(code) = device.fails("memory") {
            return Err(code);
        }
        let [total, reserved, used] = device.memory.map(|mib| mib * MIB);
        ((*memory).total, (*memory).reserved, (*memory).used) = (total, reserved, used);
        (*memory).free = total.saturating_sub(reserved + used);
        Ok(())
    }))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    handle: *mut c_void,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> c_int {
    code(device(handle, |machine, _, place| {
        let on = machine.devices.iter().any(|other| other.parent == Some(place));
        (*current, *pending) = (on.into(), on.into());
        Ok(())
    }))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(handle: *mut c_void, count: *mut c_uint) -> c_int {
    *count = 7;
    code(device(handle, |_, _, _| Ok(())))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    handle: *mut c_void,
    index: c_uint,
    part: *mut *mut c_void,
) -> c_int {
    code(device(handle, |machine, _, place| {
        let mut parts = (0..machine.devices.len()).filter(|at| machine.devices[*at].parent == Some(place));
        *part = (parts.nth(index as usize).ok_or(NOT_FOUND)? + 1) as *mut c_void;
        Ok(())
    }))
}

#[repr(C)]
pub struct Process {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

unsafe fn list(handle: *mut c_void, list: &str, count: *mut c_uint, to: *mut Process) -> c_int {
    code(device(handle, |_, device, _| {
        if let Some(code) = device.fails("processes") {
            return Err(code);
        }
        let listed: Vec<_> = device.processes.iter().filter(|process| process.3 == list).collect();
        let room = *count as usize;
        *count = listed.len() as c_uint;
        if listed.len() > room {
            return Err(INSUFFICIENT_SIZE);
        }
        for (at, (pid, mib, _, _)) in listed.into_iter().enumerate() {
            let memory = if *mib == NOT_TOLD { NOT_TOLD } else { mib * MIB };
            to.add(at).write(Process { pid: *pid, memory, gpu_instance: u32::MAX, compute_instance: u32::MAX });
        }
        Ok(())
    }))
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    handle: *mut c_void,
    count: *mut c_uint,
    to: *mut Process,
) -> c_int {
    list(handle, "compute", count, to)
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    handle: *mut c_void,
    count: *mut c_uint,
    to: *mut Process,
) -> c_int {
    list(handle, "graphics", count, to)
}

#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    handle: *mut c_void,
    count: *mut c_uint,
    to: *mut Process,
) -> c_int {
    list(handle, "mps", count, to)
}

#[repr(C)]
pub struct Sample {
    pid: c_uint,
    time: c_ulonglong,
    sm: c_uint,
    memory: c_uint,
    encoder: c_uint,
    decoder: c_uint,
}

/// Like the driver, it has samples only of processes that did something.
#[no_mangle]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    handle: *mut c_void,
    to: *mut Sample,
    count: *mut c_uint,
    since: c_ulonglong,
) -> c_int {
    code(device(handle, |machine, device, _| {
        if device.parent.is_some() {
            return Err(NOT_SUPPORTED);
        }
        if let Some(code) = device.fails("utilization") {
            return Err(code);
        }
        let busy: Vec<_> = device.processes.iter().filter(|process| process.2 > 0 && machine.clock > since).collect();
        if busy.is_empty() {
            return Err(NOT_FOUND);
        }
        let room = *count as usize;
        *count = busy.len() as c_uint;
        if to.is_null() || busy.len() > room {
            return Err(INSUFFICIENT_SIZE);
        }
        for (at, (pid, _, sm, _)) in busy.into_iter().enumerate() {
            to.add(at).write(Sample { pid: *pid, time: machine.clock, sm: *sm, memory: 0, encoder: 0, decoder: 0 });
        }
        Ok(())
    }))
}
