//! Policies among the objects, and what is missing without them.

use super::*;

fn files(namespace: &str, name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data})
}

#[test]
fn the_policy_files_of_the_cluster_are_read_from_its_config_map_and_no_other_is() {
    let ours = files("vramguard-system", "vramguard-policies", json!({"a.yaml": "kind: x", "b.yaml": "kind: y"}));
    let other = files("ml", "vramguard-policies", json!({"a.yaml": 3}));
    let third = files("vramguard-system", "else", json!({}));
    let reader = read(&[other.clone(), third, ours.clone()]).unwrap();
    let expected = [
        ("c.json (ConfigMap vramguard-policies: a.yaml)".to_owned(), "kind: x".to_owned()),
        ("c.json (ConfigMap vramguard-policies: b.yaml)".to_owned(), "kind: y".to_owned()),
    ];
    assert_eq!(reader.policies(), expected);
    assert!(reader.has_policies());
    assert!(!read(&[other]).unwrap().has_policies());
    let mut live = Reader::new();
    live.add(None, &ours).unwrap();
    assert_eq!(live.policies()[0].0, "ConfigMap vramguard-policies: a.yaml", "as a cluster names them");
}

#[test]
fn an_empty_config_map_is_a_cluster_without_policies_and_not_one_whose_policies_are_missing() {
    for data in [json!({}), Value::Null] {
        let reader = read(&[files("vramguard-system", "vramguard-policies", data)]).unwrap();
        assert!(reader.has_policies() && reader.policies().is_empty());
    }
    let wrong = files("vramguard-system", "vramguard-policies", json!({"a.yaml": 3}));
    let expected = "ConfigMap vramguard-system/vramguard-policies: data.a.yaml: is the number 3, expected a text";
    assert_eq!(error(wrong), expected);
}

#[test]
fn nodes_without_any_pods_lack_them_and_manifests_without_nodes_do_not() {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-0"}});
    let plain = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
    let deployment = workload("apps/v1", "Deployment", "w", json!({}));
    let lacks = |objects: &[Value]| read(objects).unwrap().lacks_pods();
    assert!(lacks(&[node.clone(), deployment.clone()]));
    assert!(!lacks(&[node, plain]), "a pod without a GPU shows that pods were read");
    assert!(!lacks(&[deployment]));
}
