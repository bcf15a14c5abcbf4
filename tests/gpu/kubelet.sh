#!/usr/bin/env bash
# Starts the kubelet, or kills it and starts it again. Its containers run on.
set -euo pipefail
. "$(dirname "$0")/env.sh"
[ ! -f "$W/kubelet.pid" ] || stop kubelet KILL
start kubelet kubelet --config=/var/lib/kubelet/config.yaml --kubeconfig="$W/node.kubeconfig" --hostname-override="$NODE" \
  --node-ip="$IP" --v=2
