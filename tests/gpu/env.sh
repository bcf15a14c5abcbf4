#!/usr/bin/env bash
# Sourced by the scripts of this folder: where things are, and how a process is started and stopped.
#
#   B       programs, see README.md        W    everything that is written
#   GPU     nvidia, or none to try the scripts without a GPU, with GPUS of them that are not there
#   STAND_IN  without a GPU: a stand-in for libnvidia-ml.so.1, with which NVIDIA's device plugin runs, and not the test's
#   DEPLOY  the manifests of the repository
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${B:?the folder with the programs}" "${W:?the folder that everything is written to}"
export B W GPU=${GPU:-nvidia} NODE=${NODE:-gpu-0} IP=${IP:-198.18.77.1} BRIDGE=${BRIDGE:-vgbr0} CGROUP=${CGROUP:-/}
export DEPLOY=${DEPLOY:-$here/../../deploy} REPLICAS=${REPLICAS:-16} GPUS=${GPUS:-2}
export PATH=$B:$B/cni:$PATH KUBECONFIG=$W/admin.kubeconfig
export RUNTIME_SOCKET=/run/containerd/containerd.sock SERVICE_IP=10.96.0.1

say() { echo "[$(date +%T.%3N)] $*"; }

# attempt SECONDS COMMAND...: tries every 0.2 s until the command succeeds.
attempt() {
  local end=$((SECONDS + $1)) what=("${@:2}")
  until "${what[@]}" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { say "gave up: ${what[*]}"; return 1; }
    sleep 0.2
  done
}

# start NAME COMMAND...: in a session of its own, so that it outlives the caller. Its log and id are in $W.
start() {
  setsid "${@:2}" >>"$W/$1.log" 2>&1 </dev/null &
  echo $! >"$W/$1.pid"
}

# stop NAME [SIGNAL]: waits until it has ended.
stop() {
  local id
  id=$(cat "$W/$1.pid")
  kill "-${2:-TERM}" "$id" 2>/dev/null || return 0
  for _ in $(seq 100); do
    kill -0 "$id" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL "$id"
}

# pack NAME FOLDER CONFIG: FOLDER/root as an image in the format of `docker save`, FOLDER.tar.
pack() {
  local digest
  tar -cf "$2/layer.tar" -C "$2/root" .
  digest=$(sha256sum "$2/layer.tar" | cut -d' ' -f1)
  cat >"$2/config.json" <<J
{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]}, "config": $3}
J
  echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$1\"], \"Layers\": [\"layer.tar\"]}]" >"$2/manifest.json"
  tar -cf "$2.tar" -C "$2" manifest.json config.json layer.tar
}

kubeconfig() { # TOKEN
  cat <<Y
{apiVersion: v1, kind: Config, current-context: main, contexts: [{name: main, context: {cluster: main, user: main}}],
 clusters: [{name: main, cluster: {server: "https://$IP:443", certificate-authority: "$W/tls/apiserver.crt"}}],
 users: [{name: main, user: {token: "$1"}}]}
Y
}
