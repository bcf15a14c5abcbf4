#!/usr/bin/env bash
# Starts the device plugin, or starts it again.
#   plugin.sh kubelet    it registers with the kubelet
#   plugin.sh steered    it registers with the agent: KUBELET_SOCKET
#   plugin.sh            as it did last
set -euo pipefail
. "$(dirname "$0")/env.sh"
how=${1:-$(cat "$W/plugin.how")}
echo "$how" >"$W/plugin.how"
socket=/var/lib/kubelet/device-plugins/kubelet.sock
[ "$how" != steered ] || socket=/var/lib/kubelet/device-plugins/vramguard.sock
[ ! -f "$W/plugin.pid" ] || stop plugin
if [ "$GPU" = nvidia ]; then
  KUBELET_SOCKET=$socket start plugin nvidia-device-plugin --config-file="$W/plugin.yaml" --device-list-strategy=cdi-cri \
    --nvidia-cdi-hook-path="$B/nvidia-cdi-hook" --driver-root=/ --driver-root-ctr-path=/
elif [ -n "${STAND_IN:-}" ]; then
  mkdir -p "$W/stand-in"
  cp "$STAND_IN" "$W/stand-in/libnvidia-ml.so.1"
  KUBELET_SOCKET=$socket LD_LIBRARY_PATH=$W/stand-in DP_DISABLE_HEALTHCHECKS=all start plugin nvidia-device-plugin \
    --config-file="$W/plugin.yaml" --device-discovery-strategy=nvml --device-list-strategy=envvar
else # the test device plugin of ../controlplane
  start plugin deviceplugin --resource=nvidia.com/gpu --gpus="$GPUS" --replicas="$REPLICAS" --preferred-allocation \
    --kubelet-socket="$socket"
fi
