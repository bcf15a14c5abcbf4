//! `vramguard agent --once`: what it shows, and what it says where it sees nothing.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};

use super::fake::Machine;
use crate::support::{Finished, run};

const UID: &str = "0b6f1b1c-5e8e-4a3c-9a34-7d1f1f0a1c2e";
const CONTAINER: &str = "4c01db0b339c4de2a3f07ee2d3fcfc1a6d5b7f3f3fd5c2a1b0e9d8c7b6a59483";

fn once(machine: &Machine, more: &[&str]) -> Finished {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    let (name, value) = machine.variable();
    command.args(["agent", "--once"]).args(machine.arguments()).args(more).env(name, value);
    run(&mut command, Duration::from_secs(60))
}

fn json(machine: &Machine) -> Value {
    let text = once(machine, &["--output", "json"]).expect_success();
    serde_json::from_str(&text).expect("it prints JSON")
}

/// Two GPUs, with a process of a pod, one of no pod, and one that draws and computes.
fn machine() -> Machine {
    let machine = Machine::new(
        "gpu GPU-aaaa 81559 480 9400\nprocess 101 8868 97\nprocess 102 500 0\n\
         gpu GPU-bbbb 81559 480 306\nprocess 103 300 0 graphics\nprocess 103 300 0\nprocess 104 ? 0\n",
    );
    machine.process(101, "python3", &format!("0::/../../pod{UID}/{CONTAINER}"));
    machine.process(102, "Xorg", "0::/user.slice/user-0.slice");
    machine.process(103, "blender", "0::/user.slice/user-0.slice");
    machine
}

#[test]
fn gpus_and_their_processes_are_listed_with_pod_and_container() {
    let machine = machine();
    let seen = json(&machine);
    assert_eq!((&seen["driverVersion"], &seen["cudaVersion"]), (&json!("580.159.04"), &json!("13.0")));
    let first = &seen["gpus"][0];
    assert_eq!(
        (&first["uuid"], &first["totalMiB"], &first["reservedMiB"], &first["usedMiB"]),
        (&json!("GPU-aaaa"), &json!(81_559), &json!(480), &json!(9_400))
    );
    assert_eq!(
        first["processes"],
        json!([
            {"pid": 101, "program": "python3", "podUid": UID, "containerId": CONTAINER, "usedMiB": 8868, "busy": true,
             "smPercent": 97},
            {"pid": 102, "program": "Xorg", "usedMiB": 500, "busy": false, "smPercent": 0},
        ])
    );
    assert_eq!(
        seen["gpus"][1]["processes"],
        json!([
            {"pid": 103, "program": "blender", "usedMiB": 300, "busy": false, "smPercent": 0},
            {"pid": 104, "program": "", "busy": false, "smPercent": 0},
        ]),
        "a process in two lists counts once, and an amount that is not told is absent"
    );
    let table = once(&machine, &[]).expect_success();
    println!("{table}");
    assert!(table.contains("GPU-aaaa") && table.contains("8868Mi") && table.contains("no pod"), "{table}");
}

#[test]
fn mig_devices_take_the_place_of_their_gpu() {
    let machine = Machine::new(
        "gpu GPU-aaaa 81559 480 100\nmig MIG-1 9856 20 50\nprocess 101 30 0\nmig MIG-2 40192 20 60\ngpu GPU-bbbb 81559 480 7\n",
    );
    let seen = json(&machine);
    let devices = seen["gpus"].as_array().unwrap().iter();
    let devices: Vec<_> = devices
        .map(|gpu| (gpu["uuid"].as_str().unwrap(), gpu["index"].clone(), gpu.get("migIndex").cloned()))
        .collect();
    let expected = [("MIG-1", 0, Some(0)), ("MIG-2", 0, Some(1)), ("GPU-bbbb", 1, None)];
    assert_eq!(devices, expected.map(|(uuid, index, mig)| (uuid, json!(index), mig.map(|mig: u32| json!(mig)))));
    assert_eq!(seen["gpus"][0]["processes"][0]["usedMiB"], 30);
    let absent = ["busy", "smPercent"].map(|field| seen["gpus"][0]["processes"][0].get(field));
    assert_eq!(absent, [None; 2], "MIG devices have no utilization of processes");
}

#[test]
fn each_mig_device_and_its_processes_are_told_apart_by_index() {
    // NVML_ERROR_NO_PERMISSION
    let machine = Machine::new(
        "gpu GPU-aaaa 81559 480 100\nprocess 101 30 0\nmig MIG-1 9856 20 50\nprocess 101 30 0\n\
         mig MIG-2 40192 20 60\nprocess 102 40 0\nmig MIG-3 9856 20 5\nfails processes 4\n",
    );
    let table = once(&machine, &[]).expect_success();
    println!("{table}");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = |first: &str, second: &str| rows.iter().any(|row| row.starts_with(&[first, second]));
    assert!(row("0:0", "MIG-1") && row("0:1", "MIG-2"), "{table}");
    assert!(row("0:0", "101") && row("0:1", "102"), "{table}");
    assert_eq!(rows.iter().filter(|row| row.contains(&"30Mi")).count(), 1, "not once more for the GPU: {table}");
    assert!(table.contains("GPU 0:2 (MIG-3): processes: "), "{table}");
}

#[test]
fn a_process_under_mps_is_listed() {
    let seen = json(&Machine::new("gpu GPU-aaaa 81559 480 100\nprocess 101 30 0 mps\n"));
    assert_eq!((&seen["gpus"][0]["mps"], &seen["gpus"][0]["processes"][0]["pid"]), (&json!(true), &json!(101)));
}

#[test]
fn what_cannot_be_read_is_said_for_each_gpu_and_hides_no_other() {
    // NVML_ERROR_GPU_IS_LOST, NVML_ERROR_NO_PERMISSION
    let machine = Machine::new(
        "gpu GPU-aaaa 81559 480 100\nfails handle 15\ngpu GPU-bbbb 81559 480 200\nfails processes 4\ngpu GPU-cccc 81559 480 300\n",
    );
    let seen = json(&machine);
    let used: Vec<&Value> = seen["gpus"].as_array().unwrap().iter().map(|gpu| &gpu["usedMiB"]).collect();
    assert_eq!(used, [&Value::Null, &json!(200), &json!(300)]);
    let unreadable: Vec<&str> =
        seen["unreadable"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert_eq!(unreadable.len(), 2, "{unreadable:?}");
    assert!(unreadable[0].contains("fell off the bus"), "{unreadable:?}");
    assert!(unreadable[1].starts_with("GPU 1 (GPU-bbbb): processes: the driver refuses to tell"), "{unreadable:?}");
}

#[test]
fn a_machine_without_a_readable_driver_is_told_why_and_the_exit_code_is_2() {
    let cases = [
        ("init 9\n", "the NVIDIA kernel module is not loaded"),
        ("init 18\n", "of different versions"),
        ("init 4\n", "no permission"),
        ("init 999\n", "an internal driver error occurred"),
        ("count 9\n", "the NVIDIA kernel module is not loaded"),
    ];
    for (shows, why) in cases {
        let ended = once(&Machine::new(shows), &[]);
        assert_eq!(ended.status.code(), Some(2), "{shows}");
        assert!(ended.stderr.contains(why), "{shows}: {}", ended.stderr);
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
    command.args(["agent", "--once", "--nvml-library", "/nonexistent/libnvidia-ml.so.1"]);
    let ended = run(&mut command, Duration::from_secs(60));
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("the driver's library cannot be loaded (/nonexistent/"), "{}", ended.stderr);
}

#[test]
fn output_that_cannot_be_written_is_exit_code_2() {
    let ended = once(&machine(), &["--output", "json=/dev/full"]);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: /dev/full: cannot be written: "), "{}", ended.stderr);
}

/// A process in cgroups as a kubelet makes them, on this machine.
struct InPod {
    process: Child,
    folder: std::path::PathBuf,
    made: Vec<std::path::PathBuf>,
}

impl InPod {
    /// `None` where this machine lets nobody make cgroups.
    fn start() -> Option<InPod> {
        let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
        let cgroups =
            mounts.lines().filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")));
        for root in cgroups.filter_map(|line| line.split(' ').nth(1)) {
            let mut made = Vec::new();
            let mut folder = Path::new(root).join("vramguard-test-kubepods");
            let names = [String::new(), "besteffort".to_owned(), format!("pod{UID}"), CONTAINER.to_owned()];
            for name in names {
                folder = if name.is_empty() { folder } else { folder.join(name) };
                if std::fs::create_dir(&folder).is_ok() {
                    made.push(folder.clone());
                }
            }
            let process = Command::new("sleep").arg("300").spawn().expect("a process");
            let in_pod = InPod { process, folder, made };
            if std::fs::write(in_pod.folder.join("cgroup.procs"), in_pod.process.id().to_string()).is_ok() {
                return Some(in_pod);
            }
        }
        None
    }
}

impl Drop for InPod {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        for folder in self.made.iter().rev() {
            // The kernel may need a moment to see that the process is gone.
            for _ in 0..50 {
                if std::fs::remove_dir(folder).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

#[test]
fn a_process_in_real_cgroups_is_found_in_its_pod() {
    let Some(real) = InPod::start() else {
        println!("skipped: this machine lets nobody make cgroups");
        return;
    };
    let machine = Machine::new(&format!("gpu GPU-aaaa 81559 480 100\nprocess {} 90 0\n", real.process.id()));
    let seen = {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
        let (name, value) = machine.variable();
        let arguments = machine.arguments();
        let library = arguments.split_at(2).0; // not its --proc
        command.args(["agent", "--once", "--output", "json"]).args(library).env(name, value);
        let text = run(&mut command, Duration::from_secs(60)).expect_success();
        serde_json::from_str::<Value>(&text).expect("it prints JSON")
    };
    let process = &seen["gpus"][0]["processes"][0];
    assert_eq!((&process["podUid"], &process["program"]), (&json!(UID), &json!("sleep")), "{process}");
    assert_eq!(process["containerId"], CONTAINER);
}
