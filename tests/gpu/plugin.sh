#!/usr/bin/env bash
# Starts the device plugin, or starts it again.
#   plugin.sh            it registers with the kubelet
#   plugin.sh steered    it registers with the agent: KUBELET_SOCKET
set -euo pipefail
. "$(dirname "$0")/env.sh"
socket=/var/lib/kubelet/device-plugins/kubelet.sock
[ "${1:-}" != steered ] || socket=/var/lib/kubelet/device-plugins/vramguard.sock
[ ! -f "$W/plugin.pid" ] || stop plugin
if [ "$GPU" = nvidia ]; then
  KUBELET_SOCKET=$socket start plugin nvidia-device-plugin --config-file="$W/plugin.yaml" --device-list-strategy=cdi-cri \
    --nvidia-cdi-hook-path="$B/nvidia-cdi-hook" --driver-root=/ --driver-root-ctr-path=/
else # the test device plugin of ../controlplane
  start plugin deviceplugin --resource=nvidia.com/gpu --gpus=2 --replicas="$REPLICAS" --preferred-allocation \
    --kubelet-socket="$socket"
fi
