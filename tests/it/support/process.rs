//! Owns child processes, which never outlive the tests: drop kills them, and so does the kernel if the test is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use super::wait::Patience;

/// Number of lines that a failure shows of a log.
const TAIL_LINES: usize = 15;
/// Texts of lines that a failure leaves out: components log dozens of lines about their caches at each start.
const NOISE: [&str; 3] = ["Caches populated", "Caches are synced", "Waiting for caches"];

/// A long-running program with its log. It can be stopped, and started again with the same arguments.
pub(crate) struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Describes a process, which [`Process::start`] starts. Its output is appended to `<folder>/<name>.log`.
    pub(crate) fn new(name: &str, program: &Path, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: folder.join(format!("{name}.log")),
            child: None,
        }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub(crate) fn args<I: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = I>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Starts the process, if it does not run.
    ///
    /// # Panics
    /// If the program cannot be executed.
    pub(crate) fn start(&mut self) {
        if self.exit_status().is_none() && self.child.is_some() {
            return;
        }
        let log = || OpenOptions::new().create(true).append(true).open(&self.log);
        let (out, err) = (log().expect("log can be opened"), log().expect("log can be opened"));
        let mut command = tied_to_this_process(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn_from_lasting_thread(command);
        self.child = Some(child.unwrap_or_else(|e| panic!("{}: cannot start {:?}: {e}", self.name, self.program)));
    }

    /// Kills the process with SIGKILL and reaps it. See [`Process::terminate`] for a graceful end.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both calls fail only for a child that was already reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGTERM and waits for the end of the process.
    ///
    /// # Panics
    /// With the end of its log if it takes longer than `within`.
    pub(crate) fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.signal("TERM");
        let mut patience = Patience::of(within);
        loop {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return status;
            }
            assert!(!patience.is_over(), "{} ignored SIGTERM for {patience}:\n{}", self.name, self.log_tail());
            thread::sleep(Duration::from_millis(20)); // between two looks
        }
    }

    /// Sends SIGSTOP: the process keeps its connections and does not answer, like one on a machine that hangs.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().unwrap_or_else(|| panic!("{} does not run", self.name));
        let mut kill = Command::new("kill");
        run(kill.arg(format!("-{signal}")).arg(pid.to_string()), Duration::from_secs(5)).expect_success();
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Exit status of a process that ended by itself; `None` while it runs, and after [`Process::stop`].
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("a child that was not waited for can be asked")
    }

    /// Fails a wait early, because a process that ended will not do what the test waits for.
    ///
    /// # Panics
    /// With the end of its log if the process ended by itself.
    #[track_caller]
    pub(crate) fn expect_running(&mut self) {
        if let Some(status) = self.exit_status() {
            panic!("{} ended with {status}:\n{}", self.name, self.log_tail());
        }
    }

    /// All that it has logged.
    pub(crate) fn whole_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its stdout and stderr.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| !NOISE.iter().any(|noise| line.contains(noise))).collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        format!("--- last lines of {}:\n  {tail}\n", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Exit status and output of a command.
#[derive(Debug)]
pub(crate) struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Returns the stdout of a command that must succeed.
    ///
    /// # Panics
    /// With its stderr if it failed.
    #[track_caller]
    pub(crate) fn expect_success(self) -> String {
        assert!(self.status.success(), "{} ended with {}: {}{}", self.command, self.status, self.stderr, self.stdout);
        self.stdout
    }

    /// Returns the stderr of a command that must fail.
    ///
    /// # Panics
    /// If it succeeded.
    #[track_caller]
    pub(crate) fn expect_failure(self) -> String {
        assert!(!self.status.success(), "{} succeeded: {}", self.command, self.stdout);
        self.stderr
    }
}

/// Runs a command and waits for its end.
///
/// # Panics
/// If it takes longer than `within`; the command is killed first.
pub(crate) fn run(command: &mut Command, within: Duration) -> Finished {
    run_with_input(command, String::new(), within)
}

/// As [`run`], with `input` on its stdin.
pub(super) fn run_with_input(command: &mut Command, input: String, within: Duration) -> Finished {
    let shown = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {shown}: {e}"));
    // Threads feed and drain the pipes during the wait, because a full pipe would block the child forever.
    let mut stdin = child.stdin.take().expect("piped above");
    thread::spawn(move || stdin.write_all(input.as_bytes())); // a child may ignore its input
    let stdout = drain(child.stdout.take().expect("piped above"));
    let stderr = drain(child.stderr.take().expect("piped above"));
    let mut patience = Patience::of(within);
    let status = loop {
        match child.try_wait().expect("a child that was not waited for can be asked") {
            Some(status) => break status,
            None if patience.is_over() => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{shown} did not end within {patience}: {}{}", collect(&stderr), collect(&stdout));
            }
            None => thread::sleep(Duration::from_millis(5)), // between two looks
        }
    };
    Finished { command: shown, status, stdout: collect(&stdout), stderr: collect(&stderr) }
}

fn drain(mut pipe: impl io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (done, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        done.send(String::from_utf8_lossy(&bytes).into_owned())
    });
    receiver
}

/// The output of a pipe. A grandchild may hold the pipe open, so the wait is bounded and the output may be lost.
fn collect(pipe: &mpsc::Receiver<String>) -> String {
    pipe.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| "(its output is still held open)".to_owned())
}

/// A command for the program that the kernel kills if this process dies without running drop.
fn tied_to_this_process(program: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let available = *SETPRIV.get_or_init(|| {
        let probe = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    });
    if !available {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv"); // execs in place, so the pid is that of the program
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Spawns a child from one thread that lives as long as this process.
///
/// The parent-death signal fires when the *thread* that forked ends, and a test may share its child with later tests.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static ORDERS: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, child) = mpsc::channel();
    orders.send((command, answer)).expect("the spawning thread never ends");
    child.recv().expect("the spawning thread answers every order")
}

/// Writes a file of a test.
///
/// # Panics
/// If the file cannot be written.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
    file.write_all(content.as_ref()).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
