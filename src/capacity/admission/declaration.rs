//! What the GPU containers of a pod declare. Owns the precedence of the sources and their conflicts; knows nothing of
//! overhead (see [`crate::capacity::pod::demand`]) or of the policy's bounds (see [`crate::capacity::admission`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::pod::{Declarations, Written};
use crate::capacity::verdict::{MAX_FINDINGS, Source, Violation};
use crate::capacity::vram::Vram;

/// The names of a pod's containers.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// All containers.
    pub all: &'a [&'a str],
    /// The containers that request a guarded resource.
    pub guarded: &'a [&'a str],
}

/// The sources of a declaration that come from the policy.
#[derive(Clone, Copy, Debug)]
pub struct Fallback<'a> {
    /// The model catalogue: name → amount in MiB.
    pub models: &'a BTreeMap<String, Vram>,
    /// `declaration.default`, in MiB.
    pub default: Option<Vram>,
}

/// The declared amount of each guarded container, in the order of `names.guarded`.
///
/// An entry is `Ok(None)` if nothing is declared, and `Err` if the declaration is refused; then `violations` has the
/// cause.
pub fn resolve(
    declarations: &Declarations,
    names: Names<'_>,
    fallback: Fallback<'_>,
    violations: &mut Vec<Violation>,
) -> Vec<Result<Option<Vram>, Refused>> {
    resolve_to(declarations, names, fallback, violations, |amount, _| amount)
}

/// [`resolve`], with the source of each amount.
pub fn resolve_sources(
    declarations: &Declarations,
    names: Names<'_>,
    fallback: Fallback<'_>,
) -> Vec<Result<Option<(Vram, Source)>, Refused>> {
    resolve_to(declarations, names, fallback, &mut Vec::new(), |amount, source| (amount, source))
}

/// [`resolve`], with `of` the amount and its source for each container.
fn resolve_to<T>(
    declarations: &Declarations,
    names: Names<'_>,
    fallback: Fallback<'_>,
    violations: &mut Vec<Violation>,
    of: fn(Vram, Source) -> T,
) -> Vec<Result<Option<T>, Refused>> {
    if !declarations.containers.is_empty() {
        strays(declarations, names, violations);
    }
    let pod = declarations
        .pod
        .as_ref()
        .map(|written| one_of(names.guarded, &written.key, &written.text, violations).map(|_| written));
    let pod = pod.transpose();
    let model = model(declarations, names, fallback.models, violations);
    names
        .guarded
        .iter()
        .map(|&container| {
            let by_model = match &model {
                // The model precedes KAI's annotations, so they are not read for a container that gets its amount from
                // it.
                Ok(Some((named, amount))) if *named == container => return Ok(Some(of(*amount, Source::Model))),
                Ok(_) => None,
                Err(refused) => Some(*refused),
            };
            match explicit(declarations, container, pod, violations)? {
                Some((amount, source)) => Ok(Some(of(amount, source))),
                None => by_model.map_or(Ok(fallback.default.map(|amount| of(amount, Source::Default))), Err),
            }
        })
        .collect()
}

/// Adds a violation for each declaration for a container that does not exist or requests no shared GPU.
fn strays(declarations: &Declarations, names: Names<'_>, violations: &mut Vec<Violation>) {
    let (all, guarded): (BTreeSet<&str>, BTreeSet<&str>) =
        (names.all.iter().copied().collect(), names.guarded.iter().copied().collect());
    let strays = declarations.containers.iter().filter(|(container, _)| !guarded.contains(container.as_str()));
    for (container, written) in strays.take(MAX_FINDINGS) {
        violations.push(if all.contains(container.as_str()) {
            Violation::WithoutGpu { key: written.key.clone(), container: Some(container.clone()) }
        } else {
            let containers = names.all.iter().map(|name| (*name).to_owned()).collect();
            Violation::UnknownContainer { key: written.key.clone(), containers }
        });
    }
}

/// Marks a container whose declaration is refused; the cause is among the violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The one container that a pod-level annotation can mean; with no candidate or several, a violation.
fn one_of<'a>(
    candidates: &[&'a str],
    key: &str,
    text: &str,
    violations: &mut Vec<Violation>,
) -> Result<&'a str, Refused> {
    match candidates {
        [one] => return Ok(one),
        [] => violations.push(Violation::WithoutGpu { key: key.to_owned(), container: None }),
        several => violations.push(Violation::Ambiguous {
            key: key.to_owned(),
            text: text.to_owned(),
            containers: several.iter().map(|name| (*name).to_owned()).collect(),
        }),
    }
    Err(Refused)
}

/// The container that the model applies to, and its amount: the guarded container without an amount in our annotations.
///
/// An amount in our annotations precedes the model, so the model is looked up only if it would count.
fn model<'a>(
    declarations: &Declarations,
    names: Names<'a>,
    models: &BTreeMap<String, Vram>,
    violations: &mut Vec<Violation>,
) -> Result<Option<(&'a str, Vram)>, Refused> {
    let Some(name) = &declarations.model else { return Ok(None) };
    let without = |container: &&&str| !declarations.containers.contains_key(**container);
    let open: Vec<&str> = names.guarded.iter().filter(without).copied().collect();
    if declarations.pod.is_some() || open.is_empty() && !names.guarded.is_empty() {
        return Ok(None);
    }
    let container = one_of(&open, crate::keys::MODEL, name, violations)?;
    let Some(amount) = models.get(name) else {
        let known = models.keys().cloned().collect();
        violations.push(Violation::UnknownModel { name: name.clone(), known });
        return Err(Refused);
    };
    Ok(Some((container, *amount)))
}

/// The amount that the annotations declare for this container, if all of them agree, and the first that does.
fn explicit(
    declarations: &Declarations,
    container: &str,
    pod: Result<Option<&Written>, Refused>,
    violations: &mut Vec<Violation>,
) -> Result<Option<(Vram, Source)>, Refused> {
    let own = declarations.containers.get(container).map(|written| (Source::Container, written));
    let pod = pod?.map(|written| (Source::Pod, written));
    let foreign = declarations.foreign.get(container).into_iter().flatten().map(|written| (Source::Foreign, written));
    let mut figures = Vec::new();
    for (source, written) in own.into_iter().chain(pod).chain(foreign) {
        match &written.amount {
            Ok(amount) if amount.is_zero() => {
                violations.push(Violation::Zero { key: written.key.clone() });
                return Err(Refused);
            }
            Ok(amount) => figures.push((source, written, *amount)),
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
    let Some(&(source, first, amount)) = figures.first() else {
        return Ok(None);
    };
    if let Some((_, other, differs)) = figures.iter().find(|(_, _, other)| *other != amount) {
        violations.push(Violation::Conflict {
            container: container.to_owned(),
            first: (first.key.clone(), amount),
            second: (other.key.clone(), *differs),
        });
        return Err(Refused);
    }
    Ok(Some((amount, source)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::verdict::Reason;

    fn written(key: &str, text: &str) -> Written {
        let amount = text.parse().map_err(|error: crate::capacity::vram::VramError| error.to_string());
        Written { key: key.into(), text: text.into(), amount }
    }

    fn pod(text: &str) -> Declarations {
        Declarations { pod: Some(written("vramguard.dev/vram", text)), ..Declarations::default() }
    }

    fn with_own(mut declarations: Declarations, container: &str, text: &str) -> Declarations {
        let key = format!("vramguard.dev/vram.{container}");
        declarations.containers.insert(container.into(), written(&key, text));
        declarations
    }

    fn with_foreign(mut declarations: Declarations, container: &str, text: &str) -> Declarations {
        let key = format!("nvidia.com/container.{container}.gpu-memory.request");
        declarations.foreign.entry(container.into()).or_default().push(written(&key, text));
        declarations
    }

    fn outcome(declarations: &Declarations, all: &[&str], guarded: &[&str]) -> (Vec<Option<u64>>, Vec<Reason>) {
        let models = BTreeMap::from([("qwen3-8b".to_owned(), Vram::from_mib(17_000))]);
        let mut violations = Vec::new();
        let fallback = Fallback { models: &models, default: Some(Vram::from_mib(1000)) };
        let resolved = resolve(declarations, Names { all, guarded }, fallback, &mut violations);
        let amounts = resolved.into_iter().map(|r| r.ok().flatten().map(Vram::mib)).collect();
        (amounts, violations.iter().map(Violation::reason).collect())
    }

    #[test]
    fn sources_count_in_their_order() {
        let model = |declarations: Declarations| Declarations { model: Some("qwen3-8b".into()), ..declarations };
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
            assert_eq!(outcome(&declarations, &["main"], &["main"]), (vec![Some(mib)], vec![]), "{declarations:?}");
        }
    }

    #[test]
    fn each_amount_has_its_source() {
        let models = BTreeMap::from([("m".to_owned(), Vram::from_mib(1))]);
        let source = |declarations: &Declarations| {
            let fallback = Fallback { models: &models, default: Some(Vram::from_mib(1000)) };
            let names = Names { all: &["main"], guarded: &["main"] };
            resolve_sources(declarations, names, fallback)[0].map(|declared| declared.unwrap().1)
        };
        let none = Declarations::default;
        assert_eq!(source(&with_own(none(), "main", "4Gi")), Ok(Source::Container));
        assert_eq!(source(&with_foreign(pod("4Gi"), "main", "4Gi")), Ok(Source::Pod));
        assert_eq!(source(&with_foreign(none(), "main", "4Gi")), Ok(Source::Foreign));
        let model = Declarations { model: Some("m".into()), ..none() };
        assert_eq!(source(&with_foreign(model, "main", "4Gi")), Ok(Source::Model));
        assert_eq!(source(&none()), Ok(Source::Default));
        assert_eq!(source(&pod("4GB")), Err(Refused));
    }

    #[test]
    fn sources_that_agree_are_one_declaration() {
        let all = with_foreign(with_own(pod("8Gi"), "main", "8192Mi"), "main", "8Gi");
        assert_eq!(outcome(&all, &["main"], &["main"]), (vec![Some(8192)], vec![]));
    }

    #[test]
    fn sources_that_disagree_are_refused() {
        for declarations in [with_foreign(pod("8Gi"), "main", "9Gi"), with_own(pod("8Gi"), "main", "9Gi")] {
            assert_eq!(outcome(&declarations, &["main"], &["main"]), (vec![None], vec![Reason::VramConflict]));
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
        assert_eq!(outcome(&declarations, &["a", "b"], &["a", "b"]), (vec![Some(1024), Some(2048)], vec![]));
    }

    #[test]
    fn a_figure_for_a_container_that_does_not_exist_is_refused() {
        let declarations = with_own(pod("8Gi"), "mian", "8Gi");
        assert_eq!(outcome(&declarations, &["main"], &["main"]), (vec![Some(8192)], vec![Reason::UnknownContainer]));
    }

    #[test]
    fn a_figure_without_a_gpu_is_refused() {
        assert_eq!(outcome(&pod("8Gi"), &["main"], &[]), (vec![], vec![Reason::VramWithoutGpu]));
        let beside = with_own(with_own(Declarations::default(), "main", "8Gi"), "log", "1Gi");
        assert_eq!(outcome(&beside, &["main", "log"], &["main"]).1, [Reason::VramWithoutGpu]);
    }

    /// Regression: a pod of 10,000 containers with 10,000 stray annotations once took gigabytes of memory.
    #[test]
    fn a_thousand_stray_figures_are_a_few_violations() {
        let names: Vec<String> = (0..1000).map(|number| format!("c{number}")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let strays = (0..1000).fold(Declarations::default(), |d, number| with_own(d, &format!("x{number}"), "8GB"));
        assert_eq!(outcome(&strays, &all, &["c0"]).1.len(), MAX_FINDINGS);
    }

    #[test]
    fn unreadable_zero_and_missing_are_three_things() {
        assert_eq!(outcome(&pod("8GB"), &["main"], &["main"]), (vec![None], vec![Reason::VramUnreadable]));
        assert_eq!(outcome(&pod("0Gi"), &["main"], &["main"]), (vec![None], vec![Reason::VramZero]));
        assert_eq!(outcome(&Declarations::default(), &["main"], &["main"]), (vec![Some(1000)], vec![]));
    }

    #[test]
    fn an_unknown_model_is_refused_where_it_would_count() {
        let beside = Declarations {
            model: Some("qwen3-8b".into()),
            ..with_foreign(with_own(Declarations::default(), "a", "8Gi"), "b", "20Gi")
        };
        assert_eq!(outcome(&beside, &["a", "b"], &["a", "b"]), (vec![Some(8192), Some(17_000)], vec![]));
        let model = Declarations { model: Some("qwen4".into()), ..Declarations::default() };
        assert_eq!(outcome(&model, &["main"], &["main"]), (vec![None], vec![Reason::UnknownModel]));
        let explicit = Declarations { model: Some("qwen4".into()), ..pod("8Gi") };
        assert_eq!(outcome(&explicit, &["main"], &["main"]), (vec![Some(8192)], vec![]));
    }
}
