//! What nodes, pools and GPUs hold, for one scrape: read under the lock some nodes at a time, written down after it. Owns names and
//! units of these metrics, and how long the lock is held for them.

use std::fmt::Write;

use crate::capacity::gpu::Accounting;
use crate::capacity::name::Name;
use crate::capacity::vram::Vram;
use crate::index::{Index, State};

/// Nodes that are read under one lock.
const SLICE: usize = 256;

/// Whether a scrape names each GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Nodes and pools: 4 MB for 5,000 nodes.
    #[default]
    Nodes,
    /// Each GPU too: six times as much where nodes have eight.
    Gpus,
}

struct NodeUsage {
    name: String,
    published: Option<Vram>,
    bound: Vram,
    pools: Vec<PoolUsage>,
}

struct PoolUsage {
    resource: Name,
    mode: Accounting,
    allocatable: Option<Vram>,
    held: Vram,
    room: Vram,
    deficit: Vram,
    gpus: Vec<GpuUsage>,
}

struct GpuUsage {
    id: String,
    size: Option<(Vram, Vram)>,
    held: Option<Vram>,
    free: Option<Vram>,
}

/// All nodes at one scrape.
pub struct Usage(Vec<NodeUsage>);

/// A metric: its name without prefix and unit, its help, and its samples of one node.
type Family = (&'static str, &'static str, fn(&NodeUsage, &mut Samples<'_>) -> std::fmt::Result);

const FAMILIES: [Family; 10] = [
    ("gpu_total", "Memory of a GPU, driver-reserved included", |node, out| out.gpus(node, |gpu| Some(gpu.size?.0))),
    ("gpu_allocatable", "What a GPU can be promised", |node, out| out.gpus(node, |gpu| Some(gpu.size?.1))),
    ("pool_allocatable", "What all GPUs behind a resource of a node can be promised", |node, out| {
        out.pools(node, |pool| pool.allocatable)
    }),
    ("pool_held", "What is promised of them", |node, out| out.pools(node, |pool| Some(pool.held))),
    ("pool_free", "The largest demand that can be placed on them now", |node, out| {
        out.pools(node, |pool| Some(pool.room))
    }),
    (
        "pool_deficit",
        "By how much they are overcommitted, or may be where the GPU of each pod is not known",
        |node, out| out.pools(node, |pool| Some(pool.deficit)),
    ),
    ("node_published", "What a node should advertise of vramguard.dev/vram", |node, out| {
        node.published.map_or(Ok(()), |amount| out.sample(&[("node", &node.name)], amount))
    }),
    ("node_bound", "Requests of the pods on a node, or promised to be", |node, out| {
        out.sample(&[("node", &node.name)], node.bound)
    }),
    ("gpu_held", "What is known to be promised of a GPU", |node, out| out.gpus(node, |gpu| gpu.held)),
    ("gpu_free", "What a GPU can still take in the worst case, where that is known GPU by GPU", |node, out| {
        out.gpus(node, |gpu| gpu.free)
    }),
];

impl Usage {
    /// Reads the index, and lets reviews come in between.
    pub async fn read(index: &Index, detail: Detail) -> Usage {
        let names: Vec<String> = index.read().cluster.node_names().map(str::to_owned).collect();
        let mut nodes = Vec::with_capacity(names.len());
        for slice in names.chunks(SLICE) {
            {
                let state = index.read();
                nodes.extend(slice.iter().filter_map(|name| NodeUsage::of(&state, name, detail)));
            }
            tokio::task::yield_now().await;
        }
        Usage(nodes)
    }

    /// Writes all samples, metric by metric as the format wants them.
    pub async fn write(&self, text: &mut String) -> std::fmt::Result {
        for (name, help, samples) in FAMILIES {
            let name = format!("vramguard_{name}_bytes");
            writeln!(text, "# HELP {name} {help}.\n# TYPE {name} gauge\n# UNIT {name} bytes")?;
            for slice in self.0.chunks(SLICE) {
                let mut out = Samples { name: &name, text };
                slice.iter().try_for_each(|node| samples(node, &mut out))?;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

impl NodeUsage {
    fn of(state: &State, name: &str, detail: Detail) -> Option<NodeUsage> {
        let (facts, _, standing) = state.cluster.node(name)?;
        let rules = state.cluster.rules();
        let pools = facts.pools.iter().zip(&standing.pools).map(|(pool, stands)| {
            let sizes = pool.contents.iter().flat_map(|contents| &contents.gpus).map(|gpu| GpuUsage {
                id: gpu.id.to_string(),
                size: Some((gpu.total, gpu.allocatable(rules).room())),
                held: None,
                free: None,
            });
            let held = stands.gpus.iter().map(|gpu| GpuUsage {
                id: gpu.id.to_string(),
                size: None,
                held: Some(gpu.held),
                free: gpu.free,
            });
            PoolUsage {
                resource: pool.resource.0.clone(),
                mode: stands.accounting,
                allocatable: stands.allocatable,
                held: stands.held,
                room: stands.room,
                deficit: stands.deficit.as_ref().map_or(Vram::ZERO, |deficit| deficit.by),
                gpus: match detail {
                    Detail::Nodes => Vec::new(),
                    Detail::Gpus => sizes.chain(held).collect(),
                },
            }
        });
        Some(NodeUsage {
            name: name.to_owned(),
            published: standing.published,
            bound: standing.bound,
            pools: pools.collect(),
        })
    }
}

/// Where the samples of one metric are written.
struct Samples<'t> {
    name: &'t str,
    text: &'t mut String,
}

impl Samples<'_> {
    fn pools(&mut self, node: &NodeUsage, amount: fn(&PoolUsage) -> Option<Vram>) -> std::fmt::Result {
        node.pools.iter().filter_map(|pool| Some((pool, amount(pool)?))).try_for_each(|(pool, amount)| {
            let mode = pool.mode.to_string();
            self.sample(&[("node", &node.name), ("resource", &pool.resource), ("mode", &mode)], amount)
        })
    }

    fn gpus(&mut self, node: &NodeUsage, amount: fn(&GpuUsage) -> Option<Vram>) -> std::fmt::Result {
        for pool in &node.pools {
            let mode = pool.mode.to_string();
            for (gpu, amount) in pool.gpus.iter().filter_map(|gpu| Some((gpu, amount(gpu)?))) {
                let labels =
                    [("node", &*node.name), ("resource", &*pool.resource), ("gpu", &*gpu.id), ("mode", &*mode)];
                self.sample(&labels, amount)?;
            }
        }
        Ok(())
    }

    fn sample(&mut self, labels: &[(&str, &str)], amount: Vram) -> std::fmt::Result {
        self.text.push_str(self.name);
        for (number, (label, value)) in labels.iter().enumerate() {
            self.text.push(if number == 0 { '{' } else { ',' });
            write!(self.text, "{label}=\"")?;
            for c in value.chars() {
                match c {
                    '"' => self.text.push_str("\\\""),
                    '\\' => self.text.push_str("\\\\"),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        writeln!(self.text, "}} {}", amount.bytes())
    }
}
