#!/bin/sh
# The first process of a real node's namespaces: arranges the mounts and keeps the container runtime.
#   runtime.sh FOLDER
# The runtime, its shims, the containers and the kubelet share this process namespace and this view of the file system;
# when this process ends, the kernel ends and unmounts all of them, so nothing can be left behind.
set -eu
folder=$1

# Mounts that the kubelet makes for a pod reach the runtime, as on any node.
mount --make-rshared /
# The kubelet's device-plugin folder is fixed, and so are the runtime's sockets and the logs: they are put where they
# cannot meet those of the host.
mount --bind "$folder/kubelet" /var/lib/kubelet
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
# The kubelet sets some knobs of the kernel for the whole machine. Let it set copies.
for knob in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
  kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$knob" ] || continue
  copy=$folder/$(echo "$knob" | tr / .)
  cat "/proc/sys/$knob" >"$copy"
  mount --bind "$copy" "/proc/sys/$knob"
done

# A test may kill it, and on a node it is started again.
while :; do
  containerd --config "$folder/containerd.toml" &
  echo $! >"$folder/containerd.pid"
  wait $! || sleep 0.2
done &
wait # also reaps what lost its parent: the shims
