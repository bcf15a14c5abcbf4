#!/usr/bin/env bash
# The kubelet, the device plugin with time-slicing, and the node's labels.
set -euo pipefail
. "$(dirname "$0")/env.sh"
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then # version 2
  read -ra controllers </sys/fs/cgroup/cgroup.controllers
  for controller in "${controllers[@]}"; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
  done
elif [ "$CGROUP" != / ]; then
  for controller in /sys/fs/cgroup/*/; do mkdir -p "$controller$CGROUP"; done
fi
: >"$W/resolv.conf"
# Nothing is evicted and no image is collected: neither is what is tried here.
cat >/var/lib/kubelet/config.yaml <<J
{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
 "containerRuntimeEndpoint": "unix://$RUNTIME_SOCKET", "address": "$IP", "port": 10250, "healthzPort": 0,
 "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false},
  "x509": {"clientCAFile": "$W/keys/kubelet-client.crt"}}, "authorization": {"mode": "AlwaysAllow"},
 "cgroupDriver": "cgroupfs", "cgroupRoot": "$CGROUP", "enforceNodeAllocatable": [], "failSwapOn": false,
 "failCgroupV1": false, "makeIPTablesUtilChains": false, "resolvConf": "$W/resolv.conf", "oomScoreAdj": 0,
 "registryPullQPS": 0, "kubeAPIQPS": 200, "kubeAPIBurst": 400, "imageGCHighThresholdPercent": 100,
 "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"}}
J
"$here/kubelet.sh"
attempt 60 kubectl wait --for=condition=Ready "node/$NODE" --timeout=1s
cat >"$W/plugin.yaml" <<Y
version: v1
flags:
  migStrategy: none
sharing:
  timeSlicing:
    renameByDefault: false
    failRequestsGreaterThanOne: true
    resources:
      - name: nvidia.com/gpu
        replicas: $REPLICAS
Y
"$here/plugin.sh" kubelet
# GPU Feature Discovery does not run. These are the labels that it writes for this node, as far as vramguard reads them.
if [ "$GPU" = nvidia ]; then
  gpus=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | wc -l)
  memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
  product=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' ' '-')
else
  gpus=$GPUS memory=143771 product=NVIDIA-H200
fi
kubectl label node "$NODE" --overwrite nvidia.com/gpu.present=true "nvidia.com/gpu.count=$gpus" \
  "nvidia.com/gpu.memory=$memory" "nvidia.com/gpu.product=$product-SHARED" "nvidia.com/gpu.replicas=$REPLICAS" \
  nvidia.com/gpu.sharing-strategy=time-slicing >/dev/null
has_replicas() {
  [ "$(kubectl get node "$NODE" -o 'jsonpath={.status.allocatable.nvidia\.com/gpu}')" = $((gpus * REPLICAS)) ]
}
attempt 40 has_replicas
say "node: $(kubectl get node "$NODE" -o 'jsonpath={.status.allocatable.nvidia\.com/gpu} replicas, {.status.nodeInfo.kubeletVersion}, {.status.nodeInfo.osImage}, kernel {.status.nodeInfo.kernelVersion}')"
