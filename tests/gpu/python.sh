#!/usr/bin/env bash
# Packs the Python of this machine and the libraries of its system as the image gpu.test/python:1, for the phase `torch`.
#
# PyTorch itself stays on the machine, under /opt, which the pods mount. The driver is left out: the container runtime has to
# bring it, as on any node.
set -euo pipefail
. "$(dirname "$0")/env.sh"
folder=$W/images/python libraries=/usr/lib/$(uname -m)-linux-gnu
rm -rf "$folder" && mkdir -p "$folder"/root/{dev,etc,held,opt,proc,scripts,sys,tmp,var,usr/bin,usr/lib,usr/lib64}
for name in bin lib lib64; do ln -s "usr/$name" "$folder/root/$name"; done
cp -a /usr/bin/python3* "$folder/root/usr/bin/"
(cd / && tar --exclude='libcuda.so*' --exclude='libnvidia-*' --exclude='*.a' --exclude=__pycache__ -cf - usr/lib/python3* "${libraries#/}") |
  tar -C "$folder/root" -xf -
cp -L /lib64/ld-linux-* "$folder/root/usr/lib64/"
cp "$B/busybox" "$folder/root/usr/bin/"
pack gpu.test/python:1 "$folder" "{\"Env\": [\"PATH=$(dirname "$(command -v python3)"):/usr/bin\"]}"
ctr --address "$RUNTIME_SOCKET" -n k8s.io images import "$folder.tar" >/dev/null
say "image with Python: $(du -m "$folder.tar" | cut -f1) MiB"
