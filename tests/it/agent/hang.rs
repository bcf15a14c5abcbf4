//! An agent that hangs. A log that nobody reads makes it: each thread of the agent that writes to its standard error
//! waits.

use std::io::{PipeReader, Read as _, pipe};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::fake::Machine;
use crate::support::{Patience, free_port, http};

/// Enough for an agent on a busy machine to start, to hang, and to end.
const PATIENCE: Duration = Duration::from_secs(90);
const SIGABRT: i32 = 6;

/// An agent that steers, and the reader of its log.
struct Agent {
    child: Child,
    port: u16,
    reading: Arc<AtomicBool>,
    reader: Option<JoinHandle<PipeReader>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Agent {
    fn start(machine: &Machine) -> Agent {
        let (mut log, stderr) = pipe().expect("a pipe");
        let port = free_port();
        let (name, value) = machine.variable();
        std::fs::create_dir(machine.folder().join("device-plugins")).expect("a folder of sockets");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vramguard"));
        command
            .args(["agent", "--steer", "--node-name", "gpu-0", "--listen", &format!("127.0.0.1:{port}")])
            .args(["--kubeconfig".as_ref(), machine.kubeconfig_of_no_server().as_os_str()])
            .args(machine.arguments())
            .env(name, value)
            .env("RUST_LOG", "trace") // so that each of its tasks writes to the log
            .current_dir(machine.folder()) // where a core dump may be written
            .stderr(stderr);
        let child = command.spawn().expect("it starts");
        drop(command); // with the end of the pipe that the agent has now
        let reading = Arc::new(AtomicBool::new(true));
        let goes_on = reading.clone();
        let reader = Some(thread::spawn(move || {
            let mut some = [0; 4096];
            while goes_on.load(Ordering::Relaxed) && log.read(&mut some).is_ok_and(|read| read > 0) {}
            log // open, so that writers wait instead of failing
        }));
        Agent { child, port, reading, reader }
    }

    fn lives(&self) -> bool {
        http::get(self.port, "/healthz").starts_with("HTTP/1.1 200")
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child that was not waited for can be asked")
    }
}

#[test]
fn an_agent_that_steers_aborts_when_all_its_threads_wait_and_its_log_cannot_be_written() {
    let machine = Machine::new("gpu GPU-aaaa 24576 450 10\n");
    let mut agent = Agent::start(&machine);
    let mut patience = Patience::of(PATIENCE);
    while !agent.lives() {
        assert!(!patience.is_over() && agent.ended().is_none(), "it does not start");
        thread::sleep(Duration::from_millis(100)); // between two looks
    }
    assert_eq!(agent.ended(), None, "an agent whose log is read goes on");
    agent.reading.store(false, Ordering::Relaxed);
    let _log = agent.reader.take().expect("it is there").join().expect("it only reads");
    let mut patience = Patience::of(PATIENCE);
    let ended = loop {
        match agent.ended() {
            Some(ended) => break ended,
            None => assert!(!patience.is_over(), "it hangs, or does not: {}", agent.lives()),
        }
        // Further connections are further tasks that write to the log.
        _ = agent.lives();
        thread::sleep(Duration::from_millis(100)); // between two looks
    };
    assert_eq!(ended.signal(), Some(SIGABRT), "{ended}");
}
