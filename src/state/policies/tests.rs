//! Policies of files and of resources, in force together.

use super::*;
use crate::capacity::policy::Mode;

fn cluster(mode: &str) -> String {
    format!(
        "apiVersion: vramguard.dev/v1alpha1\nkind: ClusterVramPolicy\nmetadata: {{name: c}}\nspec: {{mode: {mode}}}\n"
    )
}

fn store(directory: &Path) -> PolicyStore {
    PolicyStore::new(&files_of(directory).unwrap(), "own").unwrap()
}

fn mode(store: &PolicyStore) -> Mode {
    store.current().of("ml").unwrap().0.mode
}

#[test]
fn a_broken_file_leaves_the_last_good_policies_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cluster.yaml");
    std::fs::write(&file, cluster("Warn")).unwrap();
    let store = store(directory.path());
    std::fs::write(&file, cluster("Wran")).unwrap();
    let error = store.replace(&files_of(directory.path()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("cluster.yaml:4: spec.mode"), "{error}");
    assert_eq!((mode(&store), store.current().number), (Mode::Warn, 1));
}

#[test]
fn the_policies_of_the_last_two_minutes_are_remembered_the_last_one_first() {
    let store = PolicyStore::new(&vec![("c".into(), cluster("Warn"))], "own").unwrap();
    for mode in ["Audit", "Enforce"] {
        store.replace(&vec![("c".into(), cluster(mode))]).unwrap();
    }
    let current = store.current();
    let (now, before) = current.of("ml").unwrap();
    let modes: Vec<Mode> = before.iter().map(|policy| policy.mode).collect();
    assert_eq!((now.mode, &modes[..]), (Mode::Enforce, &[Mode::Audit, Mode::Warn][..]));
    assert!(current.of("kube-system").is_none());
    for number in 0..20 {
        store.replace(&vec![("c".into(), cluster(["Warn", "Audit"][number % 2]))]).unwrap();
    }
    assert_eq!(store.current().earlier.everywhere.len(), MAX_EARLIER);
}

#[test]
fn the_same_content_is_no_new_generation() {
    let store = PolicyStore::new(&vec![("c".into(), cluster("Warn"))], "own").unwrap();
    store.replace(&vec![("other-name".into(), format!("# a comment\n{}", cluster("Warn")))]).unwrap();
    assert_eq!(store.current().number, 1);
}

#[test]
fn a_directory_that_is_missing_is_an_error_and_not_an_empty_one() {
    assert!(files_of(Path::new("/nonexistent/policies")).is_err());
}

#[tokio::test]
async fn the_kubelets_symlink_swap_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    for (version, mode) in [("..1", "Warn"), ("..2", "Audit")] {
        std::fs::create_dir(root.join(version)).unwrap();
        std::fs::write(root.join(version).join("cluster.yaml"), cluster(mode)).unwrap();
    }
    std::os::unix::fs::symlink("..1", root.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/cluster.yaml", root.join("cluster.yaml")).unwrap();
    let files = files_of(&root).unwrap();
    let store = Arc::new(PolicyStore::new(&files, "own").unwrap());
    let mut changed = store.subscribe();
    let follower = tokio::spawn({
        let (store, root) = (store.clone(), root.clone());
        async move { store.follow(&root, files).await }
    });
    std::os::unix::fs::symlink("..2", root.join("..data_tmp")).unwrap();
    std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.expect("a new generation").unwrap();
    assert_eq!(mode(&store), Mode::Audit);
    follower.abort();
}

mod resources {
    //! Documents that are resources.

    use serde_json::{Value, json};

    use super::*;
    use crate::capacity::policy::DocumentState;
    use crate::k8s::document::resource::{ClusterKind, Kind, NamespaceKind, OfKind, PolicyObject};

    fn object<K: OfKind>(name: &str, namespace: Option<&str>, spec: Value) -> PolicyObject<K> {
        let metadata = json!({"name": name, "namespace": namespace, "uid": "u", "generation": 1});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn cluster_policy(spec: Value) -> PolicyObject<ClusterKind> {
        object("cluster", None, spec)
    }

    fn of_ml(spec: Value) -> PolicyObject<NamespaceKind> {
        object("default", Some("ml"), spec)
    }

    fn file(mode: &str) -> Files {
        vec![("cluster.yaml".into(), cluster(mode))]
    }

    fn following(files: &Files) -> PolicyStore {
        PolicyStore::new(files, "own").unwrap().awaiting(&Kind::ALL)
    }

    fn list_ends(store: &PolicyStore) {
        for kind in Kind::ALL {
            let states = store.inputs.lock().resources.names(kind);
            store.listed(kind, &states);
        }
    }

    fn states(store: &PolicyStore) -> Vec<DocumentState> {
        store.states().borrow().iter().map(|state| state.state.clone()).collect()
    }

    fn is_known(store: &PolicyStore) -> bool {
        *store.known.borrow()
    }

    #[test]
    fn nothing_is_put_in_force_before_every_kind_has_been_listed() {
        let store = following(&Files::new());
        store.apply(&of_ml(json!({"mode": "Off"})));
        store.listed(Kind::Namespace, &[of_ml(json!({})).resource_name()].into());
        store.put_resources_in_force();
        assert_eq!((store.current().number, is_known(&store)), (1, false));
        store.replace(&file("Warn")).unwrap();
        assert_eq!((store.current().number, is_known(&store)), (1, false), "a changed file waits too");
        list_ends(&store);
        store.put_resources_in_force();
        assert_eq!((mode(&store), is_known(&store)), (Mode::Off, true));
    }

    #[test]
    fn the_built_in_policy_of_the_start_is_not_remembered_as_one_that_was_in_force() {
        let store = following(&Files::new());
        store.apply(&cluster_policy(json!({"mode": "Enforce"})));
        list_ends(&store);
        store.put_resources_in_force();
        let current = store.current();
        let (now, before) = current.of("ml").unwrap();
        assert_eq!((now.mode, before.len()), (Mode::Enforce, 0), "a pod must not pass by a policy that never was");
    }

    #[test]
    fn a_cluster_policy_that_cannot_be_read_is_not_taken_for_none() {
        let store = following(&Files::new());
        store.apply(&cluster_policy(json!({"mode": "Enforced"})));
        list_ends(&store);
        store.put_resources_in_force();
        assert!(!is_known(&store), "without it the built-in policy would refuse nothing");
        assert!(matches!(&states(&store)[..], [DocumentState::Unreadable { earlier_in_force: false, .. }]));
        store.apply(&cluster_policy(json!({"mode": "Enforce"})));
        store.put_resources_in_force();
        assert_eq!((mode(&store), is_known(&store)), (Mode::Enforce, true));
    }

    #[test]
    fn a_file_in_its_place_makes_an_unreadable_cluster_policy_harmless() {
        let store = following(&file("Warn"));
        store.apply(&cluster_policy(json!({"mode": "Enforced"})));
        list_ends(&store);
        store.put_resources_in_force();
        assert_eq!((mode(&store), is_known(&store)), (Mode::Warn, true));
    }

    #[test]
    fn a_version_that_cannot_be_read_leaves_the_last_readable_one_in_force() {
        let store = following(&file("Warn"));
        store.apply(&of_ml(json!({"mode": "Audit"})));
        list_ends(&store);
        store.apply(&of_ml(json!({"mode": "Audit", "headroom": {"percent": 50}})));
        store.put_resources_in_force();
        assert_eq!((mode(&store), store.reload_errors()), (Mode::Audit, 1));
        let [DocumentState::Unreadable { why, earlier_in_force: true }] = &states(&store)[..] else {
            panic!("{:?}", states(&store));
        };
        assert!(why.starts_with("spec.headroom: is for the whole cluster"), "{why}");
        store.delete(&of_ml(json!({})).resource_name());
        store.put_resources_in_force();
        assert_eq!((mode(&store), states(&store).len()), (Mode::Warn, 0));
    }

    #[test]
    fn one_document_that_cannot_be_read_keeps_no_other_from_taking_effect() {
        let store = following(&file("Warn"));
        store.apply(&object::<NamespaceKind>("default", Some("a"), json!({"quota": "much"})));
        store.apply(&of_ml(json!({"mode": "Enforce"})));
        list_ends(&store);
        store.put_resources_in_force();
        assert_eq!((mode(&store), store.current().policies.of("a").unwrap().mode), (Mode::Enforce, Mode::Warn));
    }

    #[test]
    fn a_file_shadows_the_resource_until_it_is_removed() {
        let store = following(&file("Warn"));
        store.apply(&cluster_policy(json!({"mode": "Audit"})));
        list_ends(&store);
        store.put_resources_in_force();
        assert_eq!(mode(&store), Mode::Warn);
        assert_eq!(states(&store), [DocumentState::FileInForce { file: "cluster.yaml".into() }]);
        store.replace(&Files::new()).unwrap();
        assert_eq!(mode(&store), Mode::Audit);
        assert_eq!(states(&store), [DocumentState::InForce { ignored: vec![] }]);
    }

    #[test]
    fn a_document_that_a_list_does_not_name_any_more_is_forgotten() {
        let store = following(&file("Warn"));
        store.apply(&of_ml(json!({"mode": "Audit"})));
        list_ends(&store);
        store.put_resources_in_force();
        store.listed(Kind::Namespace, &Default::default());
        store.put_resources_in_force();
        assert_eq!(mode(&store), Mode::Warn);
    }

    #[test]
    fn changes_in_one_namespace_use_up_nothing_of_what_is_remembered_of_others() {
        let store = following(&file("Warn"));
        list_ends(&store);
        store.put_resources_in_force();
        store.replace(&file("Enforce")).unwrap();
        for number in 0..40 {
            let mode = ["Audit", "Warn"][number % 2];
            store.apply(&object::<NamespaceKind>(
                "default",
                Some("a"),
                json!({"mode": mode, "quota": format!("{number}Gi")}),
            ));
            store.put_resources_in_force();
        }
        let current = store.current();
        let modes = |namespace: &str| -> Vec<Mode> {
            current.of(namespace).unwrap().1.iter().map(|policy| policy.mode).collect()
        };
        assert_eq!(modes("ml"), [Mode::Warn], "the policy of the last two minutes");
        assert_eq!(modes("a").len(), MAX_EARLIER);
    }

    #[test]
    fn a_namespace_that_gets_a_policy_of_its_own_remembers_those_it_had_before() {
        let store = following(&file("Warn"));
        list_ends(&store);
        store.put_resources_in_force();
        store.replace(&file("Audit")).unwrap();
        store.apply(&of_ml(json!({"mode": "Enforce"})));
        store.put_resources_in_force();
        let current = store.current();
        let before: Vec<Mode> = current.of("ml").unwrap().1.iter().map(|policy| policy.mode).collect();
        assert_eq!(before, [Mode::Audit, Mode::Warn]);
    }

    #[test]
    fn a_change_shares_the_policies_that_it_does_not_change() {
        let store = following(&file("Warn"));
        store.apply(&object::<NamespaceKind>("default", Some("a"), json!({"quota": "1Gi"})));
        list_ends(&store);
        store.put_resources_in_force();
        let of_a = |store: &PolicyStore| store.current().policies.of("a").unwrap().clone();
        let before = of_a(&store);
        store.apply(&of_ml(json!({"quota": "2Gi"})));
        store.put_resources_in_force();
        assert!(Arc::ptr_eq(&before, &of_a(&store)));
        store.replace(&vec![("cluster.yaml".into(), cluster("Warn, models: {m: 1Gi}"))]).unwrap();
        assert!(!Arc::ptr_eq(&before, &of_a(&store)), "the catalogue of the cluster is part of it");
    }

    #[test]
    fn a_cluster_policy_that_is_made_anew_and_cannot_be_read_changes_nothing() {
        let store = following(&Files::new());
        store.apply(&cluster_policy(json!({"mode": "Enforce"})));
        list_ends(&store);
        store.put_resources_in_force();
        // Both within one reading, so its absence was never in force.
        store.delete(&cluster_policy(json!({})).resource_name());
        store.apply(&cluster_policy(json!({"mode": "Odd"})));
        store.put_resources_in_force();
        assert_eq!(mode(&store), Mode::Enforce);
        // Meanwhile nothing is put in force, and nothing is said of what waits.
        store.apply(&of_ml(json!({"mode": "Audit"})));
        store.put_resources_in_force();
        assert_eq!(mode(&store), Mode::Enforce);
        assert!(matches!(&states(&store)[..], [DocumentState::Unreadable { .. }]), "{:?}", states(&store));
        store.apply(&cluster_policy(json!({"mode": "Enforce"})));
        store.put_resources_in_force();
        assert_eq!((mode(&store), states(&store).len()), (Mode::Audit, 2));
    }

    #[test]
    fn an_agent_takes_the_policy_that_is_in_force_on_the_server() {
        let with_status = |status: &str| {
            let mut policy = cluster_policy(json!({"mode": "Audit"}));
            policy.conditions = vec![json!({"type": "InForce", "status": status})];
            policy
        };
        let copy = file("Warn");
        let agent = |files: &Files| {
            PolicyStore::new(files, "").unwrap().following_status().awaiting(&[Kind::Cluster, Kind::Inventory])
        };
        let (without, with) = (agent(&Files::new()), agent(&copy));
        for store in [&without, &with] {
            store.apply(&with_status("False"));
            list_ends(store);
            store.put_resources_in_force();
        }
        assert_eq!(mode(&with), Mode::Warn, "the server has a file, and this is its copy");
        assert!(
            without.current().policies == Policies::new(&Default::default(), ""),
            "the server has a file that is not known here"
        );
        for store in [&without, &with] {
            store.apply(&with_status("True"));
            store.put_resources_in_force();
            assert_eq!(mode(store), Mode::Audit, "a copy of a file that the server no longer has");
            // A version that neither can read: both keep the one before.
            let mut newer = cluster_policy(json!({"mode": "Odd"}));
            newer.conditions = vec![json!({"type": "InForce", "status": "False", "reason": "EarlierVersionInForce"})];
            store.apply(&newer);
            store.put_resources_in_force();
            assert_eq!(mode(store), Mode::Audit);
        }
        let started = agent(&copy);
        let mut newer = cluster_policy(json!({"mode": "Odd"}));
        newer.conditions = vec![json!({"type": "InForce", "status": "False", "reason": "EarlierVersionInForce"})];
        started.apply(&newer);
        list_ends(&started);
        started.put_resources_in_force();
        assert!(!is_known(&started), "the server's policy is not known here, so this agent steers nothing");
    }

    #[test]
    fn a_resource_in_a_snapshot_has_a_uid_and_a_file_is_in_force_before_it() {
        let resource = |mode: &str| cluster(mode).replace("{name: c}", "{name: cluster, uid: u-1}");
        let of = |snapshot: &[String]| {
            let snapshot = crate::k8s::snapshot::read(snapshot.iter().map(|text| ("s.yaml", text.as_str()))).unwrap();
            PolicyStore::of_snapshot(&Files::new(), &snapshot, "own")
        };
        assert_eq!(mode(&of(&[resource("Audit")]).unwrap()), Mode::Audit);
        assert_eq!(mode(&of(&[resource("Audit"), cluster("Warn")]).unwrap()), Mode::Warn);
        let error = of(&[resource("Odd")]).unwrap_err().to_string();
        assert!(error.starts_with("s.yaml (ClusterVramPolicy cluster): spec.mode: "), "{error}");
    }
}
