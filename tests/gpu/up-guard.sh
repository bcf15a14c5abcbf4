#!/usr/bin/env bash
# vramguard's manifests. The server runs as a process beside the API server, with the token of its service account.
set -euo pipefail
. "$(dirname "$0")/env.sh"
port=18443
mkdir -p "$W/policies"
cp "$DEPLOY/base/policies/cluster.yaml" "$W/policies/"
kubectl kustomize "$DEPLOY" >"$W/guard.yaml"
# All of it but the Deployment, with the address of the process in place of the Service.
python3 - "$W/guard.yaml" "$port" <<'P'
import re
import sys

file, port = sys.argv[1:]
documents = [d for d in open(file).read().split("\n---\n") if not re.search(r"^kind: Deployment$", d, re.M)]


def url(service):
    path = re.search(r"path: (\S+)", service[0])[1]
    return f"    url: https://127.0.0.1:{port}{path}\n"


documents = [re.sub(r"    service:\n(?:      .*\n)+", url, d) for d in documents]
open(file, "w").write("\n---\n".join(documents))
P
kubectl apply -f "$W/guard.yaml" >"$W/guard-apply.log" 2>&1 || { cat "$W/guard-apply.log"; exit 1; }
kubeconfig "$(kubectl create token vramguard -n vramguard-system --duration=2h)" >"$W/guard.kubeconfig"
RUST_LOG=info start guard vramguard serve --kubeconfig "$W/guard.kubeconfig" --policies "$W/policies" \
  --listen 127.0.0.1:$port --metrics-listen 127.0.0.1:18080 --cert-secret vramguard-tls --cert-name 127.0.0.1 \
  --identity gpu-test --drain 1
trusted() { # KIND
  [ -n "$(kubectl get "$1" vramguard -o 'jsonpath={.webhooks[*].clientConfig.caBundle}')" ]
}
published() { [ -n "$(kubectl get node "$NODE" -o 'jsonpath={.status.allocatable.vramguard\.dev/vram}')" ]; }
attempt 60 trusted mutatingwebhookconfiguration
attempt 60 trusted validatingwebhookconfiguration
attempt 40 published
say "vramguard: node has $(kubectl get node "$NODE" -o 'jsonpath={.status.allocatable.vramguard\.dev/vram} of VRAM, {.status.conditions[?(@.type=="VramAccounted")].reason}')"
