//! Memory and CPU time of a live server in a large cluster.
//!
//! `vramguard serve --kubeconfig` runs as a separate process, and a stub API server runs in this one. The figures are
//! taken when the server becomes ready, some seconds later, and under concurrent scrapes.
//!
//! `cargo bench --bench scale` measures all clusters, and `-- NAME …` only the named ones. `VRAMGUARD_BINARY` is the
//! path of another build to compare with. `VRAMGUARD_SHOW_LOG=1` shows the warnings of the server.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // only the pure tiers deny these lints

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

#[path = "snapshot/mod.rs"]
mod snapshot;
#[path = "scale/stub.rs"]
mod stub;

use stub::Cluster;

/// Time limit for the server to become ready.
const PATIENCE: Duration = Duration::from_secs(180);
/// Time between ready and the reading of resident memory, in which the buffers of the lists are freed.
const SETTLE: Duration = Duration::from_secs(5);
const SCRAPES: usize = 8;

fn clusters() -> [(&'static str, Cluster); 5] {
    let large = Cluster { nodes: 5_000, pods: 150_000, gpu_pods: 40_000, ledgers: false, padding: 0 };
    [
        ("small", Cluster { nodes: 1_000, pods: 8_000, gpu_pods: 8_000, ..large.clone() }),
        ("large", large.clone()),
        ("large-ledgers", Cluster { ledgers: true, ..large.clone() }),
        ("all-gpu-ledgers", Cluster { ledgers: true, gpu_pods: 150_000, ..large.clone() }),
        ("fat", Cluster { nodes: 10, pods: 500, gpu_pods: 0, padding: 1 << 20, ..large }),
    ]
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    println!("cluster: ready [s], CPU to ready [s], resident at ready / settled / at most [MiB]");
    for (name, cluster) in clusters() {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            measure(name, cluster);
        }
    }
}

fn measure(name: &str, cluster: Cluster) {
    let api = stub::serve(cluster);
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(api, folder.path());
    let ready = server.wait_until_ready();
    let (cpu, at_ready) = (server.cpu(), server.memory("VmRSS"));
    std::thread::sleep(SETTLE);
    let (settled, most) = (server.memory("VmRSS"), server.memory("VmHWM"));
    println!("{name}: {:.1} s, {cpu:.1} s, {at_ready:.0} / {settled:.0} / {most:.0} MiB", ready.as_secs_f64());
    let start = Instant::now();
    let scrapes: Vec<_> = (0..SCRAPES)
        .map(|_| {
            let address = server.plain;
            std::thread::spawn(move || get(address, "/metrics").map(|body| body.len()))
        })
        .collect();
    let sizes: Vec<usize> = scrapes.into_iter().map(|scrape| scrape.join().expect("no panic").unwrap_or(0)).collect();
    println!(
        "  {SCRAPES} scrapes at once: {:.2} s, {:.1} MB each, resident at most {:.0} MiB",
        start.elapsed().as_secs_f64(),
        *sizes.iter().max().expect("some") as f64 / 1e6,
        server.memory("VmHWM"),
    );
}

/// The server process that is measured.
struct Server {
    child: Child,
    plain: SocketAddr,
    started: Instant,
}

impl Server {
    fn start(api: SocketAddr, folder: &std::path::Path) -> Server {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{ "name": "stub", "cluster": { "server": format!("http://{api}") } }],
            "contexts": [{ "name": "stub", "context": { "cluster": "stub", "user": "stub" } }],
            "users": [{ "name": "stub", "user": {} }],
        });
        let (config, certificates) = (folder.join("kubeconfig"), folder.join("certs"));
        std::fs::write(&config, kubeconfig.to_string()).expect("a file");
        std::fs::create_dir(&certificates).expect("a folder");
        let plain = TcpListener::bind(("127.0.0.1", 0)).and_then(|port| port.local_addr()).expect("a port");
        let binary = std::env::var("VRAMGUARD_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_vramguard").to_owned());
        let child = Command::new(binary)
            .arg("serve")
            .args(["--listen", "127.0.0.1:0", "--metrics-listen", &plain.to_string(), "--self-signed"])
            .arg("--kubeconfig")
            .arg(config)
            .arg("--cert-dir")
            .arg(certificates)
            .env("RUST_LOG", "warn")
            .env("MALLOC_ARENA_MAX", "1") // as in the Deployment
            .stderr(if std::env::var_os("VRAMGUARD_SHOW_LOG").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .expect("the server starts");
        Server { child, plain, started: Instant::now() }
    }

    fn wait_until_ready(&mut self) -> Duration {
        while get(self.plain, "/readyz").is_none() {
            assert!(self.started.elapsed() < PATIENCE, "not ready in {PATIENCE:?}");
            assert!(self.child.try_wait().expect("a child").is_none(), "the server ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.started.elapsed()
    }

    /// A field of `/proc/<pid>/status`, in MiB.
    fn memory(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the field");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }

    /// User and system time, in seconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("Linux");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        let ticks = |index: usize| fields[index].parse::<f64>().expect("a number");
        (ticks(11) + ticks(12)) / 100.0 // USER_HZ
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The whole response, if its status is 200.
fn get(address: SocketAddr, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: stub\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    answer.starts_with(b"HTTP/1.1 200").then_some(answer)
}
