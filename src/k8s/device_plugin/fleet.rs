//! Nodes → groups of equal nodes for a plan, and a plan → named configs and labels. Owns which nodes are equal: those
//! with the same pools on which the same demands may be placed.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::{DEFAULT, Method, NamedConfig, lint};
use crate::capacity::cluster::NodeFacts;
use crate::capacity::gpu::{AllocationPolicy, Contents, Gpu, Pool, Resource, Rules, Sharing};
use crate::capacity::plan::{self, EqualPools, Plan, Wanted};
use crate::capacity::pod::placement::Placement;
use crate::capacity::verdict::count;
use crate::capacity::vram::Vram;
use crate::k8s::template::{Copies, Declared};
use crate::keys;

/// Characters of a group's name. The value of a label has 63 at most, and replicas and a number follow.
const LONGEST_BASE: usize = 40;

/// Equal nodes.
#[derive(Clone, Debug)]
pub struct Group {
    /// What its nodes are, such as `8x80gi`.
    pub base: String,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Their pools that are planned, as they are now.
    pub pools: Vec<Pool>,
    /// The placements that may choose them, by index.
    admits: BTreeSet<usize>,
}

/// All groups, and what is not known.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// The groups, in the order of their first nodes.
    pub groups: Vec<Group>,
    /// Node, resource and reason of each pool whose GPUs are not known.
    pub unknown: Vec<(String, String, String)>,
    /// The placement of each demand, by index: many demands have the same few.
    placement_of: Vec<usize>,
}

impl Fleet {
    /// Groups the nodes that have GPUs.
    pub fn of(nodes: &[(String, NodeFacts)], declared: &[Declared]) -> Fleet {
        let mut fleet = Fleet::default();
        let mut placements: Vec<&Placement> = Vec::new();
        for Declared { placement, .. } in declared {
            let known = placements.iter().position(|other| *other == placement);
            fleet.placement_of.push(known.unwrap_or(placements.len()));
            if known.is_none() {
                placements.push(placement);
            }
        }
        for (name, facts) in nodes {
            let mut pools = Vec::new();
            for pool in &facts.pools {
                match &pool.contents {
                    Ok(_) => pools.push(pool.clone()),
                    Err(why) => fleet.unknown.push((name.clone(), pool.resource.to_string(), why.to_string())),
                }
            }
            let admits = placements.iter().enumerate().filter(|(_, placement)| placement.allows(name, &facts.profile));
            let admits: BTreeSet<usize> = admits.map(|(index, _)| index).collect();
            fleet.add(name, pools, admits);
        }
        fleet
    }

    fn add(&mut self, node: &str, pools: Vec<Pool>, admits: BTreeSet<usize>) {
        if pools.is_empty() {
            return;
        }
        let equal = |group: &&mut Group| group.pools == pools && group.admits == admits;
        match self.groups.iter_mut().find(equal) {
            Some(group) => group.nodes.push(node.to_owned()),
            None => {
                let base: String =
                    pools.iter().map(base).collect::<Vec<_>>().join("-").chars().take(LONGEST_BASE).collect();
                self.groups.push(Group { base, nodes: vec![node.to_owned()], pools, admits });
            }
        }
    }

    /// The pools for [`plan`](crate::capacity::plan::plan), in the order of groups and of their pools.
    pub fn pools(&self, utilisation: Option<u8>) -> Vec<EqualPools> {
        let of = |group: &Group| {
            let nodes = u64::try_from(group.nodes.len()).unwrap_or(u64::MAX);
            group.pools.clone().into_iter().map(move |pool| EqualPools { pool, nodes, utilisation })
        };
        self.groups.iter().flat_map(of).collect()
    }

    /// The demands for [`plan`](crate::capacity::plan::plan), equal ones together; each with the indices of its parts in `declared`.
    pub fn wanted(&self, declared: &[Declared]) -> Vec<(Wanted, Vec<usize>)> {
        let mut wanted: Vec<(Wanted, Vec<usize>)> = Vec::new();
        for (index, (part, &placement)) in declared.iter().zip(&self.placement_of).enumerate() {
            let indices = self.groups.iter().flat_map(|group| group.pools.iter().map(move |pool| (group, pool)));
            let takes =
                |(group, pool): &(&Group, &Pool)| group.admits.contains(&placement) && pool.resource == part.resource;
            let pools: BTreeSet<usize> =
                indices.enumerate().filter(|(_, at)| takes(at)).map(|(place, _)| place).collect();
            let count = match part.copies {
                Copies::Exactly(count) => Some(count),
                Copies::PerNode => {
                    let nodes = self.groups.iter().filter(|group| group.admits.contains(&placement));
                    Some(nodes.map(|group| group.nodes.len() as u64).sum())
                }
            };
            let same = |(other, _): &&mut (Wanted, Vec<usize>)| other.demand == part.demand && other.pools == pools;
            match wanted.iter_mut().find(same) {
                Some((other, parts)) => {
                    other.count = other.count.zip(count).map(|(one, more)| one.saturating_add(more));
                    parts.push(index);
                }
                None => wanted.push((Wanted { demand: part.demand, count, pools }, vec![index])),
            }
        }
        wanted
    }

    /// The configs of a plan, `default` among them, and the name of each group's config.
    ///
    /// If all groups get the same config it is the default. Otherwise the default shares nothing, which is safe for a
    /// node that joins later.
    pub fn configs(&self, plan: &Plan) -> (Vec<NamedConfig>, Vec<String>) {
        let mut at = 0;
        let mut of_groups: Vec<NamedConfig> = Vec::new();
        for group in &self.groups {
            let planned = &plan.pools[at..at + group.pools.len()];
            at += group.pools.len();
            let pools = || group.pools.iter().zip(planned).filter(|(_, planned)| planned.replicas.get() > 1);
            let renamed = |pool: &Pool| pool.resource.0 == keys::GPU_SHARED_RESOURCE;
            let numbers: Vec<String> = planned.iter().map(|planned| planned.replicas.to_string()).collect();
            of_groups.push(NamedConfig {
                name: format!("{}-r{}", group.base, numbers.join("-")),
                method: if pools().any(|(pool, _)| pool.sharing == Sharing::Mps) {
                    Method::Mps
                } else {
                    Method::TimeSlicing
                },
                rename_by_default: pools().any(|(pool, _)| renamed(pool)),
                resources: pools()
                    .map(|(pool, planned)| {
                        let name = if renamed(pool) { keys::GPU_RESOURCE.into() } else { pool.resource.0.to_string() };
                        (name, planned.replicas.get())
                    })
                    .collect(),
            });
        }
        let content = |config: &NamedConfig| NamedConfig { name: DEFAULT.to_owned(), ..config.clone() };
        let nothing = NamedConfig {
            name: DEFAULT.to_owned(),
            method: Method::TimeSlicing,
            rename_by_default: false,
            resources: Vec::new(),
        };
        let all_equal = of_groups.windows(2).all(|pair| content(&pair[0]) == content(&pair[1]));
        let default = of_groups.first().filter(|_| all_equal).map_or(nothing, content);
        let mut configs = vec![default];
        let mut names = Vec::new();
        for config in of_groups {
            let is_default = config.resources.is_empty() && configs[0].resources.is_empty();
            if is_default || content(&config) == configs[0] {
                names.push(DEFAULT.to_owned());
                continue;
            }
            let same = configs.iter().position(|other| content(other) == content(&config));
            let at = same.unwrap_or_else(|| {
                let taken = |name: &str| configs.iter().any(|other| other.name == name);
                let numbered = (2..).map(|number| format!("{}-{number}", config.name));
                let name = std::iter::once(config.name.clone()).chain(numbered).find(|name| !taken(name));
                configs.push(NamedConfig { name: name.unwrap_or_default(), ..config.clone() });
                configs.len() - 1
            });
            names.push(configs[at].name.clone());
        }
        (configs, names)
    }
}

/// What a pool is, as part of a label value: number and size of its GPUs, and the MIG profile.
fn base(pool: &Pool) -> String {
    let Ok(contents) = &pool.contents else { return "unknown".to_owned() };
    let profile = pool.resource.0.strip_prefix(keys::MIG_RESOURCE_OF).map(|profile| {
        let tame = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        format!("mig-{}-", profile.chars().take(12).map(tame).collect::<String>())
    });
    let smallest = contents.gpus.iter().map(|gpu| gpu.total.mib()).min().unwrap_or(0);
    format!("{}{}x{}gi", profile.unwrap_or_default(), contents.gpus.len(), smallest.div_ceil(1024))
}

/// What would change on some nodes if a plan replaced an existing configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What the nodes are, such as `8x80gi`.
    pub group: String,
    /// How many there are.
    pub nodes: usize,
    /// The config that they have now; `None` if the file has none for them.
    pub config: Option<String>,
    /// The resource.
    pub resource: String,
    /// Replicas by that config; 1 if it does not share the resource.
    pub from: u32,
    /// Replicas by the plan.
    pub to: u32,
}

impl Fleet {
    /// Compares an existing configuration with a plan. `label` tells the config that a node is labelled with.
    ///
    /// Findings are replicas whose slot is smaller than every demand, and labels that name no config of the file.
    pub fn compare(
        &self,
        configs: &[lint::Config],
        plan: &Plan,
        wanted: &[Wanted],
        rules: &Rules,
        label: impl Fn(&str) -> Option<String>,
    ) -> (Vec<lint::Finding>, Vec<Change>) {
        let (mut findings, mut changes) = (Vec::new(), Vec::new());
        let mut at = 0;
        for group in &self.groups {
            let mut by_config: BTreeMap<Option<String>, usize> = BTreeMap::new();
            group.nodes.iter().for_each(|node| *by_config.entry(label(node)).or_default() += 1);
            for (labelled, nodes) in by_config {
                let config = named(configs, labelled.as_deref());
                if let (Some(name), None) = (&labelled, config) {
                    findings.push(lint::Finding {
                        severity: lint::Severity::Risky,
                        line: 1,
                        field: "data".to_owned(),
                        what: format!(
                            "the label {}={name} is on {}, and no config has that name",
                            keys::DEVICE_PLUGIN_CONFIG,
                            count(nodes, "node")
                        ),
                    });
                }
                for (place, pool) in (at..).zip(&group.pools) {
                    let shared = config.and_then(|config| configured(config, pool));
                    let to = plan.pools[place].replicas.get();
                    let from = shared.map_or(1, |shared| shared.replicas);
                    let smallest =
                        wanted.iter().filter(|wanted| wanted.pools.contains(&place)).map(|wanted| wanted.demand).min();
                    let useless = shared.zip(smallest).and_then(|(shared, smallest)| {
                        let slot = plan::useless_slot(pool, NonZeroU32::new(shared.replicas)?, smallest, rules)?;
                        Some((shared, slot, smallest))
                    });
                    findings.extend(useless.map(|(shared, slot, smallest)| lint::Finding {
                        severity: lint::Severity::Risky,
                        line: shared.line,
                        field: shared.field.clone(),
                        what: format!(
                            "is {from}, so that a slot of {} is {slot}, less than the smallest demand, {smallest}: there are \
                             more replicas than pods that fit, which invites overcommit",
                            group.base
                        ),
                    }));
                    if from != to {
                        let (group, resource) = (group.base.clone(), pool.resource.to_string());
                        let config = config.map(|config| config.name.clone().unwrap_or_else(|| DEFAULT.to_owned()));
                        changes.push(Change { group, nodes, config, resource, from, to });
                    }
                }
            }
            at += group.pools.len();
        }
        findings.dedup();
        (findings, changes)
    }
}

/// The config of a node: the one that its label names, else the default, else the only one.
fn named<'c>(configs: &'c [lint::Config], label: Option<&str>) -> Option<&'c lint::Config> {
    let by_name = |name: &str| configs.iter().find(|config| config.name.as_deref() == Some(name));
    match (label, configs) {
        (Some(name), _) => by_name(name),
        (None, [only]) => Some(only),
        (None, _) => by_name(DEFAULT),
    }
}

fn configured<'c>(config: &'c lint::Config, pool: &Pool) -> Option<&'c lint::Shared> {
    let shared_name = |name: &str| match config.rename_by_default {
        true => format!("{name}.shared"),
        false => name.to_owned(),
    };
    config
        .resources
        .iter()
        .find(|shared| shared.resource == *pool.resource.0 || shared_name(&shared.resource) == *pool.resource.0)
}

/// A pool of GPUs that no node has yet: not shared, and without an agent.
pub fn imagined(gpus: u32, size: Vram) -> Pool {
    Pool {
        resource: Resource(keys::GPU_RESOURCE.into()),
        sharing: Sharing::Exclusive,
        contents: Ok(Contents {
            gpus: (0..gpus).map(|index| Gpu::of_size(index, size)).collect(),
            replicas: NonZeroU32::MIN,
        }),
        allocation_policy: AllocationPolicy::Unverified,
        hard_limits: false,
        tells_processes: false,
    }
}

#[cfg(test)]
mod tests;
