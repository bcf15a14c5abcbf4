#!/usr/bin/env bash
# Packs one program of this machine, and the libraries that it and the driver's libraries need, as a container image.
#   image.sh NAME FOLDER PROGRAM ENTRYPOINT     writes FOLDER.tar, in the format of `docker save`
#
# The driver itself is left out: the container runtime has to bring it, as on any node.
set -euo pipefail
. "$(dirname "$0")/env.sh"
name=$1 folder=$2 program=$3 entrypoint=$4
rm -rf "$folder" && mkdir -p "$folder"/root/{bin,dev,etc,held,lib64,proc,sys,tmp,usr/lib,var}
cp "$program" "$folder/root/bin/"
cp "$B/busybox" "$folder/root/bin/"
for applet in cat ls sh sleep; do ln -s busybox "$folder/root/bin/$applet"; done
loader=$(ldd "$program" | sed -n 's#^[[:space:]]*\(/[^ ]*/ld-linux[^ ]*\) .*#\1#p')
libraries=$(ldd "$program" | sed -n 's#.* => \(/[^ ]*\) .*#\1#p')
system=$(dirname "$(ldd "$program" | sed -n 's#.*libc.so.6 => \(/[^ ]*\) .*#\1#p')")
mkdir -p "$folder/root$system"
for library in $libraries "$system"/lib{m.so.6,dl.so.2,pthread.so.0,rt.so.1,gcc_s.so.1}; do
  cp -L "$library" "$folder/root$system/"
done
cp -L "$loader" "$folder/root$loader"
pack "$name" "$folder" "{\"Entrypoint\": $entrypoint, \"Env\": [\"PATH=/bin\"]}"
