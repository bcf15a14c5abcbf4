//! The environment variables of each container of a guarded pod, and the flags of its framework. Owns which ones are
//! injected, with which values, which values of the user conflict with them, and what bounds the container then;
//! [`crate::k8s::patch`] writes them into the object.
//!
//! One file for each framework says what that framework is told. A value that is known only at the binding reaches no
//! framework: a variable with `valueFrom.fieldRef` is empty while its annotation is missing, and a framework that finds
//! an empty text ends, or takes the whole GPU.

use crate::capacity::cluster::{Landing, Limits};
use crate::capacity::pod::demand::Demand;
use crate::capacity::pod::software::{ArgumentList, Framework, Version};
use crate::capacity::pod::{Container, EnvEntry};
use crate::capacity::verdict::{Bound, BoundedBy, EnvConflict, Why};
use crate::capacity::vram::Vram;
use crate::keys;

use self::budget::Budget;
use self::merge::{Merge, Outcome};

mod budget;
mod context;
mod jax;
mod limits;
mod llama_cpp;
mod merge;
mod ollama;
mod pytorch;
pub mod recognise;
mod sglang;
mod tensorflow;
mod tgi;
mod triton;
mod vllm;

/// One variable that vramguard injects into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name of the variable.
    pub name: &'static str,
    /// What it is set to.
    pub value: Value,
}

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// This text.
    Literal(String),
    /// The value of the pod's field at this path when the container starts (`valueFrom.fieldRef`).
    Field(String),
}

/// A flag with its value, as one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The list that it is appended to.
    pub list: ArgumentList,
    /// `--name=value`.
    pub text: String,
}

/// The variables that one container lacks, and the user's values that conflict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// Variables to insert before the user's entries, in this order, so that the user's entries can refer to them.
    pub missing: Vec<Variable>,
    /// Variables of the user to which something is added, with their new values. Each is there already, and the last
    /// entry of that name is meant.
    pub edited: Vec<Variable>,
    /// The flag that is appended to its arguments.
    pub argument: Option<Argument>,
    /// The user's own values of injected variables and flags. They are never overwritten silently.
    pub conflicts: Vec<EnvConflict>,
    /// What bounds the container; `None` if it takes no part of a shared GPU.
    pub bound: Option<Bound>,
    /// The user's own choice of GPUs on a container that requests one; every entry of the variable must be removed.
    ///
    /// The device plugin decides the GPU. If it passes GPUs by this variable, the user's value would win. The caller
    /// sets this field, because it knows whether any resource is guarded: see [`chosen_gpus`].
    pub chosen_gpus: Option<EnvConflict>,
}

/// The injection for one container of a guarded pod. `demand` is `None` if the container requests no guarded GPU.
pub fn of_container(container: &Container, demand: Option<&Demand>) -> Injection {
    let mut injection = Injection::default();
    match demand {
        Some(demand) => {
            if let Some(declared) = demand.declared {
                injection.want(container, keys::ENV_VRAM_MIB, Value::Literal(declared.mib().to_string()));
            }
            injection.want(container, keys::ENV_DEVICE_ORDER, Value::Literal("PCI_BUS_ID".to_owned()));
        }
        // CUDA images are built with NVIDIA_VISIBLE_DEVICES=all, which shows every GPU to a container that requests
        // none. A value that the user set is a separate violation, see `shows_gpus_without_request`.
        None if container.gpus.is_empty() && container.env(keys::ENV_VISIBLE_DEVICES).is_none() => {
            injection.want(container, keys::ENV_VISIBLE_DEVICES, Value::Literal("void".to_owned()));
        }
        None => {}
    }
    injection
}

/// What decides how a container with one shared GPU is bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its framework, as its author, its image and command, or the policy say; `None` if none is known.
    pub framework: Option<Framework>,
    /// The version, if it is known.
    pub version: Option<Version>,
    /// Whether the policy injects nothing for frameworks.
    pub is_off: bool,
    /// What it declares, in MiB; `None` if it declares nothing.
    pub declared: Option<Vram>,
    /// The number of its processes, at least 1.
    pub processes: u32,
}

/// Tells a container its budget, in the words of its framework and by the limits that its nodes enforce. `landing` is
/// asked only if the answer depends on the GPUs.
pub fn bound(
    injection: &mut Injection,
    container: &Container,
    demand: &Demand,
    setting: &Setting,
    landing: impl FnOnce() -> Landing,
) {
    let framework = setting.framework;
    let Some(declared) = setting.declared else {
        injection.bound = Some(Bound { framework, by: BoundedBy::Nothing, why: Why::Undeclared });
        return;
    };
    let landing = landing();
    let mut merge = Merge { container, injection };
    let mut budget =
        Budget { declared, demand: demand.total, processes: setting.processes, total: budget::total(&landing) };
    let limit = limits::plan(&mut merge, &budget, landing.limits);
    if landing.limits == Limits::Hard {
        budget.total = limits::total(&merge, demand.total).ok_or(Why::SizeUnknown);
    }
    let (by, why) = match (setting.is_off, framework) {
        (true, _) => (BoundedBy::Nothing, Why::Policy),
        (false, None) => (BoundedBy::Nothing, Why::NoFramework),
        (false, Some(framework)) => told(&mut merge, &budget, framework, setting.version),
    };
    let (by, why) = match limit {
        Some(Outcome::Holds(why)) => (BoundedBy::Driver, why),
        Some(Outcome::Looser(_)) | None => (by, why),
    };
    injection.bound = Some(Bound { framework, by, why });
}

/// Tells a framework its budget. Returns what bounds the container then, and why.
fn told(merge: &mut Merge<'_>, budget: &Budget, framework: Framework, version: Option<Version>) -> (BoundedBy, Why) {
    // A list that starts another framework's server takes no flag of this one.
    let list = merge.software().list.filter(|_| merge.software().framework == Some(framework));
    match framework {
        Framework::PyTorch => pytorch::plan(merge, budget, version),
        Framework::Vllm => vllm::plan(merge, budget, list),
        Framework::SgLang => sglang::plan(merge),
        Framework::Tgi => tgi::plan(merge, budget),
        Framework::Jax => jax::plan(merge, budget),
        Framework::TensorFlow => tensorflow::plan(merge),
        Framework::LlamaCpp => llama_cpp::plan(merge, budget),
        Framework::Ollama => ollama::plan(merge, budget),
        Framework::Triton => triton::plan(),
    }
}

/// The GPUs that a container chooses itself although it requests one from the device plugin.
pub fn chosen_gpus(container: &Container) -> Option<EnvConflict> {
    let theirs = container.env(keys::ENV_VISIBLE_DEVICES);
    let theirs = theirs.filter(|_| !container.gpus.is_empty())?;
    let chosen = !hides_gpus(theirs.value.as_deref());
    chosen.then(|| EnvConflict { name: keys::ENV_VISIBLE_DEVICES, theirs: theirs.value.clone(), ours: None })
}

/// Whether a container that requests no GPU makes GPUs visible to itself.
pub fn shows_gpus_without_request(container: &Container) -> bool {
    container.gpus.is_empty()
        && container.env(keys::ENV_VISIBLE_DEVICES).is_some_and(|entry| !hides_gpus(entry.value.as_deref()))
}

/// Whether the NVIDIA container toolkit shows no GPU under this value.
fn hides_gpus(value: Option<&str>) -> bool {
    matches!(value, Some("" | "void" | "none"))
}

impl Injection {
    /// The first variable or flag that the container lacks.
    pub fn first(&self) -> Option<&str> {
        let variable = self.missing.iter().chain(&self.edited).map(|variable| variable.name).next();
        variable.or_else(|| Some(self.argument.as_ref()?.text.split('=').next().unwrap_or_default()))
    }

    /// Adds a variable to `missing` if the container does not set it, or to `conflicts` if its own value differs.
    fn want(&mut self, container: &Container, name: &'static str, value: Value) {
        let there = |entry: &EnvEntry| match &value {
            Value::Literal(text) => entry.value.as_ref() == Some(text),
            Value::Field(path) => entry.field.as_ref() == Some(path),
        };
        match container.env(name) {
            None => self.missing.push(Variable { name, value }),
            Some(entry) if there(entry) => {}
            Some(entry) => {
                let ours = match value {
                    Value::Literal(text) | Value::Field(text) => text,
                };
                self.conflicts.push(EnvConflict { name, theirs: entry.value.clone(), ours: Some(ours) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::gpu::Resource;
    use crate::capacity::pod::VramRequest;
    use crate::capacity::pod::demand::Role;
    use crate::capacity::pod::software::Software;

    fn container(gpu: bool, env: &[(&str, Option<&str>)]) -> Container {
        Container {
            name: "main".into(),
            role: Role::App,
            gpus: if gpu { vec![(Resource("nvidia.com/gpu".into()), 1)] } else { vec![] },
            vram_request: VramRequest::Absent,
            env: env.iter().map(|&(n, v)| EnvEntry { name: n.into(), value: v.map(Into::into), field: None }).collect(),
            software: Software::default(),
        }
    }

    fn demand() -> Demand {
        Demand::declared(Vram::from_mib(8192), Vram::from_mib(600), 1).unwrap()
    }

    fn injected(injection: &Injection) -> Vec<String> {
        let text = |value: &Value| match value {
            Value::Literal(text) => text.clone(),
            Value::Field(path) => format!("<{path}>"),
        };
        injection.missing.iter().map(|v| format!("{}={}", v.name, text(&v.value))).collect()
    }

    #[test]
    fn a_gpu_container_gets_its_budget_and_the_device_order() {
        let injection = of_container(&container(true, &[("HOME", Some("/root"))]), Some(&demand()));
        assert_eq!(injected(&injection), ["VRAMGUARD_VRAM_MIB=8192", "CUDA_DEVICE_ORDER=PCI_BUS_ID"]);
        assert_eq!(injection.conflicts, []);
    }

    #[test]
    fn a_container_without_a_gpu_sees_none() {
        assert_eq!(injected(&of_container(&container(false, &[]), None)), ["NVIDIA_VISIBLE_DEVICES=void"]);
        let own = container(false, &[("NVIDIA_VISIBLE_DEVICES", Some("all"))]);
        assert_eq!(of_container(&own, None), Injection::default());
        assert!(shows_gpus_without_request(&own));
        for harmless in ["void", "none", ""] {
            assert!(!shows_gpus_without_request(&container(false, &[("NVIDIA_VISIBLE_DEVICES", Some(harmless))])));
        }
        assert!(shows_gpus_without_request(&container(false, &[("NVIDIA_VISIBLE_DEVICES", None)])));
    }

    #[test]
    fn what_is_already_there_is_not_injected_again() {
        let there = [("VRAMGUARD_VRAM_MIB", Some("8192")), ("CUDA_DEVICE_ORDER", Some("PCI_BUS_ID"))];
        assert_eq!(of_container(&container(true, &there), Some(&demand())), Injection::default());
    }

    #[test]
    fn a_users_own_value_is_a_conflict_and_the_last_one_counts() {
        let own = [("CUDA_DEVICE_ORDER", Some("PCI_BUS_ID")), ("CUDA_DEVICE_ORDER", Some("FASTEST_FIRST"))];
        let injection = of_container(&container(true, &own), Some(&demand()));
        assert_eq!(injected(&injection), ["VRAMGUARD_VRAM_MIB=8192"]);
        assert_eq!(injection.conflicts.len(), 1);
        assert_eq!(injection.conflicts[0].theirs.as_deref(), Some("FASTEST_FIRST"));
    }

    #[test]
    fn a_gpu_container_never_keeps_its_own_choice_of_gpus() {
        for value in [Some("all"), Some("0"), Some("GPU-3e095815-0000-4000-8000-000000000000"), None] {
            let own = container(true, &[("NVIDIA_VISIBLE_DEVICES", value)]);
            let chosen = chosen_gpus(&own);
            assert_eq!(chosen.unwrap().theirs.as_deref(), value);
        }
        for hidden in ["void", "none", ""] {
            let own = container(true, &[("NVIDIA_VISIBLE_DEVICES", Some(hidden))]);
            assert_eq!(chosen_gpus(&own), None);
        }
    }
}
