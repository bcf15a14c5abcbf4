#!/usr/bin/env bash
# containerd with CDI and NVIDIA's runtime beside runc, a bridge network, and the images.
set -euo pipefail
. "$(dirname "$0")/env.sh"
mkdir -p "$W/network" "$W/images" /run/containerd /var/run/cdi /etc/cdi /var/lib/kubelet /etc/nvidia-container-runtime
cat >"$W/network/10-bridge.conflist" <<J
{"cniVersion": "1.0.0", "name": "gpu-test", "plugins": [{"type": "bridge", "bridge": "$BRIDGE", "isGateway": true,
 "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "$W/network/addresses", "routes": [{"dst": "0.0.0.0/0"}],
 "ranges": [[{"subnet": "${IP%.*}.0/24", "rangeStart": "${IP%.*}.10", "gateway": "$IP"}]]}}]}
J
cat >"$W/containerd.toml" <<T
version = 3
root = "$W/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "$RUNTIME_SOCKET"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "gpu.test/holder:1"
[plugins.'io.containerd.cri.v1.runtime']
  enable_cdi = true
  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  options = { BinaryName = "$B/runc" }
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
  options = { BinaryName = "$B/nvidia-container-runtime" }
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["$B/cni"]
  conf_dir = "$W/network"
T
cat >/etc/nvidia-container-runtime/config.toml <<T
[nvidia-container-runtime]
mode = "jit-cdi"
runtimes = ["$B/runc"]
# The program of the hooks in the specification that the runtime makes; it may be either of NVIDIA's two.
[nvidia-ctk]
path = "$B/nvidia-cdi-hook"
T
start containerd containerd --config "$W/containerd.toml"
attempt 30 ctr --address "$RUNTIME_SOCKET" version
# The sandbox of each pod is a container too, of the same image: it sleeps until it is told to end.
sandbox='["/bin/sh", "-c", "trap \"exit 0\" TERM; sleep 1000000000 & wait"]'
"$here/image.sh" gpu.test/holder:1 "$W/images/holder" "$B/holder" "$sandbox"
"$here/image.sh" vramguard/vramguard:0.1.0 "$W/images/vramguard" "$B/vramguard" '["/bin/vramguard"]'
for image in holder vramguard; do
  ctr --address "$RUNTIME_SOCKET" -n k8s.io images import "$W/images/$image.tar" >/dev/null
done
say "$(containerd --version); $(runc --version | head -n 1)"
