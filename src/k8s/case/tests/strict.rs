//! What a case file may not have: fields that a Pod does not have, and nodes that the case does not have.

use super::*;

/// The pod of the first had no container, and the node of the others was refused for a reason that no case is about.
#[test]
fn a_misspelt_field_of_a_pod_and_a_node_that_is_not_there_are_refused_with_their_lines() {
    let text = "
nodes: [{name: gpu-0, memory: 24Gi, replicas: 4}]
cases:
  - name: misspelt
    expect: {verdict: Allow}
    pod:
      metadata: {name: p}
      spec:
        container:
          - name: main
  - name: nowhere
    pod: {spec: {containers: [{name: main, resources: {limits: {nvidia.com/gpu: 1}}}]}}
    expect:
      filter:
        gpu-1: fits
      bind:
        gpu-0: {verdict: Allow}
        gpu-O:
          verdict: Deny
  - name: by reference
    pod: pod.yaml
    expect: {verdict: Allow}
";
    let load: Load<'_> = &|_| Ok("spec: {nodeSelectors: {a: b}}\n".into());
    let errors = errors_with(text, load);
    let expected = [
        "suite.yaml:15: cases[1].expect.filter.gpu-1: there is no node \"gpu-1\"; the case has gpu-0",
        "suite.yaml:18: cases[1].expect.bind.gpu-O: there is no node \"gpu-O\"; the case has gpu-0",
        "suite.yaml:9: cases[0].pod.spec.container: there is no field \"container\" in a Pod here; correct its name, or \
         leave it out",
        "suite.yaml:21: cases[2].pod: pod.yaml: spec.nodeSelectors: there is no field \"nodeSelectors\" in a Pod here; correct \
         its name, or leave it out",
    ];
    assert_eq!(errors, expected);
}
