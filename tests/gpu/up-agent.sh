#!/usr/bin/env bash
# The node agent, by its manifests of the repository.
#   up-agent.sh              it observes
#   up-agent.sh steered      it also chooses the GPUs; KUBELET_SOCKET leads the device plugin to it
#   up-agent.sh takeover     it also chooses the GPUs, and the device plugin is not changed (kubelet 1.37 or newer)
#
# DRIVER=FOLDER: it gets the driver's library from that folder of the node, and not from the RuntimeClass nvidia.
set -euo pipefail
. "$(dirname "$0")/env.sh"
mkdir -p "$W/agent"
place() { realpath --relative-to="$W/agent" "$DEPLOY/$1"; }
{
  echo "apiVersion: kustomize.config.k8s.io/v1beta1"
  echo "kind: Kustomization"
  if [ -n "${DRIVER:-}" ]; then
    echo "resources: [$(place agent-host-driver)]"
  else
    echo "resources: [$(place agent)]"
  fi
  [ -z "${1:-}" ] || echo "components: [$(place components/steering)]"
  # The image is on the node and in no registry.
  cat <<Y
patches:
  - target: {kind: DaemonSet}
    patch: |
      - {op: add, path: /spec/template/spec/containers/0/imagePullPolicy, value: Never}
Y
  [ "${1:-}" != takeover ] || cat <<Y
  - target: {kind: DaemonSet}
    patch: |
      - {op: replace, path: /spec/template/spec/containers/0/args, value: [agent, --steer, --takeover]}
Y
  [ -z "${DRIVER:-}" ] || cat <<Y
  - patch: |
      {apiVersion: apps/v1, kind: DaemonSet, metadata: {name: vramguard-agent, namespace: vramguard-agent},
       spec: {template: {spec: {volumes: [{name: driver, hostPath: {path: "$DRIVER"}}]}}}}
Y
  [ "$GPU" != none ] || cat <<Y
  - target: {kind: DaemonSet}
    patch: |
      - {op: remove, path: /spec/template/spec/runtimeClassName}
  - patch: |
      apiVersion: apps/v1
      kind: DaemonSet
      metadata: {name: vramguard-agent, namespace: vramguard-agent}
      spec:
        template:
          spec:
            containers:
              - name: agent
                env:
                  - {name: VRAMGUARD_AGENT_NVML, value: /pretend/libnvml.so}
                  - {name: VRAMGUARD_FAKE_NVML, value: /pretend/gpus}
                volumeMounts: [{name: pretend, mountPath: /pretend}]
            volumes: [{name: pretend, hostPath: {path: "$W/pretend"}}]
Y
} >"$W/agent/kustomization.yaml"
kubectl apply -f - >/dev/null <<Y
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: nvidia}, handler: nvidia}
Y
kubectl kustomize "$W/agent" >"$W/agent.yaml"
kubectl apply -f "$W/agent.yaml" >"$W/agent-apply.log"
case ${1:-} in
  steered) "$here/plugin.sh" steered ;;
  takeover) [ "$(cat "$W/plugin.how")" = kubelet ] || "$here/plugin.sh" kubelet ;;
esac
if ! kubectl -n vramguard-agent rollout status daemonset/vramguard-agent --timeout="${PATIENCE:-60s}" >/dev/null; then
  kubectl -n vramguard-agent get pods -o wide
  kubectl -n vramguard-agent get events -o custom-columns=R:.reason,M:.message --no-headers | tail -n 5
  kubectl -n vramguard-agent logs daemonset/vramguard-agent --tail=20
  exit 1
fi
state() { kubectl get gpuledger "$NODE" -o "jsonpath=$1"; }
steered() { [ "$(state '{.status.mode}')" = steered ]; }
[ -z "${1:-}" ] || attempt 60 steered || true
say "agent: mode $(state '{.status.mode}'), allocation policy $(state '{.status.agent.allocationPolicy}') $(state '{.status.agent.notSteered}')"
