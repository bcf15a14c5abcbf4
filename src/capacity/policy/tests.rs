//! Tests of layers, locks and exempt namespaces.

use super::*;

fn documents(cluster: Option<ClusterPolicy>, ml: Layer) -> Policies {
    let namespaces = BTreeMap::from([("ml".to_owned(), ml)]);
    Policies::new(&Documents { cluster, namespaces }, "vramguard-system")
}

fn mib(mib: u64) -> Option<Vram> {
    Some(Vram::from_mib(mib))
}

#[test]
fn without_any_policy_nothing_is_enforced() {
    let policies = Policies::new(&Documents::default(), "vramguard-system");
    assert_eq!(policies.of("ml").unwrap().mode, Mode::Audit);
    assert_eq!(policies.enforced(), Namespaces::Only(BTreeSet::new()));
}

#[test]
fn a_cluster_policy_enforces_unless_it_says_otherwise() {
    assert_eq!(documents(Some(ClusterPolicy::default()), Layer::default()).of("ml").unwrap().mode, Mode::Enforce);
    let warn = Layer { mode: Some(Mode::Warn), ..Layer::default() };
    let cluster = ClusterPolicy { layer: warn, ..ClusterPolicy::default() };
    assert_eq!(documents(Some(cluster), Layer::default()).of("other").unwrap().mode, Mode::Warn);
}

#[test]
fn a_namespace_policy_alone_does_not_enforce_by_itself() {
    let policies = documents(None, Layer { required: Some(true), ..Layer::default() });
    assert_eq!(policies.of("ml").unwrap().mode, Mode::Audit);
    let policies = documents(None, Layer { mode: Some(Mode::Enforce), ..Layer::default() });
    assert_eq!(policies.enforced(), Namespaces::Only(BTreeSet::from(["ml".to_owned()])));
}

#[test]
fn the_stricter_bound_wins_even_when_the_namespace_is_laxer() {
    let cluster = Layer { min: mib(100), max: mib(1000), quota: mib(5000), ..Layer::default() };
    let cluster = ClusterPolicy { layer: cluster, ..ClusterPolicy::default() };
    let laxer = Layer { min: mib(50), max: mib(2000), quota: mib(9000), ..Layer::default() };
    let stricter = Layer { min: mib(200), max: mib(500), quota: mib(1), ..Layer::default() };
    let bounds = |layer: Layer| {
        let policies = documents(Some(cluster.clone()), layer);
        let policy = policies.of("ml").unwrap();
        (policy.min, policy.max, policy.quota)
    };
    assert_eq!(bounds(laxer), (mib(100), mib(1000), mib(5000)));
    assert_eq!(bounds(stricter), (mib(200), mib(500), mib(1)));
    assert_eq!(bounds(Layer::default()), (mib(100), mib(1000), mib(5000)));
}

#[test]
fn everything_else_is_the_namespaces_unless_locked() {
    let everything = Layer {
        mode: Some(Mode::Off),
        on_shortfall: Some(OnShortfall::Deny),
        required: Some(true),
        on_unaccounted: Some(OnUnaccounted::Warn),
        default: mib(1),
        min: mib(2),
        max: mib(3),
        quota: mib(4),
        models: BTreeMap::from([("m".to_owned(), Vram::from_mib(5))]),
        framework: Some(FrameworkPolicy::None),
        on_conflict: Some(OnConflict::Deny),
    };
    assert_eq!(everything.set_fields().len(), Field::ALL.len(), "a field that this test forgot");
    let free = documents(Some(ClusterPolicy::default()), everything.clone());
    assert_eq!(free.of("ml").unwrap().mode, Mode::Off);
    assert_eq!(free.of("ml").unwrap().on_conflict, OnConflict::Deny);
    let locked = ClusterPolicy { locked: Field::ALL.into(), ..ClusterPolicy::default() };
    let policies = documents(Some(locked), everything);
    assert_eq!(policies.of("ml"), policies.of("other"));
    assert_eq!(policies.ignored().len(), Field::ALL.len());
}

#[test]
fn models_are_merged_by_name() {
    let models = |entries: &[(&str, u64)]| entries.iter().map(|&(n, m)| (n.to_owned(), Vram::from_mib(m))).collect();
    let layer = Layer { models: models(&[("a", 1), ("b", 2)]), ..Layer::default() };
    let cluster = ClusterPolicy { layer, ..ClusterPolicy::default() };
    let policies = documents(Some(cluster), Layer { models: models(&[("b", 3)]), ..Layer::default() });
    assert_eq!(policies.of("ml").unwrap().models, models(&[("a", 1), ("b", 3)]));
}

#[test]
fn exempt_namespaces_have_no_policy_and_the_own_one_always_is() {
    let none = ClusterPolicy { exempt_namespaces: Some(BTreeSet::new()), ..ClusterPolicy::default() };
    let policies = documents(Some(none), Layer::default());
    assert!(policies.of("kube-system").is_some());
    assert!(policies.of("vramguard-system").is_none());
    assert!(documents(None, Layer::default()).of("kube-system").is_none());
}

const EXEMPT: [&str; 8] = [
    "gpu-operator",
    "gpu-operator-resources",
    "kube-node-lease",
    "kube-system",
    "node-feature-discovery",
    "nvidia-device-plugin",
    "nvidia-gpu-operator",
    "vramguard-system",
];

#[test]
fn enforcing_everywhere_lists_the_exceptions() {
    let policies = documents(Some(ClusterPolicy::default()), Layer { mode: Some(Mode::Warn), ..Layer::default() });
    let expected = EXEMPT.iter().chain(&["ml"]).map(|name| (*name).to_owned());
    assert_eq!(policies.enforced(), Namespaces::AllBut(expected.collect()));
}

#[test]
fn requests_are_injected_where_policy_enforces_or_warns() {
    let of = |cluster: Option<Mode>, ml: Option<Mode>| {
        let layer = |mode| Layer { mode, ..Layer::default() };
        let cluster = cluster.map(|mode| ClusterPolicy { layer: layer(Some(mode)), ..ClusterPolicy::default() });
        documents(cluster, layer(ml)).injected()
    };
    let all_but =
        |more: &[&str]| Namespaces::AllBut(EXEMPT.iter().chain(more).map(|name| (*name).to_owned()).collect());
    let only = |names: &[&str]| Namespaces::Only(names.iter().map(|name| (*name).to_owned()).collect());
    for injects in [Mode::Enforce, Mode::Warn] {
        assert_eq!(of(Some(injects), None), all_but(&[]));
        assert_eq!(of(Some(injects), Some(Mode::Audit)), all_but(&["ml"]));
        assert_eq!(of(Some(Mode::Audit), Some(injects)), only(&["ml"]));
    }
    assert_eq!(of(Some(Mode::Warn), Some(Mode::Enforce)), all_but(&[]));
    assert_eq!(of(None, None), only(&[]));
    assert_eq!(of(Some(Mode::Off), Some(Mode::Audit)), only(&[]));
}

#[test]
fn an_exempt_namespace_is_not_listed_whatever_its_own_policy_says() {
    let layer = Layer { mode: Some(Mode::Enforce), ..Layer::default() };
    let namespaces = BTreeMap::from([("kube-system".to_owned(), layer)]);
    let policies = Policies::new(&Documents { cluster: None, namespaces }, "vramguard-system");
    assert_eq!(
        (policies.enforced(), policies.injected()),
        (Namespaces::Only(BTreeSet::new()), Namespaces::Only(BTreeSet::new()))
    );
}

/// One line for each setting that a document sets, or that passes a value over.
fn settings(documents: &Documents) -> Vec<String> {
    let told = |setting: &Setting| setting.origin != Origin::Default || setting.passed_over.is_some();
    let line = |Setting { path, value, origin, locked, passed_over }: Setting| {
        let lock = if locked { " locked" } else { "" };
        let value = value.unwrap_or_else(|| "none".to_owned());
        let other = passed_over.map(|other| format!("; not {} of {:?}: {:?}", other.value, other.origin, other.why));
        format!("{path}: {value} of {origin:?}{lock}{}", other.unwrap_or_default())
    };
    documents.settings("ml").into_iter().filter(told).map(line).collect()
}

#[test]
fn each_value_has_an_origin_and_a_value_that_is_not_in_force_a_reason() {
    let cluster = Layer {
        mode: Some(Mode::Warn),
        min: mib(100),
        max: mib(1000),
        quota: mib(5),
        models: BTreeMap::from([("a".to_owned(), Vram::from_mib(1)), ("b".to_owned(), Vram::from_mib(2))]),
        ..Layer::default()
    };
    let cluster = ClusterPolicy {
        layer: cluster,
        headroom_percent: Some(3),
        locked: [Field::OnConflict, Field::Quota].into(),
        ..ClusterPolicy::default()
    };
    let ml = Layer {
        mode: Some(Mode::Off),
        min: mib(200),
        max: mib(2000),
        quota: mib(4),
        models: BTreeMap::from([("b".to_owned(), Vram::from_mib(3)), ("c".to_owned(), Vram::from_mib(4))]),
        on_conflict: Some(OnConflict::Deny),
        ..Layer::default()
    };
    let documents = Documents { cluster: Some(cluster), namespaces: [("ml".to_owned(), ml)].into() };
    let expected = [
        "mode: Off of Namespace; not Warn of Cluster: Replaced",
        "declaration.min: 200Mi of Namespace; not 100Mi of Cluster: LessStrict",
        "declaration.max: 1000Mi of Cluster; not 2000Mi of Namespace: LessStrict",
        "quota: 5Mi of Cluster locked; not 4Mi of Namespace: Locked",
        "models.a: 1Mi of Cluster",
        "models.b: 3Mi of Namespace; not 2Mi of Cluster: Replaced",
        "models.c: 4Mi of Namespace",
        "environment.onConflict: Warn of Default locked; not Deny of Namespace: Locked",
        "headroom.percent: 3 of Cluster",
        "locked: environment.onConflict, quota of Cluster",
    ];
    assert_eq!(settings(&documents), expected);
    assert_eq!(settings(&Documents::default()), [""; 0]);
}

#[test]
fn a_bound_that_both_documents_set_alike_has_nothing_to_pass_over() {
    let layer = Layer { min: mib(1), ..Layer::default() };
    let cluster = Some(ClusterPolicy { layer: layer.clone(), ..ClusterPolicy::default() });
    let documents = Documents { cluster, namespaces: [("ml".to_owned(), layer)].into() };
    assert_eq!(settings(&documents), ["declaration.min: 1Mi of Cluster"]);
}

/// The settings are what a user sees of the policy, so none may be left out and none may differ.
#[test]
fn the_settings_are_the_policy_in_force() {
    let documents = Documents::default();
    let settings = documents.settings("ml");
    let value = |path: &str| settings.iter().find(|setting| setting.path == path).unwrap().value.clone();
    for field in Field::ALL {
        value(field.path());
    }
    let policies = Policies::new(&documents, "own");
    let policy = policies.of("ml").unwrap();
    assert_eq!(value("mode"), Some(policy.mode.to_string()));
    assert_eq!(value("onShortfall"), Some(policy.on_shortfall.to_string()));
    assert_eq!(value("environment.framework"), Some(policy.framework.to_string()));
    assert_eq!(value("perProcessOverhead"), Some(policies.rules().per_process_overhead.to_string()));
    assert_eq!(value("overcommit"), Some("1.0".to_owned()));
    assert_eq!((value("declaration.min"), value("locked")), (None, None));
    assert_eq!(settings.len(), Field::ALL.len() + 9);
}
