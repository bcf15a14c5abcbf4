//! The usage of nodes, pools and GPUs for one scrape: read under the lock in slices of nodes, written as text after
//! that. Owns names and units of these metrics, and how long they hold the lock.

use std::fmt::Write;

use crate::capacity::cluster::NodeView;
use crate::capacity::gpu::Accounting;
use crate::capacity::name::Name;
use crate::capacity::vram::Vram;
use crate::state::index::{Index, State};

/// Nodes that are read under one lock.
const SLICE: usize = 256;

/// Whether a scrape names each GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Only nodes and pools: 4 MB for 5,000 nodes.
    #[default]
    Nodes,
    /// Each GPU too: six times as much text on nodes with eight GPUs.
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
    free: Vram,
    deficit: Vram,
    gpus: Vec<GpuUsage>,
}

struct GpuUsage {
    id: String,
    size: Option<(Vram, Vram)>,
    held: Option<Vram>,
    free: Option<Vram>,
}

/// The usage of all nodes at one scrape.
pub(super) struct Usage(Vec<NodeUsage>);

/// A metric: its name without prefix and unit, its help text, and the function that writes its samples of one node.
type Family = (&'static str, &'static str, fn(&NodeUsage, &mut Samples<'_>) -> std::fmt::Result);

const FAMILIES: [Family; 10] = [
    ("gpu_total", "Memory of a GPU, including what the driver keeps", |node, out| {
        out.gpus(node, |gpu| Some(gpu.size?.0))
    }),
    ("gpu_allocatable", "Allocatable memory of a GPU: what pods can reserve of it", |node, out| {
        out.gpus(node, |gpu| Some(gpu.size?.1))
    }),
    ("pool_allocatable", "Allocatable memory of all GPUs behind a resource of a node", |node, out| {
        out.pools(node, |pool| pool.allocatable)
    }),
    ("pool_held", "Memory that pods hold of all GPUs behind a resource of a node", |node, out| {
        out.pools(node, |pool| Some(pool.held))
    }),
    ("pool_free", "Largest demand of one pod that fits on the GPUs behind a resource of a node now", |node, out| {
        out.pools(node, |pool| Some(pool.free))
    }),
    (
        "pool_deficit",
        "Largest overcommitment of a GPU behind a resource of a node, in the worst case for unassigned pods",
        |node, out| out.pools(node, |pool| Some(pool.deficit)),
    ),
    ("node_published", "Amount of vramguard.dev/vram that a node should publish", |node, out| {
        node.published.map_or(Ok(()), |amount| out.sample(&[("node", &node.name)], amount))
    }),
    ("node_bound", "VRAM requests of the pods that are bound to a node or have a reservation on it", |node, out| {
        out.sample(&[("node", &node.name)], node.bound)
    }),
    ("gpu_held", "Memory of a GPU that pods are known to hold", |node, out| out.gpus(node, |gpu| gpu.held)),
    ("gpu_free", "Memory of a GPU that is free in the worst case, where that is known for each GPU", |node, out| {
        out.gpus(node, |gpu| gpu.free)
    }),
];

impl Usage {
    /// Reads the index in slices, so that reviews get the lock in between.
    pub(super) async fn read(index: &Index, detail: Detail) -> Usage {
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

    /// Writes all samples, grouped by metric as the format requires.
    pub(super) async fn write(&self, text: &mut String) -> std::fmt::Result {
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
        let NodeView { facts, usage, .. } = state.cluster.node(name)?;
        let rules = state.cluster.rules();
        let pools = facts.pools.iter().zip(&usage.pools).map(|(pool, pool_usage)| {
            let sizes = pool.contents.iter().flat_map(|contents| &contents.gpus).map(|gpu| GpuUsage {
                id: gpu.id.to_string(),
                size: Some((gpu.total, gpu.allocatable(rules).free())),
                held: None,
                free: None,
            });
            let held = pool_usage.gpus.iter().map(|gpu| GpuUsage {
                id: gpu.id.to_string(),
                size: None,
                held: Some(gpu.held),
                free: gpu.free,
            });
            PoolUsage {
                resource: pool.resource.0.clone(),
                mode: pool_usage.accounting,
                allocatable: pool_usage.allocatable,
                held: pool_usage.held,
                free: pool_usage.free,
                deficit: pool_usage.deficit.as_ref().map_or(Vram::ZERO, |deficit| deficit.by),
                gpus: match detail {
                    Detail::Nodes => Vec::new(),
                    Detail::Gpus => sizes.chain(held).collect(),
                },
            }
        });
        Some(NodeUsage {
            name: name.to_owned(),
            published: usage.published,
            bound: usage.bound,
            pools: pools.collect(),
        })
    }
}

/// Output of the samples of one metric.
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
