#!/usr/bin/env bash
# etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
#
# There is no kube-proxy. The API server listens on port 443, and the address of its Service is an address of this
# machine, so that the agent finds it from its pod as it does in any cluster.
set -euo pipefail
. "$(dirname "$0")/env.sh"
mkdir -p "$W/keys"
ip link add "$BRIDGE" type bridge 2>/dev/null || true
ip addr add "$IP/24" dev "$BRIDGE" 2>/dev/null || true
ip addr add "$SERVICE_IP/32" dev "$BRIDGE" 2>/dev/null || true
# A bridge without an address of its own takes that of a port, so it would change with each pod, and the agent could not
# reach the API server until its neighbour table has noticed.
ip link set "$BRIDGE" address 02:76:72:61:6d:01
ip link set "$BRIDGE" up

openssl genrsa -out "$W/keys/accounts.key" 2048 2>/dev/null
openssl rsa -in "$W/keys/accounts.key" -pubout -out "$W/keys/accounts.pub" 2>/dev/null
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=kube-apiserver -addext extendedKeyUsage=clientAuth \
  -keyout "$W/keys/kubelet-client.key" -out "$W/keys/kubelet-client.crt" 2>/dev/null
cat >"$W/tokens.csv" <<T
token-admin,admin,admin,"system:masters"
token-manager,system:kube-controller-manager,manager,""
token-scheduler,system:kube-scheduler,scheduler,""
token-node,system:node:$NODE,node,"system:nodes"
T
for user in admin manager scheduler node; do kubeconfig "token-$user" >"$W/$user.kubeconfig"; done

start etcd etcd --data-dir="$W/etcd" --listen-client-urls=http://127.0.0.1:12379 --log-level=warn --unsafe-no-fsync \
  --advertise-client-urls=http://127.0.0.1:12379 --listen-peer-urls=http://127.0.0.1:12380 \
  --initial-advertise-peer-urls=http://127.0.0.1:12380 --initial-cluster=default=http://127.0.0.1:12380
start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:12379 --bind-address=0.0.0.0 --secure-port=443 \
  --advertise-address="$IP" --cert-dir="$W/tls" --endpoint-reconciler-type=none --service-cluster-ip-range=10.96.0.0/24 \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$W/keys/accounts.pub" \
  --service-account-signing-key-file="$W/keys/accounts.key" --token-auth-file="$W/tokens.csv" \
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
  --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate="$W/keys/kubelet-client.crt" \
  --kubelet-client-key="$W/keys/kubelet-client.key" --profiling=false
attempt 60 kubectl get --raw=/readyz
start manager kube-controller-manager --kubeconfig="$W/manager.kubeconfig" --bind-address=127.0.0.1 --cert-dir="$W/tls-manager" \
  --root-ca-file="$W/tls/apiserver.crt" --service-account-private-key-file="$W/keys/accounts.key" --leader-elect=false \
  --use-service-account-credentials=true
start scheduler kube-scheduler --kubeconfig="$W/scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1 \
  --cert-dir="$W/tls-scheduler"
attempt 60 kubectl get serviceaccount default
say "control plane: $(kubectl version 2>/dev/null | tail -n 1)"
