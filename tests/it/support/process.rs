//! Child processes that cannot outlive the tests: killed and reaped on drop, and by the kernel when the test process
//! itself is killed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use super::wait::Patience;

/// What is shown of a log when something went wrong.
const TAIL_LINES: usize = 15;
/// Components write dozens of lines about the caches of their clients at each start, and they say nothing.
const NOISE: [&str; 3] = ["Caches populated", "Caches are synced", "Waiting for caches"];

/// A long-running program with its log, which can be stopped and started again with the same arguments.
pub struct Process {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Describes a process; nothing runs before [`Process::start`]. Its output is appended to `<folder>/<name>.log`.
    pub fn new(name: &str, program: &Path, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: folder.join(format!("{name}.log")),
            child: None,
        }
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args<I: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = I>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Starts it; does nothing if it runs. Panics if the program cannot be executed.
    pub fn start(&mut self) {
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

    /// Kills it (SIGKILL) and reaps it. A program under test that should end in peace gets [`Process::terminate`].
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a child that was reaped already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGTERM and waits for the end; panics with the log's tail if it has not come `within` that time.
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.signal("TERM");
        let mut patience = Patience::of(within);
        loop {
            if let Some(status) = self.exit_status() {
                self.child = None;
                return status;
            }
            assert!(!patience.is_over(), "{} ignored SIGTERM for {patience}:\n{}", self.name, self.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it from being scheduled (SIGSTOP): it holds its connections and answers nobody, as a machine that hangs.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().unwrap_or_else(|| panic!("{} does not run", self.name));
        let mut kill = Command::new("kill");
        run(kill.arg(format!("-{signal}")).arg(pid.to_string()), Duration::from_secs(5)).expect_success();
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The status of a process that ended by itself; `None` while it runs and when it was stopped on purpose.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("a child that was not waited for can be asked")
    }

    /// Panics with the log's tail if it ended by itself: nothing that is waited for will come any more.
    #[track_caller]
    pub fn expect_running(&mut self) {
        if let Some(status) = self.exit_status() {
            panic!("{} ended with {status}:\n{}", self.name, self.log_tail());
        }
    }

    /// The last lines that it wrote to stdout and stderr.
    pub fn log_tail(&self) -> String {
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

/// What a command that ended has left.
#[derive(Debug)]
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its stdout; panics with its stderr if it failed.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(self.status.success(), "{} ended with {}: {}{}", self.command, self.status, self.stderr, self.stdout);
        self.stdout
    }

    /// Its stderr; panics if it succeeded.
    #[track_caller]
    pub fn expect_failure(self) -> String {
        assert!(!self.status.success(), "{} succeeded: {}", self.command, self.stdout);
        self.stderr
    }
}

/// Runs a command to its end; panics, after killing it, if that takes longer than `within`.
pub fn run(command: &mut Command, within: Duration) -> Finished {
    run_with_input(command, String::new(), within)
}

/// As [`run`], with `input` on its stdin.
pub fn run_with_input(command: &mut Command, input: String, within: Duration) -> Finished {
    let shown = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {shown}: {e}"));
    // Pipes are fed and drained beside the wait: a full one would block the child for ever.
    let mut stdin = child.stdin.take().expect("piped above");
    thread::spawn(move || stdin.write_all(input.as_bytes())); // a child that reads no input is no error
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
            None => thread::sleep(Duration::from_millis(5)),
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

/// A grandchild may have inherited the pipe and hold it open: what came so far is then given up, not waited for.
fn collect(pipe: &mpsc::Receiver<String>) -> String {
    pipe.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| "(its output is still held open)".to_owned())
}

/// The program, to be killed by the kernel when this process dies without dropping what it holds.
fn tied_to_this_process(program: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let available = *SETPRIV.get_or_init(|| {
        let probe = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    });
    if !available {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv"); // execs in place: the pid is the program's
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The parent-death signal fires when the *thread* that forked ends, and a test's thread ends before what it may have
/// shared with others; so all children are forked from one thread that lives as long as the process.
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

/// Creates a file with its content, for configuration that holds no secret worth more than a test.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
    file.write_all(content.as_ref()).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
