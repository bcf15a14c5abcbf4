#!/usr/bin/env bash
# Runs commands of this folder without a GPU, in namespaces of their own (mounts, processes, network), so that nothing is
# left behind.
#   B=PROGRAMS W=FOLDER local.sh 'COMMANDS'
#
# $B also needs `deviceplugin` of ../controlplane, and ../nvml/fake.rs as libnvml.so.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export B W GPU=none NODE=${NODE:-gpu-0} CGROUP=/vramguard-gpu-test SCRIPTS=$here COMMANDS=$1
export VRAMGUARD_FAKE_NVML=$W/pretend/gpus VRAMGUARD_AGENT_NVML=$W/pretend/libnvml.so KUBECONFIG=$W/admin.kubeconfig
mkdir -p "$W"/{kubelet,pretend,held,bin}
cp "$B/libnvml.so" "$W/pretend/"
cp "$here/pretend.py" "$W/bin/nvidia-smi"
export PATH=$W/bin:$PATH
# shellcheck disable=SC2016 # the inner shell expands it
exec unshare --mount --pid --net --fork --kill-child=KILL --mount-proc bash -c '
set -eu
mount --make-rshared /
mkdir -p /var/lib/kubelet
mount --bind "$W/kubelet" /var/lib/kubelet
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/cdi
# The kubelet sets some knobs of the kernel for the whole machine. It gets copies.
for knob in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
  kernel/keys/root_maxbytes; do
  [ -e "/proc/sys/$knob" ] || continue
  copy=$W/knob.${knob//\//.}
  cat "/proc/sys/$knob" >"$copy"
  mount --bind "$copy" "/proc/sys/$knob"
done
ip link set lo up
"$SCRIPTS/pretend.py" "$VRAMGUARD_FAKE_NVML" &
cd "$SCRIPTS"
eval "$COMMANDS"'
