//! A stub API server for one cluster: LIST in pages and WATCH with bookmarks, nothing else.
//!
//! It writes objects from templates on request, so that its own memory stays small compared with what is measured.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::snapshot;

/// Size of the cluster that the stub serves.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Number of nodes, with 8 GPUs of 4 replicas each.
    pub nodes: usize,
    /// Number of all pods, which are spread over the nodes.
    pub pods: usize,
    /// Number of pods that request a GPU and VRAM.
    pub gpu_pods: usize,
    /// Whether each node has a `GpuLedger` with a reservation for each of its GPU pods.
    pub ledgers: bool,
    /// Bytes that each pod is larger than a usual one.
    pub padding: usize,
}

const GPUS: usize = 8;
const NAMESPACES: usize = 200;
/// Page size if the client sets no limit: all objects.
const UNPAGED: usize = usize::MAX;
/// Bytes that are buffered before a write.
const CHUNK: usize = 64 << 10;
/// Time between two bookmarks.
const BOOKMARK: Duration = Duration::from_secs(20);

/// All objects of one kind: their number, and a function that writes each as JSON.
struct Kind {
    list: &'static str,
    version: &'static str,
    count: usize,
    write: Box<WriteObject>,
}

/// Appends the object with this number.
type WriteObject = dyn Fn(usize, &mut String) + Send + Sync;

/// Starts the stub, which serves until the process ends.
pub(crate) fn serve(cluster: Cluster) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let kinds = Arc::new([
        ("/api/v1/pods", pods(&cluster)),
        ("/api/v1/nodes", nodes(&cluster)),
        ("/apis/vramguard.dev/v1alpha1/gpuledgers", ledgers(&cluster)),
    ]);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let kinds = kinds.clone();
            std::thread::spawn(move || while answer(&stream, &*kinds).is_ok() {});
        }
    });
    address
}

/// A template, split at its marks.
struct Template(Vec<String>);

impl Template {
    fn of(value: &Value, mark: &str) -> Template {
        Template(value.to_string().split(mark).map(str::to_owned).collect())
    }

    fn write(&self, values: &[&str], text: &mut String) {
        for (part, value) in self.0.iter().zip(values.iter().copied().chain([""])) {
            text.push_str(part);
            text.push_str(value);
        }
    }
}

fn node_name(number: usize) -> String {
    format!("gpu-node-{number:05}.europe-west4-a.example.internal")
}

fn uid(number: usize) -> String {
    // As random as a real uid, so that no sorted structure profits from their order.
    let mixed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:08x}-0000-4000-8000-{number:012x}", mixed >> 32)
}

fn pods(cluster: &Cluster) -> Kind {
    // Marks in the order of the JSON's keys: metadata.name, namespace, uid, then spec.nodeName.
    let mut pod = snapshot::created();
    pod["metadata"]["name"] = json!("@@");
    pod["metadata"]["namespace"] = json!("@@");
    pod["metadata"]["uid"] = json!("@@");
    pod["metadata"]["resourceVersion"] = json!("1000");
    pod["spec"]["nodeName"] = json!("@@");
    pod["status"] = json!({ "phase": "Running", "conditions": [
        { "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-22T21:00:00Z" },
        { "type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T21:00:30Z" },
    ] });
    if cluster.padding > 0 {
        pod["spec"]["containers"][1]["args"] = json!(["x".repeat(cluster.padding)]);
    }
    for list in ["limits", "requests"] {
        pod["spec"]["containers"][0]["resources"][list]["vramguard.dev/vram"] = json!("4720Mi");
    }
    if let Some(fields) = pod["metadata"]["managedFields"][0]["fieldsV1"].as_object_mut() {
        fields.retain(|name, _| name.len() < "f:field-100".len()); // 7.8 kB in all
    }
    let gpu = Template::of(&pod, "@@");
    for list in ["limits", "requests"] {
        let resources = pod["spec"]["containers"][0]["resources"][list].as_object_mut().expect("resources");
        resources.retain(|name, _| ["cpu", "memory"].contains(&name.as_str()));
    }
    pod["metadata"]["annotations"].as_object_mut().expect("annotations").remove("vramguard.dev/vram");
    let plain = Template::of(&pod, "@@");
    let Cluster { pods: count, gpu_pods, nodes, .. } = *cluster;
    let write = move |number: usize, text: &mut String| {
        let template = if is_gpu(number, count, gpu_pods) { &gpu } else { &plain };
        let (name, namespace) = (pod_name(number), namespace(number));
        template.write(&[&name, &namespace, &uid(number), &node_name(number % nodes)], text);
    };
    Kind { list: "PodList", version: "v1", count, write: Box::new(write) }
}

fn pod_name(number: usize) -> String {
    format!("inference-7d9c5b6f4-{number:06}")
}

fn namespace(number: usize) -> String {
    format!("team-{:03}", number % NAMESPACES)
}

/// Whether pod `number` requests a GPU. Spreads `gpu_pods` evenly over all pods.
fn is_gpu(number: usize, pods: usize, gpu_pods: usize) -> bool {
    number * gpu_pods / pods != (number + 1) * gpu_pods / pods
}

fn nodes(cluster: &Cluster) -> Kind {
    let mut node = snapshot::node_of("@@", GPUS);
    let labels = node["metadata"]["labels"].as_object_mut().expect("labels");
    // Labels that the kubelet, the cloud and GPU Feature Discovery write.
    for (key, value) in [
        ("beta.kubernetes.io/arch", "amd64"),
        ("beta.kubernetes.io/instance-type", "a3-highgpu-8g"),
        ("beta.kubernetes.io/os", "linux"),
        ("failure-domain.beta.kubernetes.io/region", "europe-west4"),
        ("failure-domain.beta.kubernetes.io/zone", "europe-west4-a"),
        ("kubernetes.io/arch", "amd64"),
        ("kubernetes.io/os", "linux"),
        ("node.kubernetes.io/instance-type", "a3-highgpu-8g"),
        ("topology.kubernetes.io/region", "europe-west4"),
        ("topology.kubernetes.io/zone", "europe-west4-a"),
        ("nvidia.com/cuda.driver.major", "570"),
        ("nvidia.com/cuda.driver.minor", "86"),
        ("nvidia.com/cuda.driver.rev", "15"),
        ("nvidia.com/cuda.runtime.major", "12"),
        ("nvidia.com/cuda.runtime.minor", "8"),
        ("nvidia.com/gfd.timestamp", "1763900000"),
        ("nvidia.com/gpu.compute.major", "8"),
        ("nvidia.com/gpu.compute.minor", "0"),
        ("nvidia.com/gpu.family", "ampere"),
        ("nvidia.com/gpu.machine", "Google-Compute-Engine"),
        ("nvidia.com/gpu.mode", "compute"),
        ("nvidia.com/gpu.present", "true"),
        ("nvidia.com/gpu.product", "NVIDIA-A100-SXM4-80GB-SHARED"),
        ("nvidia.com/mig.capable", "true"),
        ("nvidia.com/mig.strategy", "single"),
        ("nvidia.com/mps.capable", "false"),
        ("nvidia.com/vgpu.present", "false"),
        ("feature.node.kubernetes.io/cpu-model.vendor_id", "AMD"),
        ("feature.node.kubernetes.io/kernel-version.full", "6.8.0-1020-gcp"),
        ("feature.node.kubernetes.io/pci-10de.present", "true"),
        ("feature.node.kubernetes.io/system-os_release.ID", "ubuntu"),
    ] {
        labels.insert(key.into(), json!(value));
    }
    node["metadata"]["uid"] = json!("@@");
    node["status"]["conditions"] = (0..8)
        .map(|n| {
            json!({ "type": format!("Condition{n}"), "status": "False",
        "message": "kubelet has no problem of this kind", "reason": "KubeletHasNoProblem",
        "lastHeartbeatTime": "2026-11-22T21:00:00Z", "lastTransitionTime": "2026-11-22T21:00:00Z" })
        })
        .collect();
    node["status"]["images"] = (0..50)
        .map(|n| json!({ "names": [format!("registry.example/image-{n}@sha256:{}", "0".repeat(64))], "sizeBytes": 1 }))
        .collect();
    // The keys are sorted: the hostname label comes first, then the name, then the uid.
    let template = Template::of(&node, "@@");
    let write = move |number: usize, text: &mut String| {
        let name = node_name(number);
        template.write(&[&name, &name, &uid(number)], text);
    };
    Kind { list: "NodeList", version: "v1", count: cluster.nodes, write: Box::new(write) }
}

fn ledgers(cluster: &Cluster) -> Kind {
    let Cluster { nodes, pods, gpu_pods, ledgers, .. } = *cluster;
    let write = move |node: usize, text: &mut String| {
        let here = (node..pods).step_by(nodes).filter(|number| is_gpu(*number, pods, gpu_pods));
        let mut ledger = snapshot::ledger(&node_name(node), GPUS, std::iter::empty());
        ledger["metadata"]["uid"] = json!(uid(node));
        ledger["spec"]["reservations"] = here
            .enumerate()
            .map(|(place, number)| {
                json!({
                    "uid": uid(number), "namespace": namespace(number), "pod": pod_name(number), "container": "vllm",
                    "resource": "nvidia.com/gpu", "replicas": 1, "mib": 4720, "basis": "Request",
                    "gpu": format!("GPU-00000000-0000-4000-8000-{:012}", place % GPUS), "state": "Confirmed",
                    "since": "2026-11-22T21:00:00.000Z",
                })
            })
            .collect();
        text.push_str(&ledger.to_string());
    };
    let count = if ledgers { nodes } else { 0 };
    Kind { list: "GpuLedgerList", version: "vramguard.dev/v1alpha1", count, write: Box::new(write) }
}

/// Answers one request.
fn answer(stream: &TcpStream, kinds: &[(&str, Kind)]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut header) = (String::new(), String::new());
    reader.read_line(&mut request)?;
    let mut length = 0;
    while reader.read_line(&mut header)? > 2 {
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        header.clear();
    }
    std::io::copy(&mut std::io::Read::take(&mut reader, length), &mut std::io::sink())?;
    let target = request.split(' ').nth(1).ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let Some((_, kind)) = kinds.iter().find(|(served, _)| *served == path) else {
        let body =
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
            "message": "the stub serves LIST and WATCH only" })
            .to_string();
        let head = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length:";
        return write!(&mut &*stream, "{head} {}\r\n\r\n{body}", body.len());
    };
    write!(&mut &*stream, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let mut out = Chunked { stream, text: String::new() };
    if parameter("watch").is_some() {
        return watch(&mut out, kind);
    }
    let number = |name: &str| parameter(name).and_then(|text| text.parse::<usize>().ok());
    let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(UNPAGED));
    list(&mut out, kind, from, from.saturating_add(limit).min(kind.count))
}

fn list(out: &mut Chunked<'_>, kind: &Kind, from: usize, to: usize) -> std::io::Result<()> {
    let next = if to < kind.count { format!(",\"continue\":\"{to}\"") } else { String::new() };
    let Kind { list, version, .. } = kind;
    out.text = format!(
        "{{\"kind\":\"{list}\",\"apiVersion\":\"{version}\",\"metadata\":{{\"resourceVersion\":\"1000\"{next}}},\"items\":["
    );
    for number in from..to {
        if number > from {
            out.text.push(',');
        }
        (kind.write)(number, &mut out.text);
        out.flush_at(CHUNK)?;
    }
    out.text.push_str("]}\n");
    out.flush_at(0)?;
    out.stream.write_all(b"0\r\n\r\n")
}

/// A watch without events, which only sends bookmarks.
fn watch(out: &mut Chunked<'_>, kind: &Kind) -> std::io::Result<()> {
    let (list, version) = (kind.list.trim_end_matches("List"), kind.version);
    loop {
        out.text = json!({ "type": "BOOKMARK", "object": { "kind": list, "apiVersion": version,
            "metadata": { "resourceVersion": "1000" } } })
        .to_string();
        out.text.push('\n');
        out.flush_at(0)?;
        std::thread::sleep(BOOKMARK);
    }
}

struct Chunked<'s> {
    stream: &'s TcpStream,
    text: String,
}

impl Chunked<'_> {
    fn flush_at(&mut self, length: usize) -> std::io::Result<()> {
        if self.text.len() > length {
            write!(&mut &*self.stream, "{:x}\r\n", self.text.len())?;
            (&mut &*self.stream).write_all(self.text.as_bytes())?;
            (&mut &*self.stream).write_all(b"\r\n")?;
            self.text.clear();
        }
        Ok(())
    }
}
