//! What the GPU containers of a pod declare: which source counts, what contradicts what. Owns precedence and conflicts;
//! does not add overhead (see [`super::demand`]) and does not know bounds (see [`super::admission`]).

use std::collections::BTreeMap;

use super::verdict::Violation;
use super::vram::Vram;

/// The declarations that a pod's annotations carry, each as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declarations {
    /// `vramguard.dev/vram`.
    pub pod: Option<Written>,
    /// `vramguard.dev/vram.<container>`, by container.
    pub containers: BTreeMap<String, Written>,
    /// `vramguard.dev/model`.
    pub model: Option<String>,
    /// KAI's `nvidia.com/container.<container>.gpu-memory.*`, by container: request, limit or both.
    pub foreign: BTreeMap<String, Vec<Written>>,
    /// `vramguard.dev/processes`; the text where it is no count.
    pub processes: Option<Result<u32, String>>,
}

/// An amount as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The annotation.
    pub key: String,
    /// What stands there.
    pub text: String,
    /// What it means, or why it means nothing.
    pub amount: Result<Vram, String>,
}

/// A pod's containers as far as declarations are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// All of them.
    pub all: &'a [&'a str],
    /// Those that request a guarded resource.
    pub guarded: &'a [&'a str],
}

/// What the policy adds to the annotations.
#[derive(Clone, Copy, Debug)]
pub struct Fallback<'a> {
    /// Model catalogue.
    pub models: &'a BTreeMap<String, Vram>,
    /// `declaration.default`.
    pub default: Option<Vram>,
}

/// The declared VRAM of each guarded container, in the order of `names.guarded`: `Ok(None)` where nothing is declared,
/// `Err` where something is wrong with it, which is among the violations then.
pub fn resolve(
    declarations: &Declarations,
    names: Names<'_>,
    fallback: Fallback<'_>,
    violations: &mut Vec<Violation>,
) -> Vec<Result<Option<Vram>, Refused>> {
    for (container, written) in &declarations.containers {
        if !names.all.contains(&container.as_str()) {
            violations.push(Violation::UnknownContainer {
                key: written.key.clone(),
                containers: names.all.iter().map(|name| (*name).to_owned()).collect(),
            });
        } else if !names.guarded.contains(&container.as_str()) {
            violations.push(Violation::WithoutGpu {
                key: written.key.clone(),
                container: Some(container.clone()),
            });
        }
    }
    let for_the_pod = for_the_pod(declarations, names, fallback.models, violations);
    names
        .guarded
        .iter()
        .map(|&container| {
            let explicit = explicit(declarations, container, for_the_pod.explicit, violations)?;
            Ok(match explicit {
                Some(amount) => Some(amount),
                None => for_the_pod.model?.or(fallback.default),
            })
        })
        .collect()
}

/// Marks a container whose declaration was refused; the reason is among the violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What the pod-level annotations say for its one guarded container.
struct ForThePod<'a> {
    explicit: Result<Option<&'a Written>, Refused>,
    model: Result<Option<Vram>, Refused>,
}

fn for_the_pod<'a>(
    declarations: &'a Declarations,
    names: Names<'_>,
    models: &BTreeMap<String, Vram>,
    violations: &mut Vec<Violation>,
) -> ForThePod<'a> {
    let mut owner_of = |key: &str, text: &str| match names.guarded {
        [] => {
            violations.push(Violation::WithoutGpu {
                key: key.to_owned(),
                container: None,
            });
            Err(Refused)
        }
        [_] => Ok(()),
        several => {
            violations.push(Violation::Ambiguous {
                key: key.to_owned(),
                text: text.to_owned(),
                containers: several.iter().map(|name| (*name).to_owned()).collect(),
            });
            Err(Refused)
        }
    };
    let explicit = match &declarations.pod {
        Some(written) => owner_of(&written.key, &written.text).map(|()| Some(written)),
        None => Ok(None),
    };
    // An explicit figure beats the model, so the name is looked up only where it would count.
    let model = match &declarations.model {
        Some(name) if declarations.pod.is_none() && declarations.containers.is_empty() => {
            owner_of(crate::keys::MODEL, name).and_then(|()| match models.get(name) {
                Some(amount) => Ok(Some(*amount)),
                None => {
                    let known = models.keys().cloned().collect();
                    violations.push(Violation::UnknownModel {
                        name: name.clone(),
                        known,
                    });
                    Err(Refused)
                }
            })
        }
        _ => Ok(None),
    };
    ForThePod { explicit, model }
}

/// The figure that somebody wrote for this container, if all who wrote one agree.
fn explicit(
    declarations: &Declarations,
    container: &str,
    pod: Result<Option<&Written>, Refused>,
    violations: &mut Vec<Violation>,
) -> Result<Option<Vram>, Refused> {
    let own = declarations.containers.get(container);
    // The model stands between our annotations and KAI's: with a model, KAI's figure is not read.
    let foreign = if declarations.model.is_some() && own.is_none() && declarations.pod.is_none() {
        None
    } else {
        declarations.foreign.get(container)
    };
    let mut figures = Vec::new();
    for written in own.into_iter().chain(pod?).chain(foreign.into_iter().flatten()) {
        match &written.amount {
            Ok(amount) if amount.is_zero() => {
                violations.push(Violation::Zero {
                    key: written.key.clone(),
                });
                return Err(Refused);
            }
            Ok(amount) => figures.push((written, *amount)),
            Err(why) => {
                violations.push(Violation::Unreadable {
                    key: written.key.clone(),
                    text: written.text.clone(),
                    why: why.clone(),
                });
                return Err(Refused);
            }
        }
    }
    let Some(&(first, amount)) = figures.first() else {
        return Ok(None);
    };
    if let Some((other, differs)) = figures.iter().find(|(_, other)| *other != amount) {
        violations.push(Violation::Conflict {
            container: container.to_owned(),
            first: (first.key.clone(), amount),
            second: (other.key.clone(), *differs),
        });
        return Err(Refused);
    }
    Ok(Some(amount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::verdict::Reason;

    fn written(key: &str, text: &str) -> Written {
        let amount = text
            .parse()
            .map_err(|error: crate::capacity::vram::VramError| error.to_string());
        Written {
            key: key.into(),
            text: text.into(),
            amount,
        }
    }

    fn pod(text: &str) -> Declarations {
        Declarations {
            pod: Some(written("vramguard.dev/vram", text)),
            ..Declarations::default()
        }
    }

    fn with_own(mut declarations: Declarations, container: &str, text: &str) -> Declarations {
        let key = format!("vramguard.dev/vram.{container}");
        declarations.containers.insert(container.into(), written(&key, text));
        declarations
    }

    fn with_foreign(mut declarations: Declarations, container: &str, text: &str) -> Declarations {
        let key = format!("nvidia.com/container.{container}.gpu-memory.request");
        declarations
            .foreign
            .entry(container.into())
            .or_default()
            .push(written(&key, text));
        declarations
    }

    fn outcome(declarations: &Declarations, all: &[&str], guarded: &[&str]) -> (Vec<Option<u64>>, Vec<Reason>) {
        let models = BTreeMap::from([("qwen3-8b".to_owned(), Vram::from_mib(17_000))]);
        let mut violations = Vec::new();
        let fallback = Fallback {
            models: &models,
            default: Some(Vram::from_mib(1000)),
        };
        let resolved = resolve(declarations, Names { all, guarded }, fallback, &mut violations);
        let amounts = resolved.into_iter().map(|r| r.ok().flatten().map(Vram::mib)).collect();
        (amounts, violations.iter().map(Violation::reason).collect())
    }

    #[test]
    fn sources_count_in_their_order() {
        let model = |declarations: Declarations| Declarations {
            model: Some("qwen3-8b".into()),
            ..declarations
        };
        let none = Declarations::default;
        for (declarations, mib) in [
            (pod("8Gi"), 8192),
            (with_own(none(), "main", "4Gi"), 4096),
            (model(pod("8Gi")), 8192),
            (model(none()), 17_000),
            (model(with_foreign(none(), "main", "2Gi")), 17_000),
            (with_foreign(none(), "main", "2Gi"), 2048),
            (none(), 1000),
        ] {
            assert_eq!(
                outcome(&declarations, &["main"], &["main"]),
                (vec![Some(mib)], vec![]),
                "{declarations:?}"
            );
        }
    }

    #[test]
    fn sources_that_agree_are_one_declaration() {
        let all = with_foreign(with_own(pod("8Gi"), "main", "8192Mi"), "main", "8Gi");
        assert_eq!(outcome(&all, &["main"], &["main"]), (vec![Some(8192)], vec![]));
    }

    #[test]
    fn sources_that_disagree_are_refused() {
        for declarations in [
            with_foreign(pod("8Gi"), "main", "9Gi"),
            with_own(pod("8Gi"), "main", "9Gi"),
        ] {
            assert_eq!(
                outcome(&declarations, &["main"], &["main"]),
                (vec![None], vec![Reason::VramConflict])
            );
        }
    }

    #[test]
    fn one_figure_for_two_gpu_containers_is_ambiguous_even_beside_figures_for_both() {
        let both = with_own(with_own(pod("8Gi"), "a", "1Gi"), "b", "2Gi");
        for declarations in [pod("8Gi"), both] {
            let (amounts, reasons) = outcome(&declarations, &["a", "b"], &["a", "b"]);
            assert_eq!((amounts, reasons), (vec![None, None], vec![Reason::VramAmbiguous]));
        }
    }

    #[test]
    fn a_figure_for_each_of_two_gpu_containers_is_read() {
        let declarations = with_own(with_own(Declarations::default(), "a", "1Gi"), "b", "2Gi");
        assert_eq!(
            outcome(&declarations, &["a", "b"], &["a", "b"]),
            (vec![Some(1024), Some(2048)], vec![])
        );
    }

    #[test]
    fn a_figure_for_a_container_that_does_not_exist_is_refused() {
        let declarations = with_own(pod("8Gi"), "mian", "8Gi");
        assert_eq!(
            outcome(&declarations, &["main"], &["main"]),
            (vec![Some(8192)], vec![Reason::UnknownContainer])
        );
    }

    #[test]
    fn a_figure_without_a_gpu_is_refused() {
        assert_eq!(
            outcome(&pod("8Gi"), &["main"], &[]),
            (vec![], vec![Reason::VramWithoutGpu])
        );
        let beside = with_own(with_own(Declarations::default(), "main", "8Gi"), "log", "1Gi");
        assert_eq!(
            outcome(&beside, &["main", "log"], &["main"]).1,
            [Reason::VramWithoutGpu]
        );
    }

    #[test]
    fn unreadable_zero_and_missing_are_three_things() {
        assert_eq!(
            outcome(&pod("8GB"), &["main"], &["main"]),
            (vec![None], vec![Reason::VramUnreadable])
        );
        assert_eq!(
            outcome(&pod("0Gi"), &["main"], &["main"]),
            (vec![None], vec![Reason::VramZero])
        );
        assert_eq!(
            outcome(&Declarations::default(), &["main"], &["main"]),
            (vec![Some(1000)], vec![])
        );
    }

    #[test]
    fn an_unknown_model_is_refused_where_it_would_count() {
        let model = Declarations {
            model: Some("qwen4".into()),
            ..Declarations::default()
        };
        assert_eq!(
            outcome(&model, &["main"], &["main"]),
            (vec![None], vec![Reason::UnknownModel])
        );
        let explicit = Declarations {
            model: Some("qwen4".into()),
            ..pod("8Gi")
        };
        assert_eq!(outcome(&explicit, &["main"], &["main"]), (vec![Some(8192)], vec![]));
    }
}
